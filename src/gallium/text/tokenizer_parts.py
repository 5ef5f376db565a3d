"""TokenizerParts: what the readers of tokenizer files hand to Tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

    from gallium.text.growing import GrowingCore


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """What a reader of one kind of file found."""

    core: tokenizers.Tokenizer | GrowingCore
    where: str
    special_tokens: dict[str, str] = field(default_factory=dict)
    """`bos_token`, `eos_token`, … as the chat template sees them."""
    eos_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    vocab_size: int | None = None
    """One more than the largest id, where that is known without a look at all of them."""
