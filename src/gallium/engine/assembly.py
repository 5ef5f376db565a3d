"""From a model's name to a running engine; every choice made on the way is kept for the user to see."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gallium.checkpoints.opening import open_checkpoint
from gallium.checkpoints.resolve import resolve_model
from gallium.engine.async_engine import Engine, EngineLimits
from gallium.engine.loading import LoadedModel, Progress, load, read_tokenizer
from gallium.engine.memory import KvPlan, available_bytes, device_bytes, plan_kv, room, show_bytes
from gallium.engine.runner import ModelRunner, Runner, decode_sizes
from gallium.engine.stopping import NoText, TextSource
from gallium.errors import TokenizerError
from gallium.models.config import read_spec
from gallium.models.decoder import Model
from gallium.models.sharding import check_divides
from gallium.models.spec import ModelSpec
from gallium.ops.backend import Backend, Support, find
from gallium.ops.handles import KvPrecision, Precision
from gallium.ops.interface import Ops
from gallium.settings import EngineSettings, environment
from gallium.starting import uncollected
from gallium.text.detokenizer import Detokenizer
from gallium.text.tokenizer import Tokenizer
from gallium.types import SamplingParams

if TYPE_CHECKING:
    from gallium.engine.draft_loading import DraftSource, LoadedDraft
    from gallium.engine.draft_model import DraftModel
    from gallium.engine.rank_messages import Loaded
    from gallium.engine.tracing import Recorder
    from gallium.text.template import ChatTemplate

log = logging.getLogger("gallium.engine")


class Draft(NamedTuple):
    """The model that drafts."""

    label: str
    precision: Precision
    kv_bytes: int  # its part of the KV cache


@dataclass
class Assembly:
    """A loaded model with everything around it."""

    label: str  # the model's name
    is_default: bool  # the embedded stand-in, because no name was given
    spec: ModelSpec
    text: Tokenizer | None
    ops: Ops | None  # None: the model is in processes of its own
    precision: Precision
    stored_precision: Precision
    kv_precision: KvPrecision | None  # None: the backend does not tell
    backend_name: str
    emulated: bool
    support: list[Support]
    weights_bytes: int  # of the checkpoint
    kv: KvPlan  # of each rank
    block_size: int  # tokens per KV block
    engine: Engine
    settings: EngineSettings
    draft: Draft | None = None

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
        if self.settings.world > 1:
            s = self.settings
            where += f", {s.world} ranks (tp {s.tp}, dp {s.groups}, ep {s.ep})"
        kept = f" in {self.kv_precision}" if self.settings.kv_precision != "auto" else ""
        drafts = ""
        if self.draft is not None:
            label, precision, kv_bytes = self.draft
            drafts = f", of which {show_bytes(kv_bytes)} for drafts by {label} in {precision}"
        return (
            f"{self.label}: {self.spec.arch}, {self.precision}{stored}, on {where}; "
            f"context {self.engine.max_context} tokens, KV cache {show_bytes(self.kv.num_bytes)}{kept}{drafts}"
        )

    def close(self) -> None:
        """Stop the engine; open requests get EngineDead."""
        self.engine.shutdown()


@uncollected()
def assemble(
    model: str | None,
    settings: EngineSettings = EngineSettings(),  # noqa: B008 - frozen
    *,
    progress: Progress | None = None,
    need_tokenizer: bool = True,
    recorder: Recorder | None = None,
) -> Assembly:
    """Load `model` (a folder, a file, a hub name; None: the embedded default) and start an engine for it.

    `progress(done, total)` follows the weights. Without `need_tokenizer` a checkpoint that has no tokenizer
    is loaded for use with token ids. A `recorder` (default: what GALLIUM_TRACE asks for) sees the model's steps.
    Raises the errors of each part (errors.py); nothing is left running then.
    """
    recorder = recorder or _requested(settings)
    resolved = resolve_model(model, hub=settings.hub, revision=settings.revision)
    checkpoint = open_checkpoint(resolved.path)
    checkpoint.prefetch()
    spec = read_spec(checkpoint.config, checkpoint.generation_config)
    only = checkpoint.only_backend
    backend = find(only if only is not None and settings.backend == "auto" else settings.backend)
    text = read_tokenizer(checkpoint, need_tokenizer)
    if text is not None:
        complete_template(text, str(checkpoint.config.get("model_type")), resolved.label)
    source = _draft_source(settings, spec, text)
    draft: LoadedDraft | None = None
    emulated = backend.probe().emulated
    loaded: LoadedModel | Loaded
    if settings.world == 1:
        loaded = load(checkpoint, spec, backend, settings, progress)
        if recorder is not None and recorder.path is not None:
            from gallium.engine.tracing import watch_loaded

            watch_loaded(recorder, backend, loaded.model, loaded.precision, settings, resolved.label)
        draft = None if source is None else source.load(backend, settings, progress)
        running = start_engine(loaded.model, text, settings, draft=draft, emulated=emulated, recorder=recorder)
    else:
        loaded, running = start_ranks(resolved.path, spec, backend, text, settings, progress)
    return Assembly(
        label=resolved.label,
        is_default=resolved.is_default,
        spec=spec,
        text=text,
        ops=loaded.model.ops if isinstance(loaded, LoadedModel) else None,
        precision=loaded.precision,
        stored_precision=checkpoint.stored_precision,
        kv_precision=loaded.kv_precision,
        backend_name=backend.name,
        emulated=emulated,
        support=loaded.support,
        weights_bytes=checkpoint.size_bytes,
        kv=running.kv,
        block_size=running.block_size,
        engine=running.engine,
        settings=settings,
        draft=None if draft is None else Draft(draft.label, draft.precision, running.draft_kv_bytes),
    )


def _requested(settings: EngineSettings) -> Recorder | None:
    """The recorder that GALLIUM_TRACE asks for."""
    if environment("GALLIUM_TRACE") is None:
        return None
    from gallium.engine.tracing import requested

    return requested(settings)


def _draft_source(settings: EngineSettings, spec: ModelSpec, text: Tokenizer | None) -> DraftSource | None:
    """The model that drafts, found and not yet loaded."""
    if settings.draft_model is None:
        return None
    from gallium.engine.draft_loading import find_draft

    return find_draft(settings.draft_model, settings, spec, text)


def complete_template(text: Tokenizer, model_type: str, label: str) -> None:
    """Give a GLM checkpoint without a chat template (many GGUF files) Gallium's own, and say so."""
    if text.chat_template is None:
        from gallium.text.builtin import builtin_template

        found = builtin_template(model_type, label, text)
        if found is not None:
            text.chat_template = found.source
            log.warning("%s: %s", label, found.notice)


class Running(NamedTuple):
    """A started engine and its KV cache."""

    engine: Engine
    kv: KvPlan
    block_size: int
    draft_kv_bytes: int = 0  # of the KV cache


def start_engine(
    model: Model,
    text: Tokenizer | None,
    settings: EngineSettings,
    *,
    draft: LoadedDraft | None = None,
    emulated: bool = False,
    recorder: Recorder | None = None,
) -> Running:
    """Size the KV cache by what memory is left, and start an engine for a model that is loaded in this process.

    A model that drafts has a cache of as many blocks, within the same memory.
    """
    ops, spec = model.ops, model.spec
    block_size = settings.block_size or ops.block_size
    block_bytes = model.kv_block_bytes(block_size)
    draft_bytes = 0 if draft is None else draft.model.kv_block_bytes(block_size)
    kv = size_cache(
        spec,
        settings,
        block_bytes + draft_bytes,
        block_size,
        room(device_bytes(ops), available_bytes(), emulated=emulated),
    )
    caches = model.make_caches(kv.num_blocks, block_size)
    sizes = decode_sizes(settings.max_batch) if settings.graphs else ()
    runner: Runner
    if recorder is None:
        runner = ModelRunner(model, ops, caches, sizes)
    else:
        from gallium.engine.tracing import RecordedRunner

        runner = RecordedRunner(model, ops, caches, recorder)
    draft_model = None if draft is None else make_draft_model(draft, kv, block_size, settings, sizes)
    engine = make_engine(runner, spec, text, kv, block_size, settings, draft_model)
    engine.start()
    return Running(engine, kv, block_size, kv.num_blocks * draft_bytes)


def make_draft_model(
    draft: LoadedDraft, kv: KvPlan, block_size: int, settings: EngineSettings, sizes: tuple[int, ...]
) -> DraftModel:
    """The drafting side of an engine: its own cache of as many blocks, and a first look at what a step takes."""
    from gallium.engine.draft_model import DraftModel

    model = draft.model
    made = DraftModel(
        ModelRunner(model, model.ops, model.make_caches(kv.num_blocks, block_size), sizes),
        block_size=block_size,
        vocab_size=draft.vocab_size,
        max_positions=model.spec.max_positions,
        max_step_tokens=settings.max_step_tokens,
    )
    made.warm_up()
    return made


def start_ranks(
    path: Path,
    spec: ModelSpec,
    backend: Backend,
    text: Tokenizer | None,
    settings: EngineSettings,
    progress: Progress | None,
) -> tuple[Loaded, Running]:
    """Start a process per rank, and an engine for them. Raises what a rank refuses, naming it; none is left then."""
    from gallium.engine.rank_runner import RankRunner, placements

    check_divides(spec, placements(settings)[0])
    runner = RankRunner(path, backend.name, settings)
    try:
        ranks = runner.load(progress)
        first, emulated = ranks[0], backend.probe().emulated
        host = available_bytes() // len(ranks)
        kv = size_cache(
            spec,
            settings,
            max(rank.block_bytes for rank in ranks),
            first.block_size,
            min(room(rank.free_bytes, host, emulated=emulated) for rank in ranks),
        )
        runner.make_caches(kv.num_blocks, first.block_size)
        engine = make_engine(runner, spec, text, kv, first.block_size, settings)
        engine.start()
    except BaseException:
        runner.close()
        raise
    return first, Running(engine, kv, first.block_size)


def size_cache(spec: ModelSpec, settings: EngineSettings, block_bytes: int, block_size: int, available: int) -> KvPlan:
    """`plan_kv` with what the settings ask for."""
    return plan_kv(
        block_bytes=block_bytes,
        block_size=block_size,
        max_positions=spec.max_positions,
        max_context=settings.max_context,
        max_batch=settings.max_batch,
        kv_memory=settings.kv_memory,
        available=available,
    )


def make_engine(
    runner: Runner,
    spec: ModelSpec,
    text: Tokenizer | None,
    kv: KvPlan,
    block_size: int,
    settings: EngineSettings,
    draft_model: DraftModel | None = None,
) -> Engine:
    """An engine, not yet started, for a loaded model."""
    limits = EngineLimits(
        num_blocks=kv.num_blocks,
        block_size=block_size,
        max_context=kv.max_context,
        max_batch=settings.max_batch,
        max_step_tokens=settings.max_step_tokens,
        prefix_cache=settings.prefix_cache,
        vocab_size=spec.vocab_size if text is None else min(spec.vocab_size, text.vocab_size),
        head_rows=spec.vocab_size,
        lanes=settings.groups,
        lookup=settings.speculate != "off",
    )

    def detokenizer(params: SamplingParams) -> TextSource:
        if text is None:
            return NoText()
        return Detokenizer(text, skip_special_tokens=params.skip_special_tokens)

    eos_ids = {*spec.eos_ids, *(text.eos_ids if text is not None else ())}
    return Engine(runner, limits, eos_ids=sorted(eos_ids), detokenizer=detokenizer, draft_model=draft_model)
