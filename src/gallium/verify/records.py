"""Records of runs that people contribute: who vouches for which op on which chip, and what counts as hardware."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gallium.errors import UsageError
from gallium.ops.interface import op_names

SCHEMA = 1
KIND = "gallium verification record"
FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int, "kind": str, "date": str, "gallium": str, "signed_by": str, "model": str, "arch": str,
    "backend": str, "precision": str, "emulated": bool, "soc": str, "facts": dict, "against": dict, "verdict": str,
    "ops": dict, "logits": (dict, type(None)), "greedy": list, "prompt_tokens": list, "hash": str,
}  # fmt: skip
UNKNOWN = "unknown"


def record_of(result: Mapping[str, Any], signed_by: str) -> dict[str, Any]:
    """A record of one comparison (`results.result_of`). Its hash shows a later change of any field."""
    tested = result["tested"]
    facts: dict[str, str] = tested["facts"]
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "date": result["date"],
        "gallium": result["gallium"],
        "signed_by": signed_by.strip(),
        "model": result["model"],
        "arch": result["arch"],
        "backend": tested["backend"],
        "precision": tested["precision"],
        "emulated": tested["emulated"],
        "soc": facts.get("chip", UNKNOWN).partition(",")[0],
        "facts": facts,
        "against": result["against"],
        "prompt_tokens": result["prompt_tokens"],
        "verdict": result["verdict"],
        "ops": {
            row["op"]: {key: row[key] for key in ("verdict", "calls", "error", "mean", "allowed")}
            for row in result["ops"]
        },
        "logits": result["logits"],
        "greedy": result["greedy"],
    }
    return {**record, "hash": content_hash(record)}


def content_hash(record: Mapping[str, Any]) -> str:
    """SHA-256 of all fields but `hash`, in one fixed form."""
    content = {key: value for key, value in record.items() if key != "hash"}
    form = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return "sha256:" + hashlib.sha256(form.encode()).hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """One record from a file. Raises UsageError, naming the file, for what is none or was changed afterwards."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise UsageError(f"{path} is no record: {cause}.") from None
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise UsageError(f"{path} is no record of `gallium verify --record`.")
    if record.get("schema") != SCHEMA:
        raise UsageError(f"{path} has schema {record.get('schema')!r}, known is {SCHEMA}: update Gallium.")
    faults = [name for name, kind in FIELDS.items() if not isinstance(record.get(name, FIELDS), kind)]
    strangers = sorted(record.keys() - FIELDS.keys())
    if faults or strangers:
        raise UsageError(
            f"{path}: fields that are missing, of another type or unknown: {', '.join(faults + strangers)}."
        )
    unknown = sorted(record["ops"].keys() - set(op_names()))
    if unknown:
        raise UsageError(f"{path}: unknown ops {', '.join(unknown)}.")
    if record["hash"] != content_hash(record):
        raise UsageError(f"{path} was changed after it was written: its hash does not fit.")
    if not record["signed_by"].strip():
        raise UsageError(f"{path} is signed by nobody.")
    return record


def counts_as_hardware(record: Mapping[str, Any]) -> bool:
    """Whether a record can verify anything: real hardware, told to be so by the backend, whose chip is known."""
    marks = (record["emulated"], any("EMULATED" in name for name in record["facts"]), record["soc"] == UNKNOWN)
    return not any(marks)


def entry_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a backend keeps it among its data: an op is "pass" if it is right, drift included."""
    facts = record["facts"]
    return {
        "soc": record["soc"],
        "precision": record["precision"],
        "emulated": not counts_as_hardware(record),
        "cann": facts.get("CANN", UNKNOWN),
        "torch_npu": facts.get("torch_npu", UNKNOWN),
        "driver": facts.get("driver", UNKNOWN),
        "model": record["model"],
        "gallium": record["gallium"],
        "date": record["date"],
        "signed_by": record["signed_by"],
        "hash": record["hash"],
        "ops": {op: "wrong" if row["verdict"] == "wrong" else "pass" for op, row in record["ops"].items()},
    }


def hardware_status(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, str]]]:
    """Chip -> precision -> op -> "verified on hardware" or "wrong on hardware"; a newer record overrules an older one.

    What is not there has only been seen on virtual hardware, or not at all.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for record in sorted(records, key=lambda one: str(one["date"])):
        if counts_as_hardware(record):
            ops = found.setdefault(record["soc"], {}).setdefault(record["precision"], {})
            for op, row in record["ops"].items():
                ops[op] = "wrong on hardware" if row["verdict"] == "wrong" else "verified on hardware"
    return found
