"""Which device a process computes on, and what memory it has left."""

from __future__ import annotations

import torch

from gallium.errors import BackendError, UsageError
from gallium.ops.handles import Placement

OTHER_BACKENDS = {"npu": "ascend"}
"""Devices that a plug-in brings into PyTorch and that have a backend of their own, which can tell emulated ones."""


def choose_device(asked: str | None, placement: Placement) -> torch.device:
    """The device named `asked` (in PyTorch's words), or the accelerator that PyTorch has, or else the CPU.

    Each rank gets an accelerator of its own; on the CPU all ranks share it. Raises UsageError for a name that is none,
    BackendError for a device that cannot be used or does not have enough accelerators.
    """
    if asked is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None or accelerator.type in OTHER_BACKENDS:
            return torch.device("cpu")
        device = torch.device(accelerator.type)
    else:
        device = _named(asked)
    if device.type == "cpu":
        return device
    if device.index is None:
        device = torch.device(device.type, placement.rank)
    elif placement.world > 1:
        raise UsageError(
            f"GALLIUM_TORCH_DEVICE={asked} names one device, but {placement.world} ranks need one each: leave out the "
            "number."
        )
    _try(device, placement)
    return device


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on the device; None where it uses the host's memory (the CPU, Metal)."""
    if device.type in ("cpu", "mps"):
        return None
    free, _ = torch.accelerator.get_memory_info(device)
    kept = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    return int(free) + int(kept)


def _named(asked: str) -> torch.device:
    try:
        device = torch.device(asked)
    except RuntimeError as cause:
        raise UsageError(
            f"GALLIUM_TORCH_DEVICE={asked} is no device that PyTorch knows: {_first_line(cause)}"
        ) from cause
    if device.type in OTHER_BACKENDS:
        raise BackendError(
            f"GALLIUM_TORCH_DEVICE={asked}: such devices have a backend of their own: choose --backend "
            f"{OTHER_BACKENDS[device.type]}."
        )
    return device


def _try(device: torch.device, placement: Placement) -> None:
    """Make the device the current one. Raises BackendError if that, or the smallest tensor on it, fails."""
    try:
        count = torch.accelerator.device_count()
        if 1 < placement.world > count:
            raise BackendError(
                f"{placement.world} ranks need a device each, but PyTorch has {count} of type {device.type!r}: choose "
                "--tp and --dp whose product is at most that, or set GALLIUM_TORCH_DEVICE=cpu."
            )
        torch.accelerator.set_device_index(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as cause:
        raise BackendError(
            f"PyTorch cannot use the device {device}: {_first_line(cause)} Set GALLIUM_TORCH_DEVICE=cpu, or choose "
            "--backend cpu."
        ) from cause


def _first_line(cause: BaseException) -> str:
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
