"""Random changes of a call's arguments: other shapes, types, strides, values; empty, huge and absurd ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32,
    torch.int64, torch.bool, torch.complex64, torch.uint16,
)  # fmt: skip
INTS = (-(2**63), -(2**31) - 1, -7, -2, -1, 0, 1, 2, 3, 8, 17, 255, 2**31, 2**40, 2**62)
FLOATS = (float("nan"), float("inf"), float("-inf"), -1.0, 0.0, 1e-30, 0.5, 1.0, 1e30)
WORDS = ("", "BSND", "TND", "none", "mean", "tanh", "nonsense", "\0", "x" * 300)
# Elements of a view of one number: more than any device holds, for what must write as many; and what loops may take.
HUGE, MANY = 1 << 45, 1 << 18
SIZES = (0, 0, 1, 1, 2, 3, 5, 8, 16, 33)


def any_tensor(rng: random.Random) -> torch.Tensor:
    """A small tensor of any shape and type, on the CPU."""
    return filled([rng.choice(SIZES) for _ in range(rng.randint(0, 5))], rng.choice(DTYPES), rng)


def filled(shape: list[int] | torch.Size, dtype: torch.dtype, rng: random.Random) -> torch.Tensor:
    """Random values, of integers at times such that no index of that size exists."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    if dtype.is_floating_point or dtype.is_complex:
        return (torch.randn(shape, generator=generator) * rng.choice((0.1, 1.0, 1e4))).to(dtype)
    high = rng.choice((2, 4, 100, 2**31))
    return torch.randint(-high, high, shape, generator=generator).to(dtype)


def changed_tensor(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Another tensor in place of a tensor on the CPU."""
    kind = rng.randrange(6)
    if kind == 0:
        return x.to(rng.choice(DTYPES))
    if kind == 1:
        return any_tensor(rng)
    if kind == 2:
        return filled(x.shape, x.dtype, rng)
    if kind == 3 and x.dim():
        shape = list(x.shape)
        shape[rng.randrange(x.dim())] = rng.choice(SIZES)
        return filled(shape, x.dtype, rng)
    if kind == 4:
        return x.unsqueeze(rng.randint(0, x.dim()))
    return x.flatten()[: rng.choice((0, 1, x.numel()))]


def strided(x: torch.Tensor, rng: random.Random, many: int) -> torch.Tensor:
    """A view of a device tensor with other strides; its shape may change too, up to `many` elements."""
    kind = rng.randrange(7)
    if kind == 0 and x.dim() >= 2:
        return x.transpose(*rng.sample(range(x.dim()), 2))
    if kind == 1 and x.dim():
        return x[..., :: rng.choice((2, 3))]
    if kind == 2 and x.dim():
        return x.narrow(rng.randrange(x.dim()), 0, 0)
    if kind == 3 and x.dim():
        return x[..., :1].expand(x.shape)
    if kind == 4 and x.numel() > 1:
        return x.flatten()[1:]
    if kind == 5 and x.numel():
        return x.flatten()[0].expand(many)
    return x.as_strided((3, 3), (1, 1)) if x.is_contiguous() and x.numel() > 5 else x


_OTHERS: dict[type, Callable[[random.Random], Any]] = {
    bool: lambda rng: rng.choice((True, False, 2, None)),
    int: lambda rng: rng.choice(INTS),
    float: lambda rng: rng.choice(FLOATS),
    str: lambda rng: rng.choice(WORDS),
    torch.dtype: lambda rng: rng.choice(DTYPES),
}


def changed(value: Any, rng: random.Random) -> Any:
    """Another argument in place of `value`."""
    if isinstance(value, torch.Tensor):
        return None if rng.random() < 0.03 else changed_tensor(value, rng)
    if isinstance(value, list | tuple) and value:
        items = list(value)
        items[rng.randrange(len(items))] = changed(rng.choice(items), rng)
        if rng.random() < 0.2:
            items = items[:-1] if rng.random() < 0.5 else [*items, items[-1]]
        return type(value)(items) if type(value) in (list, tuple) else items
    if value is None:
        return rng.choice((None, any_tensor(rng), rng.choice(INTS)))
    return _OTHERS[type(value)](rng) if type(value) in _OTHERS else value


def by_schema(schema: Any, rng: random.Random) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the right kinds for an operator that nothing else is known of."""
    places: list[Any] = []
    names: dict[str, Any] = {}
    for argument in schema.arguments:
        if argument.has_default_value() and rng.random() < 0.7:
            if not argument.kwarg_only:
                places.append(argument.default_value)
            continue
        value = _of_kind(str(argument.type), rng)
        if argument.kwarg_only:
            names[argument.name] = value
        else:
            places.append(value)
    return tuple(places), names


def _of_kind(kind: str, rng: random.Random) -> Any:
    if kind.startswith("Optional["):
        return None if rng.random() < 0.4 else _of_kind(kind[len("Optional[") : -1], rng)
    if kind.startswith("List["):
        return [_of_kind(kind[len("List[") : -1], rng) for _ in range(rng.choice((0, 1, 2, 4)))]
    makers: dict[str, Callable[[], Any]] = {
        "Tensor": lambda: any_tensor(rng),
        "int": lambda: rng.choice(INTS) if rng.random() < 0.3 else rng.randint(0, 4),
        "float": lambda: rng.choice(FLOATS),
        "number": lambda: rng.choice(INTS + FLOATS),
        "bool": lambda: rng.random() < 0.5,
        "str": lambda: rng.choice(WORDS),
    }
    return makers.get(kind, lambda: None)()
