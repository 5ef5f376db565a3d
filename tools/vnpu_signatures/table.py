"""Bring both witnesses together: the types that the wheel passes and the call sites in the sources."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from .cpp_calls import Call
from .kinds import NULL, kinds_of
from .naming import decorated, parameter_names
from .overrides import NAMES, VARIANTS


@dataclass(frozen=True)
class Signature:
    name: str
    kinds: str
    parameters: tuple[str, ...]
    source: str


@dataclass
class Table:
    signatures: dict[str, Signature] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # name → why
    notes: dict[str, str] = field(default_factory=dict)  # name → what was decided


def merged(variants: Iterable[str]) -> str | None:
    """One string of letters for several; a null pointer gives way to any pointer, a narrow integer to a wide one.

    None if they differ in what is read from where.
    """
    result: list[str] = []
    for variant in variants:
        if not result:
            result = list(variant)
        if len(variant) != len(result):
            return None
        for at, (old, new) in enumerate(zip(result, variant, strict=True)):
            if old == NULL or (old in "iwhcb" and new in "iw" and old != new):
                result[at] = new
            elif old != new and new != NULL and not (old in "iw" and new in "iwhcb"):
                return None
    return "".join(result)


def _of_length(variants: set[str], length: int) -> set[str]:
    return {variant for variant in variants if len(variant) == length}


def sign(name: str, passed: set[str], calls: list[Call], inferred: dict[Call, str]) -> Signature | str:
    """The signature of one function, or the reason why there is none."""
    witnesses = passed or {inferred[call] for call in calls if call in inferred}
    if not witnesses:
        return "no call site whose types are known" if calls else "no call site"
    lengths = {len(one) for one in witnesses} & ({len(call.arguments) for call in calls} or set(map(len, witnesses)))
    if name in VARIANTS:
        lengths &= {VARIANTS[name][0]}
    if len(lengths) != 1:
        return f"call sites pass {sorted(lengths)} arguments" if lengths else "the wheel and the sources disagree"
    (length,) = lengths
    kinds = merged(sorted(_of_length(witnesses, length)))
    if kinds is None:
        return f"call sites disagree: {sorted(_of_length(witnesses, length))}"
    if NULL in kinds:
        return f"every call site passes a null pointer for argument {kinds.index(NULL) + 1}: {kinds}"
    fitting = [call for call in calls if len(call.arguments) == length]
    if name in NAMES:
        parameters, where = NAMES[name]
        return Signature(name, kinds, tuple(parameters.split()), where)
    if not fitting:
        return f"types {kinds} are known from the wheel, parameter names are not"
    best = min(fitting, key=lambda call: decorated(call.arguments))
    return Signature(name, kinds, tuple(parameter_names(best.arguments)), best.source)


def build(
    names: list[str], passed: dict[str, set[tuple[str, ...]]], calls: list[Call], inferred: dict[Call, str]
) -> Table:
    by_name: dict[str, list[Call]] = {}
    for call in calls:
        by_name.setdefault(call.name, []).append(call)
    table = Table()
    for name in names:
        letters = {kinds_of(types) for types in passed.get(name, ())}
        if None in letters:
            table.left_out[name] = f"unknown C++ type among {sorted(passed[name])}"
            continue
        signature = sign(name, {one for one in letters if one}, by_name.get(name, []), inferred)
        if isinstance(signature, str):
            table.left_out[name] = signature
        else:
            table.signatures[name] = signature
            if name in VARIANTS:
                table.notes[name] = VARIANTS[name][1]
    return table
