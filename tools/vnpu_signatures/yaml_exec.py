"""Call sites that op-plugin does not write but generates: the `exec:` entries of op_plugin_functions.yaml.

An entry `exec: aclnnX, a, b` passes a and b. `exec: aclnnX` alone passes the arguments of the schema in order (out
arguments last), and for a function that returns new tensors these too, named by the entry's other keys.
`structured_inherit` takes the entry of another function. (Rules: torchnpugen/struct in op-plugin.)
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from .cpp_calls import Call, split_arguments

FILE = "op_plugin/config/op_plugin_functions.yaml"
OPTIONS = {"exec", "new_params", "structured_inherit", "cpu_scalar_op", "cpu_scalar_h2d", "integral_identity_tensor"}
SCHEMA_TYPES = {
    "Tensor": "at::Tensor",
    "Tensor?": "std::optional<at::Tensor>",
    "Tensor[]": "c10::ArrayRef<at::Tensor>",
    "Scalar": "c10::Scalar",
    "Scalar?": "std::optional<c10::Scalar>",
    "Scalar[]": "c10::ArrayRef<c10::Scalar>",
    "int": "long",
    "SymInt": "long",
    "int[]": "c10::ArrayRef<long>",
    "SymInt[]": "c10::ArrayRef<long>",
    "int[]?": "c10::OptionalArrayRef<long>",
    "SymInt[]?": "c10::OptionalArrayRef<long>",
    "float": "double",
    "bool": "bool",
    "bool[]": "c10::ArrayRef<bool>",
    "ScalarType": "c10::ScalarType",
}


def schema_arguments(schema: str) -> dict[str, str]:
    """Parameter name → schema type, without alias marks and lengths, in order."""
    inside = schema[schema.index("(") + 1 : schema.rindex(" -> ")].rstrip()[:-1]
    found = {}
    for part in split_arguments(inside):
        if part != "*":
            kind, name = part.split("=")[0].strip().rsplit(" ", 1)
            found[name] = re.sub(r"\[\d+\]", "[]", re.sub(r"\([a-z]!?\)", "", kind))
    return found


def _passed(entry: dict[str, Any], schema: str, parts: list[str]) -> list[str]:
    if len(parts) > 1:
        return parts[1:]
    names = list(schema_arguments(schema))
    functional = "!)" not in schema.split(" -> ")[0]
    return names + [key for key in entry if key not in OPTIONS] if functional else names


def _call(name: str, passed: list[str], types: dict[str, str], entry: dict[str, Any], source: str) -> Call:
    new = entry.get("new_params") or {}
    cpp = tuple(
        "" if one in new else SCHEMA_TYPES.get(types[one], "") if one in types else "at::Tensor" for one in passed
    )
    return Call(name.removeprefix("aclnn"), tuple(passed), source, types=cpp)


def _calls_of(schema: str, entry: dict[str, Any], source: str) -> Iterator[Call]:
    parts = split_arguments(entry["exec"])
    passed = _passed(entry, schema, parts)
    types = schema_arguments(schema)
    yield _call(parts[0], passed, types, entry, source)
    for branch in entry.get("cpu_scalar_op") or ():
        # A tensor of one element on the CPU goes to the function that takes a scalar in its place.
        yield _call(branch["exec"], passed, types | {branch["param"]: "Scalar"}, entry, source)


def find_exec_entries(root: Path) -> list[Call]:
    text = (root / FILE).read_text()
    lines = {line.strip().removeprefix("- func: "): at for at, line in enumerate(text.splitlines(), 1)}
    content = yaml.safe_load(text)
    entries = [
        entry
        for group in ("official", "custom", "autograd")
        for entry in content.get(group) or ()
        if isinstance(entry.get("gen_opapi"), dict)
    ]
    generated = {entry["func"].split("(")[0]: entry["gen_opapi"] for entry in entries}
    calls: list[Call] = []
    for entry in entries:
        schema = entry["func"]
        own = entry["gen_opapi"]
        chosen = generated.get(own.get("structured_inherit", ""), own)
        in_place = schema.split("(")[0].split(".")[0].endswith("_")
        if "exec" not in chosen or ("structured_inherit" in own and in_place):
            continue  # an in-place function with structured_inherit calls the out form: no call of its own
        calls += _calls_of(schema, chosen, f"{FILE}:{lines.get(schema, 1)}")
    return calls
