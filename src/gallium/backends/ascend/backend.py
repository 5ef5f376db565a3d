"""Ascend as a backend: probe, support, open; what is verified there and what is not."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from gallium.backends.ascend import records, soc, versions
from gallium.errors import BackendError, UsageError
from gallium.ops.backend import API_VERSION, KvSupport, Probe, Support
from gallium.ops.handles import ALONE, KvPrecision, ModelFacts, Placement, Precision
from gallium.ops.interface import Ops, op_names
from gallium.ops.machine import Fact
from gallium.settings import environment

if TYPE_CHECKING:
    from gallium.backends.ascend.soc import Soc

VIRTUAL_ONLY = "virtual only"
EMULATED_DEVICES = 1


ONLY_CALIBRATED = (
    "8 bits are for checkpoints that are calibrated for them (msModelSlim C8), whose scales per channel the fused "
    "attention takes and which --kv-precision auto recognises"
)


class AscendBackend:
    """torch_npu's fused operators, on a real chip or on the virtual NPU."""

    name = "ascend"
    priority = 20
    api_version = API_VERSION

    def probe(self) -> Probe:
        """Usable with a chip, its driver, CANN and a torch_npu that fits; or, emulated, on the virtual NPU."""
        if emulated():
            missing = versions.missing_packages()
            devices = int(environment("GALLIUM_VNPU_DEVICES") or EMULATED_DEVICES)
            return Probe(not missing, emulated=True, devices=devices, reason="; ".join(missing))
        machine = versions.Machine.this()
        missing = machine.missing()
        return Probe(not missing, emulated=False, devices=machine.chips(), reason="; ".join(missing))

    def support(self, model: ModelFacts, precision: Precision) -> list[Support]:
        """Per op the function that computes it and who has seen it do so; or why the model cannot run on this chip."""
        probe = self.probe()
        chip = this_chip() if probe.available else None
        refusal = chip.refusal(model, precision) if chip else probe.reason
        if chip is None or refusal:
            return [Support(op, "unsupported", refusal) for op in op_names()]
        from gallium.backends.ascend.reasons import op_reasons

        verified = {} if probe.emulated else records.verified(chip.name, precision)
        reasons = op_reasons(chip, model, precision)
        return [_said(op, reasons[op], verified.get(op, ""), probe.emulated) for op in op_names()]

    def open(
        self, model: ModelFacts, precision: Precision, threads: int | None = None, placement: Placement = ALONE
    ) -> Ops:
        """Ops on the chip of this rank: the n-th that this process sees for rank n.

        `threads` are those of the host, which on the virtual NPU compute everything. Raises BackendError with the
        reasons when an op is unsupported or there are fewer chips than ranks, UsageError for an impossible number of
        threads.
        """
        probe = self.probe()
        refused = [row.reason for row in self.support(model, precision) if row.status == "unsupported"]
        if refused:
            raise BackendError("; ".join(dict.fromkeys(refused)))
        if placement.world > probe.devices:
            raise BackendError(
                f"{placement.world} ranks need as many Ascend chips, but {probe.devices} "
                f"{'is' if probe.devices == 1 else 'are'} here: choose --tp and --dp whose product is at most that."
            )
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}.")
        torch = _torch()
        device = torch.device("npu", placement.rank)
        torch.npu.set_device(device)
        torch.npu.matmul.allow_hf32 = False  # float32 means float32
        if threads is not None:
            torch.set_num_threads(threads)
        from gallium.backends.ascend.ops import AscendOps
        from gallium.backends.torch.collectives import connect

        return AscendOps(model, precision, device, connect(placement, device, "hccl"), this_chip())

    def kv_support(self, model: ModelFacts, precision: Precision) -> list[KvSupport]:
        """The type of the activations; 8 bits are those of a checkpoint's grid, which "auto" takes."""
        from gallium.backends.ascend.reasons import activations

        usual = cast("KvPrecision", activations(this_chip(), precision))
        others: tuple[KvPrecision, ...] = ("float32", "float16", "bfloat16")
        kept = f"keys and values have the type of the activations, which is {usual} for weights in {precision}"
        refused = [KvSupport(name, kept) for name in others if name != usual]
        return [KvSupport(usual), *refused, KvSupport("int8", ONLY_CALIBRATED)]

    def describe(self) -> Sequence[Fact]:
        """Chip, memory, CANN, driver, torch_npu; on the virtual NPU that it is one, first."""
        chip = this_chip()
        packages = f"{versions.installed('torch_npu')} with torch {versions.installed('torch')}"
        facts = [Fact("chip", f"{chip.name}, sold as {chip.sold}, {chip.memory_gib} GiB"), Fact("torch_npu", packages)]
        if emulated():
            label = "virtual NPU on this CPU: it cannot tell speed, the numerics of the matrix unit, or races"
            return [Fact("EMULATED", label), *facts, Fact("CANN", "emulated"), Fact("driver", "none, emulated")]
        machine = versions.Machine.this()
        cann = machine.cann()
        if cann is not None:
            facts.append(Fact("CANN", f"{cann.version or 'unknown version'} in {cann.home}; {versions.remark(cann)}"))
        return [*facts, Fact("driver", machine.driver() or "unknown version")]


def emulated() -> bool:
    """Whether this process has the virtual NPU: asked for when it was started, or installed before torch came."""
    npu = getattr(sys.modules.get("torch"), "npu", None)
    return environment("GALLIUM_VNPU") == "1" or hasattr(npu, "is_virtual")


def this_chip() -> Soc:
    """The chip that torch_npu names. Raises BackendError for one that the table does not have."""
    return soc.find(str(_torch().npu.get_device_name(0)))


def _torch() -> Any:
    """torch with torch_npu, told to move no operator to the host. Raises BackendError if it is not what was probed."""
    os.environ["TORCH_NPU_FALLBACK_CPU_DISABLE"] = "1"
    torch = import_module("torch")
    import_module("torch_npu")
    if hasattr(torch.npu, "is_virtual") != emulated():
        raise BackendError(
            "GALLIUM_VNPU=1 asks for the virtual NPU, but this process did not start with it: start it with "
            "`gallium npu run`, or with --virtual."
        )
    return torch


def _said(op: str, how: str, record: str, is_emulated: bool) -> Support:
    """Nothing is verified without a record of a run on hardware."""
    if record:
        return Support(op, "verified", f"{how}; {record}")
    unseen = VIRTUAL_ONLY if is_emulated else "no record of a run on this chip yet"
    return Support(op, "unverified", f"{how} ({unseen})")


backend = AscendBackend()
