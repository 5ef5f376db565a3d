"""Engines over the pretend model, checked for leaks when a test ends; a tiny checkpoint for the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.api.successors import write_checkpoint
from tests.engine.fakes import PretendRunner, pretend_engine

from gallium.engine.async_engine import Engine

MakeEngine = Callable[..., tuple[Engine, PretendRunner]]


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    """Makes and starts engines; each must be without a used block when the test is over, unless it died."""
    made: list[Engine] = []

    def make(**changes: int | bool) -> tuple[Engine, PretendRunner]:
        engine, runner = pretend_engine(**changes)
        engine.start()
        made.append(engine)
        return engine, runner

    yield make
    for engine in made:
        if engine.healthy:
            stats = engine.stats()
            assert (stats.running, stats.waiting) == (0, 0)
            assert stats.free_blocks == stats.total_blocks
        engine.shutdown()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with GLM-4.7's tokens and template that answers to order, see tests/api/successors.py."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")
