"""Starts every chip that can be emulated, each in a fork of one process that has torch_npu loaded but not used.

torch_npu reads the chip's name when it first uses the device, so that a fork may still choose it.
"""

from __future__ import annotations

import os

from gallium.vnpu import install, loader, soc
from gallium.vnpu.library import core
from gallium.vnpu.options import Options

install(Options())

import torch  # noqa: E402
import torch_npu  # noqa: E402

from gallium.vnpu import ops  # noqa: E402


def use(chip: soc.Soc) -> str:
    """What the chip says of itself and of bfloat16."""
    soc.choose(chip)
    loader._configure(core(), chip, Options(soc=chip.name))
    number = torch_npu.npu.utils.get_soc_version()
    product = (torch.ones(3, 2).npu() @ torch.ones(2, 3).npu()).sum().item()
    memory = torch.npu.get_device_properties(0).total_memory
    try:
        said = str((torch.ones(3, dtype=torch.bfloat16).npu() * 2).sum().item())
    except RuntimeError as error:
        said = " ".join(str(error).split())
    return f"{torch.npu.get_device_name(0)} {number} {product} {memory} {said}"


if __name__ == "__main__":
    ops.load()
    for chip in soc.table().values():
        if (process := os.fork()) == 0:
            print(use(chip), flush=True)
            os._exit(0)
        os.waitpid(process, 0)
