"""Compare another wheel of torch_npu with the table: what it passes otherwise, and what the table does not have.

    python -m tools.vnpu_signatures.compare WHEEL

The calls compiled into the wheel are read, without the sources: a difference may be a neighbour's call (see wheel.py),
so look at the call site of that version before believing it. Exits with 1 if there are differences.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .table import kinds_of
from .wheel import ONE_CALL, Wheel
from .write import SIGNATURES

DATA = Path(__file__).parents[2] / "src/gallium/vnpu/data"


def main() -> int:
    wheel = Wheel(Path(sys.argv[1]))
    rows = (line.split("\t") for line in (DATA / SIGNATURES).read_text(encoding="utf-8").splitlines())
    table = {row[0]: row[1] for row in rows if not row[0].startswith("#")}
    stubs = set((DATA / "aclnn_names.txt").read_text(encoding="utf-8").split("\n"))
    names = [name for name in wheel.names() if name not in ONE_CALL]
    passed = wheel.passed_types()
    print(f"torch_npu {wheel.version}: {len(names)} names, {len(passed)} of them with calls that can be read")
    print("without a stub:", " ".join(sorted(set(names) - stubs)) or "none")
    differences = 0
    for name in sorted(set(names) & set(table)):
        kinds = {kinds_of(types) for types in passed.get(name, ())}
        if kinds and table[name] not in kinds:
            differences += 1
            print(f"{name}: the table has {table[name]}, the wheel passes {' or '.join(sorted(map(str, kinds)))}")
    print(f"{differences} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
