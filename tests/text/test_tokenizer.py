"""Tokenizer from a Hugging Face folder: ids, flags, templates, bytes, and what damaged files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.glm_tokenizer import FIRST_SPECIAL, tokenizer_config, tokenizer_json, write_folder

from gallium.errors import InvalidRequest, TokenizerError
from gallium.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("family", "used", "ends"),
    [
        ("glm45", 151365, (151329, 151336, 151338)),
        ("glm5", 154856, (154820, 154827, 154829)),
        ("glm4", 151339, (151329, 151336, 151338)),
        ("edge", 59256, (59246, 59253, 59255)),
    ],
)
def test_ids_and_stop_set_of_the_families(tmp_path: Path, family: str, used: int, ends: tuple[int, ...]) -> None:
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, family))
    assert tokenizer.vocab_size == used  # of the rows of the model's embedding, the rest is padding
    assert tokenizer.eos_ids == ends
    assert tokenizer.encode("<|user|>hi<|assistant|>")[::3] == [
        FIRST_SPECIAL[family] + 7,
        FIRST_SPECIAL[family] + 8,
    ]


@pytest.mark.parametrize(
    ("family", "ids"),
    [
        ("glm4", {"[MASK]": 151330, "[sMASK]": 151332, "<eop>": 151334}),
        ("glm45", {"[gMASK]": 151331, "<sop>": 151333, "<|system|>": 151335, "<|assistant|>": 151337,
                   "<|code_suffix|>": 151349, "<think>": 151350, "</think>": 151351, "<tool_call>": 151352,
                   "</tool_call>": 151353, "<tool_response>": 151354, "</tool_response>": 151355, "<arg_key>": 151356,
                   "</arg_key>": 151357, "<arg_value>": 151358, "</arg_value>": 151359, "/nothink": 151360,
                   "<|image|>": 151363, "<|video|>": 151364}),
        ("glm5", {"<|system|>": 154826, "<|assistant|>": 154828, "<think>": 154841, "</think>": 154842,
                  "<|image|>": 154854, "<|video|>": 154855}),
    ],
)  # fmt: skip
def test_each_special_token_is_one_id(tmp_path: Path, family: str, ids: dict[str, int]) -> None:
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, family))
    assert tokenizer.encode("".join(ids)) == list(ids.values())
    shown = {token for token in ids if ids[token] not in tokenizer.special_ids}
    assert shown == {token for token in ids if "think" in token or "tool_" in token or "arg_" in token}


def test_special_tokens_in_text_match_the_known_answer(glm45: Tokenizer) -> None:
    ids = glm45.encode("[gMASK]this<|system|>no<|user|>yes<|assistant|>maybe")
    assert [i for i in ids if i >= 151329] == [151331, 151335, 151336, 151337]


def test_prefix_does_not_double(tmp_path: Path) -> None:
    """GLM-4-9B's post-processor puts [gMASK]<sop> before every text; a rendered chat has it already."""
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, "glm4", adds_prefix=True))
    assert tokenizer.encode("[gMASK]<sop>hi")[:3] == [151331, 151333, tokenizer.id_of("h")]
    assert tokenizer.encode("hi", add_special_tokens=True)[:2] == [151331, 151333]


def test_think_and_tool_tokens_stay_in_the_text(glm45: Tokenizer) -> None:
    text = "<think>the</think><tool_call>get_weather<arg_key>c</arg_key><arg_value>天气</arg_value></tool_call>"
    ids = glm45.encode(text + "<|observation|>")
    assert glm45.decode(ids) == text
    assert glm45.decode(ids, skip_special_tokens=False) == text + "<|observation|>"
    assert glm45.id_of("<think>") == 151350 and 151350 not in glm45.special_ids


def test_bytes_of_tokens_are_exact(smollm: Tokenizer, glm45: Tokenizer) -> None:
    assert {glm45.token_bytes(i) for i in range(256)} == {bytes([b]) for b in range(256)}
    for text in ("naïve 天气 😀\n\tx", " leading"):
        assert b"".join(map(smollm.token_bytes, smollm.encode(text))) == text.encode()
    assert smollm.token_bytes(10**9) == b"" and smollm.token_bytes(-1) == b""


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_every_text_round_trips(glm45: Tokenizer, text: str) -> None:
    assert glm45.decode(glm45.encode(text), skip_special_tokens=False) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 49151), max_size=12), st.booleans())
def test_decode_is_the_library_s(smollm: Tokenizer, ids: list[int], skip: bool) -> None:
    assert smollm.decode(ids, skip_special_tokens=skip) == smollm._core.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("text", ["\ud83d", "ok \udc00 no"])
def test_lone_surrogate_is_refused(smollm: Tokenizer, text: str) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        smollm.encode(text)


def test_no_string_and_unknown_id_are_refused(smollm: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="must be a string"):
        smollm.encode(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="49152"):
        smollm.token(49152)
    assert smollm.token(2) == "<|im_end|>" and smollm.id_of("nonsense entry") is None


def with_config(path: Path, drop: tuple[str, ...] = (), **changes: Any) -> Tokenizer:
    write_folder(path)
    config = {k: v for k, v in {**tokenizer_config(), **changes}.items() if k not in drop}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_folder(path)


def test_dialect_of_transformers_5(tmp_path: Path) -> None:
    names = {"extra_special_tokens": ["<|user|>", "<|new|>"], "eos_token": {"content": "<|user|>"}}
    tokenizer = with_config(tmp_path, ("added_tokens_decoder",), **names)
    assert tokenizer.special_tokens["eos_token"] == "<|user|>" and tokenizer.eos_ids[0] == 151336
    assert tokenizer.id_of("<|new|>") in tokenizer.special_ids
    named = with_config(
        tmp_path, extra_special_tokens={"image_token": "<|img|>"}, additional_special_tokens=["<think>"]
    )
    assert named.id_of("<|img|>") in named.special_ids
    assert named.id_of("<think>") not in named.special_ids  # listed among the special ones, flagged otherwise


def test_flags_of_the_config_win(tmp_path: Path) -> None:
    declared = tokenizer_config()["added_tokens_decoder"]
    declared["151350"]["special"] = True
    tokenizer = with_config(tmp_path, added_tokens_decoder=declared)
    assert 151350 in tokenizer.special_ids


def test_chat_template_in_each_place(tmp_path: Path) -> None:
    assert with_config(tmp_path).chat_template is None
    assert with_config(tmp_path, chat_template="A").chat_template == "A"
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert with_config(tmp_path, chat_template=several).chat_template == "D"
    assert with_config(tmp_path, chat_template=several[:1]).chat_template == "T"
    with pytest.raises(TokenizerError, match="no 'default'"):
        with_config(tmp_path, chat_template=[several[0], {"name": "rag", "template": "R"}])
    with pytest.raises(TokenizerError, match="chat_template"):
        with_config(tmp_path, chat_template=7)
    (tmp_path / "chat_template.jinja").write_text("天气")
    assert with_config(tmp_path, chat_template="A").chat_template == "天气"


def test_save_and_read_again(tmp_path: Path, smollm: Tokenizer) -> None:
    smollm.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    text = "<|im_start|>user\nHello 12345 天气😀 'll\n\n  x<|im_end|>"
    assert again.encode(text) == smollm.encode(text)
    assert again.special_ids == smollm.special_ids and again.special_tokens == smollm.special_tokens
    assert again.chat_template == smollm.chat_template and again.vocab_size == smollm.vocab_size
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(TokenizerError, match="could not be written"):
        smollm.save(tmp_path / "absent")


def test_saved_folder_is_read_by_transformers(tmp_path: Path, smollm: Tokenizer) -> None:
    from transformers import AutoTokenizer

    smollm.save(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\nHello 12345 天气😀<|im_end|>"
    assert other(text, add_special_tokens=False)["input_ids"] == smollm.encode(text)
    messages = [{"role": "user", "content": "hi"}]
    assert other.apply_chat_template(messages, tokenize=False).endswith("<|im_start|>user\nhi<|im_end|>\n")


def damaged(path: Path, **files: str) -> str:
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_folder(path)
    return str(caught.value)


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    assert "no tokenizer.json" in damaged(tmp_path)
    assert "tokenizer.model alone" in damaged(tmp_path, tokenizer__model="x")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}', "\x00\x01"])
def test_damaged_tokenizer_json(tmp_path: Path, text: str) -> None:
    assert "damaged" in damaged(tmp_path, tokenizer__json=text)


@pytest.mark.parametrize(
    "config",
    ["{", "[1]", "[" * 100_000, '{"added_tokens_decoder": []}', '{"added_tokens_decoder": {"x": {"content": "a"}}}',
     '{"added_tokens_decoder": {"7": 3}}', '{"added_tokens_decoder": {"7": {"content": "<|user|>"}}}'],
)  # fmt: skip
def test_damaged_config(tmp_path: Path, config: str) -> None:
    write_folder(tmp_path)
    assert "tokenizer_config.json" in damaged(tmp_path, tokenizer_config__json=config)


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    write_folder(tmp_path)
    content = tokenizer_json()
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert len(Tokenizer.from_folder(tmp_path).encode("abcdefghij")) == 10


def test_unknown_decoder_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    content = {**tokenizer_json(), "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}
    assert "WordPiece" in damaged(tmp_path, tokenizer__json=json.dumps(content))
    assert "no decoder" in damaged(tmp_path, tokenizer__json=json.dumps({**content, "decoder": None}))


def space_marked(strip: bool = True) -> dict[str, Any]:
    """A SentencePiece-style BPE as Llama 2's tokenizer.json has it."""
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strip:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    for entry in ("▁", "h", "i", "▁h", "▁hi"):
        vocab[entry] = len(vocab)
    return {
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None, "pre_tokenizer": None,
        "added_tokens": [{"id": i, "content": t, **flags} for i, t in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["▁", "h"], ["▁h", "i"]], "byte_fallback": True,
                  "unk_token": "<unk>", "fuse_unk": True},
    }  # fmt: skip


def test_sentencepiece_style_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(space_marked()))
    tokenizer = Tokenizer.from_folder(tmp_path)
    for text in ("hi", "hi hi", "hi 天气 😀", " hi"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text == tokenizer._core.decode(ids)
    (tmp_path / "tokenizer.json").write_text(json.dumps(space_marked(strip=False)))
    assert Tokenizer.from_folder(tmp_path).decode([263]) == " hi"
