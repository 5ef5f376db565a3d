"""Counts what of PyTorch's own operator database runs on the virtual NPU: `make npu-coverage`."""
