"""Write src/gallium/vnpu/data/{signatures.tsv,aclnn_names.txt} for one release of torch_npu.

    python -m tools.vnpu_signatures --wheel torch_npu-….whl --op-plugin CHECKOUT [--pytorch CHECKOUT]

Run it in the root of the repository, with PyYAML and binutils (c++filt) installed. `--check` writes nothing and fails
if the files are not what it would write. What is left out is printed, with the reason: a function without a signature
raises when it is called, a wrong one would be silent garbage.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from .cpp_calls import find_calls
from .table import Table, build
from .wheel import ONE_CALL, Wheel
from .write import NAMES, SIGNATURES, names, signatures, write
from .yaml_exec import find_exec_entries

DATA = Path(__file__).parents[2] / "src/gallium/vnpu/data"


def commit_of(checkout: Path | None) -> str:
    if checkout is None:
        return ""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "of unknown commit"


def report(table: Table, total: int) -> None:
    print(f"{len(table.signatures)} of {total} names have a signature.")
    for title, lines in (("Left out", table.left_out), ("Decided", table.notes)):
        for name, why in sorted(lines.items()):
            print(f"{title}: {name}: {why}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True, help="a .whl file or the folder it was unpacked to")
    parser.add_argument("--op-plugin", type=Path, required=True, help="a checkout of Ascend/op-plugin")
    parser.add_argument("--pytorch", type=Path, help="a checkout of Ascend/pytorch")
    parser.add_argument("--op-plugin-commit", help="if the checkout is not a git repository")
    parser.add_argument("--pytorch-commit", help="if the checkout is not a git repository")
    parser.add_argument("--output", type=Path, default=DATA)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    given = parser.parse_args()

    wheel = Wheel(given.wheel)
    calls = find_calls(given.op_plugin, "op_plugin") + find_exec_entries(given.op_plugin)
    if given.pytorch:
        calls += find_calls(given.pytorch, "torch_npu", prefix="pytorch/")
    found = wheel.names()
    table = build([name for name in found if name not in ONE_CALL], wheel.passed_types(), calls)
    report(table, len(found))
    op_plugin = given.op_plugin_commit or commit_of(given.op_plugin)
    pytorch = given.pytorch_commit or commit_of(given.pytorch)
    contents = {SIGNATURES: signatures(table, wheel.version, op_plugin, pytorch), NAMES: names(found, wheel.version)}
    if given.check:
        stale = [name for name, text in contents.items() if (given.output / name).read_text() != text]
        print(f"not up to date: {', '.join(stale)}" if stale else "up to date")
        return 1 if stale else 0
    write(given.output, contents)
    return 0


if __name__ == "__main__":
    sys.exit(main())
