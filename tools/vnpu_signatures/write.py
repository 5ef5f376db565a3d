"""Write the two data files."""

import textwrap
from pathlib import Path

from .table import Table
from .wheel import ONE_CALL

SIGNATURES = "signatures.tsv"
NAMES = "aclnn_names.txt"


def signatures(table: Table, wheel: str, op_plugin: str, pytorch: str) -> str:
    head = [
        "# What each aclnn function is passed by torch_npu, in order, without workspace size and executor.",
        f"# Types: the calls compiled into the wheel torch_npu {wheel},",
        f"# but for these {len(table.read)}, of which it shows none, the sources:",
        *textwrap.wrap(" ".join(table.read), 118, initial_indent="#   ", subsequent_indent="#   "),
        f"# Parameter names and places: Ascend/op-plugin {op_plugin}"
        + (f", Ascend/pytorch {pytorch} (paths with pytorch/)." if pytorch else "."),
        "# Both are under the BSD-3-Clause license; only facts (names, order, types) are taken from them.",
        "# Written by tools/vnpu_signatures. Kinds: T tensor, L list of tensors, S scalar, l list of scalars,",
        "# I F B array of int64, float, bool, s C string, i w h c integer of 64, 32, 16, 8 bits, b bool, d double,",
        "# f float, P raw pointer; all but numbers may be null.",
        "# name\tkinds\tparameters\tsource",
    ]
    rows = [
        "\t".join((one.name, one.kinds, ",".join(one.parameters), one.source))
        for _, one in sorted(table.signatures.items())
    ]
    return "\n".join(head + rows) + "\n"


def names(found: list[str], wheel: str) -> str:
    head = [
        f"# The aclnn functions that torch_npu {wheel} looks up, without the prefix aclnn, written by",
        "# tools/vnpu_signatures. Each has two phases: aclnnXGetWorkspaceSize and aclnnX. The names marked",
        "# `one call` have no second phase: aclnnX itself does the work and returns the status.",
    ]
    return "\n".join(head + [f"{name} # one call" if name in ONE_CALL else name for name in found]) + "\n"


def write(folder: Path, contents: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(content)
