"""The CPU backend: native kernels over NumPy memory."""

from gallium.backends.cpu.backend import backend

__all__ = ["backend"]
