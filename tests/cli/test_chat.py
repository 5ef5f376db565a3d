"""`gallium chat` at a terminal (a pseudo one) and without."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time

import pytest

from gallium.cli.chat import FIRST_QUESTION

STYLE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
PATIENCE_S = 60


class Terminal:
    """The person in front of a terminal."""

    def __init__(self, start, *args, **environment):
        self.master, slave = os.openpty()
        settings = {"TERM": "xterm", "PRETEND_PAUSE": "0", **environment}
        self.process: subprocess.Popen[bytes] = start(
            "chat", *args, environment=settings, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: _own_terminal(slave),
        )  # fmt: skip
        os.close(slave)
        self.seen = b""

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, text):
        """Read on until `text` has come; returns what came before it."""
        assert self._comes(text, time.monotonic() + PATIENCE_S), f"{text!r} did not come; seen: {self.seen!r}"
        before, _, self.seen = self.seen.partition(text.encode())
        return before.decode().replace("\r\n", "\n")

    def interrupt_prompt(self, answer):
        """Ctrl-C at the prompt, again each second until `answer` has come: CPython loses a signal that falls between
        readline's prompt and its wait for a key (it is only seen at the next key or signal)."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.type("\x03")
            if self._comes(answer, time.monotonic() + 1):
                break
        self.wait_for(answer)

    def end(self):
        """Wait for the program's end."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline):
            pass
        return self.process.wait(timeout=PATIENCE_S)

    def _comes(self, text, deadline):
        """Read on until `text` has come (true) or nothing more does (false)."""
        while text.encode() not in self.seen:
            piece = self._read(deadline)
            if not piece:
                return False
            self.seen += STYLE.sub(b"", piece)
        return True

    def _read(self, deadline):
        """What comes next: nothing at the program's end, and when patience is."""
        if not select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]:
            return b""
        try:
            return os.read(self.master, 65536)
        except OSError:  # Linux says so when the other side is closed
            return b""


def _own_terminal(slave):
    import fcntl
    import termios

    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(program):
    opened = []

    def start(*args, **environment):
        opened.append(Terminal(program, *args, **environment))
        opened[-1].wait_for("leaves.")
        opened[-1].wait_for("> ")
        return opened[-1]

    yield start
    for one in opened:
        os.close(one.master)


def test_it_answers_shows_its_speed_and_leaves(terminal):
    term = terminal(PRETEND_WORDS="Hello you")
    term.type("hi\n")
    assert "Hello you" in term.wait_for("tokens/s")
    term.wait_for("> ")
    term.type("/exit\n")
    assert term.end() == 0


def test_ctrl_d_leaves(terminal):
    term = terminal()
    term.type("\x04")
    assert term.end() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, tmp_path):
    term = terminal(PRETEND_WORDS="word " * 5000, PRETEND_PAUSE="0.01")
    term.type("hi\n")
    term.wait_for("word word")
    term.type("\x03")
    term.wait_for("(stopped)")
    term.wait_for("> ")
    term.type(f"/save {tmp_path}/talk.json\n")  # still there, still obeys
    term.wait_for("2 messages saved")
    term.wait_for("> ")
    term.interrupt_prompt("Ctrl-D or /exit leaves.")
    term.wait_for("> ")  # until then the terminal is not readline's, and Ctrl-D would be lost
    term.type("\x04")
    assert term.end() == 0


def test_history_of_one_session_is_there_in_the_next(terminal, own_cache):
    term = terminal()
    term.type("remember me\n")
    term.wait_for("first token")
    term.type("/exit\n")
    assert term.end() == 0
    assert "remember me" in (own_cache / "gallium" / "chat_history").read_text()
    assert (own_cache / "gallium" / "chat_history").stat().st_mode & 0o077 == 0
    term = terminal()
    term.type("\x1b[A\x1b[A\n")  # up, up: /exit, remember me
    term.wait_for("Hello there")
    term.type("/exit\n")
    assert term.end() == 0


def test_commands(terminal, tmp_path):
    term = terminal()
    term.type("/help\n")
    term.wait_for("/reset")
    term.type("/system Be brief.\n")
    term.wait_for("System message: Be brief.")
    term.type("hi\n")
    term.wait_for("first token")
    term.type(f"/save {tmp_path}/talk.json\n")
    term.wait_for("3 messages saved")
    term.type("/reset\n")
    term.wait_for("starts anew")
    term.type(f"/save {tmp_path}/talk.json\n")  # its own file: may be written again
    term.wait_for("1 messages saved")
    term.type("/nonsense\n")
    term.wait_for("there is no command /nonsense")
    term.type("/system -\n")
    term.wait_for("(none)")
    term.type("/exit\n")
    assert term.end() == 0
    assert json.loads((tmp_path / "talk.json").read_text()) == {
        "messages": [{"role": "system", "content": "Be brief."}]
    }


def test_several_lines_are_one_question(terminal, tmp_path):
    term = terminal()
    term.type('"""one\n')
    term.wait_for(". ")
    term.type('two"""\n')
    term.wait_for("first token")
    term.type(f"/save {tmp_path}/talk.json\n")
    term.wait_for("saved")
    term.type("/exit\n")
    term.end()
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][0]["content"] == "one\ntwo"


def test_a_question_that_is_too_long_is_taken_back(terminal, tmp_path):
    term = terminal()
    term.type("x" * 600 + "\n")
    term.wait_for("does not fit")
    term.wait_for("/reset")
    term.type("short\n")
    term.wait_for("first token")
    term.type(f"/save {tmp_path}/talk.json\n")
    term.wait_for("2 messages saved")
    term.type("/exit\n")
    assert term.end() == 0


def test_the_stand_in_names_a_glm_to_pull(terminal, gallium, pretend):
    pretend(is_default=True)
    result = gallium("chat", stdin="")
    assert "stand-in of 135M parameters" in result.stderr
    assert "gallium pull zai-org/glm-edge-1.5b-chat" in result.stderr
    assert "gallium chat zai-org/glm-edge-1.5b-chat" in result.stderr


def test_without_a_terminal_it_answers_what_it_reads(gallium, pretend):
    assembly = pretend()
    result = gallium("chat", "--system", "Be brief.", stdin="Who are you?\n")
    assert (result.exit_code, result.stdout) == (0, "Hello there, friend.\n")
    assert [m["content"] for m in assembly.template.seen[0]] == ["Be brief.", "Who are you?"]
    assert "tokens/s" in result.stderr
    assert assembly.closed


def test_with_nothing_to_read_it_asks_itself(gallium, pretend):
    assembly = pretend()
    result = gallium("chat", stdin="")
    assert (result.exit_code, result.stdout) == (0, f"> {FIRST_QUESTION}\n\nHello there, friend.\n")
    prompt, params = assembly.engine.requests[0]
    assert bytes(prompt).decode() == f"user: {FIRST_QUESTION}\n"
    assert params.temperature == 0


def test_input_that_is_not_utf8_is_refused_before_loading(gallium, pretend):
    assembly = pretend()
    result = gallium("chat", stdin=b"\xff")
    assert result.exit_code == 2
    assert assembly.settings is None


def test_a_model_without_a_template_cannot_chat(gallium, pretend):
    pretend().template = None
    result = gallium("chat", stdin="hi")
    assert result.exit_code == 1
    assert "gallium run --raw" in result.stderr


def test_ctrl_c_without_a_terminal_is_exit_code_130(program):
    process = program("chat", environment={"PRETEND_WORDS": "word " * 2000, "PRETEND_PAUSE": "0.01"})
    process.stdout.read(30)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
