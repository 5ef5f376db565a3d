"""Bring both witnesses together: the types that the wheel passes and the call sites in the sources."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from .cpp_calls import Call
from .cpp_types import UNKNOWN, infer
from .kinds import NO_TENSOR, NULL, kind_of, kinds_of
from .naming import decorated, parameter_names
from .overrides import NAMES, NEVER_CALLED, POINTERS, VARIANTS

RAW_POINTER = "P"
NOTHING = (NULL, NO_TENSOR)


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
    read: list[str] = field(default_factory=list)  # names whose types the wheel does not show


class Undecided(Exception):
    """Why a function gets no signature."""


def letters(call: Call) -> str:
    """The kinds that the source of one call shows; UNKNOWN where it does not."""
    if call.types:
        return "".join((kind_of(one) or UNKNOWN) if one else UNKNOWN for one in call.types)
    return infer(call)


def agree(passed: str, read: str) -> bool:
    """Whether a call that reads so in the source can be the one that was compiled so."""
    return len(passed) == len(read) and all(
        one in (other, NULL) or other in (UNKNOWN, NO_TENSOR) for one, other in zip(passed, read, strict=True)
    )


def merged(variants: Iterable[str]) -> str:
    """One string of letters for several calls of one length.

    A null pointer gives way to what others pass. Of two widths of integer the narrow one is right for both: the upper
    bits of the register are not defined where a narrow one was passed.
    """
    widths = "cbhwi"
    result: list[str] = []
    for variant in variants:
        result = result or list(variant)
        for at, (old, new) in enumerate(zip(result, variant, strict=True)):
            if (old in NOTHING and new != NULL) or (
                old in widths and new in widths and widths.index(new) < widths.index(old)
            ):
                result[at] = new
            elif old != new and new not in NOTHING and not (old in widths and new in widths):
                raise Undecided(f"call sites disagree: {sorted(variants)}")
    return "".join(result)


def witnessed(name: str, passed: set[str], read: dict[Call, str]) -> set[str]:
    """The kinds that both witnesses know, or the only one that knows them all."""
    if name in NAMES and passed:
        return passed
    if not read:
        raise Undecided(f"types {sorted(passed)} are known from the wheel, names are not" if passed else "no call site")
    if not passed:
        found = {kinds for kinds in read.values() if UNKNOWN not in kinds}
        if not found:
            raise Undecided(f"types not inferred: {sorted(set(read.values()))}")
        return found
    both = {one for one in passed if any(agree(one, other) for other in read.values())}
    if not both:
        raise Undecided(f"the wheel passes {sorted(passed)}, the sources {sorted(set(read.values()))}")
    return both


def sign(name: str, passed: set[str], read: dict[Call, str]) -> Signature:
    found = witnessed(name, passed, read)
    if name in VARIANTS:
        found = {one for one in found if len(one) == VARIANTS[name][0]}
    if len({len(one) for one in found}) != 1:
        raise Undecided(f"call sites pass different numbers of arguments: {sorted(found)}")
    kinds = merged(sorted(found))
    for at, (letter, _) in POINTERS.get(name, {}).items():
        if kinds[at] not in NOTHING:
            raise Undecided(f"argument {at + 1} is not always null: {kinds}; take it out of POINTERS")
        kinds = kinds[:at] + letter + kinds[at + 1 :]
    kinds = kinds.replace(NULL, RAW_POINTER).replace(NO_TENSOR, "T")
    if name in NAMES:
        parameters, source = NAMES[name]
        return Signature(name, kinds, tuple(parameters.split()), source)
    fitting = [call for call in read if len(call.arguments) == len(kinds)]
    best = min(fitting, key=lambda call: decorated(call.arguments))
    return Signature(name, kinds, tuple(parameter_names(best.arguments)), best.source)


def note(name: str, passed: set[str], read: dict[Call, str]) -> str:
    """What a reader should know about the decision on this function; "" if there was none to take."""
    parts = [VARIANTS[name][1]] if name in VARIANTS else []
    if len(passed) > 1:
        parts.append(f"the wheel passes {sorted(passed)}")
    strangers = sorted(
        {call.source for call, kinds in read.items() if passed and not any(agree(p, kinds) for p in passed)}
    )
    if strangers:
        parts.append(f"not compiled like this: {', '.join(strangers)}")
    return "; ".join(parts)


def build(names: list[str], passed: dict[str, set[tuple[str, ...]]], calls: list[Call]) -> Table:
    table = Table()
    by_name: dict[str, dict[Call, str]] = {name: {} for name in names}
    for call in calls:
        if call.name in by_name:
            by_name[call.name][call] = letters(call)
    for name, read in by_name.items():
        kinds = {kinds_of(types) for types in passed.get(name, ())}
        known = {one for one in kinds if one is not None}
        try:
            if name in NEVER_CALLED:
                raise Undecided(NEVER_CALLED[name])
            if len(known) != len(kinds):
                raise Undecided(f"unknown C++ type among {sorted(passed[name])}")
            table.signatures[name] = sign(name, known, read)
        except Undecided as reason:
            table.left_out[name] = str(reason)
        else:
            if text := note(name, known, read):
                table.notes[name] = text
            if not known:
                table.read.append(name)
    return table
