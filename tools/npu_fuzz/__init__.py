"""Calls operators of the virtual NPU with random legal and illegal arguments: `make npu-fuzz`."""
