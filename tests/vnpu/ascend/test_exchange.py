"""Tokens sent to experts on other virtual NPUs and back, by the fused kernels where they serve, on both chips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.backends.torch.rank_processes import run_ranks

from gallium.backends.ascend import exchange, soc
from gallium.backends.torch.collectives import Collectives
from gallium.ops.handles import AttentionSpec, ModelFacts, MoeSpec, Placement, RopeSpec


@pytest.mark.parametrize(("tp", "chip"), [(1, "Ascend910_9391"), (2, "Ascend910B2")])
def test_two_lanes(tp: int, chip: str, tmp_path: Path) -> None:
    output = run_ranks(
        "tests.vnpu.ascend.exchange_ranks", 2 * tp, tmp_path / "meeting", GALLIUM_VNPU="1",
        GALLIUM_VNPU_DEVICES=str(2 * tp), GALLIUM_VNPU_SOC=chip, TORCH_DEVICE_BACKEND_AUTOLOAD="1",
    )  # fmt: skip
    for precision in ("bfloat16", "int8", "int4"):
        assert output.count(f"ok {precision}: kernels\n") == 2 * tp, output[-6000:]
    assert output.count("ok float32: it sends 16-bit activations only\n") == 2 * tp
    assert output.count("ok too many\n") == 2 * tp


class PretendGroup:
    """Stands for a process group whose communicator has a name."""

    def _get_backend(self, device: torch.device) -> PretendGroup:
        return self

    def get_hccl_comm_name(self, rank: int) -> str:
        return f"group{rank}"


def made(chip: str, hidden: int, moe: MoeSpec, placement: Placement) -> exchange.Exchange:
    attention = AttentionSpec("gqa", 4, 2, 16, 16, 0.25, RopeSpec(8, 1e4, True))
    facts = ModelFacts("glm4_moe", 1, hidden, 128, attention, moe)
    collectives = Collectives(placement, None, PretendGroup())  # type: ignore[arg-type]
    return exchange.Exchange(collectives, facts, soc.find(chip), torch.bfloat16)


GLM_355B = MoeSpec(160, 8, "sigmoid", True, 2.5)


@pytest.mark.parametrize(
    ("chip", "hidden", "moe", "placement", "reason"),
    [
        ("Ascend910B2", 5120, GLM_355B, Placement(0, 1, 8, 8), ""),
        ("Ascend910_9391", 5120, GLM_355B, Placement(0, 4, 4, 16), ""),
        ("Ascend950PR_9589", 5120, GLM_355B, Placement(0, 1, 8, 8), "has no npu_moe_distribute_dispatch_v2"),
        ("Ascend910B2", 5136, GLM_355B, Placement(0, 1, 8, 8), "a hidden size of 5136; it takes 32 to 7168 by 32"),
        ("Ascend910_9391", 512, GLM_355B, Placement(0, 1, 8, 8), "a hidden size of 512"),
        ("Ascend910B2", 5120, GLM_355B, Placement(0, 1, 10, 10), "10 ranks"),
        ("Ascend910B2", 5120, MoeSpec(2048, 8, "sigmoid", True, 1.0), Placement(0, 1, 8, 8), "2048 experts"),
        ("Ascend910B2", 5120, MoeSpec(160, 6, "sigmoid", True, 1.0), Placement(0, 4, 2, 8), "6 choices over 4 ranks"),
    ],
)
def test_what_the_kernels_take(chip: str, hidden: int, moe: MoeSpec, placement: Placement, reason: str) -> None:
    found = made(chip, hidden, moe, placement).refusal
    assert (reason in found) if reason else found == ""


def test_a_batch_is_as_large_as_hccl_s_buffer_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    placement = Placement(0, 1, 8, 8)
    monkeypatch.setenv("HCCL_BUFFSIZE", "")
    assert made("Ascend910B2", 5120, GLM_355B, placement)._most == (98 << 20) // (8 * 8 * 5120 * 2)
    monkeypatch.setenv("HCCL_BUFFSIZE", "2000")
    assert made("Ascend910B2", 5120, GLM_355B, placement)._most == 256
