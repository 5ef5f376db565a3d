"""An msModelSlim folder of real weights, op by op: on the virtual NPU the same as on the CPU, within one rounding."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import save_file
from tests.golden import reexpress
from tools.make_modelslim import Recipe, make

from gallium.checkpoints import open_checkpoint
from gallium.settings import EngineSettings
from gallium.verify.comparing import compare
from gallium.verify.opening import open_pair

ONE_ROUNDING = 2**-8  # of a result to bfloat16, as a share of a row's largest number
LAYERS = 5  # the first ones of the default model


def write_first_layers(folder: Path) -> Path:
    """They, with embedding and head, as a float checkpoint."""
    later = tuple(f"model.layers.{index}." for index in range(LAYERS, reexpress.LAYERS))
    state = {name: value for name, value in reexpress.llama_state().items() if not name.startswith(later)}
    config = reexpress.COMMON | {"model_type": "llama", "num_hidden_layers": LAYERS}
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_each_product_is_that_of_the_cpu(tmp_path: Path) -> None:
    """Attention is W8A8_DYNAMIC, MLPs are W4A8_DYNAMIC in groups. Both sides get the same rows.

    Then integers and their sums are equal, and what remains is the type of the result. Whole models drift apart as far
    as each is from float32: a row that is rounded otherwise gives other integers.
    """
    source = open_checkpoint(write_first_layers(tmp_path / "float"))
    folder = make(source, tmp_path / "slim", Recipe("w4a8", group_size=64))
    pair = open_pair(str(folder), EngineSettings(backend="ascend"), "cpu", "auto")
    assert (pair.tested.precision, pair.other.precision) == ("int4", "int4")
    rows = compare(pair.tested, pair.other, [[504, 8872, 314]], 0).ops
    products = [row for row in rows if row.op in ("linear", "row_linear", "logits")]
    assert len(products) > 4 * LAYERS
    assert max(row.finding.error for row in products) < ONE_ROUNDING
    assert not [row for row in rows if row.finding.verdict == "wrong"]
