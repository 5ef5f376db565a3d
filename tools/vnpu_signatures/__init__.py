"""Writes the table of what torch_npu passes to each aclnn function; run it with `python -m`."""
