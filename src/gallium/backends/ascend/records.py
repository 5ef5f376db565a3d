"""Records of runs on real chips that people have sent in: which op was seen to compute what it should."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


@cache
def records() -> tuple[dict[str, Any], ...]:
    """All of them, from data/verified.json, in the form that `verify.records.entry_of` makes of a record."""
    text = (DATA / "verified.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def verified(soc: str, precision: str) -> dict[str, str]:
    """The ops that passed on this very chip in this precision, each with its run; the newest run counts."""
    found: dict[str, str] = {}
    for record in sorted(records(), key=lambda one: str(one["date"])):
        if record["soc"] != soc or record["precision"] != precision or record["emulated"]:
            continue
        run = f"run of {record['date']} by {record['signed_by']}"
        found |= {op: run for op, verdict in record["ops"].items() if verdict == "pass"}
        found = {op: run for op, run in found.items() if record["ops"].get(op, "pass") == "pass"}
    return found
