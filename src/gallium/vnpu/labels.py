"""Tells a program that asks that its NPU is virtual; the chip's name itself must stay what torch_npu knows."""

from __future__ import annotations

from typing import Any

from gallium.vnpu import imports


def attach() -> None:
    """Once torch_npu is imported: `torch.npu.is_virtual()`, and `virtual` among the properties of a device."""
    imports.after("torch_npu", _label)


def _label() -> None:
    import torch
    import torch_npu

    npu: Any = vars(torch)["npu"]
    npu.is_virtual = is_virtual
    torch_npu._C._NPUDeviceProperties.virtual = property(lambda _properties: True)


def is_virtual() -> bool:
    """Whether the NPU of this process is emulated: always, since only the virtual one has this function."""
    return True
