"""The check against what a model reads: one error that names everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.checkpoints.safetensors_making import write_model

from gallium.checkpoints import Checkpoint, open_checkpoint
from gallium.errors import CheckpointError, UnsupportedFormat

EXPECTED = {"a.weight": (2, 3), "b.weight": (3,), "c.weight": (4, 4)}


def checkpoint_of(path: Path, **shapes: tuple[int, ...]) -> Checkpoint:
    tensors = {name.replace("_", "."): np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return open_checkpoint(write_model(path, tensors))


def test_all_there(tmp_path: Path) -> None:
    checkpoint_of(tmp_path, a_weight=(2, 3), b_weight=(3,), c_weight=(4, 4)).check(EXPECTED)


def test_every_kind_of_fault_is_in_one_error(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, a_weight=(3, 2), b_weight=(3,), d_weight=(1,))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check(EXPECTED)
    text = str(caught.value)
    assert "1 missing: c.weight" in text
    assert "1 not used by this model: d.weight" in text
    assert "1 of another shape: a.weight is [3, 2], the config says [2, 3]" in text
    assert str(tmp_path) in text


def test_what_is_ignored_may_be_there_or_not(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, a_weight=(2, 3), b_weight=(3,), c_weight=(4, 4), mtp_weight=(9,))
    checkpoint.check(EXPECTED, ignored={"mtp.weight", "other.weight"})
    with pytest.raises(CheckpointError, match=r"not used by this model: mtp\.weight"):
        checkpoint.check(EXPECTED, ignored={"other.weight"})


def test_long_lists_are_cut_and_counted(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, a_weight=(2, 3))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check({"a.weight": (2, 3)} | {f"layer.{i}": (1,) for i in range(100)})
    text = str(caught.value)
    assert "100 missing: layer.0, layer.1, " in text and "and 92 more" in text and "layer.8" not in text


def test_a_coding_that_cannot_be_computed_with(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path, {"ids": np.zeros((2, 2), np.int64)}))
    with pytest.raises(UnsupportedFormat, match=r"ids \(I64\)"):
        checkpoint.check({"ids": (2, 2)})
    checkpoint.check({}, ignored={"ids"})


def test_asking_for_what_is_not_there(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, a_weight=(2, 3))
    for ask in (checkpoint.weight, checkpoint.shape):
        with pytest.raises(CheckpointError, match=r"no tensor 'b\.weight'"):
            ask("b.weight")
    with pytest.raises(CheckpointError, match="no matrix 0"):
        checkpoint.weight("a.weight", 0)
