"""Reads a tokenizer from a Hugging Face folder: tokenizer.json, tokenizer_config.json and its chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gallium.errors import TokenizerError
from gallium.text.growing import GrowingCore
from gallium.text.tokenizer_parts import TokenizerParts
from gallium.text.vocabulary import VOCABULARY_FILE, read_vocabulary

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ADVICE = "Copy the model's tokenizer.json there, or fetch the model again."


def read_folder(path: Path) -> TokenizerParts:
    """The tokenizer of a checkpoint folder. Raises TokenizerError if it is missing or damaged.

    A packed folder has its vocabulary in a second form (vocabulary.py), which is used if it is that of the JSON.
    """
    packed = read_vocabulary(path)
    if packed is None:
        return read_files(path)
    about, vocabulary = packed
    return TokenizerParts(
        core=GrowingCore(about, vocabulary, whole=lambda: read_files(path).core),
        where=str(path / VOCABULARY_FILE),
        special_tokens=about.special_tokens,
        eos_ids=tuple(about.eos_ids),
        chat_template=about.chat_template,
        vocab_size=vocabulary.size,
    )


def read_files(path: Path) -> TokenizerParts:
    """The tokenizer as its own files have it, whole."""
    file = path / "tokenizer.json"
    config = _config(path)
    if not file.is_file():
        other = next((name for name in ("tokenizer.model", "ice_text.model") if (path / name).is_file()), None)
        also = f" ({other} alone is not enough)" if other else ""
        raise TokenizerError(f"{path} has no tokenizer.json{also}. {ADVICE}")
    core = _load(file)
    _add_declared(core, config, path)
    special = {name: text for name in ROLES if (text := _text_of(config.get(name)))}
    eos = core.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return TokenizerParts(
        core=core,
        where=str(file),
        special_tokens=special,
        eos_ids=() if eos is None else (eos,),
        chat_template=_chat_template(path, config),
    )


def _load(file: Path) -> Any:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as cause:
        raise TokenizerError(f"{file} cannot be read: {cause}. {ADVICE}") from cause
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as cause:  # the library raises plain Exception, or panics, on a damaged file
        raise TokenizerError(f"{file} is damaged: {cause}. {ADVICE}") from cause


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise TokenizerError(f"{file} is not readable JSON: {cause}. Fetch it again.") from cause
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} holds a {type(value).__name__}, not an object. Fetch it again.")
    return value


def _config(path: Path) -> dict[str, Any]:
    """tokenizer_config.json, over the older special_tokens_map.json; empty if there is neither."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path / name).is_file():
            found.update({key: value for key, value in _json(path / name).items() if value is not None})
    return found


def _text_of(value: Any) -> str | None:
    """A special token is written as text or as an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _add_declared(core: Any, config: Mapping[str, Any], path: Path) -> None:
    """Make the config's flags of added tokens hold, and add what only the config knows.

    Two dialects: `added_tokens_decoder` (id → token with flags) and lists or maps of names,
    `additional_special_tokens` and `extra_special_tokens` (Transformers 5).
    """
    from tokenizers import AddedToken

    declared = config.get("added_tokens_decoder", {})
    if not isinstance(declared, Mapping):
        raise TokenizerError(f"{path}/tokenizer_config.json is damaged: added_tokens_decoder is not an object.")
    known = core.get_added_tokens_decoder()
    for key, flags in sorted(declared.items(), key=lambda item: int(item[0]) if str(item[0]).isdigit() else -1):
        content = _text_of(flags)
        if content is None or not str(key).isdigit():
            raise TokenizerError(f"{path}/tokenizer_config.json is damaged: {key!r} in added_tokens_decoder.")
        names = ("single_word", "lstrip", "rstrip", "normalized", "special")
        token = AddedToken(content, **{name: bool(flags[name]) for name in names if name in flags})
        if known.get(int(key)) == token:
            continue
        core.add_tokens([token])
        if core.token_to_id(content) != int(key):
            raise TokenizerError(
                f"{path}: tokenizer_config.json gives {content!r} the id {key}, tokenizer.json has it at "
                f"{core.token_to_id(content)}: the two files do not belong together. Fetch them again."
            )
    _add_named(core, config)


def _add_named(core: Any, config: Mapping[str, Any]) -> None:
    from tokenizers import AddedToken

    names = [config.get(role) for role in ROLES]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = config.get(key, ())
        names += listed.values() if isinstance(listed, Mapping) else listed
    known = {token.content for token in core.get_added_tokens_decoder().values()}
    texts = dict.fromkeys(text for name in names if (text := _text_of(name)) and text not in known)
    core.add_tokens([AddedToken(text, special=True, normalized=False) for text in texts])


def _chat_template(path: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja if there, else the config's: one text, or a list of named ones, of which `default`."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as cause:
            raise TokenizerError(f"{file} cannot be read: {cause}. Fetch it again.") from cause
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {v.get("name"): v.get("template") for v in value if isinstance(v, Mapping)}
        value = named.get("default") or (next(iter(named.values())) if len(named) == 1 else None)
        if value is None:
            raise TokenizerError(
                f"{path}/tokenizer_config.json has the chat templates {', '.join(map(str, named)) or 'none'}, but no "
                "'default' one; name one of them 'default'."
            )
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"{path}/tokenizer_config.json is damaged: its chat_template is not a text.")
    return value
