"""Writes a report: JSON or one HTML page, and a Chrome trace beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jinja2

from gallium.vnpu.options import PREFIX
from gallium.vnpu.report.recorder import Recorder
from gallium.vnpu.report.summary import summarise

OWNER = f"{PREFIX}_REPORT_OWNER"


def own_path(asked: Path) -> Path:
    """The file of this process: as asked for the first one, with the rank or process number for its children."""
    if os.environ.get(OWNER) == str(os.getpid()):
        return asked
    tag = f"rank{os.environ['RANK']}" if "RANK" in os.environ else f"process{os.getpid()}"
    return asked.with_name(f"{asked.stem}.{tag}{asked.suffix}")


def write(recorder: Recorder, path: Path) -> list[Path]:
    """The files that were written: the report and `<name>.trace.json`."""
    found = summarise(recorder)
    text = json.dumps(found, indent=1) if path.suffix == ".json" else page(found)
    trace = path.with_name(f"{path.stem}.trace.json")
    _replace(path, text)
    _replace(trace, json.dumps({"traceEvents": recorder.trace, "otherData": {"emulated": "times are not a chip's"}}))
    return [path, trace]


def page(found: dict[str, Any]) -> str:
    """The HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gallium.vnpu", "data"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["si"] = si
    return environment.get_template("report.html.j2").render(**found)


def si(number: float) -> str:
    """1234567 -> "1.23 M"."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}".rstrip()
        number /= 1000
    return f"{number:.3g} E"


def _replace(path: Path, text: str) -> None:
    half = path.with_name(path.name + ".part")
    half.write_text(text, encoding="utf-8")
    half.replace(path)
