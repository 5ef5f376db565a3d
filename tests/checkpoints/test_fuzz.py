"""Damaged model files of every kind: an error of Gallium's own or a model, and never more memory than the file's."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoints.safetensors_making import write_file

from gallium.checkpoints.safetensors_file import SIZES, read_safetensors
from gallium.errors import CheckpointError

COUNT = 150  # of each kind; thousands were run when this was written
LAYOUTS = st.lists(st.tuples(st.sampled_from(list(SIZES)), st.lists(st.integers(0, 4), max_size=3)), max_size=4)
NUDGES = st.none() | st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(-9, 9) | st.sampled_from([2**48, -1]))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_damaged_models() -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.checkpoints.fuzzing", str(COUNT), "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@settings(deadline=None)
@given(LAYOUTS, NUDGES)
def test_what_is_accepted_covers_the_data_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, layout: list[tuple[str, list[int]]], nudge: tuple[int, int, int] | None
) -> None:
    header: dict[str, Any] = {}
    end = 0
    for number, (dtype, shape) in enumerate(layout):
        start, end = end, end + math.prod(shape) * SIZES[dtype]
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    if nudge is not None and nudge[0] < len(layout):
        header[f"t{nudge[0]}"]["data_offsets"][nudge[1]] += nudge[2]
    data = bytes(i % 251 for i in range(end))
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.unlink(missing_ok=True)
    try:
        tensors = read_safetensors(write_file(path, header, data))
    except CheckpointError:
        assert nudge is not None
        return
    parts = sorted((header[name]["data_offsets"], t.raw().tobytes()) for name, t in tensors.items())
    assert b"".join(part for _, part in parts) == data
    assert all(math.prod(t.shape) * SIZES[t.storage] == t.raw().nbytes for t in tensors.values())
