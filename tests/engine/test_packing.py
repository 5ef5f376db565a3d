"""Packed folders: the very results of the model that was packed, or a sentence that says why it cannot be had."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.checkpoints.gguf_making import hf_config, keys_of, to_gguf_names, write_gguf
from tests.checkpoints.safetensors_making import write_model
from tests.checkpoints.test_gguf_reading import model_tensors, separate_gate_up
from tests.checkpoints.test_make_modelslim import Recipe, made
from tests.glm_tokenizer import gguf_metadata, write_folder
from tests.models.driving import logits_of
from tests.models.memory_checkpoint import random_checkpoint
from tests.models.small_specs import CONFIGS, spec_of

from gallium import LLM
from gallium.backends.cpu.ops import CpuOps
from gallium.checkpoints import open_checkpoint
from gallium.checkpoints.opening import PACKED_FILE
from gallium.checkpoints.packed_file import ABOUT, CHECKSUM, check_contents, header_checksum, read_packed
from gallium.checkpoints.safetensors_file import read_with_metadata
from gallium.engine.loading import matrix_roles
from gallium.engine.packing import pack
from gallium.errors import BackendError, CheckpointError, GalliumError, UnsupportedFormat, UsageError
from gallium.models.catalog import load_model
from gallium.models.config import read_spec
from gallium.settings import EngineSettings, PrecisionChoice

IDS = [1, 7, 3, 20, 11, 2, 9]
PRECISIONS: tuple[PrecisionChoice, ...] = ("float32", "bfloat16", "int8", "int4")


def packed(source: Path, out: Path, precision: PrecisionChoice = "auto", **more: Any) -> Path:
    return pack(open_checkpoint(source), out, EngineSettings(backend="cpu", precision=precision), label="m", **more)


def results(model: Path, precision: PrecisionChoice = "auto", **more: Any) -> NDArray[np.float32]:
    with LLM(str(model), precision=precision, kv_memory="1MiB", max_context=64, **more) as llm:
        return llm.logits(IDS)


def directly(model: Path, precision: PrecisionChoice) -> NDArray[np.float32]:
    """As `results`, without an engine."""
    checkpoint = open_checkpoint(model)
    spec = read_spec(checkpoint.config, checkpoint.generation_config)
    given = checkpoint.stored_precision if precision == "auto" else precision
    roles = matrix_roles(given, precision, integers=checkpoint.has_integers)
    return logits_of(load_model(checkpoint, spec, CpuOps(given), role_of=roles), IDS)


def assert_same(source: Path, out: Path, precision: PrecisionChoice = "auto") -> None:
    np.testing.assert_array_equal(directly(out, "auto"), directly(source, precision))
    check_contents(out)


def small(folder: Path, name: str = "glm-tied-even") -> Path:
    return write_model(folder, random_checkpoint(spec_of(name)).tensors, CONFIGS[name])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_in_every_precision(tmp_path: Path, name: str, precision: PrecisionChoice) -> None:
    source = small(tmp_path / "m", name)
    out = packed(source, tmp_path / "p", precision)
    assert_same(source, out, precision)
    if name == "glm-tied-even":
        np.testing.assert_array_equal(results(out), results(source, precision))


def test_experts_that_are_stored_as_one_tensor(tmp_path: Path) -> None:
    name = "glm4_moe-even"
    tensors, spec = dict(random_checkpoint(spec_of(name)).tensors), spec_of(name)
    for layer in range(spec.first_dense, spec.num_layers):
        at = f"model.layers.{layer}.mlp.experts."
        assert spec.moe is not None
        each = [
            [tensors.pop(f"{at}{e}.{part}_proj.weight") for part in ("gate", "up", "down")]
            for e in range(spec.moe.num_experts)
        ]
        tensors[at + "gate_up_proj"] = np.stack([np.concatenate([gate, up]) for gate, up, _ in each])
        tensors[at + "down_proj"] = np.stack([down for _, _, down in each])
    source = write_model(tmp_path / "m", tensors, CONFIGS[name])
    assert_same(source, packed(source, tmp_path / "p", "int8"), "int8")


@pytest.mark.parametrize("arch", ["chatglm", "glm4moe", "llama"])
def test_gguf_files(tmp_path: Path, arch: str) -> None:
    metadata = gguf_metadata(**{"tokenizer.chat_template": "{{ messages }}"})
    config = hf_config(arch, vocab_size=len(metadata["tokenizer.ggml.tokens"]))
    layers = config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)
    values = model_tensors(config)
    tensors = to_gguf_names(arch, separate_gate_up(values) if arch == "llama" else values, layers)
    source = write_gguf(tmp_path / "m.gguf", arch, keys_of(arch, config), tensors, tokenizer=metadata)
    out = packed(source, tmp_path / "p", "int4")
    assert_same(source, out, "int4")
    with LLM(str(source), kv_memory="1MiB") as before, LLM(str(out), kv_memory="1MiB") as after:
        text = "[gMASK]<sop><|user|>\nWhat is 天气 in Paris?<|assistant|>"
        assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
        assert after.tokenizer.eos_ids == before.tokenizer.eos_ids
        assert after.render([{"role": "user", "content": "x"}]) == before.render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "recipe", [Recipe("w8a8"), Recipe("w8a8_dynamic", kv=True), Recipe("w4a8_dynamic", group_size=32)]
)
def test_a_checkpoint_s_own_integers(tmp_path: Path, recipe: Recipe) -> None:
    _, source = made(tmp_path, recipe, "glm4_moe-even" if recipe.type != "w8a8" else "glm-tied-even")
    assert_same(source, packed(source, tmp_path / "p"))


def test_a_head_of_its_own_in_a_model_that_is_said_to_be_tied(tmp_path: Path) -> None:
    tensors = dict(random_checkpoint(spec_of("glm-tied-even")).tensors)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * np.float32(2)
    source = write_model(tmp_path / "own", tensors, CONFIGS["glm-tied-even"])
    assert_same(source, packed(source, tmp_path / "p", "int8"), "int8")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    source = write_model(tmp_path / "same", tensors, CONFIGS["glm-tied-even"])
    out = packed(source, tmp_path / "q", "int8")
    assert_same(source, out, "int8")
    assert open_checkpoint(out).size_bytes < open_checkpoint(tmp_path / "p").size_bytes


def test_weights_are_mapped_where_they_stand(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(packed(small(tmp_path / "m"), tmp_path / "p", "int8"))
    ops = CpuOps("int8")
    model = load_model(checkpoint, read_spec(checkpoint.config), ops)
    assert model.head is model.embedding
    assert not model.embedding.data.memory.flags.writeable and not model.embedding.data.memory.flags.owndata
    about, stored = read_packed(checkpoint.path / PACKED_FILE)
    assert ops.weight_bytes == sum(stored[name].data.nbytes for h in about.handles for name in h.arrays.values())


def test_two_processes_share_one_file(tmp_path: Path) -> None:
    out = packed(small(tmp_path / "m"), tmp_path / "p", "int4")
    model = f"LLM({str(out)!r}, kv_memory='1MiB', max_context=64)"
    code = f"from gallium import LLM; print({model}.logits({IDS}).tobytes().hex())"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        mine = results(out)
        assert other.communicate()[0].strip() == mine.tobytes().hex()


# -- what is refused ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_folder(folder / "m")
    return packed(small(folder / "m"), folder / "p", "int8")


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the file says of itself, with a checksum that fits."""
    file = folder / PACKED_FILE
    tensors, metadata = read_with_metadata(file)
    about = json.loads(metadata[ABOUT])
    change(about)
    text = msgspec.json.encode(about).decode()
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = {ABOUT: text, CHECKSUM: header_checksum(text, tensors.values())}
    file.write_bytes(data[:8] + json.dumps(header).encode().ljust(length) + data[8 + length :])


def flip(at: Callable[[bytes], int]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / PACKED_FILE).read_bytes())
        data[at(bytes(data))] ^= 1
        (folder / PACKED_FILE).write_bytes(data)

    return damage


def cut(folder: Path) -> None:
    data = (folder / PACKED_FILE).read_bytes()
    (folder / PACKED_FILE).write_bytes(data[:-100])


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a letter of the header": (flip(lambda d: d.index(b"gallium 0.") + 1), "does not fit its checksum"),
    "an offset": (flip(lambda d: d.rindex(b"data_offsets") + 16), "damaged|not a valid"),
    "truncated": (cut, "may be truncated"),
    "an empty file": (lambda f: (f / PACKED_FILE).write_bytes(b""), "is empty"),
    "another version": (lambda f: rewritten(f, lambda a: a.update(version=7)), "version 7, and this Gallium reads"),
    "another layout": (lambda f: rewritten(f, lambda a: a.update(layout="panels-0")), "layout 'panels-0'.*m again"),
    "no array": (lambda f: rewritten(f, lambda a: a["handles"][0]["arrays"].clear()), "not used by this model"),
    "an array that is not there": (
        lambda f: rewritten(f, lambda a: a["handles"][0]["arrays"].update({"panels.0": "x"})), "no array 'x'"
    ),
    "parts in another order": (
        lambda f: rewritten(f, lambda a: a["handles"][1]["parts"].reverse()), "not what was packed together"
    ),
    "another kind": (
        lambda f: rewritten(f, lambda a: a["handles"][0]["facts"]["matrices"][0].update(kind="int4")), "damaged"
    ),
    "another config": (
        lambda f: (f / "config.json").write_text(json.dumps(CONFIGS["glm4_moe-even"])), "does not fit its own config"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_damaged_file_is_refused(tmp_path: Path, whole: Path, what: str) -> None:
    damage, message = REFUSED[what]
    shutil.copytree(whole, tmp_path / "p")
    damage(tmp_path / "p")
    with pytest.raises(GalliumError, match=message):
        results(tmp_path / "p")


def test_damaged_contents_are_found_on_request(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "p")
    flip(lambda data: len(data) - 5000)(tmp_path / "p")
    with pytest.raises(CheckpointError, match="1 of its tensors do not fit their checksums"):
        check_contents(tmp_path / "p")


def test_who_cannot_run_it_says_what_can(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(BackendError, match="packed in int8 and cannot run in int4: leave out --precision, or pack m"):
        results(whole, "int4")
    with pytest.raises(UnsupportedFormat, match=r"packed for the backend 'cpu'.*packed from: m"):
        results(whole, backend="reference")
    with pytest.raises(UsageError, match="packed already"):
        packed(whole, tmp_path / "again")


def test_a_backend_that_keeps_no_files_is_refused(tmp_path: Path) -> None:
    source = open_checkpoint(small(tmp_path / "m"))
    with pytest.raises(BackendError, match="'reference' does not keep packed weights"):
        pack(source, tmp_path / "p", EngineSettings(backend="reference"), label="m")
    assert {path.name for path in tmp_path.iterdir()} == {"m"}


def test_no_more_than_a_layer_is_held(tmp_path: Path) -> None:
    """What packing holds at once, seen at each layer: nothing of the layers before."""
    held: list[int] = []
    source = small(tmp_path / "m", "glm4_moe-even")
    before = CpuOps.pack_linear

    def counting(self: CpuOps, *args: Any) -> Any:
        import gc

        from gallium.backends.cpu.matrices import Packed

        held.append(sum(type(one) is Packed for one in gc.get_objects()))
        return before(self, *args)

    CpuOps.pack_linear = counting  # type: ignore[method-assign]
    try:
        packed(source, tmp_path / "p", "int8")
    finally:
        CpuOps.pack_linear = before  # type: ignore[method-assign]
    assert max(held) - min(held) <= 2
