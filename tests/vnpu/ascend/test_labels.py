"""On the virtual NPU the backend says so wherever it speaks, and does not open on anything else by mistake."""

from __future__ import annotations

import pytest
import torch
from tests.backends.ascend.test_soc import GLM, MOE

from gallium.backends.ascend.backend import AscendBackend
from gallium.errors import BackendError, UsageError
from gallium.ops.handles import Placement

ASCEND = AscendBackend()


def test_emulation_is_the_first_fact() -> None:
    facts = ASCEND.describe()
    assert facts[0].name == "EMULATED"
    assert {fact.name: fact.value for fact in facts}["chip"] == "Ascend910B2, sold as 910B, 64 GiB"
    assert ASCEND.probe().emulated


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_no_op_is_verified(precision: str) -> None:
    rows = ASCEND.support(MOE, precision)  # type: ignore[arg-type]
    assert {row.status for row in rows} == {"unverified"}
    assert all(row.reason.endswith("(virtual only)") for row in rows)


def test_float32_means_float32() -> None:
    torch.npu.matmul.allow_hf32 = True
    ASCEND.open(GLM, "float32")
    assert not torch.npu.matmul.allow_hf32


def test_more_ranks_than_chips() -> None:
    with pytest.raises(BackendError, match="2 ranks need as many Ascend chips, but 1 is here"):
        ASCEND.open(GLM, "bfloat16", placement=Placement(tp=2))
    with pytest.raises(UsageError, match="threads must be at least 1"):
        ASCEND.open(GLM, "bfloat16", threads=0)


def test_a_process_without_the_virtual_npu_that_was_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALLIUM_VNPU", "1")
    monkeypatch.delattr(torch.npu, "is_virtual")
    with pytest.raises(BackendError, match="did not start with it"):
        ASCEND.open(GLM, "bfloat16")
