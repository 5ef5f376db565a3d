"""Collect docs/records/*.json into the data of the backends they are about; with --check, say whether that is done."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gallium.errors import UsageError
from gallium.verify.records import counts_as_hardware, entry_of, hardware_status, read_record

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "docs" / "records"
DATA = "src/gallium/backends/{backend}/data/verified.json"


def collected(paths: Iterable[Path], root: Path) -> dict[Path, list[dict[str, Any]]]:
    """What each backend's file should hold. Raises UsageError for a record that is damaged, emulated or has no home."""
    homes = {path: [] for path in sorted(root.glob(DATA.format(backend="*")))}
    for path in sorted(paths):
        record = read_record(path)
        if not counts_as_hardware(record):
            raise UsageError(f"{path} is a record of emulated or unknown hardware: it verifies no chip.")
        home = root / DATA.format(backend=record["backend"])
        if home not in homes:
            raise UsageError(f"{path} is about the backend {record['backend']!r}, which keeps no records.")
        homes[home].append(entry_of(record))
    return homes


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is stale")
    check = parser.parse_args().check
    paths = sorted(RECORDS.glob("*.json"))
    try:
        homes = collected(paths, ROOT)
    except UsageError as fault:
        print(fault.message, file=sys.stderr)
        return 1
    stale = [home for home, entries in homes.items() if json.loads(home.read_text(encoding="utf-8")) != entries]
    if check:
        print("\n".join(f"{home} is stale: run tools/collect_records.py" for home in stale) or "records: collected")
        return int(bool(stale))
    for home in stale:
        home.write_text(json.dumps(homes[home], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for chip, precisions in hardware_status(map(read_record, paths)).items():
        for precision, ops in precisions.items():
            print(f"{chip}, {precision}: {', '.join(f'{op} {status}' for op, status in ops.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
