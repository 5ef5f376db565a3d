"""`gallium convert`: a folder that runs, or a sentence and nothing under its name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from tests.checkpoints.gguf_making import hf_config, keys_of, to_gguf_names, write_gguf
from tests.checkpoints.safetensors_making import sparse_model, write_model
from tests.checkpoints.small_disk import needs_small_disk, small_disk
from tests.checkpoints.test_gguf_reading import assert_fits, model_tensors
from tests.glm_tokenizer import gguf_metadata, write_folder

from gallium import LLM, SamplingParams
from gallium.checkpoints import open_checkpoint, resolve_model
from gallium.text.tokenizer import Tokenizer

Gallium = Callable[..., Result]
PROGRAM = [sys.executable, "-m", "gallium.cli.main", "convert"]
PRECISIONS = ("float32", "bfloat16", "int8", "int4")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model with a tokenizer and a template."""
    config = hf_config("glm4")
    write_folder(tmp_path / "m", chat_template="{{ messages }}")
    return write_model(tmp_path / "m", model_tensors(config), config)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_prints_the_folder_and_says_what_became_of_the_size(
    gallium: Gallium, tmp_path: Path, model: Path, precision: str
) -> None:
    out = tmp_path / "deep" / "out"
    result = gallium("convert", str(model), str(out), "--precision", precision)
    assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.output
    assert "KiB became" in result.stderr and result.stderr.endswith(f"gallium chat {out}\n")
    written = open_checkpoint(out)
    assert_fits(written)
    assert written.stored_precision == precision
    assert Tokenizer.from_folder(out).chat_template == "{{ messages }}"


def test_int4_is_what_one_gets_without_asking(gallium: Gallium, tmp_path: Path, model: Path) -> None:
    assert gallium("convert", str(model), str(tmp_path / "out")).exit_code == 0
    assert open_checkpoint(tmp_path / "out").stored_precision == "int4"


def test_the_tokenizer_of_a_gguf_file_becomes_files(gallium: Gallium, tmp_path: Path) -> None:
    metadata = gguf_metadata(**{"tokenizer.chat_template": "{{ messages }}"})
    config = hf_config("glm4", vocab_size=len(metadata["tokenizer.ggml.tokens"]))
    tensors = to_gguf_names("glm4", model_tensors(config), config["num_hidden_layers"])
    write_gguf(tmp_path / "m.gguf", "glm4", keys_of("glm4", config), tensors, tokenizer=metadata)
    result = gallium("convert", str(tmp_path / "m.gguf"), str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    before, after = Tokenizer.from_gguf(metadata), Tokenizer.from_folder(tmp_path / "out")
    text = "[gMASK]<sop><|user|>\nWhat is 天气 in Paris?<|assistant|>"
    assert after.encode(text) == before.encode(text)
    assert (after.chat_template, after.eos_ids) == (before.chat_template, before.eos_ids)
    assert set(open_checkpoint(tmp_path / "out").config["eos_token_id"]) == set(before.eos_ids)


def test_an_existing_folder_is_kept_unless_forced(gallium: Gallium, tmp_path: Path, model: Path) -> None:
    arguments = ("convert", str(model), str(tmp_path / "out"))
    gallium(*arguments)
    again = gallium(*arguments, "--precision", "int8")
    assert again.exit_code == 2 and "exists: give another name, or --force" in again.stderr
    assert open_checkpoint(tmp_path / "out").stored_precision == "int4"
    assert gallium(*arguments, "--precision", "int8", "--force").exit_code == 0
    assert open_checkpoint(tmp_path / "out").stored_precision == "int8"


def test_the_target_is_refused_before_a_model_is_looked_for(gallium: Gallium, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    result = gallium("convert", "owner/no-such-model", str(tmp_path / "out"))
    assert result.exit_code == 2 and "not a folder of its own" in result.stderr


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "'bert' is not supported"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no *.safetensors file"),
        (lambda folder: write_model(folder, {"x": np.ones(3, np.float32)}, hf_config("glm4")), "missing: model."),
    ],
)
def test_a_model_that_would_not_load_is_not_converted(
    gallium: Gallium, tmp_path: Path, model: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(model)
    result = gallium("convert", str(model), str(tmp_path / "out"))
    assert (result.exit_code, result.stdout) == (1, "") and message in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_precision_is_wrong_usage(gallium: Gallium, tmp_path: Path, model: Path) -> None:
    result = gallium("convert", str(model), str(tmp_path / "out"), "--precision", "int2")
    assert result.exit_code == 2 and "'int4'" in result.stderr
    result = gallium("convert", str(model), str(tmp_path / "out"), "--precision", "auto")
    assert result.exit_code == 2 and "--precision auto is for --packed" in result.stderr


def test_a_packed_folder_and_its_check(gallium: Gallium, tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    result = gallium("convert", str(model), str(out), "--packed", "--precision", "int8")
    assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.output
    checkpoint = open_checkpoint(out)
    assert (checkpoint.kind, checkpoint.stored_precision) == ("packed", "int8")
    text = "[gMASK]<sop><|user|>\nWhat is 天气 in Paris?<|assistant|>"
    assert Tokenizer.from_folder(out).encode(text) == Tokenizer.from_folder(model).encode(text)
    assert Tokenizer.from_folder(out).chat_template == "{{ messages }}"
    checked = gallium("convert", "--check", str(out))
    assert (checked.exit_code, checked.stdout) == (0, f"{out}\n") and "are as they were written" in checked.stderr
    assert "exists: give another name" in gallium("convert", str(model), str(out), "--packed").stderr
    assert gallium("convert", str(model), str(out), "--packed", "--force").exit_code == 0
    for wrong in ((str(out), str(tmp_path / "other")), (str(out), str(tmp_path / "other"), "--packed")):
        assert "is packed already: convert the model that it was packed from" in gallium("convert", *wrong).stderr
    with (out / "packed.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    damaged = gallium("convert", "--check", str(out))
    assert damaged.exit_code == 1 and "do not fit their checksums" in damaged.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("m",), "name of the new folder is missing"), (("--check", "m"), "has no packed.safetensors"),
     (("--check", "m", "out"), "a packed folder and nothing else")],
)  # fmt: skip
def test_arguments_that_do_not_fit(gallium: Gallium, arguments: tuple[str, ...], message: str) -> None:
    result = gallium("convert", *arguments)
    assert result.exit_code == 2 and message in result.stderr


@pytest.mark.parametrize("packed", [(), ("--packed",)])
def test_a_killed_conversion_leaves_nothing_under_the_name(
    gallium: Gallium, tmp_path: Path, packed: tuple[str, ...]
) -> None:
    sparse_model(tmp_path / "m", 2)
    write_folder(tmp_path / "m")
    process = subprocess.Popen([*PROGRAM, *packed, str(tmp_path / "m"), str(tmp_path / "out")], stderr=subprocess.PIPE)
    name = "packed.safetensors" if packed else "model.safetensors"
    growing = tmp_path / f".out.{process.pid}.unfinished" / name
    while not (growing.exists() and growing.stat().st_size):
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    assert {path.name for path in tmp_path.iterdir()} == {"m", growing.parent.name}
    assert gallium("convert", str(tmp_path / "m"), str(tmp_path / "out"), "--precision", "bfloat16").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"m", "out"}


@needs_small_disk
@pytest.mark.parametrize("extra", [0, 1 << 20])
def test_a_full_disk(tmp_path: Path, model: Path, extra: int) -> None:
    """`extra`: a tokenizer for which the space was not reserved, so that the disk really runs full."""
    (model / "tokenizer.json").write_bytes(b"x" * extra)
    needed = open_checkpoint(model).size_bytes
    size = needed + extra // 2 if extra else needed // 2
    command = [*small_disk(tmp_path / "disk", size), *PROGRAM, str(model), str(tmp_path / "disk/out")]
    done = subprocess.run([*command, "--precision", "float32"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert ("the disk is full; free some space" if extra else "are free: free some space") in done.stderr
    assert "/disk/" not in done.stderr.replace(f"Error: {tmp_path}/disk/out ", "")  # nothing is left there


# -- the default model ------------------------------------------------------------------


def test_the_default_model_is_the_same_after_conversion(gallium: Gallium, tmp_path: Path) -> None:
    """Its matrices are in four bits already, so they are copied: every logit has the same bits."""
    out = tmp_path / "out"
    assert gallium("convert", str(resolve_model(None).path), str(out)).exit_code == 0
    logits, texts = [], []
    for name in (None, str(out)):
        with LLM(name) as llm:
            ids = llm.tokenizer.encode(llm.render([{"role": "user", "content": "What is gravity?"}]))
            (answer,) = llm.generate(prompt_token_ids=[ids], params=SamplingParams(temperature=0.0, max_tokens=24))
            texts.append(answer.text)
            logits.append(llm.logits(ids))
    np.testing.assert_array_equal(logits[0], logits[1])
    assert texts[0] == texts[1] and "Gravity is" in texts[0]


def test_a_converted_model_runs(gallium: Gallium, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    gallium("convert", str(resolve_model(None).path), out, "--precision", "int8")
    result = gallium(
        "run", "-m", out, "--raw", "--json", "--temperature", "0", "--max-tokens", "8", "The capital of France is"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["precision"] == "int8" and "Paris" in found["choices"][0]["text"]
