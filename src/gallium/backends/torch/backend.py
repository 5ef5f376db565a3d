"""PyTorch as a backend: probe without importing it, support, open, and what it would run on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from gallium.errors import BackendError
from gallium.ops.backend import API_VERSION, Probe, Support
from gallium.ops.handles import ALONE, ModelFacts, Placement, Precision
from gallium.ops.interface import BLOCKS, Ops, op_names

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16")


class TorchBackend:
    """Plain PyTorch on its accelerator, or on the CPU."""

    name = "torch"
    priority = -1
    api_version = API_VERSION

    def probe(self) -> Probe:
        """Usable where torch is installed; it is not imported for that."""
        try:
            version("torch")
            found = find_spec("torch") is not None
        except PackageNotFoundError:
            found = False
        if not found:
            return Probe(False, False, 0, "PyTorch is not installed: pip install 'gallium[torch]'.")
        return Probe(available=True, emulated=False, devices=1)

    def support(self, model: ModelFacts, precision: Precision) -> list[Support]:
        """Every op in float32, float16 and bfloat16."""
        if precision not in PRECISIONS:
            reason = f"plain PyTorch has no products of {precision} weights; it computes in {', '.join(PRECISIONS)}"
            return [Support(op, "unsupported", reason) for op in op_names()]
        how = {op: "composed of core ops" if op in BLOCKS else "PyTorch" for op in op_names()}
        return [Support(op, "verified", reason) for op, reason in how.items()]

    def open(
        self, model: ModelFacts, precision: Precision, threads: int | None = None, placement: Placement = ALONE
    ) -> Ops:
        """Ops for one model. BackendError with the reasons when an op is unsupported or torch cannot be used."""
        refused = [row for row in self.support(model, precision) if row.status == "unsupported"]
        if refused:
            raise BackendError(f"backend 'torch' cannot run this: {refused[0].reason}.")
        import torch

        from gallium.backends.torch.collectives import connect
        from gallium.backends.torch.ops import TorchOps

        if threads is not None:
            torch.set_num_threads(threads)
        device = torch.device("cpu")
        transport = torch.distributed.get_default_backend_for_device(device) if placement.world > 1 else ""
        return TorchOps(model, precision, device, connect(placement, device, transport))


backend = TorchBackend()
