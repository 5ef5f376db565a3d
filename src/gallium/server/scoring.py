"""Log-probabilities of a prompt's own tokens, for `echo` with `logprobs`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gallium.errors import InvalidRequest
from gallium.types import TokenLogprob

if TYPE_CHECKING:
    from gallium.engine.assembly import Assembly

MAX_LOGITS_BYTES = 2**29
"""The logits of all positions are in memory at once; longer prompts are refused."""


def check_scoring(assembly: Assembly, prompts: Sequence[Sequence[int]]) -> None:
    """Raise InvalidRequest for a prompt whose logits would not fit."""
    longest = max(len(prompt) for prompt in prompts)
    most = MAX_LOGITS_BYTES // (4 * assembly.spec.vocab_size)
    if longest > most:
        raise InvalidRequest(
            f"echo with logprobs takes prompts of up to {most} tokens of this model, and one has {longest}: "
            "send it in parts, or leave out logprobs.",
            "echo",
        )


def score(assembly: Assembly, prompt: Sequence[int], top: int) -> list[TokenLogprob]:
    """One entry for each token but the first, with `top` alternatives. Waits for the engine.

    Ids beyond the tokenizer's are padding rows of the model: they are never drawn, so their probability is 0.
    """
    from gallium.engine.sampling import token_logprob

    if len(prompt) < 2:
        return []
    vocab = min(assembly.spec.vocab_size, assembly.tokenizer.vocab_size)
    logits = assembly.engine.logits(prompt[:-1])[:, :vocab]
    scored = []
    for row, token_id in zip(logits, prompt[1:], strict=True):
        entry = token_logprob(row, min(token_id, vocab - 1), top)
        scored.append(entry if token_id < vocab else TokenLogprob(token_id, -math.inf, entry.top))
    return scored
