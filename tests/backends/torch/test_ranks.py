"""Every way to spread a model over 2 and 4 processes gives the logits and greedy tokens of one process."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from tests.backends.torch.rank_models import CASES, OTHER
from tests.backends.torch.rank_processes import run_ranks

from gallium.backends.torch.collectives import Collectives, connect
from gallium.errors import BackendError
from gallium.ops.handles import ALONE, Placement

CPU = torch.device("cpu")


@cache
def output(world: int) -> str:
    """One start of all ranks, which run every check of their number."""
    with TemporaryDirectory() as folder:
        return run_ranks("tests.backends.torch.rank_models", world, Path(folder) / "meeting")


@pytest.mark.parametrize(("world", "name"), [(n, str(c)) for n, cases in CASES.items() for c in [*cases, *OTHER]])
def test_ranks_together_are_one_model(world: int, name: str) -> None:
    text = output(world)
    missing = [rank for rank in range(world) if f"ok {rank} {name}\n" not in text]
    assert not missing, f"ranks {missing}:\n{text[-6000:]}"


@pytest.mark.parametrize("world", CASES)
def test_ranks_end_well(world: int) -> None:
    text = output(world)
    assert all(f"rank {rank} ended with 0" in text for rank in range(world)), text[-6000:]


# -- alone, and what is refused -------------------------------------------------------


def test_alone_nothing_is_sent() -> None:
    alone, x = connect(ALONE, CPU, "gloo"), torch.ones(2, 3)
    assert alone.all_reduce(x) is x and alone.all_gather(x) is x and alone.exchange(x, [2], [2]) is x
    assert not torch.distributed.is_initialized() and Collectives().placement == ALONE


def test_a_transport_that_is_not_there() -> None:
    with pytest.raises(BackendError, match="no transport 'pigeon' for tensors on cpu"):
        connect(Placement(0, tp=2, rendezvous="tcp://127.0.0.1:1"), CPU, "pigeon")


def test_ranks_must_be_told_where_to_meet() -> None:
    with pytest.raises(BackendError, match=r"rank 1 of 2 was not told where"):
        connect(Placement(1, tp=2), CPU, "gloo")


def test_a_rank_whose_partner_never_comes(tmp_path: Path) -> None:
    meeting = f"file://{tmp_path / 'meeting'}"
    with pytest.raises(BackendError, match="rank 0 of 2 could not meet the others at file://"):
        connect(Placement(0, tp=2, rendezvous=meeting), CPU, "gloo", timedelta(seconds=1))
    assert not torch.distributed.is_initialized()
