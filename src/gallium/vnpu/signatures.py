"""The signature table: what each operator function of CANN is passed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
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
        for name, kinds, parameters, source in _rows(file):
            found[name] = Signature(name, kinds, tuple(filter(None, parameters.split(","))), source)
    for version, name, kinds in _rows("signature_changes.tsv"):
        if version == _wheel():
            found[name] = replace(found[name], kinds=kinds)
    return found


def _rows(file: str) -> Iterator[list[str]]:
    lines = files("gallium.vnpu").joinpath("data", file).read_text(encoding="utf-8").splitlines()
    return (line.split("\t") for line in lines if not line.startswith("#"))


def _wheel() -> str:
    try:
        return metadata.version("torch_npu")
    except metadata.PackageNotFoundError:
        return ""
