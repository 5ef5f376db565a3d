"""The CPU backend: native kernels over NumPy memory."""
