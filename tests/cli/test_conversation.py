"""A conversation, saved and loaded."""

from __future__ import annotations

import json

import pytest

from gallium.cli.answering import Choice
from gallium.cli.conversation import Conversation
from gallium.errors import UsageError


def talk():
    conversation = Conversation("Be brief.")
    conversation.ask("Grüße?")
    conversation.take(Choice(content="你好", reasoning="Hm."))
    return conversation


def test_reasoning_is_kept_beside_the_answer():
    assert talk().messages[-1] == {"role": "assistant", "content": "你好", "reasoning_content": "Hm."}


def test_the_system_message_survives_a_reset():
    conversation = talk()
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    conversation.set_system("Be long.")
    assert conversation.system == "Be long."
    conversation.set_system(None)
    conversation.reset()
    assert conversation.messages == []


def test_saved_and_loaded_is_the_same(tmp_path):
    talk().save(tmp_path / "talk.json")
    other = Conversation()
    other.load(tmp_path / "talk.json")
    assert other.messages == talk().messages
    assert "你好" in (tmp_path / "talk.json").read_text(encoding="utf-8")


def test_a_foreign_file_is_never_replaced(tmp_path):
    path = tmp_path / "precious"
    path.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        talk().save(path)
    assert path.read_text() == "mine"


def test_an_own_file_may_be_written_again(tmp_path):
    conversation = talk()
    conversation.save(tmp_path / "talk.json")
    conversation.reset()
    conversation.save(tmp_path / "talk.json")
    assert len(json.loads((tmp_path / "talk.json").read_text())["messages"]) == 1


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(UsageError, match="No space left"):
        talk().save(tmp_path / "talk.json")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot be written"):
        talk().save(tmp_path / "nowhere" / "talk.json")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "[" * 100_000, '{"messages": 3}', '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "tool", "content": "x"}]}', '{"messages": [{"role": "user", "content": 1}]}',
        '{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_conversation_is_refused(tmp_path, text):
    (tmp_path / "talk.json").write_text(text)
    conversation = talk()
    with pytest.raises(UsageError):
        conversation.load(tmp_path / "talk.json")
    assert conversation.messages == talk().messages


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        Conversation().load(tmp_path / "nothing")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a saved conversation"):
        Conversation().load(tmp_path / "bytes")
