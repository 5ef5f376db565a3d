"""The level under test, put back afterwards: it belongs to the process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gallium.backends.cpu import library

LEVELS = library.available_levels()


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction-set level that can be set on this machine."""
    before = library.level()
    library.set_level(request.param)
    yield str(request.param)
    library.set_level(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = library.threads()
    yield
    library.set_threads(before)
