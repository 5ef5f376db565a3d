"""`gallium run`: standard output carries the answer and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from tests.cli.conftest import ROOT

from gallium.errors import EngineDead

ANSWER = "Hello there, friend.\n"


def test_the_answer_is_all_there_is_on_standard_output(gallium, pretend):
    assembly = pretend()
    result = gallium("run", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, ANSWER, "")
    assert bytes(assembly.engine.requests[0][0]) == b"user: hi\n"
    assert assembly.closed


def test_system_message(gallium, pretend):
    assembly = pretend()
    gallium("run", "--system", "Be brief.", "hi")
    assert assembly.template.seen == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]]


def test_raw_takes_no_template(gallium, pretend):
    assembly = pretend()
    assert gallium("run", "--raw", "The capital of France is").stdout == ANSWER
    assert bytes(assembly.engine.requests[0][0]) == b"\0The capital of France is"
    assert assembly.template.seen == []


def test_raw_and_system_exclude_each_other(gallium, pretend):
    pretend()
    assert gallium("run", "--raw", "--system", "x", "hi").exit_code == 2


def test_without_a_template_it_names_the_way_out(gallium, pretend):
    pretend().template = None
    result = gallium("run", "hi")
    assert result.exit_code == 1
    assert "--raw" in result.stderr
    assert gallium("run", "--raw", "hi").exit_code == 0


@pytest.mark.parametrize("args", [(), ("-",)])
def test_the_prompt_comes_from_standard_input(gallium, pretend, args):
    assembly = pretend()
    assert gallium("run", *args, stdin="Grüße 你好 🙂\n").stdout == ANSWER
    assert bytes(assembly.engine.requests[0][0]).decode() == "user: Grüße 你好 🙂\n"


def test_a_byte_order_mark_is_no_text(gallium, pretend):
    assembly = pretend()
    gallium("run", stdin=b"\xef\xbb\xbfhi\r\n")
    assert bytes(assembly.engine.requests[0][0]) == b"user: hi\n"


def test_standard_input_that_is_not_utf8_is_refused(gallium, pretend):
    assembly = pretend()
    result = gallium("run", stdin=b"abc\xff\xfe")
    assert result.exit_code == 2
    assert "not UTF-8" in result.stderr
    assert "0xff at offset 3" in result.stderr
    assert assembly.settings is None


@pytest.mark.parametrize("stdin", ["", "\n", "  \n"])
def test_an_empty_prompt_is_refused(gallium, pretend, stdin):
    pretend()
    result = gallium("run", stdin=stdin)
    assert result.exit_code == 2
    assert "empty" in result.stderr


def test_a_prompt_argument_that_is_not_utf8_is_refused(program):
    process = program("run", b"caf\xe9")  # type: ignore[arg-type]
    out, err = process.communicate()
    assert process.returncode == 2
    assert b"not valid UTF-8" in err
    assert out == b""


def test_a_prompt_that_is_too_long(gallium, pretend):
    pretend()
    result = gallium("run", "x" * 1000)
    assert result.exit_code == 2
    assert "does not fit" in result.stderr


def test_the_death_of_the_engine_is_exit_code_1(gallium, pretend):
    assembly = pretend(fail=EngineDead("the engine stopped."))
    result = gallium("run", "hi")
    assert result.exit_code == 1
    assert result.stderr.endswith("Error: the engine stopped.\n")
    assert assembly.closed


def test_json_has_the_answer_and_the_figures(gallium, pretend):
    pretend()
    result = gallium("run", "--json", "--n", "2", "--logprobs", "1", "--max-tokens", "3", "hi")
    found = json.loads(result.stdout)
    assert result.stderr == ""
    assert (found["model"], found["backend"], found["precision"], found["emulated"]) == (
        "pretend", "pretend", "float32", False,
    )  # fmt: skip
    assert (found["prompt_tokens"], found["cached_tokens"], found["completion_tokens"]) == (9, 3, 6)
    assert found["first_token_s"] <= found["total_s"]
    assert found["tokens_per_second"] > 0
    for index, choice in enumerate(found["choices"]):
        assert choice["index"] == index
        assert choice["text"] == "Hello there, friend"
        assert choice["finish_reason"] == "length"
        assert choice["token_ids"] == [0, 1, 2]
        assert [p["token_id"] for p in choice["logprobs"]] == [0, 1, 2]


def test_emulated_speed_is_not_printed(gallium, pretend):
    pretend().emulated = True
    found = json.loads(gallium("run", "--json", "hi").stdout)
    assert found["emulated"] is True
    assert found["tokens_per_second"] is None
    assert found["first_token_s"] is None


def test_reasoning_is_no_part_of_the_answer(gallium, pretend):
    pretend(words=["<think>", "Hmm,", " well", "</think>", "Yes", "."]).tokenizer.chat_template = GLM45_TEMPLATE
    assert gallium("run", "hi").stdout == "Yes.\n"
    found = json.loads(gallium("run", "--json", "hi").stdout)["choices"][0]
    assert (found["text"], found["reasoning"]) == ("Yes.", "Hmm, well")


GLM45_TEMPLATE = "[gMASK]<sop><think></think><tool_call><arg_key></arg_key>\n<arg_value></arg_value></tool_call>"


def test_a_reader_that_goes_away_is_no_error(program):
    process = program("run", "hi", environment={"PRETEND_WORDS": "word " * 2000, "PRETEND_PAUSE": "0.002"})
    assert process.stdout.read(10) == b"word word "
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_head_ends_the_program_quietly(tmp_path):
    errors = tmp_path / "errors"
    command = f"{sys.executable} -m tests.cli.pretend run hi 2>{errors} | head -c 10"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, cwd=ROOT,
        env={**os.environ, "PRETEND_WORDS": "word " * 2000, "PRETEND_PAUSE": "0.002"},
    )  # fmt: skip
    assert done.stdout == b"word word "
    assert errors.read_bytes() == b""


def test_ctrl_c_ends_the_program_with_130(program):
    process = program("run", "hi", environment={"PRETEND_WORDS": "word " * 2000, "PRETEND_PAUSE": "0.01"})
    process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_an_output_that_cannot_hold_a_character_does_not_end_the_answer(program):
    process = program("run", "hi", environment={"PRETEND_WORDS": "你好 hello", "PYTHONIOENCODING": "ascii"})
    out, err = process.communicate()
    assert (out, err, process.returncode) == (b"?? hello \n", b"", 0)
