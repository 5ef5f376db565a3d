"""The `target` fixture: tests give it targets by indirect parametrization."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.models.targets import Target


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """One target, its instruction-set level in use until the test ends. A missing library is a failure."""
    chosen: Target = request.param
    if chosen.level is None:
        yield chosen
        return
    from gallium.backends.cpu import library

    if chosen.level not in library.available_levels():
        pytest.skip(f"this machine has no {chosen.level}")
    before = library.level()
    library.set_level(chosen.level)
    yield chosen
    library.set_level(before)
