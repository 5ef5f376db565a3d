"""What keeps a start short leaves the process as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from gallium.starting import on_first_use, uncollected


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """The collector as it was before the test."""
    collects = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if collects else gc.disable)()


def test_what_is_made_meanwhile_is_old_afterwards_and_still_collected() -> None:
    gc.enable()
    with uncollected():
        assert not gc.isenabled()
        loop: list[object] = []
        loop.append(loop)
    assert gc.isenabled() and gc.get_freeze_count() == 0
    assert any(one is loop for one in gc.get_objects(generation=2))
    del loop
    assert gc.collect() > 0


def test_an_error_ends_it_too() -> None:
    gc.enable()
    with pytest.raises(KeyError), uncollected():
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_somebody_stopped_stays_so() -> None:
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()


def test_what_somebody_froze_stays_frozen() -> None:
    gc.enable()
    one: list[object] = []
    gc.freeze()
    with uncollected():
        pass
    assert not any(listed is one for listed in gc.get_objects())  # those that are frozen are not listed


def test_a_name_is_imported_when_it_is_asked_for() -> None:
    find = on_first_use("some.package", {"dumps": "json", "gone": "json"})
    import json

    assert find("dumps") is json.dumps
    with pytest.raises(AttributeError, match=r"module 'some\.package' has no attribute 'other'"):
        find("other")
    with pytest.raises(AttributeError):
        find("gone")
