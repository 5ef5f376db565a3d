"""The chips that can be emulated, and what each has, from data/socs.tsv."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from gallium.vnpu.options import OptionError


@dataclass(frozen=True)
class Soc:
    """One chip. Memory and L2 cache in bytes."""

    name: str
    family: str  # 910, 310P, 910B, 310B, 910_93, 950
    memory: int
    cube_cores: int
    vector_cores: int
    l2_bytes: int
    bfloat16: bool
    float8: bool


# Names that people say for chips whose real name differs; the old chip called 910B is a trap.
_SAID = {
    "Ascend910C": "Ascend910_9391, _9392, _9381, _9382, _9372, _9362 or _9363 (sold as 910C)",
    "Ascend950": "Ascend950PR_9589, for instance",
}

_current: Soc | None = None


@cache
def table() -> dict[str, Soc]:
    """All chips by name."""
    lines = files("gallium.vnpu").joinpath("data/socs.tsv").read_text(encoding="utf-8").splitlines()
    return {soc.name: soc for soc in map(_parse, (line for line in lines if not line.startswith("#")))}


def _parse(line: str) -> Soc:
    name, family, memory, cubes, vectors, l2, bfloat16, float8, _source = line.split("\t")
    gib, mib = 1 << 30, 1 << 20
    return Soc(name, family, int(memory) * gib, int(cubes), int(vectors), int(l2) * mib, bfloat16 == "1", float8 == "1")


def find(name: str) -> Soc:
    """The chip of this name. Raises OptionError that names the known ones."""
    if name in table():
        return table()[name]
    if name in _SAID:
        raise OptionError(f"torch_npu knows no chip {name!r}; say {_SAID[name]}.")
    raise OptionError(f"unknown chip {name!r}; known: {', '.join(table())}.")


def choose(soc: Soc) -> None:
    """Set the chip of this process; the loader does it once."""
    global _current
    _current = soc


def current() -> Soc:
    """The chip that this process emulates."""
    return _current or table()["Ascend910B2"]
