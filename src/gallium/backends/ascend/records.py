"""Records of runs on real chips that people have sent in: which op was seen to compute what it should."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def records() -> tuple[dict[str, Any], ...]:
    """All records, as `gallium verify --record` writes them, from data/verified.json."""
    text = files("gallium.backends.ascend").joinpath("data/verified.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def verified(soc: str, precision: str) -> dict[str, str]:
    """The ops that passed on this very chip in this precision, each with the run that says so."""
    found: dict[str, str] = {}
    for record in records():
        if record["soc"] == soc and record["precision"] == precision and not record["emulated"]:
            run = f"verified on {soc} with CANN {record['cann']}, torch_npu {record['torch_npu']}"
            found |= {op: run for op, verdict in record["ops"].items() if verdict == "pass"}
    return found
