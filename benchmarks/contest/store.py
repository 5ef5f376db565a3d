"""Finished cells, kept in a JSON file so that a contest can be stopped and gone on with."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Score:
    """What one contender did in one cell: a figure per round, or why there is none."""

    rounds: list[float] = field(default_factory=list)
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)  # version, memory and the like
    limits: list[dict[str, Any]] = field(default_factory=list)  # what the machine could do around each round

    @property
    def median(self) -> float | None:
        """The middle round; None if there is no figure."""
        return statistics.median(self.rounds) if self.rounds else None

    @property
    def spread(self) -> float | None:
        """(greatest - least) / median: a figure with a wide spread says little."""
        return (max(self.rounds) - min(self.rounds)) / statistics.median(self.rounds) if self.rounds else None


class Store:
    """Cell key -> contender -> Score, and the facts of the machine. Written after every cell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.cells: dict[str, dict[str, Score]] = {
            key: {name: Score(**score) for name, score in scores.items()}
            for key, scores in data.get("cells", {}).items()
        }
        self.limits: list[dict[str, Any]] = data.get("limits", [])
        self.machine: dict[str, Any] = data.get("machine", {})
        self.quality: dict[str, dict[str, Any]] = data.get("quality", {})  # "gallium int4" -> kl_mean, kl_p95, same

    def missing(self, key: str, contenders: list[str]) -> bool:
        """Whether a cell has to be measured: all contenders anew, so that they meet the same machine."""
        return not set(contenders) <= set(self.cells.get(key, {}))

    def put(self, key: str, scores: dict[str, Score]) -> None:
        """Keep a finished cell."""
        self.cells[key] = self.cells.get(key, {}) | scores
        self.save()

    def save(self) -> None:
        """Replace the file, never leaving half of one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        data = {
            "machine": self.machine, "limits": self.limits, "quality": self.quality,
            "cells": {key: {name: asdict(s) for name, s in scores.items()} for key, scores in self.cells.items()},
        }  # fmt: skip
        part.write_text(json.dumps(data, indent=1), encoding="utf-8")
        part.replace(self.path)


def best_peer(scores: dict[str, Score], *, least: bool = False) -> tuple[str, float] | None:
    """Of all but Gallium the one with the best median (`least`: the smallest), and its figure."""
    found = {name: score.median for name, score in scores.items() if name != "gallium" and score.median is not None}
    pick = min if least else max
    return pick(found.items(), key=lambda entry: entry[1]) if found else None
