"""From a name to a running engine: precision, tokenizer, template, and nothing left behind when it fails."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.altered_checkpoint import Content, altered
from tests.checkpoints.gguf_making import hf_config, keys_of, to_gguf_names, write_gguf
from tests.checkpoints.test_gguf_reading import model_tensors, separate_gate_up
from tests.glm_tokenizer import gguf_metadata, write_folder
from tests.models.small_specs import spec_of

from gallium.checkpoints.checkpoint import PRECISIONS
from gallium.engine.assembly import Assembly, assemble, complete_template
from gallium.engine.loading import choose_precision
from gallium.errors import (
    BackendError,
    CheckpointError,
    GalliumError,
    InvalidRequest,
    OutOfMemory,
    TokenizerError,
    UnsupportedModel,
    UsageError,
)
from gallium.ops.backend import API_VERSION, Probe, Support
from gallium.ops.handles import ALONE, ModelFacts, Placement, Precision
from gallium.ops.interface import Ops, op_names
from gallium.settings import EngineSettings, PrecisionChoice
from gallium.text.tokenizer import GLM_ENDS, Tokenizer
from gallium.types import Delta, SamplingParams

SMALL = EngineSettings(backend="cpu", kv_memory=16 << 20, threads=1)
Load = Callable[..., Assembly]
HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def load() -> Iterator[Load]:
    """`assemble`, closed at the end."""
    made: list[Assembly] = []

    def assembled(path: Path, settings: EngineSettings = SMALL, **named: Any) -> Assembly:
        made.append(assemble(str(path), settings, **named))
        return made[-1]

    yield assembled
    for assembly in made:
        assembly.close()


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gallium-engine"]


# -- precision -------------------------------------------------------------------------


class Picky:
    """A backend that refuses some ops in some precisions."""

    name, priority, api_version = "picky", 0, API_VERSION

    def __init__(self, refused: Mapping[Precision, Collection[str]]) -> None:
        self.refused = refused

    def probe(self) -> Probe:
        return Probe(available=True, emulated=False, devices=1)

    def support(self, model: ModelFacts, precision: Precision) -> list[Support]:
        refused = self.refused.get(precision, ())
        return [Support(op, "unsupported" if op in refused else "verified", f"of {precision}") for op in op_names()]

    def open(
        self, model: ModelFacts, precision: Precision, threads: int | None = None, placement: Placement = ALONE
    ) -> Ops:
        raise NotImplementedError


FACTS = spec_of("glm-odd").facts


@pytest.mark.parametrize(
    ("asked", "stored", "refused", "chosen"),
    [
        *(("auto", stored, {}, stored) for stored in PRECISIONS),
        *((asked, "bfloat16", {}, asked) for asked in PRECISIONS),
        ("auto", "int4", {"int4": ["linear"]}, "int8"),
        ("auto", "int4", {"int4": ["linear"], "int8": ["linear"], "bfloat16": ["embed"]}, "float16"),
        ("auto", "bfloat16", {"bfloat16": op_names(), "float16": op_names()}, "float32"),
        ("int8", "int4", {"int4": op_names()}, "int8"),
    ],
)
def test_auto_is_the_stored_precision_or_the_next_more_precise_one(
    asked: PrecisionChoice, stored: Precision, refused: Mapping[Precision, Collection[str]], chosen: Precision
) -> None:
    precision, support = choose_precision(Picky(refused), FACTS, asked, stored)
    assert precision == chosen and [entry.reason for entry in support] == [f"of {chosen}"] * len(op_names())


def test_auto_never_takes_a_less_precise_one() -> None:
    with pytest.raises(BackendError, match="cannot run this glm model in float32: choose another"):
        choose_precision(Picky({"float32": ["linear"]}), FACTS, "auto", "float32")


def test_a_named_precision_is_taken_or_refused() -> None:
    with pytest.raises(BackendError, match=r"in int4: .*\n  int4: linear, experts: of int4$"):
        choose_precision(Picky({"int4": ["experts", "linear"]}), FACTS, "int4", "bfloat16")


def test_the_refusal_lists_the_reasons_of_every_precision_that_was_tried() -> None:
    picky = Picky({"bfloat16": ["rope"], "float16": ["rope"], "float32": op_names()})
    with pytest.raises(BackendError) as caught:
        choose_precision(picky, FACTS, "auto", "bfloat16")
    assert "in bfloat16 or float16 or float32" in caught.value.message
    assert caught.value.message.splitlines()[1:] == [
        "  bfloat16: rope: of bfloat16",
        "  float16: rope: of float16",
        "  float32: every op: of float32",
    ]


# -- chat template -----------------------------------------------------------------------


def test_a_glm_without_a_template_gets_galliums_own_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = Tokenizer.from_folder(write_folder(tmp_path, "glm45"))
    complete_template(text, "glm4_moe", "zai-org/GLM-4.5-Air")
    assert text.chat_template is not None and "[gMASK]<sop>" in text.chat_template
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.name.startswith("gallium")
    assert record.getMessage().startswith(
        "zai-org/GLM-4.5-Air: The checkpoint has no chat template; using Gallium's own"
    )


@pytest.mark.parametrize(("template", "model_type"), [("{{ own }}", "glm4_moe"), (None, "llama"), (None, "None")])
def test_a_template_of_its_own_and_a_model_that_is_no_glm_stay_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, template: str | None, model_type: str
) -> None:
    text = Tokenizer.from_folder(write_folder(tmp_path, "glm45", chat_template=template))
    complete_template(text, model_type, "GLM-4.5")
    assert text.chat_template == template and not caplog.records


def write_model(path: Path, arch: str, tokenizer: dict[str, Any] | None) -> Path:
    """A GGUF file with the vocabulary of a tokenizer, or with none."""
    tokens = {} if tokenizer is None else {"vocab_size": len(tokenizer["tokenizer.ggml.tokens"])}
    config = hf_config(arch, **tokens)
    tensors = model_tensors(config)
    if arch == "llama":
        tensors = separate_gate_up(tensors)
    return write_gguf(path, arch, keys_of(arch, config), to_gguf_names(arch, tensors, 2), tokenizer=tokenizer)


def test_a_glm_gguf_without_a_template_chats(tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture) -> None:
    assembly = load(write_model(tmp_path / "GLM-4-9B-0414-F32.gguf", "glm4", gguf_metadata("glm4", padding=3)))
    assert assembly.template is not None
    assert assembly.template.render(HELLO) == "[gMASK]<sop><|user|>\nHi<|assistant|>"
    assert "GLM-4-9B-0414-F32: The checkpoint has no chat template" in caplog.text


def test_padding_of_the_vocabulary_is_known_to_the_model_and_never_drawn(tmp_path: Path, load: Load) -> None:
    assembly = load(write_model(tmp_path / "m.gguf", "glm4", gguf_metadata("glm4", padding=3)))
    rows, used = assembly.spec.vocab_size, assembly.tokenizer.vocab_size
    assert rows == used + 3 and assembly.engine.logits([used + 2]).shape == (1, rows)
    with pytest.raises(InvalidRequest, match=f"has token id {used}, but ids are 0 to {used - 1}"):
        assembly.engine.submit([1], SamplingParams(logit_bias={used: 1.0}), lambda delta: None)


def test_what_config_and_tokenizer_call_an_end_is_one(tmp_path: Path, load: Load, checkpoint: Path) -> None:
    assembly = load(altered(checkpoint, tmp_path / "m", {"config.json": {"eos_token_id": [7]}}))
    ends = [7, *(assembly.tokenizer.id_of(token) for token in GLM_ENDS)]
    for token in ends:
        done: queue.SimpleQueue[Delta | GalliumError] = queue.SimpleQueue()
        assembly.engine.submit([1], SamplingParams(temperature=0, logit_bias={token: 100.0}), done.put)
        assert done.get(timeout=120) == Delta(0, (token,), "", finish_reason="stop", stop_reason=token)


def test_a_gguf_that_is_no_glm_has_no_template(tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture) -> None:
    metadata = gguf_metadata("glm4")
    metadata["tokenizer.ggml.tokens"] = [t.replace("<|", "<<") for t in metadata["tokenizer.ggml.tokens"]]
    assembly = load(write_model(tmp_path / "m.gguf", "llama", metadata))
    assert assembly.template is None and not caplog.records


# -- tokenizer -----------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer(tmp_path: Path, load: Load, checkpoint: Path) -> None:
    bare = altered(checkpoint, tmp_path / "m", {"tokenizer.json": None, "tokenizer_config.json": None})
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json.*Copy the model's tokenizer\.json there"):
        load(bare)
    assembly = load(bare, need_tokenizer=False)
    assert assembly.text is None
    for ask in (lambda: assembly.tokenizer, lambda: assembly.template):
        with pytest.raises(TokenizerError, match=r"^m has no tokenizer: give token ids instead of text"):
            ask()


def test_a_gguf_without_a_tokenizer(tmp_path: Path, load: Load) -> None:
    path = write_model(tmp_path / "m.gguf", "glm4", None)
    with pytest.raises(TokenizerError, match="carries no tokenizer"):
        load(path)
    assert load(path, need_tokenizer=False).text is None


@pytest.mark.parametrize("files", [{"tokenizer.json": "{"}, {"tokenizer.json": None}])
def test_half_a_tokenizer_is_an_error_even_where_none_is_needed(
    tmp_path: Path, load: Load, checkpoint: Path, files: dict[str, Content]
) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load(altered(checkpoint, tmp_path / "m", files), need_tokenizer=False)


# -- the whole -----------------------------------------------------------------------------


def test_what_was_chosen_can_be_seen(tmp_path: Path, load: Load, checkpoint: Path) -> None:
    seen: list[tuple[int, int]] = []
    settings = EngineSettings(backend="cpu", precision="int8", kv_memory=16 << 20, max_context=500, threads=1)
    assembly = load(checkpoint, settings, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]  # embedding and head, and two layers
    assert (assembly.precision, assembly.stored_precision) == ("int8", "float32")
    assert assembly.summary == (
        "tiny: glm4_moe, int8 (stored as float32), on cpu; context 500 tokens, KV cache 16.0 MiB"
    )
    assert (assembly.label, assembly.is_default, assembly.emulated) == ("tiny", False, False)
    assert {entry.op for entry in assembly.support} == set(op_names())
    assert assembly.engine.healthy and assembly.engine.max_context == 500
    assembly.close()
    assembly.close()
    assert not assembly.engine.healthy


def test_an_emulator_is_called_one(load: Load, checkpoint: Path) -> None:
    assembly = load(checkpoint, EngineSettings(backend="reference", kv_memory=16 << 20))
    assert "on reference;" in assembly.summary
    assembly.emulated = True
    assert "on reference, EMULATED;" in assembly.summary


@pytest.mark.parametrize(
    ("changes", "files", "error"),
    [
        ({"backend": "nonsense"}, {}, UsageError),
        ({"backend": "reference", "precision": "int4"}, {}, BackendError),
        ({"threads": 100_000}, {}, UsageError),
        ({"max_context": 1 << 20}, {}, UsageError),
        ({"kv_memory": 1 << 10}, {}, OutOfMemory),
        ({"kv_memory": 1 << 60}, {}, OutOfMemory),
        ({}, {"config.json": {"model_type": "mistral"}}, UnsupportedModel),
        ({}, {"config.json": {"num_hidden_layers": 3}}, CheckpointError),
        ({}, {"tokenizer.json": "{}"}, TokenizerError),
    ],
)
def test_nothing_is_left_running_when_loading_fails(
    tmp_path: Path,
    checkpoint: Path,
    changes: dict[str, Any],
    files: dict[str, Content],
    error: type[GalliumError],
) -> None:
    before = engine_threads()
    settings = {"backend": "cpu", "kv_memory": 16 << 20} | changes
    with pytest.raises(error):
        assemble(str(altered(checkpoint, tmp_path / "m", files)), EngineSettings(**settings))
    assert engine_threads() == before


def test_more_memory_than_there_is_is_refused_before_anything_is_read(checkpoint: Path) -> None:
    read: list[int] = []
    settings = EngineSettings(backend="cpu", kv_memory=900 << 40)
    with pytest.raises(OutOfMemory, match=r"900\.0 TiB of KV memory were asked for, but beside .* of weights only"):
        assemble(str(checkpoint), settings, progress=lambda done, total: read.append(done))
    assert read == []
