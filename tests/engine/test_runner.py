"""The runner of a model in this process: which decode steps may be captured, and the memory it plans with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gallium.backends.reference import backend as reference
from gallium.engine.assembly import assemble
from gallium.engine.runner import SIZE_GAP, decode_sizes
from gallium.errors import OutOfMemory
from gallium.ops.handles import ALONE, ModelFacts, Placement, Precision
from gallium.ops.reference import ReferenceOps
from gallium.settings import EngineSettings


@given(st.integers(1, 300))
def test_every_batch_fits_a_size_that_is_hardly_larger(max_batch: int) -> None:
    sizes = decode_sizes(max_batch)
    assert list(sizes) == sorted(set(sizes)) and sizes[-1] == max_batch
    for batch in range(1, max_batch + 1):
        assert min(size for size in sizes if size >= batch) - batch < SIZE_GAP


def test_the_sizes_of_the_usual_batch() -> None:
    assert decode_sizes(64) == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    assert decode_sizes(1) == (1,)
    assert decode_sizes(5) == (1, 2, 4, 5)


class Roomy(ReferenceOps):
    """A device with memory of its own, which notes what it is asked to compile."""

    free: int | None = 32 << 20
    asked: tuple[int, ...] | None = None

    def free_bytes(self) -> int | None:
        return self.free

    def compile_step(self, forward: Any, decode_sizes: tuple[int, ...] = ()) -> Callable[..., Any]:
        self.asked = decode_sizes
        return super().compile_step(forward, decode_sizes)


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> Roomy:
    """What the reference backend opens during the test."""
    ops = Roomy()

    def opened(
        model: ModelFacts, precision: Precision, threads: int | None = None, placement: Placement = ALONE
    ) -> Roomy:
        return ops

    monkeypatch.setattr(type(reference), "open", lambda self, *args: opened(*args))
    return ops


@pytest.mark.parametrize(("graphs", "sizes"), [(True, (1, 2, 4, 6)), (False, ())])
def test_the_backend_learns_which_decode_steps_to_capture(
    roomy: Roomy, checkpoint: Path, graphs: bool, sizes: tuple[int, ...]
) -> None:
    settings = EngineSettings(backend="reference", max_batch=6, graphs=graphs, max_context=64)
    assemble(str(checkpoint), settings).close()
    assert roomy.asked == sizes


def test_a_devices_own_memory_holds_the_cache(roomy: Roomy, checkpoint: Path) -> None:
    assembly = assemble(str(checkpoint), EngineSettings(backend="reference", max_batch=1))
    assembly.close()
    assert 0.2 * (32 << 20) < assembly.kv.num_bytes <= 0.25 * (32 << 20)
    roomy.free = 1 << 20
    with pytest.raises(OutOfMemory, match=r"1\.0 MiB are free"):
        assemble(str(checkpoint), EngineSettings(backend="reference"))


def test_the_backends_own_block_size_is_taken_unless_another_is_asked_for(roomy: Roomy, checkpoint: Path) -> None:
    for asked, taken in ((None, Roomy.block_size), (8, 8)):
        assembly = assemble(str(checkpoint), EngineSettings(backend="reference", block_size=asked, max_context=64))
        assembly.close()
        assert assembly.block_size == taken
