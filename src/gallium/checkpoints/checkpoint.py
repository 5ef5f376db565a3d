"""Checkpoint: one model's tensors and config, named and checked but not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from gallium.checkpoints.mapping import release_pages
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import CheckpointError, UnsupportedFormat
from gallium.ops.handles import Precision

SHOWN = 8  # names per kind of fault in one error
PRECISION_OF: dict[str, Precision] = {
    "F32": "float32", "F16": "bfloat16", "BF16": "bfloat16", "Q8_0": "int8", "Q4_0": "int4", "Q4_1": "int4",
    "Q4_K": "int4", "Q5_K": "int8", "Q6_K": "int8", "I8": "int8", "I4": "int4",
}  # fmt: skip
"""The precision in which a coding is natural to run."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)  # most precise first
INTEGERS = ("I8", "I4")
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def finer_storages(precision: Precision) -> frozenset[str]:
    """The codings that hold more than `precision` does."""
    finer = PRECISIONS[: PRECISIONS.index(precision)]
    return frozenset(storage for storage, natural in PRECISION_OF.items() if natural in finer)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Config, metadata and unread tensors of one model. Tensor names are Hugging Face's, whatever the file."""

    path: Path  # the folder, or the GGUF file
    kind: Literal["safetensors", "gguf", "packed"]
    config: dict[str, Any]  # config.json's content, or its equivalent for a GGUF file
    generation_config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)  # of a GGUF file, as it stands there

    def names(self) -> list[str]:
        """All tensor names."""
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor. Raises CheckpointError if it is not there."""
        return self._find(name).shape

    def weight(self, name: str, index: int | None = None) -> StoredTensor:
        """One tensor, unread; `index` picks a matrix of a 3-D one. Raises CheckpointError if it is not there."""
        tensor = self._find(name)
        return tensor if index is None else tensor.index(index)

    def _find(self, name: str) -> StoredTensor:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r}.")
        return self.tensors[name]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(t.data.nbytes for t in self.tensors.values())

    @property
    def stored_precision(self) -> Precision:
        """What precision "auto" means for this file: that of its integers, or of most bytes of its projections."""
        integers = [t.storage for t in self.tensors.values() if t.decodable and t.storage in INTEGERS]
        if integers:
            return "int4" if "I4" in integers else "int8"
        return self._most_bytes(EMBEDDINGS) or self._most_bytes(()) or "float32"

    @property
    def only_backend(self) -> str | None:
        """The one backend that can run it, if it is packed for one."""
        return None

    @property
    def has_integers(self) -> bool:
        """Whether the maker has quantised matrices to integers with scales of their own (`Weight.quantisation`)."""
        return any(t.decodable and t.storage in INTEGERS for t in self.tensors.values())

    def _most_bytes(self, besides: Collection[str]) -> Precision | None:
        held: Counter[Precision] = Counter()
        for name, tensor in self.tensors.items():
            if len(tensor.shape) > 1 and name not in besides and tensor.storage in PRECISION_OF:
                held[PRECISION_OF[tensor.storage]] += tensor.data.nbytes
        return held.most_common(1)[0][0] if held else None

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Collection[str] = ()) -> None:
        """Compare with what the model reads; one CheckpointError names everything missing, unused or misshapen.

        `ignored` are names that may be there and are known not to be needed. Nothing is read. Raises UnsupportedFormat
        when all fits, but something is stored in a coding that Gallium cannot compute with.
        """
        missing = [name for name in expected if name not in self.tensors]
        unused = [name for name in self.tensors if name not in expected and name not in ignored]
        misshapen = [
            f"{name} is {list(self.tensors[name].shape)}, the config says {list(shape)}"
            for name, shape in expected.items()
            if name in self.tensors and self.tensors[name].shape != tuple(shape)
        ]
        faults = [
            _listed("missing", missing),
            _listed("not used by this model", unused),
            _listed("of another shape", misshapen, "; "),
        ]
        if any(faults):
            raise CheckpointError(
                f"{self.path} does not fit its own config:\n  "
                + "\n  ".join(fault for fault in faults if fault)
                + "\nIs the download complete, and is it the architecture that its config names?"
            )
        strange = [f"{n} ({self.tensors[n].storage})" for n in expected if not self.tensors[n].decodable]
        if strange:
            raise UnsupportedFormat(
                f"{self.path} has tensors that Gallium cannot compute with: {_listed('', strange)}."
            )

    def prefetch(self) -> None:
        """Begin to bring in what a loaded model will read from the file itself: nothing, unless it is packed."""

    def release_memory(self) -> None:
        """Let go of file pages that were read, for example after packing a layer. Weights can be read again."""
        release_pages(tensor.data for tensor in self.tensors.values())


def _listed(what: str, names: Sequence[str], separator: str = ", ") -> str:
    """ "12 missing: a, b, … and 4 more"; empty if there are none."""
    if not names:
        return ""
    more = f"{separator}and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    count = f"{len(names)} {what}: " if what else ""
    return f"{count}{separator.join(names[:SHOWN])}{more}"
