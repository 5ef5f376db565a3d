"""What of a file one rank brings into memory, counted by the system: its part, and no more than pages around it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.models.hf_tiny import MOE, SMALL

from gallium.checkpoints.opening import open_checkpoint
from gallium.models.catalog import expected_tensors, load_model
from gallium.models.config import read_spec
from gallium.ops.handles import Experts, FloatArray, Linear, Placement, Role, Weight
from gallium.ops.reference import ReferenceOps

MAPS = Path("/proc/self/smaps")
CONFIG = SMALL | MOE | {
    "model_type": "glm4_moe", "hidden_size": 256, "vocab_size": 65536, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64, "moe_intermediate_size": 4096,
    "n_routed_experts": 16, "n_shared_experts": 0,
}  # fmt: skip


class Reading(ReferenceOps):
    """Reads every byte that it is given, and keeps none."""

    def upload(self, array: FloatArray) -> Any:
        return None

    def pack_linear(self, parts: Sequence[Weight], bias: Sequence[Weight] = (), role: Role = "linear") -> Linear:
        assert not any(part.raw().max() for part in parts)
        return Linear(0, 0, None)

    def pack_experts(
        self,
        gate_up: Sequence[Sequence[Weight]],
        down: Sequence[Weight],
        roles: tuple[Role, Role] = ("linear", "linear"),
    ) -> Experts:
        for parts in (*gate_up, down):
            self.pack_linear(parts)
        return Experts(0, 0, 0, None)


def resident(file: Path) -> int:
    """Bytes of a mapped file that this process has touched, and the system's pages around them."""
    regions = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", MAPS.read_text())
    mine = [region for region in regions if region.splitlines()[0].endswith(str(file))]
    return sum(int(re.search(r"^Rss: +(\d+) kB", region, re.MULTILINE)[1]) * 1024 for region in mine)  # type: ignore[index]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """320 MB of zeros, none on the disk: embedding and head of 64 MB each, sixteen experts of 12 MB, little else."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header, at = {}, 0
    for name, shape in expected_tensors(read_spec(CONFIG), ()).items():
        stop = at + 4 * math.prod(shape)
        header[name], at = {"dtype": "F32", "shape": shape, "data_offsets": [at, stop]}, stop
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return folder


@pytest.mark.skipif(not MAPS.exists(), reason="this system does not tell what a process has mapped")
@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (Placement(1, tp=4, ep=4), 0.25),  # a quarter of everything that is large
        (Placement(2, dp=4, ep=4), 0.55),  # embedding and head, and a quarter of the experts
    ],
)
def test_a_rank_touches_its_part_of_the_file(folder: Path, placement: Placement, expected: float) -> None:
    file = folder / "model.safetensors"
    checkpoint = open_checkpoint(folder)
    load_model(checkpoint, read_spec(checkpoint.config), Reading(), placement=placement)
    share = resident(file) / file.stat().st_size
    assert expected - 0.01 <= share <= expected + 0.05, f"{share:.3f}"
