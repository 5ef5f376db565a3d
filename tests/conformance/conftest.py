"""The `target` fixture of the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.conformance import targets


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    targets.parametrize(metafunc)


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Iterator[targets.Target]:
    """One backend, precision and level, made current."""
    chosen: targets.Target = request.param
    with chosen.active():
        yield chosen
