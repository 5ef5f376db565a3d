"""The checks of several ranks on virtual NPUs that HCCL joins: cut models, idle ranks, fused sums, captured steps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.backends.torch.rank_models import CASES, OTHER
from tests.backends.torch.rank_processes import run_ranks
from tests.vnpu.ascend.rank_integers import CASES as INTEGERS

WORLD = 2
PARTS = {
    "tests.backends.torch.rank_models": [*map(str, CASES[WORLD]), *OTHER],
    "tests.vnpu.ascend.rank_checks": ["check_product_and_sum", "check_captured_steps"],
    "tests.vnpu.ascend.rank_integers": [*INTEGERS],
}


@cache
def output(module: str) -> str:
    """One start of both ranks, which run all of a module's checks."""
    backend = ["ascend"] if module.endswith("rank_models") else []
    variables = {"GALLIUM_VNPU": "1", "GALLIUM_VNPU_DEVICES": str(WORLD), "GALLIUM_VNPU_BANNER_SHOWN": "1"}
    with TemporaryDirectory() as folder:
        return run_ranks(
            module, WORLD, Path(folder) / "meeting", *backend, TORCH_DEVICE_BACKEND_AUTOLOAD="1", **variables
        )


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PARTS.items() for name in names])
def test_ranks_together_are_one_model(module: str, name: str) -> None:
    text = output(module)
    missing = [rank for rank in range(WORLD) if f"ok {rank} {name}\n" not in text]
    assert not missing, f"ranks {missing}:\n{text[-6000:]}"
