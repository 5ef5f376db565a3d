"""What is emulated, as data: for `gallium npu doctor` and `gallium npu ops`."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import metadata
from typing import Any

from gallium.vnpu import launch, signatures, soc
from gallium.vnpu.loader import CANN_VERSION, function_indices

COLUMNS = ("name", "status", "limits", "source")
OP_PLUGIN = "https://gitcode.com/Ascend/op-plugin/blob/master/"


def facts() -> dict[str, Any]:
    """Versions and counts. `problem` says why it cannot run here, or is None."""
    problem = launch.missing()
    rows = operator_rows() if problem is None else []
    emulated = sum(row["status"] == "emulated" for row in rows)
    return {
        "torch": _version("torch"),
        "torch_npu": _version("torch_npu"),
        "cann": f"{CANN_VERSION} (emulated)",
        "verified_on_hardware": "0 operators: nothing has been compared with a real NPU yet",
        "exported_functions": len(rows),
        "emulated_functions": emulated,
        "chips": [
            [chip.name, chip.family, f"{chip.memory >> 30} GiB", "yes" if chip.bfloat16 else "no"]
            for chip in soc.table().values()
        ],
        "problem": problem,
    }


@cache
def _emulated() -> dict[str, Any]:
    if "torch" not in sys.modules:
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # only the bodies are looked at
    from gallium.vnpu import ops
    from gallium.vnpu.registry import operators

    ops.load()
    return dict(operators())


def operator_rows() -> list[dict[str, str]]:
    """One row per function that torch_npu looks up."""
    known = signatures.table()
    return [_row(name, known.get(name)) for name in sorted(function_indices())]


def _row(name: str, signature: signatures.Signature | None) -> dict[str, str]:
    operator = _emulated().get(name)
    status = "emulated" if operator else "missing" if signature else "unknown signature"
    limits = []
    if operator and operator.cube:
        limits.append("matrix unit: float16, bfloat16, float32, int8")
    if operator and operator.unused:
        limits.append("no meaning here: " + ", ".join(operator.unused))
    source = signature.source if signature else ""
    return {
        "name": name,
        "status": status,
        "limits": "; ".join(limits),
        "source": source,
        "link": OP_PLUGIN + source.replace(":", "#L") if source.startswith("op_plugin") else "",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
