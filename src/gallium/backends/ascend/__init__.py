"""Ascend: torch_npu's fused operators behind the seam."""

from gallium.backends.ascend.backend import backend

__all__ = ["backend"]
