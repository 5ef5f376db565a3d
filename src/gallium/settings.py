"""Settings: frozen, resolved once, never written again. Environment variables `GALLIUM_*` are read here only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from gallium.errors import UsageError

PrecisionChoice = Literal["auto", "float32", "float16", "bfloat16", "int8", "int4"]
KvPrecisionChoice = Literal["auto", "float32", "bfloat16", "int8"]
Hub = Literal["huggingface", "modelscope"]
Speculation: TypeAlias = str  # "off", "ngram", or the model that drafts
KNOWN_VARIABLES = {
    "GALLIUM_CPU_LEVEL": "level of the CPU kernels, of those that `gallium doctor` lists (default: the best)",
    "GALLIUM_CPU_LIBRARY": "the native library to load instead of the installed one, for tests of another build of it",
    "GALLIUM_THREADS": "threads of the CPU kernels (default: the cores this process may use)",
    "GALLIUM_PIN": "whether threads of the CPU kernels keep to one core each: on, off or auto (on several NUMA nodes)",
    "GALLIUM_TORCH_DEVICE": "device of the torch backend, in PyTorch's words: cpu, xpu … (default: its accelerator)",
    "GALLIUM_API_KEY": "what --api-key of `gallium serve` says, without showing it in the list of processes",
    "GALLIUM_DEBUG": "1 prints tracebacks, as --debug does",
    "GALLIUM_TRACE": "the file that `chat`, `run`, `serve`, `bench` and `LLM` write a trace of all steps to, as JSON",
    "GALLIUM_VNPU": "1 gives Python processes the virtual NPU; `gallium npu run` sets it, and those below",
    "GALLIUM_VNPU_SOC": "the chip that the virtual NPU shows (default: Ascend910B2)",
    "GALLIUM_VNPU_DEVICES": "how many virtual NPUs there are (default: 1)",
    "GALLIUM_VNPU_MEMORY_GIB": "memory of each virtual NPU in GiB (default: what the chip has)",
    "GALLIUM_VNPU_STRICT": "1 makes torch_npu's own moves of operators to the CPU errors",
    "GALLIUM_VNPU_TRACEBACK": "1 adds the emulator's Python traceback to errors of operators",
    "GALLIUM_VNPU_REPORT": "the file that a report of the program's operators is written to (.html or .json)",
    "GALLIUM_VNPU_REPORT_OWNER": "set by the first process, whose report has the name that was asked for",
    "GALLIUM_VNPU_BANNER_SHOWN": "set by the first process, so that its child processes are silent",
    "GALLIUM_VNPU_BESIDE_NPU": "1 lets the virtual NPU start on a machine that has a real one",
    "GALLIUM_VNPU_HCCL_TIMEOUT": "seconds that a collective of virtual NPUs waits for the others (default: 600)",
    "GALLIUM_VNPU_HCCL_BUFFER_MB": "shared memory per rank and communicator in MB (default: 8)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How a model is loaded and run."""

    backend: str = "auto"
    precision: PrecisionChoice = "auto"
    hub: Hub = "huggingface"
    revision: str | None = None
    threads: int | None = None
    tp: int = 1  # ranks of one tensor-parallel group
    dp: int | None = None  # groups with sequences of their own; None: what `ep` needs, else 1
    ep: int = 1  # ranks that share the experts: all of them, or 1
    kv_precision: KvPrecisionChoice = "auto"
    kv_memory: int | None = None  # bytes of each rank; None: a share of the free memory, see engine/memory.py
    block_size: int | None = None  # tokens per KV block; None: what the backend likes
    max_context: int | None = None  # tokens; None: what the model allows and the cache holds
    max_batch: int = 64  # sequences per step of each group
    max_step_tokens: int = 512  # tokens per step of each group: the chunk of chunked prefill
    prefix_cache: bool = True
    graphs: bool = True  # capture decode steps, where the backend can
    speculate: Speculation = "off"  # where drafts come from; a request's own prediction is used in any case
    draft_precision: PrecisionChoice = "auto"  # of the model that drafts

    def __post_init__(self) -> None:
        for precision in (self.precision, self.draft_precision):
            if precision not in get_args(PrecisionChoice):
                raise UsageError(
                    f"unknown precision {precision!r}; choose from {', '.join(get_args(PrecisionChoice))}."
                )
        if self.kv_precision not in get_args(KvPrecisionChoice):
            raise UsageError(
                f"unknown KV precision {self.kv_precision!r}; choose from {', '.join(get_args(KvPrecisionChoice))}."
            )
        if self.hub not in get_args(Hub):
            raise UsageError(f"unknown hub {self.hub!r}; choose from {', '.join(get_args(Hub))}.")
        for name in ("threads", "dp", "kv_memory", "block_size", "max_context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}.")
        for name in ("tp", "ep", "max_batch", "max_step_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        self._check_ranks()
        self._check_draft_model()

    @property
    def draft_model(self) -> str | None:
        """The model that drafts, as the user named it."""
        return None if self.speculate in ("off", "ngram") else self.speculate

    @property
    def groups(self) -> int:
        """How many tensor-parallel groups there are, each with sequences of its own: `dp`, or what `ep` leaves."""
        return self.dp if self.dp is not None else max(1, self.ep // self.tp)

    @property
    def world(self) -> int:
        """How many ranks, each a process with a device of its own; 1 is this process."""
        return self.tp * self.groups

    def _check_ranks(self) -> None:
        """Experts are spread over all ranks or over none."""
        if self.ep in (1, self.world):
            return
        if self.dp is None:
            near = self.tp * max(1, round(self.ep / self.tp))
            raise UsageError(
                f"--ep {self.ep} ranks cannot stand in groups of --tp {self.tp}: ep must be a multiple of tp, such as "
                f"--tp {self.tp} --ep {near}, or leave --tp out."
            )
        raise UsageError(
            f"--ep {self.ep} does not fit --tp {self.tp} --dp {self.dp}, which are {self.world} ranks: experts are "
            f"spread over all ranks (--ep {self.world}) or over none (--ep 1)."
        )

    def _check_draft_model(self) -> None:
        """What goes with `speculate`."""
        if not self.speculate:
            raise UsageError("--speculate is empty: give off, ngram, or a model that drafts.")
        if self.draft_model is None and self.draft_precision != "auto":
            raise UsageError("--draft-precision is that of a model that drafts: name one with --speculate MODEL.")
        if self.draft_model is not None and self.world > 1:
            raise UsageError(
                f"--speculate {self.speculate}: a model drafts for one process only: leave out --tp, --dp and --ep, or "
                "choose --speculate ngram."
            )


def environment(name: str) -> str | None:
    """The value of one GALLIUM_* variable, None if unset or empty. Raises UsageError on unknown GALLIUM_* names."""
    if name not in KNOWN_VARIABLES:
        raise KeyError(name)
    return os.environ.get(name) or None


def check_environment() -> None:
    """Refuse misspelt GALLIUM_* variables instead of ignoring them."""
    unknown = sorted(k for k in os.environ if k.startswith("GALLIUM_") and k not in KNOWN_VARIABLES)
    if unknown:
        known = "\n".join(f"  {name}  {what}" for name, what in KNOWN_VARIABLES.items())
        raise UsageError(f"unknown environment variable {', '.join(unknown)}; known are:\n{known}")


def cache_dir() -> Path:
    """Where Gallium keeps its own files (not the hub's): `$XDG_CACHE_HOME/gallium`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gallium"
