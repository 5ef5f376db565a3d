"""Bad input, end to end: the program itself over real files; a sentence that says what is wrong and what to do."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.altered_checkpoint import Content, altered
from tests.api.successors import write_checkpoint
from tests.checkpoints.gguf_making import hf_config, keys_of, to_gguf_names, write_gguf
from tests.checkpoints.test_gguf_reading import model_tensors

PROGRAM = [sys.executable, "-m", "gallium.cli.main"]
USAGE, FAILURE = 2, 1
PATIENCE_S = 60  # a guard against tests that hang
Fails = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that works."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def fails(tmp_path: Path) -> Fails:
    """Run the program, check that it fails as every failure must look, and give what it says."""

    def run(*args: str | Path, code: int, stdin: bytes = b"", debug: bool = False, **environment: str) -> str:
        done = subprocess.run(
            [*PROGRAM, *map(str, args)],
            input=stdin,
            capture_output=True,
            timeout=PATIENCE_S,
            env={**os.environ, "HF_HOME": str(tmp_path / "hub"), **environment},
        )
        said = done.stderr.decode()
        assert (done.returncode, done.stdout) == (code, b""), said
        assert len(re.findall("^Error: ", said, re.MULTILINE)) == 1 and "internal error" not in said
        assert said.endswith("\n") and ("Traceback" in said) is debug
        return said

    return run


def assert_says(said: str, *words: str) -> None:
    assert [word for word in words if word not in said] == [], said


def test_the_model_works_before_it_is_spoilt(model: Path) -> None:
    command = [*PROGRAM, "run", "-m", str(model), "--max-tokens", "3", "Hi"]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=True)
    assert done.stderr == b""


# -- what is wrong with a model ------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", {"model_type": "mistral"}, ["'mistral' is not supported; supported: glm, glm4, glm4_moe"]),
        ("config.json", {"model_type": "glm_moe_dsa"}, ["GLM-5", "not supported yet; supported: glm"]),
        ("config.json", {"num_hidden_layers": 3}, ["missing: model.layers.2", "Is the download complete"]),
        ("config.json", "{", ["config.json is not valid JSON", "fetch it again"]),
        ("config.json", None, ["has no config.json", "`gallium pull` fetches"]),
        ("tokenizer.json", None, ["has no tokenizer.json", "Copy the model's tokenizer.json there"]),
        ("tokenizer.json", "{}", ["tokenizer.json is damaged", "fetch the model again"]),
        ("tokenizer_config.json", {"chat_template": "{% if %}"}, ["template is damaged, line 1", "Fetch the model"]),
        (
            "tokenizer_config.json",
            {"chat_template": "{{ raise_exception('Turns must alternate.') }}"},
            ["The chat template failed on these messages: Turns must alternate. Change the messages, or give a plain"],
        ),
        ("model.safetensors", -1000, ["model.safetensors is not a valid safetensors file", "truncated", "fetch it"]),
        ("model.safetensors", 50, ["model.safetensors is not a valid safetensors file", "truncated", "fetch it"]),
        ("model.safetensors", 0, ["model.safetensors is empty", "fetch it again"]),
        ("model.safetensors", None, ["has no *.safetensors file", "`gallium pull` fetches"]),
        ("model.safetensors", b"PK\3\4" + bytes(99), ["is a pickle", "can run any program", "Use safetensors or GGUF"]),
    ],
)
def test_a_folder_with_a_fault(
    fails: Fails, model: Path, tmp_path: Path, file: str, content: Content, words: Sequence[str]
) -> None:
    assert_says(fails("run", "-m", altered(model, tmp_path / "m", {file: content}), "Hi", code=FAILURE), *words)


def test_pickles(fails: Fails, model: Path, tmp_path: Path) -> None:
    folder = altered(model, tmp_path / "m", {"model.safetensors": None, "pytorch_model.bin": b"\x80\x02}."})
    for path in (folder, folder / "pytorch_model.bin"):
        assert_says(
            fails("run", "-m", path, "Hi", code=FAILURE), "pickle", "can run any program", "safetensors or GGUF"
        )


def test_an_empty_folder_and_a_file_that_is_not_there(fails: Fails, tmp_path: Path) -> None:
    assert_says(fails("chat", tmp_path, code=FAILURE), str(tmp_path), "so it is not a model")
    for name in (str(tmp_path / "gone"), "gone.gguf", ""):
        said = fails("serve", name, "--port", "0", code=FAILURE)
        assert_says(said, f"there is no file or folder {name!r}", "Give a folder", "hub name such as zai-org/")


@pytest.mark.parametrize(("kind", "block"), [("Q2_K", 84), ("IQ4_XS", 136)])
def test_a_gguf_type_that_is_not_supported(fails: Fails, tmp_path: Path, kind: str, block: int) -> None:
    coded = {"token_embd.weight": np.zeros((4, block), np.uint8)}
    types = {"token_embd.weight": gguf.GGMLQuantizationType[kind]}
    path = write_gguf(tmp_path / "m.gguf", "glm4", {}, coded, types)
    said = fails("run", "-m", path, "Hi", code=FAILURE)
    assert_says(
        said, f"'token_embd.weight' is stored as {kind}", "it reads F32", "Look for a file of one of these kinds"
    )


@pytest.mark.parametrize("size", [3, 100, -1000])
def test_a_truncated_gguf(fails: Fails, tmp_path: Path, size: int) -> None:
    config = hf_config("glm4")
    tensors = to_gguf_names("glm4", model_tensors(config), config["num_hidden_layers"])
    path = write_gguf(tmp_path / "m.gguf", "glm4", keys_of("glm4", config), tensors)
    path.write_bytes(path.read_bytes()[:size])
    said = fails("run", "-m", path, "Hi", code=FAILURE)
    assert_says(said, f"{path} is not a valid GGUF file", "truncated or damaged; fetch it again")


def test_an_unknown_model_without_a_network(fails: Fails) -> None:
    said = fails("run", "-m", "owner/nothing", "Hi", code=FAILURE, HF_HUB_OFFLINE="1")
    assert_says(said, "owner/nothing could not be fetched", "HF_HUB_OFFLINE is set. Unset it to download")


# -- what is wrong with a request -------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--max-context", "8"], USAGE, ["a prompt of 10 tokens", "the context of 8 tokens: shorten the prompt"]),
        (["--max-context", "64", "--max-tokens", "60"], USAGE, ["60 tokens of answer", "or ask for fewer tokens"]),
        (["--max-context", "99999"], USAGE, ["max_context is 99999, but the model's limit is 16384 tokens"]),
        (["--kv-memory", "900TiB"], FAILURE, ["900.0 TiB of KV memory were asked for", "are free: ask for less"]),
        (["--kv-memory", "1KiB"], FAILURE, ["needs 128.0 KiB of KV memory, but 1.0 KiB were given: give more"]),
        (["--backend", "nonsense"], USAGE, ["unknown backend 'nonsense'; installed: ascend, cpu, reference, torch"]),
        (
            ["--backend", "reference", "--precision", "int8"],
            FAILURE,
            ["cannot run this glm4_moe model in int8: choose another", "int8: every op: the reference computes in"],
        ),
        (["--stop-token-ids", "999999"], USAGE, ["stop_token_ids has token id 999999, but ids are 0 to"]),
        (["--temperatur", "1"], USAGE, ["No such option '--temperatur'", "--temperature", "gallium run --help"]),
    ],
)
def test_what_cannot_be_done_as_asked(
    fails: Fails, model: Path, args: Sequence[str], code: int, words: Sequence[str]
) -> None:
    assert_says(fails("run", "-m", model, *args, "Hello", code=code), *words)


@pytest.mark.parametrize("command", [("run",), ("chat",)])
def test_standard_input_that_is_not_utf8(fails: Fails, model: Path, command: Sequence[str]) -> None:
    said = fails(*command, "-m", model, code=USAGE, stdin="café".encode("latin-1"))
    assert_says(said, "standard input is not UTF-8 (byte 0xe9 at offset 3)", "iconv -t UTF-8")


def test_a_port_in_use(fails: Fails, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = fails("serve", model, "--port", str(port), code=FAILURE)
    assert_says(said, f"port {port} of 127.0.0.1 is in use", "or choose another with --port")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("GALLIUM_CPU_LEVEL", "nonsense", ["'nonsense' is not available here; choose from generic", "CPU_LEVEL"]),
        ("GALLIUM_THREADS", "many", ["GALLIUM_THREADS must be a number from 1 to 256, not 'many'"]),
        ("GALLIUM_NONSENSE", "1", ["unknown environment variable GALLIUM_NONSENSE; known are:", "GALLIUM_THREADS"]),
    ],
)
def test_a_wrong_setting_in_the_environment(
    fails: Fails, model: Path, variable: str, value: str, words: Sequence[str]
) -> None:
    assert_says(fails("run", "-m", model, "Hi", code=USAGE, **{variable: value}), *words)


FLOATS = ("temperature", "top-p", "min-p", "repetition-penalty", "presence-penalty", "frequency-penalty")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("option", [*FLOATS, "logit-bias"])
def test_numbers_that_are_none(gallium, pretend, option: str, value: str) -> None:
    assembly = pretend()
    result = gallium("run", f"--{option}", f"3={value}" if option == "logit-bias" else value, "Hi")
    assert (result.exit_code, result.stdout) == (USAGE, "")
    assert result.stderr == f"Error: {option.replace('-', '_')} must be a finite number, not {float(value)}.\n"
    assert assembly.settings is None


# -- with --debug --------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "environment"), [(["--debug"], {}), ([], {"GALLIUM_DEBUG": "1"})])
def test_debug_shows_where_it_comes_from(
    fails: Fails, tmp_path: Path, args: Sequence[str], environment: dict[str, str]
) -> None:
    plain = fails("run", "-m", tmp_path, "Hi", code=FAILURE)
    said = fails("run", "-m", tmp_path, "Hi", *args, code=FAILURE, debug=True, **environment)
    assert said.startswith("Traceback") and said.endswith(plain)
