"""What the interface promises of every backend: the list of ops, and a report that hides no dispatch."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conformance.cases import block_tables, step_of
from tests.models.small_specs import spec_of

from gallium.ops import interface, reference
from gallium.ops.backend import Backend, installed
from gallium.ops.interface import BLOCKS, CORE_OPS, Ops, op_names
from gallium.ops.reference import ReferenceOps

PLUMBING = {
    "upload", "download", "plan", "compile_step", "pack_linear", "pack_heads", "pack_experts", "make_kv_cache",
    "kv_block_bytes", "explain", "like",
}  # fmt: skip


def test_every_method_is_plumbing_a_core_op_or_a_block() -> None:
    methods = {name for name, _ in inspect.getmembers(Ops, inspect.isfunction) if not name.startswith("_")}
    assert methods == PLUMBING | set(op_names())
    assert not set(CORE_OPS) & set(BLOCKS)


def test_core_ops_must_be_written_and_blocks_need_not() -> None:
    assert Ops.__abstractmethods__ == {*CORE_OPS, *PLUMBING} - {
        "all_reduce",
        "all_gather",
        "compile_step",
        "explain",
        "like",
    }


def line_of(module: Any, text: str) -> int:
    source = Path(module.__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(source, 1) if text in line)


def test_explain_says_which_code_runs() -> None:
    rows = {row.op: row for row in ReferenceOps().explain()}
    assert list(rows) == list(op_names())
    assert rows["attend"] == ("attend", "kernel", f"reference.py:{line_of(reference, 'def attend(')}")
    assert rows["moe"] == ("moe", "composed", f"interface.py:{line_of(interface, 'def moe(')}")
    assert {row.how for op, row in rows.items() if op in BLOCKS} == {"composed"}
    assert {row.how for op, row in rows.items() if op in CORE_OPS and not op.startswith("all_")} == {"kernel"}


@pytest.mark.parametrize("backend", [b for b in installed() if b.probe().available], ids=lambda b: b.name)
def test_every_backend_explains_every_op(backend: Backend) -> None:
    ops = backend.open(spec_of("glm-odd").facts, "float32")
    rows = ops.explain()
    assert [row.op for row in rows] == list(op_names())
    assert all((row.how == "composed") == row.where.startswith("interface.py:") for row in rows)


def test_compile_step_is_eager_unless_a_backend_says_otherwise() -> None:
    ops = ReferenceOps()
    tables, _ = block_tables([3], 4)
    step = step_of([(0, 3)], tables)
    seen: list[Any] = []
    run = ops.compile_step(lambda plan: seen.append(plan) or np.ones(2, np.float32), decode_sizes=(1, 2))
    assert run(step).tolist() == [1, 1] and seen == [step]


def test_slots_are_block_times_size_plus_offset() -> None:
    tables = np.array([[4, 1, -1], [0, 7, 2]], np.int32)
    step = step_of([(2, 4), (8, 1)], tables)
    assert step.slots(4).tolist() == [4 * 4 + 2, 4 * 4 + 3, 1 * 4 + 0, 1 * 4 + 1, 2 * 4 + 0]
    assert step.slots(4).dtype == np.int32
