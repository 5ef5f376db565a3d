"""The model of `--speculate MODEL`: found and checked before any weights are read, then loaded beside the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gallium.checkpoints import Checkpoint, open_checkpoint, resolve_model
from gallium.engine.loading import Progress, load, read_tokenizer
from gallium.errors import GalliumError, UsageError
from gallium.models.config import read_spec
from gallium.models.decoder import Model
from gallium.models.spec import ModelSpec
from gallium.ops.backend import Backend
from gallium.ops.handles import Precision
from gallium.settings import EngineSettings
from gallium.text.tokenizer import Tokenizer
from gallium.text.tokenizer_match import difference


@dataclass(frozen=True, slots=True)
class DraftSource:
    """A checkpoint whose tokens are those of the model that it is to draft for."""

    label: str
    checkpoint: Checkpoint
    spec: ModelSpec
    vocab_size: int  # ids that both know

    def load(self, backend: Backend, settings: EngineSettings, progress: Progress | None = None) -> LoadedDraft:
        """Load it in the precision that was asked for, on the backend of the other. Raises as `loading.load` does."""
        how = replace(settings, precision=settings.draft_precision)
        found = load(self.checkpoint, self.spec, backend, how, progress)
        return LoadedDraft(self.label, found.model, found.precision, self.vocab_size)


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """A model that drafts, with what was chosen for it."""

    label: str
    model: Model
    precision: Precision
    vocab_size: int  # ids that it knows and the other can draw


def find_draft(name: str, settings: EngineSettings, spec: ModelSpec, text: Tokenizer | None) -> DraftSource:
    """The model `name`, of which no weights are read yet. `spec` and `text` are the model's that it drafts for.

    Raises UsageError if there is no such model, or if it has other tokens; it says what differs.
    """
    try:
        resolved = resolve_model(name, hub=settings.hub)
        checkpoint = open_checkpoint(resolved.path)
        checkpoint.prefetch()
        own = read_spec(checkpoint.config, checkpoint.generation_config)
        own_text = read_tokenizer(checkpoint, needed=False)
    except GalliumError as cause:
        raise UsageError(f"--speculate takes off, ngram or a model that drafts. {name}: {cause.message}") from cause
    refused = _refusal(own, own_text, spec, text)
    if refused is not None:
        raise UsageError(
            f"{name} cannot draft for this model: {refused}. Name a model of the same family, or choose "
            "--speculate ngram."
        )
    sizes = [own.vocab_size, spec.vocab_size]
    sizes += [known.vocab_size for known in (own_text, text) if known is not None]
    return DraftSource(resolved.label, checkpoint, own, min(sizes))


def _refusal(own: ModelSpec, own_text: Tokenizer | None, spec: ModelSpec, text: Tokenizer | None) -> str | None:
    """Why token ids of one mean nothing to the other, or None."""
    if own_text is None and text is None:
        if own.vocab_size == spec.vocab_size:
            return None
        return f"it has {own.vocab_size} tokens and not {spec.vocab_size}, and neither has a tokenizer"
    if own_text is None or text is None:
        return f"{'it' if own_text is None else 'this model'} has no tokenizer, so nobody knows whether tokens agree"
    return difference(text, own_text)
