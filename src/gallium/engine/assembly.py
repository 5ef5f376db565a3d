"""From a model's name to a running engine; every choice made on the way is kept for the user to see."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from gallium.checkpoints import Checkpoint, open_checkpoint, resolve_model
from gallium.checkpoints.checkpoint import PRECISIONS, finer_storages
from gallium.engine.async_engine import Engine, EngineLimits
from gallium.engine.memory import KvPlan, available_bytes, check_fits, plan_kv, show_bytes
from gallium.engine.runner import ModelRunner
from gallium.engine.stopping import NoText, TextSource
from gallium.errors import BackendError, TokenizerError
from gallium.models.catalog import expected_tensors, load_model
from gallium.models.config import read_spec
from gallium.models.decoder import Model
from gallium.models.spec import ModelSpec
from gallium.ops.backend import Backend, Support, choose, installed
from gallium.ops.handles import ModelFacts, Precision, Weight
from gallium.ops.interface import Ops
from gallium.settings import EngineSettings, PrecisionChoice
from gallium.text.builtin import builtin_template
from gallium.text.detokenizer import Detokenizer
from gallium.text.tokenizer import Tokenizer
from gallium.types import SamplingParams

if TYPE_CHECKING:
    from gallium.text.template import ChatTemplate

log = logging.getLogger("gallium.engine")
Progress = Callable[[int, int], None]


@dataclass
class Assembly:
    """A loaded model with everything around it."""

    label: str  # the model's name
    is_default: bool  # the embedded stand-in, because no name was given
    spec: ModelSpec
    text: Tokenizer | None
    ops: Ops
    precision: Precision
    stored_precision: Precision
    backend_name: str
    emulated: bool
    support: list[Support]
    weights_bytes: int  # of the checkpoint
    kv: KvPlan
    engine: Engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. Raises TokenizerError if it has none."""
        if self.text is None:
            raise TokenizerError(
                f"{self.label} has no tokenizer: give token ids instead of text, or add tokenizer.json."
            )
        return self.text

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The checkpoint's chat template, None if it has none. Raises TemplateError if it is damaged."""
        source = self.tokenizer.chat_template
        if source is None:
            return None
        from gallium.text.template import ChatTemplate  # Jinja2 costs time that plain completions can save

        return ChatTemplate(source, self.tokenizer.special_tokens)

    @property
    def summary(self) -> str:
        """One line that says what runs where, and what was chosen."""
        stored = "" if self.precision == self.stored_precision else f" (stored as {self.stored_precision})"
        where = f"{self.backend_name}, EMULATED" if self.emulated else self.backend_name
        return (
            f"{self.label}: {self.spec.arch}, {self.precision}{stored}, on {where}; "
            f"context {self.engine.max_context} tokens, KV cache {show_bytes(self.kv.num_bytes)}"
        )

    def close(self) -> None:
        """Stop the engine; open requests get EngineDead."""
        self.engine.shutdown()


def assemble(
    model: str | None,
    settings: EngineSettings = EngineSettings(),  # noqa: B008 - frozen
    *,
    progress: Progress | None = None,
    need_tokenizer: bool = True,
) -> Assembly:
    """Load `model` (a folder, a file, a hub name; None: the embedded default) and start an engine for it.

    `progress(done, total)` follows the weights. Without `need_tokenizer` a checkpoint that has no tokenizer
    is loaded for use with token ids. Raises the errors of each part (errors.py); nothing is left running then.
    """
    resolved = resolve_model(model, hub=settings.hub, revision=settings.revision)
    checkpoint = open_checkpoint(resolved.path)
    spec = read_spec(checkpoint.config, checkpoint.generation_config)
    backend = choose(settings.backend, installed())
    stored = checkpoint.stored_precision
    precision, support = choose_precision(backend, spec.facts, settings.precision, stored)
    text = read_tokenizer(checkpoint, need_tokenizer)
    if text is not None:
        complete_template(text, str(checkpoint.config.get("model_type")), resolved.label)
    weights = sum(math.prod(shape) for shape in expected_tensors(spec, checkpoint.names()).values())
    check_fits(weights, precision, settings.kv_memory, available_bytes())
    ops = backend.open(spec.facts, precision, settings.threads)
    sensitive = sensitive_weights(precision, settings.precision)
    loaded = load_model(checkpoint, spec, ops, releasing(checkpoint, progress), sensitive=sensitive)
    kv, engine = start_engine(loaded, text, settings)
    return Assembly(
        label=resolved.label,
        is_default=resolved.is_default,
        spec=spec,
        text=text,
        ops=ops,
        precision=precision,
        stored_precision=stored,
        backend_name=backend.name,
        emulated=backend.probe().emulated,
        support=support,
        weights_bytes=checkpoint.size_bytes,
        kv=kv,
        engine=engine,
    )


def releasing(checkpoint: Checkpoint, progress: Progress | None) -> Progress:
    """`progress` that also lets go of what has been read: a model must not stand in memory twice while it is packed."""

    def report(done: int, total: int) -> None:
        checkpoint.release_memory()
        if progress is not None:
            progress(done, total)

    return report


def complete_template(text: Tokenizer, model_type: str, label: str) -> None:
    """Give a GLM checkpoint without a chat template (many GGUF files) Gallium's own, and say so."""
    if text.chat_template is None:
        found = builtin_template(model_type, label, text)
        if found is not None:
            text.chat_template = found.source
            log.warning("%s: %s", label, found.notice)


def sensitive_weights(precision: Precision, asked: PrecisionChoice) -> Callable[[Sequence[Weight]], bool]:
    """Which projections stay finer than `precision`.

    A file that mixes codings has its most sensitive matrices in the finer ones. A precision that was asked for is taken
    at its word.
    """
    finer = finer_storages(precision) if asked == "auto" else frozenset()
    return lambda weights: any(weight.storage in finer for weight in weights)


def start_engine(model: Model, text: Tokenizer | None, settings: EngineSettings) -> tuple[KvPlan, Engine]:
    """Size the KV cache by what memory is left, and start an engine for a loaded model."""
    ops, spec = model.ops, model.spec
    kv = plan_kv(
        block_bytes=ops.kv_block_bytes(spec.attention, settings.block_size) * spec.num_layers,
        block_size=settings.block_size,
        max_positions=spec.max_positions,
        max_context=settings.max_context,
        max_batch=settings.max_batch,
        kv_memory=settings.kv_memory,
        available=available_bytes(),
    )
    runner = ModelRunner(model, ops, model.make_caches(kv.num_blocks, settings.block_size))
    engine = make_engine(runner, spec, text, kv, settings)
    engine.start()
    return kv, engine


def make_engine(
    runner: ModelRunner, spec: ModelSpec, text: Tokenizer | None, kv: KvPlan, settings: EngineSettings
) -> Engine:
    """An engine, not yet started, for a loaded model."""
    limits = EngineLimits(
        num_blocks=kv.num_blocks,
        block_size=settings.block_size,
        max_context=kv.max_context,
        max_batch=settings.max_batch,
        max_step_tokens=settings.max_step_tokens,
        prefix_cache=settings.prefix_cache,
        vocab_size=spec.vocab_size if text is None else min(spec.vocab_size, text.vocab_size),
        head_rows=spec.vocab_size,
    )

    def detokenizer(params: SamplingParams) -> TextSource:
        if text is None:
            return NoText()
        return Detokenizer(text, skip_special_tokens=params.skip_special_tokens)

    eos_ids = {*spec.eos_ids, *(text.eos_ids if text is not None else ())}
    return Engine(runner, limits, eos_ids=sorted(eos_ids), detokenizer=detokenizer)


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
