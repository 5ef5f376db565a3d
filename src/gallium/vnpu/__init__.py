"""The virtual Ascend NPU: CANN's C libraries emulated on the CPU, beneath the real, unmodified torch_npu.

`install()` must run before torch is imported. `gallium npu run` does that for a whole program and its child processes.
"""

from __future__ import annotations

from gallium.vnpu.loader import install, installed

__all__ = ["install", "installed"]
