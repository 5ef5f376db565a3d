"""Write the tables of docs/ascend.md from the code and its data; with --check, say whether the page is stale.

The table of ops asks the backend itself, and so needs the virtual NPU: GALLIUM_VNPU=1 python -m tools.write_ascend_docs
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

from gallium.backends.ascend import records, soc
from gallium.cli.shapes import shape_config
from gallium.models.config import read_spec
from gallium.ops.handles import AttentionSpec, Precision, RopeSpec
from gallium.ops.interface import op_names

PAGE = Path(__file__).resolve().parent.parent / "docs" / "ascend.md"
SHAPE = "glm-4.5-air"
# The attention of GLM-5, for the ops that GLM-4.5 has no use for.
LATENT = AttentionSpec("mla_sparse", 64, 64, 192, 256, 0.0625, RopeSpec(64, 1e6, True), 512, 128, 2048)
LATENT_OPS = ("attend_latent", "index_write", "index_topk")
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16", "int8", "int4")
FUNCTIONS = (
    "npu_fused_infer_attention_score", "npu_scatter_pa_kv_cache", "npu_add_rms_norm", "npu_mrope",
    "npu_swiglu", "npu_moe_gating_top_k", "npu_grouped_matmul", "npu_moe_distribute_dispatch_v2", "npu_quant_matmul",
    "npu_mm_all_reduce_base", "NPUGraph",
)  # fmt: skip


def chips() -> str:
    """A row per family: names, precisions, and the functions that tell the families apart."""
    families: dict[str, list[soc.Soc]] = {}
    for chip in soc.table().values():
        families.setdefault(chip.family, []).append(chip)
    model = read_spec(shape_config("glm-edge-1.5b")).facts
    rows = []
    for family, members in families.items():
        names = ", ".join(f"`{chip.name}`" for chip in members)
        good = ", ".join(name for name in PRECISIONS if not members[0].refusal(model, name))
        sold = ", ".join(dict.fromkeys(chip.sold for chip in members))
        missing = [f"`{name}`" for name in FUNCTIONS if not members[0].has(name)]
        rows.append(f"| {family} | {sold} | {names} | {good} | {', '.join(missing) or 'nothing'} |")
    head = "| Family | Sold as | Names in torch_npu | Precisions | Lacks, of what this backend would use |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def ops() -> str:
    """A row per op of a mixture of experts: what computes it, and where that was seen."""
    facts = read_spec(shape_config(SHAPE)).facts
    chip = next(iter(c for c in soc.table().values() if c.family == "910B"))
    from gallium.backends.ascend.ops import op_reasons

    plain, quantised = op_reasons(chip, facts, "bfloat16"), op_reasons(chip, facts, "int8")
    latent = op_reasons(chip, replace(facts, attention=LATENT), "bfloat16")
    for op in LATENT_OPS:
        plain[op] = quantised[op] = latent[op]
    seen: dict[str, list[str]] = {op: [] for op in op_names()}
    for record in records.records():
        for op in records.verified(record["soc"], record["precision"]):
            seen[op].append(f"{record['soc']} ({record['precision']})")
    rows = []
    for op in op_names():
        other = "" if quantised[op] == plain[op] else f"; int8: {quantised[op]}"
        rows.append(f"| `{op}` | {plain[op]}{other} | {', '.join(dict.fromkeys(seen[op])) or 'virtual only'} |")
    return "\n".join(["| Op | Computed by (bfloat16) | Verified on |", "|---|---|---|", *rows])


def page(text: str) -> str:
    """The page with its tables anew; they stand between comments that name them."""
    for name, table in (("chips", chips), ("ops", ops)):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, made=table: f"{found[1]}{made()}\n{found[2]}", text)
        assert count == 1, f"docs/ascend.md has {count} places for {name}"
    return text


def main() -> int:
    """Write the page, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if check:
        print("docs/ascend.md is " + ("up to date" if new == old else "stale: run tools/write_ascend_docs.py"))
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
