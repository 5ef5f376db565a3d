"""A vocabulary in arrays, and a tokenizer that grows out of it: the tokens of the whole one, whatever the text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.glm_tokenizer import tokenizer_json, write_folder

from gallium.errors import CheckpointError
from gallium.text.growing import LONGEST_TEXT, MOST_WORDS, GrowingCore
from gallium.text.tokenizer import Tokenizer
from gallium.text.tokenizer_folder import read_files, read_folder
from gallium.text.vocabulary import VOCABULARY_FILE, read_vocabulary, write_vocabulary

TEXTS = (
    "", " ", "What is 天气 in Paris?", "[gMASK]<sop><|user|>\nthe thing and the city<|assistant|>",
    "é\u0301 \U0001f600", "get_weather(city='Paris')\n\n\tanding  theing", "<|user|><|nothing|>", "a" * 60,
)  # fmt: skip


def with_vocabulary(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    write_folder(folder, "glm45", adds_prefix=True, chat_template="{{ messages }}")
    if change is not None:
        content = tokenizer_json("glm45", adds_prefix=True)
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))
    parts = read_files(folder)
    assert write_vocabulary(
        folder, parts.core.to_str(), special_tokens=parts.special_tokens, eos_ids=parts.eos_ids,
        chat_template=parts.chat_template,
    )  # fmt: skip
    return folder


def both(folder: Path) -> tuple[Tokenizer, Tokenizer]:
    grown = read_folder(folder)
    assert isinstance(grown.core, GrowingCore)
    return Tokenizer(grown), Tokenizer(read_files(folder))


def whole_words(content: dict[str, Any]) -> None:
    content["model"]["ignore_merges"] = True


@pytest.mark.parametrize("change", [None, whole_words])
def test_the_tokens_are_those_of_the_whole(tmp_path: Path, change: Callable[[dict[str, Any]], None] | None) -> None:
    grown, whole = both(with_vocabulary(tmp_path, change))
    for text in TEXTS:
        for special in (False, True):
            assert grown.encode(text, add_special_tokens=special) == whole.encode(text, add_special_tokens=special)
        assert grown.decode(whole.encode(text)) == whole.decode(whole.encode(text))
    rng = random.Random(0)
    for _ in range(50):
        text = "".join(rng.choice("the and Paris get_weatherqz\n<|user|>天é") for _ in range(40))
        assert grown.encode(text) == whole.encode(text)


def test_everything_else_is_the_same(tmp_path: Path) -> None:
    grown, whole = both(with_vocabulary(tmp_path))
    assert (grown.vocab_size, grown.eos_ids, grown.special_ids) == (whole.vocab_size, whole.eos_ids, whole.special_ids)
    assert (grown.special_tokens, grown.chat_template) == (whole.special_tokens, whole.chat_template)
    ids = [*range(300), *range(whole.vocab_size - 50, whole.vocab_size + 2)]
    assert [grown.token_bytes(i) for i in ids] == [whole.token_bytes(i) for i in ids]
    for token in ("the", "<|user|>", "Ġthe", "nothing such"):
        assert grown.id_of(token) == whole.id_of(token)
    grown.save(tmp_path / "")
    assert Tokenizer(read_files(tmp_path)).encode(TEXTS[2]) == whole.encode(TEXTS[2])


def test_long_texts_and_many_words_build_the_whole(tmp_path: Path) -> None:
    grown, whole = both(with_vocabulary(tmp_path))
    long = "the city " * (LONGEST_TEXT // 9 + 1)
    assert grown.encode(long) == whole.encode(long)
    again, _ = both(tmp_path)
    many = " ".join(f"w{n}" for n in range(MOST_WORDS + 1))[: LONGEST_TEXT - 1]
    assert again.encode(many) == whole.encode(many)
    assert again.encode("x" * 200) == whole.encode("x" * 200)


def test_threads_may_share_it(tmp_path: Path) -> None:
    grown, whole = both(with_vocabulary(tmp_path))
    texts = [f"the {n} and{n} city ing" for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(grown.encode, texts)) == [whole.encode(text) for text in texts]


def test_another_tokenizer_json_is_the_truth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_vocabulary(tmp_path)
    content = tokenizer_json("glm45")
    content["model"]["merges"].clear()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert read_vocabulary(tmp_path) is None
    assert "convert the model again" in caplog.text
    assert Tokenizer.from_folder(tmp_path).encode("the") == Tokenizer(read_files(tmp_path)).encode("the")


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    with_vocabulary(tmp_path)
    data = (tmp_path / VOCABULARY_FILE).read_bytes()
    (tmp_path / VOCABULARY_FILE).write_bytes(data[:-4])
    with pytest.raises(CheckpointError):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "change",
    [lambda c: c["model"].update(dropout=0.1), lambda c: c["model"].update(byte_fallback=True),
     lambda c: c["model"].update(ignore_merges=True) or c["added_tokens"][0].update(single_word=True)],
)  # fmt: skip
def test_other_kinds_have_none(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = tokenizer_json("glm45")
    change(content)
    assert not write_vocabulary(tmp_path, json.dumps(content), special_tokens={}, eos_ids=(), chat_template=None)
    assert not (tmp_path / VOCABULARY_FILE).exists()
