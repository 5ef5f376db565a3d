"""Whether two tokenizers give the same ids: what a model that drafts and the one that checks must share."""

from __future__ import annotations

from gallium.text.tokenizer import Tokenizer


def difference(one: Tokenizer, other: Tokenizer) -> str | None:
    """How `other` differs from `one`, as part of a sentence; None if they agree in all ids that both have.

    One of them may have more tokens at the end, as later versions of a model have.
    """
    if one.definition == other.definition:
        return None
    mine, theirs = one.entries(), other.entries()
    for token_id in sorted(mine.keys() & theirs.keys()):
        if mine[token_id] != theirs[token_id]:
            return f"token {token_id} is {mine[token_id]!r} in the one and {theirs[token_id]!r} in the other"
    if not mine.keys() & theirs.keys():
        return "they have no token in common"
    (kind, merges), (their_kind, their_merges) = one.rules(), other.rules()
    if kind != their_kind:
        return f"one tokenizer is of the kind {kind} and the other {their_kind}"
    for number, (merge, their_merge) in enumerate(zip(merges, their_merges, strict=False)):
        if merge != their_merge:
            return f"merge {number} of the tokenizer is {merge!r} in the one and {their_merge!r} in the other"
    if len(merges) != len(their_merges):
        return f"one tokenizer has {len(merges)} merges and the other {len(their_merges)}"
    return None
