"""Notices the operators that torch_npu itself moves to the CPU: on a real chip each is a copy there and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any

KERNEL_KEYS = (
    "PrivateUse1",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
    "CompositeImplicitAutograd",
)


@cache
def falls_back(operator: Any) -> bool:
    """Whether no kernel is registered for the NPU, so that the operator runs on the CPU."""
    name = operator.name()
    return not any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in KERNEL_KEYS)


class FallbackWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells `notice(what, bytes)` of each operator that torch_npu moves to the CPU. Active until the process ends."""

    def __init__(self, notice: Callable[[str, int], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._notice = notice

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator as it is."""
        keywords = kwargs or {}
        if falls_back(func) and tree_any(_on_npu, (args, keywords)):
            self._notice(f"CPU fallback of {func.name()}", 0)
        return func(*args, **keywords)


def _on_npu(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "npu"
