"""How text is cut before BPE, by the name that GGUF files give in `tokenizer.ggml.pre`.

The names and their expressions are those of llama.cpp (src/llama-vocab.cpp, llm_tokenizer_bpe), written as the
models' own tokenizer.json files have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gallium.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
THREE_DIGITS = _WORDS + r"\p{N}{1,3}" + _REST
ONE_DIGIT = _WORDS + r"\p{N}" + _REST


@dataclass(frozen=True, slots=True)
class PreRule:
    """Expressions that cut the text one after the other, and what else the name implies."""

    patterns: tuple[str, ...]
    whole_words_first: bool = False
    """A piece that is an entry of the vocabulary is taken whole, before any merge."""
    adds_bos: bool = False
    """Unless the file says otherwise, a begin token is put before plain text."""
    normal_form: Literal["NFC"] | None = None


_DIGITS_THEN_GPT2 = PreRule((r"\p{N}", GPT2))
_LLAMA3 = PreRule((THREE_DIGITS,), whole_words_first=True, adds_bos=True)
_GLM4 = PreRule((THREE_DIGITS,))
PRE_RULES: Mapping[str, PreRule] = {
    "smollm": _DIGITS_THEN_GPT2,
    "starcoder": _DIGITS_THEN_GPT2,
    "refact": _DIGITS_THEN_GPT2,
    "command-r": _DIGITS_THEN_GPT2,
    "codeshell": _DIGITS_THEN_GPT2,
    "gpt-2": PreRule((GPT2,)),
    "phi-2": PreRule((GPT2,)),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "dbrx": PreRule((THREE_DIGITS,)),
    "smaug-bpe": PreRule((THREE_DIGITS,)),
    "chatglm-bpe": _GLM4,
    "glm4": _GLM4,
    "qwen2": PreRule((ONE_DIGIT,), normal_form="NFC"),
    "deepseek-r1-qwen": PreRule((ONE_DIGIT,)),
    "default": PreRule((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}


def pre_rule(name: object) -> PreRule:
    """The rule of a `tokenizer.ggml.pre`. Raises TokenizerError that names an unknown one."""
    if isinstance(name, str) and name in PRE_RULES:
        return PRE_RULES[name]
    said = "does not say how text is cut (tokenizer.ggml.pre)" if name is None else f"cuts text by the rule {name!r}"
    raise TokenizerError(
        f"This GGUF file {said}, which Gallium cannot follow exactly; it knows {', '.join(PRE_RULES)}. "
        "Use a newer conversion, or the model's Hugging Face folder."
    )


def make_pre_tokenizer(rule: PreRule) -> PreTokenizer:
    """The rule for the `tokenizers` library, ending in the byte-level alphabet."""
    from tokenizers import Regex, pre_tokenizers

    # The last expression is often GPT-2's, which the library has built in and runs faster.
    native = rule.patterns[-1] == GPT2
    cuts = rule.patterns[:-1] if native else rule.patterns
    steps: list[PreTokenizer] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cuts]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=native))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


def make_normalizer(rule: PreRule) -> Normalizer | None:
    """The Unicode normal form that text is brought into first, if the rule has one."""
    from tokenizers import normalizers

    return normalizers.NFC() if rule.normal_form == "NFC" else None
