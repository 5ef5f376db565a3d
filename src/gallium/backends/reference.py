"""The reference as a backend: the definitions of the ops. Slow; "auto" never picks it."""

from __future__ import annotations

from gallium.errors import BackendError
from gallium.ops.backend import API_VERSION, KvSupport, Probe, Support
from gallium.ops.handles import ALONE, KvPrecision, ModelFacts, Placement, Precision
from gallium.ops.interface import BLOCKS, Ops, op_names
from gallium.ops.reference import ReferenceOps


class ReferenceBackend:
    """NumPy float32 on any machine, with no native code."""

    name = "reference"
    priority = -1
    api_version = API_VERSION

    def probe(self) -> Probe:
        """Always usable."""
        return Probe(available=True, emulated=False, devices=1)

    def support(self, model: ModelFacts, precision: Precision) -> list[Support]:
        """Every op in float32, none in another precision."""
        if precision != "float32":
            reason = f"the reference computes in float32 only, not in {precision}"
            return [Support(op, "unsupported", reason) for op in op_names()]
        how = {op: "composed of the ops' definitions" if op in BLOCKS else "the definition" for op in op_names()}
        return [Support(op, "verified", reason) for op, reason in how.items()]

    def open(
        self, model: ModelFacts, precision: Precision, threads: int | None = None, placement: Placement = ALONE
    ) -> Ops:
        """The definitions themselves; `threads` is of no use to them. BackendError unless float32 on one rank."""
        if placement.world > 1:
            raise BackendError("backend 'reference' cannot spread a model over several ranks: use the backend torch.")
        if precision != "float32":
            raise BackendError(
                f"backend 'reference' runs in float32 only, not in {precision}: choose --precision float32, "
                "or another backend."
            )
        return ReferenceOps()

    def kv_support(self, model: ModelFacts, precision: Precision) -> list[KvSupport]:
        """float32; and what an 8-bit cache makes of keys and values, though in as much memory."""
        latent = "" if model.attention.kind == "gqa" else "8 bits are not defined for latents"
        return [KvSupport("float32"), KvSupport("int8", latent)]

    def open_with_kv(
        self,
        model: ModelFacts,
        precision: Precision,
        kv_precision: KvPrecision,
        threads: int | None = None,
        placement: Placement = ALONE,
    ) -> Ops:
        """As `open`."""
        self.open(model, precision, threads, placement)
        return ReferenceOps(kv_precision)


backend = ReferenceBackend()
