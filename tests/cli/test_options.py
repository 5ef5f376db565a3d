"""Options made from the fields of the settings and of the sampling parameters."""

from __future__ import annotations

import dataclasses

import pytest

from gallium.cli.options import (
    ENGINE_COMMON,
    ENGINE_HELP,
    ENGINE_SERVING,
    KINDS,
    SAMPLING_HELP,
)
from gallium.settings import EngineSettings
from gallium.types import SamplingParams


@pytest.mark.parametrize(("owner", "texts"), [(EngineSettings, ENGINE_HELP), (SamplingParams, SAMPLING_HELP)])
def test_every_field_has_a_text_and_a_kind(owner, texts):
    fields = dataclasses.fields(owner)
    assert [f.name for f in fields if f.name not in texts] == []
    assert [name for name in texts if name not in {f.name for f in fields}] == []
    assert [f.name for f in fields if f.type not in KINDS] == []


def test_serving_and_common_options_are_all_there_are():
    assert sorted(ENGINE_COMMON + ENGINE_SERVING) == sorted(f.name for f in dataclasses.fields(EngineSettings))


def test_every_sampling_flag_reaches_the_engine(gallium, pretend):
    assembly = pretend()
    flags = {
        "temperature": "0.5", "top-k": "7", "top-p": "0.9", "min-p": "0.1", "repetition-penalty": "1.1",
        "presence-penalty": "0.2", "frequency-penalty": "0.3", "seed": "42", "max-tokens": "9", "min-tokens": "2",
        "logprobs": "3", "n": "2",
    }  # fmt: skip
    args = [part for name, value in flags.items() for part in (f"--{name}", value)]
    args += ["--logit-bias", "5=-2.5", "--logit-bias", "6=1", "--stop", "END", "--stop", "FIN", "--stop-token-ids", "3"]
    args += ["--include-stop", "--ignore-eos", "--no-skip-special-tokens"]
    result = gallium("run", "--json", *args, "hello")
    assert result.exit_code == 0, result.output
    assert assembly.engine.requests[0][1] == SamplingParams(
        temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.3, logit_bias={5: -2.5, 6: 1.0}, seed=42, max_tokens=9, min_tokens=2,
        stop=("END", "FIN"), stop_token_ids=(3,), include_stop=True, ignore_eos=True, logprobs=3, n=2,
        skip_special_tokens=False,
    )  # fmt: skip


def test_what_is_not_given_is_calm(gallium, pretend):
    assembly = pretend()
    gallium("run", "hello")
    assert assembly.engine.requests[0][1] == SamplingParams(temperature=0.6, top_p=0.95)


def test_the_stand_in_is_calmer(gallium, pretend):
    assembly = pretend(is_default=True)
    gallium("run", "hello")
    gallium("run", "--top-p", "1", "hello")
    assert assembly.engine.requests[0][1] == SamplingParams(temperature=0.2, top_p=0.9)
    assert assembly.engine.requests[1][1] == SamplingParams(temperature=0.2, top_p=1.0)


def test_engine_options_become_settings(gallium, pretend):
    assembly = pretend()
    result = gallium(
        "run", "-m", "some/model", "--backend", "reference", "--precision", "int8", "--threads", "3", "--kv-memory",
        "2GiB", "--max-context", "99", "--hub", "modelscope", "--revision", "main", "hello",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert assembly.label == "some/model"
    assert assembly.settings == EngineSettings(
        backend="reference", precision="int8", threads=3, kv_memory=2 << 30, max_context=99, hub="modelscope",
        revision="main",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--temperature", "warm"], "not a valid float"),
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "0"], "top_p"),
        (["--seed", "0.5"], "integer"),
        (["--logit-bias", "5"], "ID=BIAS"),
        (["--logit-bias", "5=500"], "logit_bias"),
        (["--kv-memory", "lots"], "2GiB"),
        (["--precision", "int5"], "'int4'"),
        (["--threads", "0"], "threads"),
        (["--max-tokens", "2", "--min-tokens", "5"], "min_tokens"),
        (["--stop", ""], "stop"),
        (["--hub", "elsewhere"], "modelscope"),
        (["--n", "2"], "--json"),
        (["--logprobs", "2"], "--json"),
    ],
)
def test_bad_values_are_refused_before_anything_is_loaded(gallium, pretend, args, says):
    assembly = pretend()
    result = gallium("run", *args, "hello")
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""
    assert assembly.settings is None


def test_the_model_is_named_once(gallium, pretend):
    pretend()
    result = gallium("chat", "one", "-m", "two", stdin="hi")
    assert result.exit_code == 2
    assert "twice" in result.stderr
    assert gallium("chat", "-m", "two", stdin="hi").exit_code == 0
