"""What torch_npu says of itself to a program: that the NPU is virtual. The chip's name must stay one that it knows."""

from __future__ import annotations

import sys
from typing import Any

from gallium.vnpu import imports

_REGISTRY = "torch_npu._init.registry.registry_manager"


def attach() -> None:
    """Once torch_npu is imported: `torch.npu.is_virtual()`, and `virtual` among the properties of a device."""
    imports.after("torch_npu", _label)
    imports.after(_REGISTRY, _skip_search_for_cann)


def _label() -> None:
    import torch
    import torch_npu

    npu: Any = vars(torch)["npu"]
    npu.is_virtual = is_virtual
    torch_npu._C._NPUDeviceProperties.virtual = property(lambda _properties: True)


def _skip_search_for_cann() -> None:
    """It would print, among the program's own output, that there is no folder of CANN."""
    vars(sys.modules[_REGISTRY])["_cann_package_check"] = lambda: None


def is_virtual() -> bool:
    """Whether the NPU of this process is emulated: always, since only the virtual one has this function."""
    return True
