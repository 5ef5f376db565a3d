"""An msModelSlim folder of the default model, op by op: on the virtual NPU the same as on the CPU, within one rounding."""

from __future__ import annotations

from pathlib import Path

from tests.golden import reexpress
from tools.make_modelslim import Recipe, make

from gallium.checkpoints import open_checkpoint
from gallium.settings import EngineSettings
from gallium.verify.comparing import compare
from gallium.verify.opening import open_pair

ONE_ROUNDING = 2**-8  # of a result to bfloat16, as a share of a row's largest number


def test_each_product_is_that_of_the_cpu(tmp_path: Path) -> None:
    """Attention is W8A8_DYNAMIC, MLPs are W4A8_DYNAMIC in groups. Both sides get the same rows.

    Then integers and their sums are equal, and what remains is the type of the result. Whole models drift apart as far
    as each is from float32: a row that is rounded otherwise gives other integers.
    """
    source = open_checkpoint(reexpress.default_gguf())
    folder = make(source, tmp_path / "slim", Recipe("w4a8", group_size=64))
    pair = open_pair(str(folder), EngineSettings(backend="ascend"), "cpu", "auto")
    assert (pair.tested.precision, pair.other.precision) == ("int4", "int4")
    rows = compare(pair.tested, pair.other, [[504, 8872, 314]], 0).ops
    products = [row for row in rows if row.op in ("linear", "row_linear", "logits")]
    assert len(products) > 100
    assert max(row.finding.error for row in products) < ONE_ROUNDING
    assert not [row for row in rows if row.finding.verdict == "wrong"]
