"""The signature table: what each operator function of CANN is passed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Signature:
    """kinds: one letter per parameter (T tensor, L list of tensors, S scalar, ...); source: where it is from."""

    name: str
    kinds: str
    parameters: tuple[str, ...]
    source: str


@cache
def table() -> dict[str, Signature]:
    """All known signatures by name: without the prefix aclnn, or whole if the prefix is only acl."""
    found: dict[str, Signature] = {}
    for file in ("signatures.tsv", "acl_functions.tsv"):
        lines = files("gallium.vnpu").joinpath("data", file).read_text(encoding="utf-8").splitlines()
        for name, kinds, parameters, source in (line.split("\t") for line in lines if not line.startswith("#")):
            found[name] = Signature(name, kinds, tuple(filter(None, parameters.split(","))), source)
    return found
