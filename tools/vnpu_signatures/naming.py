"""Turn the argument of a call site into a parameter name: snake_case, without what only the C++ code needs."""

import keyword
import re

# Marks of how op-plugin prepares an argument, not of what it means.
PREFIXES = ("format_", "formatted_", "acl_")
SUFFIXES = (
    "_wrapper",
    "_wrap",
    "_ptr",
    "_char",
    "_str",
    "_opt",
    "_optional",
    "_value",
    "_val",
    "_cp",
    "_copy",
    "_real",
    "_ref",
    "_const",
    "_list_wrapper",
    "_npu",
    "_device",
    "_cast",
    "_attr",
    "_int",
    "_float",
    "_scalar",
    "_broadcasted",
    "_refined",
    "_contiguous",
    "_acltype",
    "_acl_type",
)
TYPE_SUFFIXES = {"_acltype": "_dtype", "_acl_type": "_dtype", "_scalar_type": "_dtype"}


def snake_case(name: str) -> str:
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.sub(r"_+", "_", re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)).lower().strip("_")


def identifier(argument: str) -> str:
    """The last plain identifier of an expression: `attr.dst_type`, `*seed_ptr`, `grads[i]`, `x.value()`."""
    plain = re.sub(r"\[[^\]]*\]|\.value\(\)|\.has_value\(\).*", "", argument)
    words = re.findall(r"[A-Za-z_]\w*", plain)
    return snake_case(words[-1]) if words and not plain.startswith('"') else "value"


def plain_name(argument: str) -> str:
    name = identifier(argument)
    changed = True
    while changed:
        before = name
        for prefix in PREFIXES:
            name = name.removeprefix(prefix) or name
        for suffix in SUFFIXES:
            shorter = name.removesuffix(suffix)
            name = (shorter + TYPE_SUFFIXES.get(suffix, "")) if shorter and shorter != name else name
        changed = name != before
    return name


def parameter_names(arguments: tuple[str, ...]) -> list[str]:
    """One distinct Python identifier for each argument; a plain name that two would share is not shortened."""
    plain = [plain_name(one) for one in arguments]
    names = [short if plain.count(short) == 1 else identifier(one) for short, one in zip(plain, arguments, strict=True)]
    for at, name in enumerate(names):
        if names.index(name) != at:
            names[at] = f"{name}_{at}"
    return [f"{name}_" if keyword.iskeyword(name) else name for name in names]


def decorated(arguments: tuple[str, ...]) -> int:
    """How far the arguments of a call are from plain distinct names: less is better."""
    names = [identifier(one) for one in arguments]
    return sum(plain_name(one) != one for one in arguments) + 2 * (len(names) - len(set(names)))
