"""Turn the argument of a call site into a parameter name: snake_case, without what only the C++ code needs."""

import keyword
import re

# Marks of how op-plugin prepares an argument, not of what it means.
PREFIXES = ("format_", "formatted_", "acl_", "default_")
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
# Variables that hold nothing: what would stand there has no name at this call.
NOTHING = re.compile(r"(?:\w+_)?null(?:_?\w+)?|tmp|temp|empty_\w+")


def snake_case(name: str) -> str:
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.sub(r"_+", "_", re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)).lower().strip("_")


def identifier(argument: str) -> str:
    """The last plain identifier of an expression: `attr.dst_type`, `*seed_ptr`, `grads[i]`, `x.value()`."""
    plain = re.sub(r"\[[^\]]*\]|\.value\(\)|\.has_value\(\).*", "", argument)
    words = re.findall(r"[A-Za-z_]\w*", plain)
    name = snake_case(words[-1]) if words and not plain.startswith('"') else "value"
    return "reserved" if NOTHING.fullmatch(name) else name


def plain_name(argument: str, siblings: frozenset[str] = frozenset()) -> str:
    """The name without marks. `d_value` beside a sibling `d_key` is what belongs to the value tensor: it stays."""
    name = identifier(argument)
    changed = True
    while changed:
        before = name
        for prefix in PREFIXES:
            name = name.removeprefix(prefix) or name
        for suffix in SUFFIXES:
            shorter = name.removesuffix(suffix)
            if shorter and not keyword.iskeyword(shorter) and not _beside_a_key(shorter, siblings):
                name = shorter + (TYPE_SUFFIXES.get(suffix, "") if shorter != name else "")
        changed = name != before
    return name


def _beside_a_key(stem: str, siblings: frozenset[str]) -> bool:
    return any(one.startswith(f"{stem}_key") for one in siblings)


def parameter_names(arguments: tuple[str, ...]) -> list[str]:
    """One distinct Python identifier for each argument; a plain name that two would share is not shortened."""
    full = [identifier(one) for one in arguments]
    plain = [plain_name(one, frozenset(full)) for one in arguments]
    names = [short if plain.count(short) == 1 else long for short, long in zip(plain, full, strict=True)]
    for at, name in enumerate(names):
        if names.index(name) != at:
            names[at] = f"{name}_{at}"
    return [f"{name}_" if keyword.iskeyword(name) else name for name in names]


def decorated(arguments: tuple[str, ...]) -> int:
    """How far the arguments of a call are from plain distinct names: less is better."""
    names = [identifier(one) for one in arguments]
    vague = sum(name in ("reserved", "value", "tmp_item") for name in names)
    marked = sum(plain_name(one) != one for one in arguments)
    return marked + 2 * (len(names) - len(set(names))) + 3 * vague
