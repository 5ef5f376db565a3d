"""A fake assembly, its app, and a client that talks to it without a port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from tests.server.fakes import FakeAssembly, fake_assembly

from gallium.engine.step_times import StepTimes
from gallium.server.app import create_app


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not decide how much of a prediction is drafted."""
    monkeypatch.setattr(StepTimes, "observe", lambda self, width, seconds: None)


@pytest.fixture
def fake() -> Iterator[FakeAssembly]:
    """A running fake; no block may be in use when the test is over, unless the engine died."""
    assembly = fake_assembly()
    yield assembly
    if assembly.engine.healthy:
        stats = assembly.settled()
        assert (stats.running, stats.waiting) == (0, 0)
        assert stats.free_blocks == stats.total_blocks
    assembly.engine.shutdown()


@pytest.fixture
async def client(fake: FakeAssembly) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(fake.real()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as made:
        yield made
