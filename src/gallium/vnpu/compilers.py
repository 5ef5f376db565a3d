"""Says in words that kernels for the real chip cannot be compiled here: torchair, inductor and Triton-Ascend."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from gallium.vnpu import imports

INSTEAD = "eager, aot_eager, npugraphs and npugraph_ex run"

TORCHAIR = (
    "torchair is not emulated by the virtual NPU: it gives whole graphs to CANN's graph engine (GE), which is not "
    f"here. The backends {INSTEAD}."
)
TRITON = (
    "Triton-Ascend is not emulated by the virtual NPU: its kernels are compiled for the chip. Use operators of "
    "torch_npu in their place."
)
INDUCTOR = (
    "torch.compile with backend inductor is not emulated by the virtual NPU: it makes Triton-Ascend kernels for the "
    f"chip. The backends {INSTEAD}."
)


def attach() -> None:
    """Refuse them from now on, for this process."""
    imports.refuse("torch_npu.dynamo.torchair", TORCHAIR)
    imports.refuse("triton.backends.ascend", TRITON)
    imports.after("torch._inductor.compile_fx", _guard_inductor)


def _guard_inductor() -> None:
    from torch._inductor import compile_fx as module

    compile_fx: Any = module
    real: Callable[..., Any] = compile_fx.compile_fx

    @functools.wraps(real)
    def guarded(model: Any, example_inputs: Sequence[Any], *args: Any, **keywords: Any) -> Any:
        if any(map(_on_npu, (*example_inputs, *model.parameters(), *model.buffers()))):
            raise NotImplementedError(INDUCTOR)
        return real(model, example_inputs, *args, **keywords)

    compile_fx.compile_fx = guarded


def _on_npu(value: Any) -> bool:
    device = getattr(value, "device", None)
    return getattr(device, "type", None) == "npu"
