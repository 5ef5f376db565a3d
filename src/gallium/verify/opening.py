"""Opens both sides on one checkpoint, and makes the token ids that they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gallium.checkpoints import Checkpoint, open_checkpoint, resolve_model
from gallium.engine.loading import load, read_tokenizer
from gallium.errors import UsageError
from gallium.models.config import read_spec
from gallium.models.spec import ModelSpec
from gallium.ops.backend import Backend, choose, installed
from gallium.ops.machine import Describes
from gallium.settings import EngineSettings, PrecisionChoice
from gallium.text.tokenizer import Tokenizer
from gallium.verify.sides import Side

Progress = Callable[[int, int], None]
AGAINST, AGAINST_CPU = "cpu", "reference"  # what is compared with if nothing is said
TEXTS = (
    "Gallium melts in the hand at 29.76 degrees Celsius. When it is cooled again, it expands as water does, because",
    "def mean(values):\n    # 平均值: the sum divided by how many there are\n    return",
)
"""The default prompts: prose, and code with Chinese in it; of different lengths, so that a batch is ragged."""


@dataclass
class Pair:
    """Two sides on one model."""

    label: str
    is_default: bool
    spec: ModelSpec
    text: Tokenizer | None
    tested: Side
    other: Side


def open_pair(
    model: str | None,
    settings: EngineSettings,
    against: str | None = None,
    against_precision: PrecisionChoice | None = None,
    progress: Progress | None = None,
    *,
    finest: bool = False,
) -> Pair:
    """Load `model` twice: on the backend of `settings`, and on `against` (default: the CPU, for itself the reference).

    The tested side's precision is that of `settings`; `finest` turns "auto" into float32 where the backend has it. The
    other's default is float32, in which every difference can be judged, or what it has instead; for integers that the
    checkpoint's maker has quantised it is theirs, which both sides must multiply alike. Both stand in memory at once.
    Raises UsageError for a side compared with itself, and the errors of loading.
    """
    resolved = resolve_model(model, hub=settings.hub, revision=settings.revision)
    checkpoint = open_checkpoint(resolved.path)
    spec = read_spec(checkpoint.config, checkpoint.generation_config)
    backend = choose(settings.backend, installed())
    other = choose(against or (AGAINST_CPU if backend.name == AGAINST else AGAINST), installed())
    text = read_tokenizer(checkpoint, needed=False)
    if finest and settings.precision == "auto" and _has_float32(backend, spec):
        settings = replace(settings, precision="float32")
    tested = open_side(backend, checkpoint, spec, settings, progress)
    exact = _has_float32(other, spec) and not tested.integers
    asked: PrecisionChoice = against_precision or ("float32" if exact else "auto")
    if other.name == backend.name and tested.precision in (
        asked,
        checkpoint.stored_precision if asked == "auto" else "",
    ):
        raise UsageError(
            f"{backend.name} in {tested.precision} would be compared with itself: choose another --against, or another "
            "--against-precision."
        )
    return Pair(
        resolved.label, resolved.is_default, spec, text, tested,
        open_side(other, checkpoint, spec, replace(settings, precision=asked), progress),
    )  # fmt: skip


def open_side(
    backend: Backend, checkpoint: Checkpoint, spec: ModelSpec, settings: EngineSettings, progress: Progress | None
) -> Side:
    """One backend with the model on it, in one process."""
    loaded = load(checkpoint, spec, backend, settings, progress)
    facts = {fact.name: fact.value for fact in backend.describe()} if isinstance(backend, Describes) else {}
    integers = checkpoint.has_integers and loaded.precision == checkpoint.stored_precision
    return Side(backend.name, loaded.precision, loaded.model, backend.probe().emulated, facts, integers)


def _has_float32(backend: Backend, spec: ModelSpec) -> bool:
    return all(row.status != "unsupported" for row in backend.support(spec.facts, "float32"))


def prompts_of(pair: Pair, texts: Sequence[str], tokens: int) -> list[list[int]]:
    """Token ids of the texts, each cut to `tokens`; made-up ids for a model without a tokenizer.

    Raises UsageError for a text without tokens, or for texts where there is no tokenizer.
    """
    if pair.text is None:
        if texts:
            raise UsageError(f"{pair.label} has no tokenizer: leave out --prompt, then token ids are made up.")
        rng = np.random.default_rng(0)
        return [rng.integers(0, pair.spec.vocab_size, size).tolist() for size in (tokens, max(1, tokens * 2 // 3))]
    lengths = [tokens] * len(texts) if texts else [tokens, max(1, tokens * 2 // 3)]  # the built-in batch is ragged
    found = [
        pair.text.encode(text, add_special_tokens=True)[:n] for text, n in zip(texts or TEXTS, lengths, strict=True)
    ]
    for text, ids in zip(texts, found, strict=False):
        if not ids:
            raise UsageError(f"the prompt {text!r} has no tokens: give a text.")
    return found
