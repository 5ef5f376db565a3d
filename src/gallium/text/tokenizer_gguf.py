"""Reads the tokenizer that a GGUF file carries in its metadata (keys `tokenizer.*` of ggml's docs/gguf.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gallium.errors import TokenizerError
from gallium.text.pretokenizers import PreRule, make_normalizer, make_pre_tokenizer, pre_rule
from gallium.text.tokenizer_parts import TokenizerParts

WHERE = "The tokenizer in this GGUF file"
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
"""Values of `tokenizer.ggml.token_type` that differ from a normal entry (1)."""
VISIBLE = frozenset(
    f"<{slash}{name}>"
    for name in ("think", "tool_call", "tool_response", "arg_key", "arg_value")
    for slash in ("", "/")
)
"""GLM's own files mark these as not special: they are part of the answer. Some conversions mark them as control."""
END_TEXTS = (
    "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<end_of_turn>", "<EOT>",
)  # fmt: skip
"""Control tokens that end an answer wherever they occur, as llama.cpp has it; files often name only one of them."""
ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")
_LONG_NAMES = {
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
}  # "seperator" is the format's own spelling
_PADDING = re.compile(r"\[PAD\d+\]")


def read_metadata(metadata: Mapping[str, Any]) -> TokenizerParts:
    """The tokenizer of a GGUF file. Raises TokenizerError if it is absent, damaged or of a kind that is not known."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise TokenizerError("This GGUF file carries no tokenizer: use another conversion, or the model's own folder.")
    if kind != "gpt2":
        raise TokenizerError(
            f"This GGUF file has a tokenizer of kind {kind!r}, which Gallium does not read from GGUF (it reads 'gpt2', "
            "byte-level BPE). Use the model's Hugging Face folder, whose tokenizer.json it can read."
        )
    rule = pre_rule(metadata.get("tokenizer.ggml.pre"))
    tokens, types = _entries(metadata)
    core = _build(tokens, _merges(metadata), rule)
    _add_tokens(core, tokens, types)
    special = _special_tokens(metadata, tokens)
    if metadata.get("tokenizer.ggml.add_bos_token", rule.adds_bos) and "bos_token" in special:
        _add_bos(core, special["bos_token"])
    template = metadata.get("tokenizer.chat_template")
    return TokenizerParts(
        core=core,
        where=WHERE,
        special_tokens=special,
        eos_ids=_end_ids(metadata, tokens, types),
        chat_template=template if isinstance(template, str) and template.strip() else None,
        vocab_size=len(tokens),
    )


def _texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str) or set(map(type, value)) - {str}:
        raise TokenizerError(f"{WHERE} is damaged: {key} is not a list of texts. Fetch the file again.")
    return list(value)


def _entries(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """(Tokens, their types), without the padding at the end."""
    tokens = _texts(metadata, "tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    types = types if isinstance(types, list) else []
    if len(types) != len(tokens):
        raise TokenizerError(f"{WHERE} is damaged: it has {len(tokens)} tokens, but types for {len(types)}.")
    used = len(tokens)
    while used and (types[used - 1] == UNUSED or _PADDING.fullmatch(tokens[used - 1])):
        used -= 1
    if not used:
        raise TokenizerError(f"{WHERE} is damaged: its list of tokens is empty. Fetch the file again.")
    return tokens[:used], types[:used]


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for line in _texts(metadata, "tokenizer.ggml.merges"):
        left, space, right = line.partition(" ")
        if not (left and space and right):
            raise TokenizerError(f"{WHERE} is damaged: {line!r} is not a merge of two tokens. Fetch the file again.")
        pairs.append((left, right))
    return pairs


def _build(tokens: list[str], merges: list[tuple[str, str]], rule: PreRule) -> Any:
    import tokenizers
    from tokenizers import decoders, models

    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(vocab) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise TokenizerError(f"{WHERE} is damaged: the token {twice!r} occurs twice. Use another conversion.")
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=rule.whole_words_first)
    except Exception as cause:  # the library raises nothing narrower
        raise TokenizerError(f"{WHERE} is damaged: {cause}. Use another conversion.") from cause
    core = tokenizers.Tokenizer(model)
    core.pre_tokenizer = make_pre_tokenizer(rule)
    core.normalizer = make_normalizer(rule)
    core.decoder = decoders.ByteLevel()
    return core


def _add_tokens(core: Any, tokens: Sequence[str], types: Sequence[int]) -> None:
    from tokenizers import AddedToken

    added = []
    for token, kind in zip(tokens, types, strict=True):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token:
            special = kind != USER_DEFINED and token not in VISIBLE
            added.append(AddedToken(token, special=special, normalized=False))
    core.add_tokens(added)


def _special_tokens(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    found = {}
    for role in ROLES:
        index = metadata.get(f"tokenizer.ggml.{_LONG_NAMES.get(role, role)}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            found[f"{role}_token"] = tokens[index]
    return found


def _end_ids(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> tuple[int, ...]:
    named = [metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom")]
    ids = [i for i in named if isinstance(i, int) and 0 <= i < len(tokens)]
    ids += [i for i, kind in enumerate(types) if kind == CONTROL and tokens[i] in END_TEXTS]
    return tuple(dict.fromkeys(ids))


def _add_bos(core: Any, bos: str) -> None:
    from tokenizers import processors

    core.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[(bos, core.token_to_id(bos))]
    )
