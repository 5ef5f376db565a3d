"""PyTorch as a backend: probe without importing it, support, open, and what it would run on."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from gallium.errors import BackendError, UsageError
from gallium.ops.backend import API_VERSION, KvSupport, Probe, Support
from gallium.ops.handles import ALONE, KvPrecision, ModelFacts, Placement, Precision
from gallium.ops.interface import BLOCKS, Ops, op_names
from gallium.ops.machine import Fact
from gallium.settings import environment

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16")
ON_ACCELERATOR, BY_NAME_ONLY = 10, -1
NODES = {"cu": "/dev/nvidia[0-9]*", "rocm": "/dev/kfd", "xpu": "/dev/dri/renderD*"}
"""What stands in /dev when the accelerators of a build of PyTorch are there, by how its version ends: "2.13.0+xpu"."""
ONLY_CALIBRATED = (
    "8 bits are for checkpoints that are calibrated for them (msModelSlim C8), which --kv-precision auto recognises; "
    "for the rest there is no attention over codes with steps of each token"
)
GLM4_IN_FLOAT16 = (
    "the activations of GLM-4-0414 and Z1 pass 65504, the largest number of float16, and every answer would be '!!!!': "
    "use bfloat16 or float32"
)


class TorchBackend:
    """Plain PyTorch on its accelerator, or on the CPU.

    "auto" takes it only where signs of an accelerator are found that this build of PyTorch can use: on a CPU the
    native kernels are faster, need less memory and are the same in company.
    """

    name = "torch"
    api_version = API_VERSION

    def __init__(self, root: Path = Path("/")) -> None:
        self._accelerators = accelerators(root)
        self.priority = ON_ACCELERATOR if self._accelerators else BY_NAME_ONLY

    def probe(self) -> Probe:
        """Usable where torch is installed; it is not imported for that."""
        if torch_version() is None:
            reason = "PyTorch is not installed: pip install 'gallium[torch]'."
            return Probe(available=False, emulated=False, devices=0, reason=reason)
        return Probe(available=True, emulated=False, devices=max(1, self._accelerators))

    def support(self, model: ModelFacts, precision: Precision) -> list[Support]:
        """Every op in float32, float16 and bfloat16; verified on the CPU."""
        refusal = _refusal(model, precision)
        if refusal:
            return [Support(op, "unsupported", refusal) for op in op_names()]
        how = {op: "composed of core ops" if op in BLOCKS else "plain PyTorch" for op in op_names()}
        if self._accelerators:
            unseen = "no record of a run on this accelerator yet"
            return [Support(op, "unverified", f"{reason} ({unseen})") for op, reason in how.items()]
        return [Support(op, "verified", reason) for op, reason in how.items()]

    def open(
        self, model: ModelFacts, precision: Precision, threads: int | None = None, placement: Placement = ALONE
    ) -> Ops:
        """Ops for one model, or one rank's part of it. `threads` is a setting of the process.

        Raises BackendError with the reasons when an op is unsupported or PyTorch or its device cannot be used,
        UsageError for an impossible thread count or device name.
        """
        refusal = _refusal(model, precision)
        if refusal:
            raise BackendError(f"backend 'torch' cannot run this model in {precision}: {refusal}.")
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}.")
        _import_torch()
        import torch

        from gallium.backends.torch.collectives import connect
        from gallium.backends.torch.device import choose_device
        from gallium.backends.torch.ops import TorchOps

        if threads is not None:
            torch.set_num_threads(threads)
        device = choose_device(environment("GALLIUM_TORCH_DEVICE"), placement)
        transport = torch.distributed.get_default_backend_for_device(device) if placement.world > 1 else ""
        return TorchOps(model, precision, device, connect(placement, device, transport))

    def kv_support(self, model: ModelFacts, precision: Precision) -> list[KvSupport]:
        """That of the weights, and why not the others."""
        others: tuple[KvPrecision, ...] = ("float32", "float16", "bfloat16")
        kept = "it keeps keys and values in the precision of the weights"
        found = [KvSupport(name, "" if name == precision else kept) for name in others]
        return [*sorted(found, key=lambda row: row.refusal), KvSupport("int8", ONLY_CALIBRATED)]

    def describe(self) -> Sequence[Fact]:
        """The version of PyTorch, and the device it would use as far as that can be told without starting it."""
        asked = environment("GALLIUM_TORCH_DEVICE")
        if asked is not None:
            device = f"{asked}, as GALLIUM_TORCH_DEVICE says"
        elif self._accelerators:
            device = f"an accelerator of {self._accelerators} that this build can use"
        else:
            device = "the CPU: no accelerator was found that this build can use"
        return [Fact("PyTorch", torch_version() or "not installed"), Fact("device", device)]


def torch_version() -> str | None:
    """The installed version, such as "2.13.0+cpu"; None without one."""
    try:
        return version("torch") if find_spec("torch") is not None else None
    except (PackageNotFoundError, ValueError):  # ValueError: something that is no package stands under that name
        return None


def accelerators(root: Path = Path("/")) -> int:
    """How many accelerators PyTorch could use, judged by its build and by the device files; nothing is started.

    GALLIUM_TORCH_DEVICE overrules what is found.
    """
    asked = environment("GALLIUM_TORCH_DEVICE")
    if asked is not None:
        return 0 if asked.split(":")[0] == "cpu" else 1
    found = torch_version()
    if found is None:
        return 0
    if sys.platform == "darwin":
        return int(platform.machine() == "arm64")  # Metal is part of every build
    build = found.partition("+")[2] or "cu"  # what PyPI has for Linux
    pattern = next((node for name, node in NODES.items() if build.startswith(name)), None)
    return 0 if pattern is None else len(list(root.glob(pattern.lstrip("/"))))


def _refusal(model: ModelFacts, precision: Precision) -> str:
    """Why a model cannot run in this precision; empty if it can."""
    if precision not in PRECISIONS:
        return f"PyTorch has no products of {precision} weights on every device; it runs {', '.join(PRECISIONS)}"
    if precision == "float16" and model.name == "glm4":
        return GLM4_IN_FLOAT16
    return ""


def _import_torch() -> None:
    """Import torch. Raises BackendError with what torch says.

    torch loads the plug-ins of devices that are installed beside it and fails when one of them does. That of Ascend
    does so without CANN, and is of use to the backend ascend only, so it is left out here.
    """
    if "torch" in sys.modules:
        return
    plug_ins = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD")
    if plug_ins is None and find_spec("torch_npu") is not None:
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    try:
        import_module("torch")
    except Exception as cause:
        raise BackendError(f"PyTorch {torch_version()} does not load: {cause}") from cause


backend = TorchBackend()
