"""The CPU as a backend: probe, support, open; what the machine is, and what it can do at best."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from pathlib import Path

from gallium.backends.cpu import library
from gallium.backends.cpu.cache import ELEMENTS, usual_precision
from gallium.backends.cpu.cores import find_cores
from gallium.backends.cpu.kernels_rows import MAX_EXPERTS
from gallium.backends.cpu.matrices import KINDS
from gallium.backends.cpu.ops import CpuOps
from gallium.errors import BackendError, OutOfMemory
from gallium.ops.backend import API_VERSION, KvSupport, Probe, Support
from gallium.ops.handles import ALONE, KvPrecision, ModelFacts, Placement, Precision
from gallium.ops.interface import BLOCKS, Ops, op_names
from gallium.ops.machine import Fact, Limits

READ_BYTES = 256 << 20  # far beyond any cache
ROUNDS = 5
LEVEL_REASONS = {
    "generic": "portable C++: this machine lacks AVX2 with FMA and F16C, is neither x86-64 nor arm64, or the level was "
    "forced",
    "avx2": "AVX2 with FMA and F16C: this machine lacks AVX-512 with VNNI and BF16, or the level was forced",
    "avx512": "AVX-512 with VNNI and BF16",
    "amx": "AMX tiles in bfloat16, and in int8 for a checkpoint's own integers; AVX-512 for the rest",
    "amx-emulated": "EMULATED AMX tiles, slow, for tests",
    "neon": "NEON: this machine lacks the dot product instructions (dotprod), or the level was forced",
    "dotprod": "NEON with dot products: this machine lacks matrix products (i8mm, bf16), or the level was forced",
    "i8mm": "matrix instructions in int8 and bfloat16, NEON for the rest",
}


class CpuBackend:
    """Native kernels over NumPy memory, on any machine that the package was built for."""

    name = "cpu"
    priority = 0
    api_version = API_VERSION

    def probe(self) -> Probe:
        """Usable unless the native library is missing or damaged; emulated at the level that is."""
        try:
            emulated = library.is_emulated(library.level())
        except BackendError as cause:
            return Probe(available=False, emulated=False, devices=0, reason=cause.message)
        return Probe(available=True, emulated=emulated, devices=1)

    def support(self, model: ModelFacts, precision: Precision) -> list[Support]:
        """Every op, with the level whose kernel runs. "route" has a limit on experts."""
        if precision == "float16":
            reason = "the kernels compute in float32, bfloat16, int8 and int4, not in float16"
            return [Support(op, "unsupported", reason) for op in op_names()]
        level = library.level()
        found = []
        for op in op_names():
            if op == "route" and model.moe is not None and model.moe.num_experts > MAX_EXPERTS:
                reason = f"{model.moe.num_experts} experts; the kernel takes up to {MAX_EXPERTS}"
                found.append(Support(op, "unsupported", reason))
            elif op in ("all_reduce", "all_gather"):
                found.append(Support(op, "verified", "identity on one device"))
            elif op in BLOCKS and getattr(CpuOps, op) is getattr(Ops, op):
                found.append(Support(op, "verified", "composed of core ops"))
            else:
                found.append(Support(op, "verified", f"native kernel ({level})"))
        return found

    def open(
        self, model: ModelFacts, precision: Precision, threads: int | None = None, placement: Placement = ALONE
    ) -> Ops:
        """Ops for one model. `threads` is a setting of the process: the last model opened decides.

        Raises BackendError with the reasons when an op is unsupported or the placement has several ranks, UsageError
        for an impossible thread count.
        """
        self._check(model, precision, placement)
        return self._opened(precision, None, threads)

    def kv_support(self, model: ModelFacts, precision: Precision) -> list[KvSupport]:
        """float32, bfloat16 and int8; not int8 for latents."""
        usual = usual_precision(precision)
        others = [name for name in ELEMENTS if name != usual]
        latent = model.attention.kind != "gqa"
        refusal = "one latent serves all heads, and a step for each would be too coarse; it is small as it is"
        return [KvSupport(name, refusal if latent and name == "int8" else "") for name in (usual, *others)]

    def open_with_kv(
        self,
        model: ModelFacts,
        precision: Precision,
        kv_precision: KvPrecision,
        threads: int | None = None,
        placement: Placement = ALONE,
    ) -> Ops:
        """As `open`, with caches of the given precision, also for layers that a checkpoint has a grid for."""
        self._check(model, precision, placement)
        return self._opened(precision, kv_precision, threads)

    def _opened(self, precision: Precision, kv_precision: KvPrecision | None, threads: int | None) -> Ops:
        if threads is not None:
            library.set_threads(threads)
        return CpuOps(precision, kv_precision)

    def _check(self, model: ModelFacts, precision: Precision, placement: Placement) -> None:
        if placement.world > 1:
            raise BackendError(
                "backend 'cpu' runs a model in one process, which uses all cores: leave out --tp, --dp and --ep, or "
                "choose --backend torch to try out how a model is spread over ranks."
            )
        refused = [row for row in self.support(model, precision) if row.status == "unsupported"]
        if refused:
            raise BackendError("; ".join(f"{row.op}: {row.reason}" for row in refused))

    def describe(self) -> Sequence[Fact]:
        """Chip, cores, threads, level, and what activations become in products."""
        level = library.level()
        reason = LEVEL_REASONS[level]
        if library.is_emulated(level) and "EMULATED" not in reason:
            reason = f"EMULATED {reason}, slow, for tests"
        levels = ", ".join(name for name in library.available_levels() if not library.is_emulated(name))
        return [
            Fact("chip", chip_name()),
            Fact("cores", find_cores().describe()),
            Fact("threads", _threads()),
            Fact("instruction level", f"{level}: {reason} (available: {levels})"),
            Fact("products", _products()),
        ]

    def measure(self, threads: int | None = None) -> Limits:
        """Memory read bandwidth and the peak of each precision's innermost instruction, best of ROUNDS."""
        if threads is not None:
            library.set_threads(threads)
        loaded = library.load()
        loaded.ga_measure_read.restype = loaded.ga_measure_peak.restype = ctypes.c_double
        read = loaded.ga_measure_read(ctypes.c_int64(READ_BYTES), ROUNDS)
        if not read:
            raise OutOfMemory(f"measuring needs {READ_BYTES >> 20} MiB of free memory.")
        peaks = {name: loaded.ga_measure_peak(ctypes.c_int64(kind), ROUNDS) for name, kind in KINDS.items()}
        return Limits(read, peaks)


def _threads() -> str:
    """How many, and where they run."""
    count, cpus = library.threads(), library.pinned()
    return f"{count}, pinned to CPUs {', '.join(map(str, cpus[1:count]))} and the caller" if cpus else str(count)


def _products() -> str:
    """Bits of weights and activations in the two precisions where levels differ."""
    bits = {name: int(library.load().ga_activation_bits(ctypes.c_int64(KINDS[name]))) for name in ("int8", "int4")}
    shown = ", ".join(f"{name} as W{name.removeprefix('int')}A{count}" for name, count in bits.items())
    return f"{shown}: multiplied as bfloat16, whose peak is theirs" if 16 in bits.values() else shown


def chip_name() -> str:
    """The processor's own name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


backend = CpuBackend()
