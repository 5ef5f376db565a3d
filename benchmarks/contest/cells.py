"""What is measured: workloads, and the cells of a table that they give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

Kind = Literal["prefill", "decode", "start", "served"]
PREFILL = (128, 512, 2048, 8192)
CONTEXTS = (128, 2048, 8192)
AFTER = 128  # room behind a context, for what is decoded
BATCHES = (1, 4, 8, 16)
STREAMS = (1, 4, 16)
SMALL_KV = ((1, 2048), (1, 8192), (16, 2048))  # (batch, context) of the cells whose KV cache has 8 bits
LONG = 32768
PRECISIONS = ("bf16", "int8", "int4")


@dataclass(frozen=True)
class Workload:
    """One model. `shape` is that of `gallium bench --shape`; None is the embedded default model, real weights.

    With `layers` it is the default model's shape and random weights, with so many layers and `positions`. `positions`:
    the tokens of its longest context, if cells could ask for more.
    """

    name: str
    what: str
    shape: str | None
    precisions: tuple[str, ...]
    layers: int | None = None
    positions: int | None = None

    def holds(self, tokens: int) -> bool:
        """Whether there is room for so many tokens, and for what is decoded after them."""
        return self.positions is None or tokens + AFTER <= self.positions


WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", "GLM-Edge-1.5B's shape", "glm-edge-1.5b", PRECISIONS),
        Workload("W2", "the embedded default model, SmolLM2-135M-Instruct", None, PRECISIONS, positions=8192),
        Workload("W3", "GLM-4-9B's shape", "glm-4-9b", ("int4",)),
        Workload("W4", "a GLM-4.5-like mixture of experts, 64 experts of 768", "glm-4.5-small", ("int4",)),
        Workload("W2-32k", "6 layers of W2's shape, for a long context", None, ("int4",), 6, LONG + 256),
    )
}


@dataclass(frozen=True, order=True)
class Cell:
    """One number per contender. `size`: tokens of prompt (prefill) or context (decode), or streams (served). `kv`: bits
    of a value in the KV cache."""

    workload: str
    precision: str
    kind: Kind
    batch: int = 1
    size: int = 0
    kv: int = 16

    @property
    def key(self) -> str:
        """How the cell is called on the command line and in the results: `W1/int4/decode/16@2048`, `.../kv8`."""
        tail = {"prefill": f"/{self.size}", "decode": f"/{self.batch}@{self.size}", "served": f"/{self.size}"}
        kept = "" if self.kv == 16 else f"/kv{self.kv}"
        return f"{self.workload}/{self.precision}/{self.kind}{tail.get(self.kind, '')}{kept}"


def all_cells() -> Iterator[Cell]:
    """Every cell there is, the quick ones of a group first."""
    for workload in WORKLOADS.values():
        for precision in workload.precisions:
            facts = (workload.name, precision)
            if workload.layers is not None:
                yield from (Cell(*facts, "decode", 1, LONG, kv) for kv in (16, 8))
                continue
            yield Cell(*facts, "start")
            yield from (Cell(*facts, "prefill", 1, tokens) for tokens in PREFILL if workload.holds(tokens))
            contexts = [context for context in CONTEXTS if workload.holds(context)]
            yield from (Cell(*facts, "decode", batch, context) for context in contexts for batch in BATCHES)
            yield from (Cell(*facts, "served", 1, streams) for streams in STREAMS)
            if workload.name == "W1":
                yield Cell(*facts, "start", kv=8)
                yield from (Cell(*facts, "decode", *rows, 8) for rows in SMALL_KV)


TELLING = (  # about half an hour beside llama.cpp on two cores
    "W1/*/prefill/512", "W1/*/decode/1@128", "W1/*/decode/16@128", "W1/*/start", "W1/int4/decode/1@2048",
    "W1/int4/decode/1@2048/kv8", "W1/*/start/kv8", "W1/int4/served/16", "W2/*/prefill/512", "W2/*/decode/1@128",
    "W2/*/decode/16@128", "W3/int4/prefill/128", "W3/int4/decode/1@128", "W3/int4/decode/4@128",
    "W4/int4/prefill/512", "W4/int4/decode/1@128", "W4/int4/decode/16@128",
)  # fmt: skip
GOALS = (  # what goals.py asks for, two hours
    "W?/*/start", "W1/*/start/kv8", "W1/*/prefill/512", "W1/*/prefill/2048", "W1/*/decode/1@128", "W1/*/decode/1@8192",
    "W?/int4/decode/16@128", "W1/*/served/16", "W3/int4/prefill/512", "W3/int4/prefill/2048", "W3/int4/decode/1@128",
    "W4/int4/prefill/512", "W4/int4/decode/1@128", "W2-32k/*",
)  # fmt: skip
ALONE = ("W1/*/prefill/512", "W1/*/decode/1@128", "W1/*/decode/16@128", "W2/*/prefill/512", "W2/*/decode/1@128")
SETS = {"all": ("*",), "telling": TELLING, "goals": GOALS, "alone": ALONE}


def choose(patterns: Iterable[str]) -> list[Cell]:
    """The cells that a comma-separated choice names: keys, patterns such as `W1/int4/*`, or the name of a set.

    Raises ValueError for one that names nothing.
    """
    cells, chosen = list(all_cells()), set()
    for pattern in patterns:
        wanted = SETS.get(pattern, (pattern,))
        found = {cell for cell in cells for one in wanted if fnmatchcase(cell.key, one)}
        if not found:
            raise ValueError(f"no cell is called {pattern!r}; cells are called as {cells[1].key} or {cells[5].key}.")
        chosen |= found
    return [cell for cell in cells if cell in chosen]


@dataclass
class Group:
    """Cells of one model in one precision and KV precision: contenders are loaded once for all of them."""

    workload: Workload
    precision: str
    kv: int = 16
    cells: list[Cell] = field(default_factory=list)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, what is decoded included."""
        return max([c.size for c in self.cells if c.kind in ("prefill", "decode")], default=512) + AFTER

    @property
    def widest(self) -> int:
        """Most sequences decoded together."""
        return max((c.batch for c in self.cells), default=1)

    @property
    def spare(self) -> int:
        """Sequences beside those that decode, for the prompts whose prefill is timed."""
        return int(any(c.kind == "prefill" for c in self.cells))


def groups(cells: Iterable[Cell]) -> list[Group]:
    """Cells by what must be loaded for them."""
    found: dict[tuple[str, str, int], Group] = {}
    for cell in cells:
        facts = (cell.workload, cell.precision, cell.kv)
        found.setdefault(facts, Group(WORKLOADS[cell.workload], *facts[1:])).cells.append(cell)
    return list(found.values())
