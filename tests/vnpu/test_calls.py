"""How the arguments of a call are read: random signatures, called as torch_npu calls them."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.vnpu.call_signatures import C_TYPES, draw

from gallium.vnpu import loader, signatures
from gallium.vnpu.library import core

NAME = "AdaptiveAvgPool3d"  # any function that has a stub
OK = 0


@pytest.fixture
def seen() -> Iterator[list[tuple[Any, ...]]]:
    """What the body of the borrowed function is called with; its own signature and body come back afterwards."""
    torch.zeros(1, device="npu").add_(1)  # bodies are registered at the first operator
    calls: list[tuple[Any, ...]] = []
    index = loader.function_indices()[NAME]
    loader._set_body(NAME, index, lambda *args: calls.append(args))
    yield calls
    from gallium.vnpu.registry import operators

    core().ga_vnpu_set_signature(index, signatures.table()[NAME].kinds.encode())
    loader._set_body(NAME, index, loader._checked(operators()[NAME]))


def call(kinds: str, values: list[Any]) -> None:
    library = core()
    assert library.ga_vnpu_set_signature(loader.function_indices()[NAME], kinds.encode()) == OK
    first = getattr(library, f"aclnn{NAME}GetWorkspaceSize")
    first.argtypes = [*(C_TYPES[kind] for kind in kinds), ctypes.c_void_p, ctypes.c_void_p]
    size, executor = ctypes.c_uint64(7), ctypes.c_void_p()
    assert first(*values, ctypes.addressof(size), ctypes.addressof(executor)) == OK
    assert size.value == 0 and executor.value
    second = getattr(library, f"aclnn{NAME}")
    second.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p]
    assert second(None, 0, executor, None) == OK


def test_every_argument_arrives(seen: list[tuple[Any, ...]]) -> None:
    # Not with Hypothesis: it looks into all modules, among them one of torch_npu's that then imports torchair.
    for seed in range(400):
        kinds, values = draw(random.Random(seed))
        seen.clear()
        call(kinds, values)
        assert seen == [tuple(values)], kinds
        assert [type(value) for value in seen[0]] == [type(value) for value in values]


@pytest.mark.parametrize("count", [0, 5, 6, 7, 8, 9, 20])
@pytest.mark.parametrize("kind", list("iwhcbdfP"))
def test_one_kind_alone_fills_registers_and_stack(seen: list[tuple[Any, ...]], kind: str, count: int) -> None:
    values = [bool(n % 2) if kind == "b" else float(n) if kind in "df" else n + 1 for n in range(count)]
    call(kind * count, values)
    assert seen == [tuple(values)]


def test_null_handles_are_none_and_null_lists_are_empty(seen: list[tuple[Any, ...]]) -> None:
    library = core()
    index = loader.function_indices()[NAME]
    assert library.ga_vnpu_set_signature(index, b"TSLlIFBs") == OK
    first = getattr(library, f"aclnn{NAME}GetWorkspaceSize")
    first.argtypes = [ctypes.c_void_p] * 10
    size, executor = ctypes.c_uint64(), ctypes.c_void_p()
    assert first(*[None] * 8, ctypes.addressof(size), ctypes.addressof(executor)) == OK
    second = getattr(library, f"aclnn{NAME}")
    second.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p]
    assert second(None, 0, executor, None) == OK
    assert seen == [(None, None, (), (), None, None, None, None)]


def test_an_executor_that_does_not_exist_is_refused() -> None:
    second = getattr(core(), f"aclnn{NAME}")
    second.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p]
    assert second(None, 0, None, None) == 161001
