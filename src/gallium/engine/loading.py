"""A checkpoint's weights on a backend: the whole model, or one rank's part of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gallium.checkpoints import Checkpoint
from gallium.checkpoints.checkpoint import INTEGERS, PRECISIONS, finer_storages
from gallium.engine.memory import available_bytes, check_fits, device_bytes, room
from gallium.errors import BackendError
from gallium.models.catalog import expected_tensors, load_model
from gallium.models.decoder import Model
from gallium.models.sharding import local_spec
from gallium.models.spec import ModelSpec
from gallium.models.weights import RoleOf
from gallium.ops.backend import Backend, Support, open_ops
from gallium.ops.handles import ALONE, KvPrecision, ModelFacts, Placement, Precision, Role, Weight
from gallium.settings import EngineSettings, PrecisionChoice
from gallium.text.tokenizer import Tokenizer

Progress = Callable[[int, int], None]


class LoadedModel(NamedTuple):
    """A model with what was chosen for it."""

    model: Model
    precision: Precision
    support: list[Support]

    @property
    def kv_precision(self) -> KvPrecision | None:
        """What the KV cache holds, where the backend tells."""
        return self.model.ops.kv_precision


def load(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    backend: Backend,
    settings: EngineSettings,
    progress: Progress | None = None,
    placement: Placement = ALONE,
) -> LoadedModel:
    """Open the backend and pack the weights. Raises the errors of each part (errors.py)."""
    facts = local_spec(spec, placement).facts
    precision, support = choose_precision(backend, facts, settings.precision, checkpoint.stored_precision)
    host = available_bytes() // placement.world  # now: once they are open, other ranks begin to fill it
    ops = open_ops(backend, facts, precision, settings.kv_precision, settings.threads, placement)
    weights = sum(math.prod(shape) for shape in expected_tensors(spec, checkpoint.names()).values())
    parts = placement.tp if placement.ep == 1 else placement.world
    available = room(device_bytes(ops), host, emulated=backend.probe().emulated)
    check_fits(weights // parts, precision, settings.kv_memory, available)
    model = load_model(
        checkpoint,
        spec,
        ops,
        releasing(checkpoint, progress),
        role_of=matrix_roles(precision, settings.precision, integers=checkpoint.has_integers),
        placement=placement,
    )
    return LoadedModel(model, precision, support)


def releasing(checkpoint: Checkpoint, progress: Progress | None) -> Progress:
    """`progress` that also lets go of what has been read: a model must not stand in memory twice while it is packed."""

    def report(done: int, total: int) -> None:
        checkpoint.release_memory()
        if progress is not None:
            progress(done, total)

    return report


def matrix_roles(precision: Precision, asked: PrecisionChoice, *, integers: bool = False) -> RoleOf:
    """Which matrices stay finer than `precision`.

    A file that mixes codings has its most sensitive matrices in the finer ones. One with `integers` of its maker's has
    matrices in floating point that the maker did not want to be quantised, embedding and head among them. A precision
    that was asked for is taken at its word.
    """
    finer = finer_storages(precision)

    def role_of(weights: Sequence[Weight], role: Role) -> Role:
        if asked != "auto" or role == "router":
            return role
        if integers and any(weight.storage not in INTEGERS for weight in weights):
            return "float"
        return "sensitive" if role == "linear" and any(weight.storage in finer for weight in weights) else role

    return role_of


def choose_precision(
    backend: Backend, facts: ModelFacts, asked: PrecisionChoice, stored: Precision
) -> tuple[Precision, list[Support]]:
    """The precision to run in, and what the backend says of it.

    "auto" is the stored one, or the next more precise that the backend supports. Raises BackendError with the
    reasons of every op that stands in the way.
    """
    if asked != "auto":
        candidates: list[Precision] = [asked]
    else:
        candidates = list(reversed(PRECISIONS[: PRECISIONS.index(stored) + 1]))
    reasons: list[str] = []
    for precision in candidates:
        support = backend.support(facts, precision)
        refused: dict[str, list[str]] = {}
        for entry in support:
            if entry.status == "unsupported":
                refused.setdefault(entry.reason, []).append(entry.op)
        if not refused:
            return precision, support
        reasons += [
            f"{precision}: {'every op' if len(ops) == len(support) else ', '.join(ops)}: {reason}"
            for reason, ops in refused.items()
        ]
    raise BackendError(
        f"backend {backend.name!r} cannot run this {facts.name} model in {' or '.join(candidates)}: choose another "
        "precision or backend (`gallium doctor` lists them).\n  " + "\n  ".join(reasons)
    )


def read_tokenizer(checkpoint: Checkpoint, needed: bool) -> Tokenizer | None:
    """The checkpoint's tokenizer; None if it has none and none is needed. A damaged one is an error."""
    gguf = checkpoint.kind == "gguf"
    has_one = "tokenizer.ggml.model" in checkpoint.metadata if gguf else any(checkpoint.path.glob("tokenizer*"))
    if not needed and not has_one:
        return None
    return Tokenizer.from_gguf(checkpoint.metadata) if gguf else Tokenizer.from_folder(checkpoint.path)
