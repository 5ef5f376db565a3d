"""Notices the operators that torch_npu itself moves to the CPU: on a real chip each is a copy there and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any

NPU = "PrivateUse1"
COMPOSED = ("CompositeExplicitAutograd", "CompositeImplicitAutograd")
THROUGH_OUT = "CompositeExplicitAutogradNonFunctional"  # a structured operator: it calls its own `out` form


@cache
def falls_back(operator: Any) -> bool:
    """Whether no kernel is registered for the NPU, so that the operator runs on the CPU."""
    if any(_has(operator, key) for key in (NPU, *COMPOSED)):
        return False
    if not _has(operator, THROUGH_OUT):
        return True
    packet = operator._overloadpacket
    forms = [getattr(packet, name) for name in packet.overloads() if name.endswith("out")]
    return not any(_has(form, NPU) for form in forms)


def _has(operator: Any, key: str) -> bool:
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), key)
    return found


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
