"""Converted folders: they fit, carry what belongs to the model, and hold its values within each coding's bound."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.checkpoints.gguf_making import ARCH, LAYERS, hf_config, keys_of, to_gguf_names, write_gguf
from tests.checkpoints.safetensors_making import write_model
from tests.checkpoints.test_gguf_reading import assert_fits, make, model_tensors

from gallium.checkpoints import Checkpoint, convert, open_checkpoint
from gallium.checkpoints.formats import FORMATS
from gallium.checkpoints.quantise import ENCODERS
from gallium.errors import CheckpointError
from gallium.ops.handles import Precision

Q = gguf.GGMLQuantizationType
MATRIX = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_1"}
EMBEDDING = MATRIX | {"int4": "Q8_0"}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def source_of(folder: Path, arch: str, dtype: Any = np.float32, **changes: Any) -> Checkpoint:
    """A random model as transformers 5 writes it: MoE experts packed, everything of one dtype but the router's bias."""
    config = hf_config(arch, **({"num_nextn_predict_layers": 0} if arch == "glm4moe" else {}) | changes)
    tensors = pack_experts(model_tensors(config))
    return open_checkpoint(
        write_model(folder, {n: a if "bias" in n else a.astype(dtype) for n, a in tensors.items()}, config)
    )


def pack_experts(tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """gate_up_proj [E, 2I, H] and down_proj [E, H, I] from single experts."""
    out = {name: array for name, array in tensors.items() if ".experts." not in name}
    for prefix in sorted({name.partition(".experts.")[0] + ".experts." for name in tensors.keys() - out.keys()}):
        count = sum(name.startswith(prefix) for name in tensors) // 3
        parts = {p: [tensors[f"{prefix}{e}.{p}_proj.weight"] for e in range(count)] for p in ("gate", "up", "down")}
        out[prefix + "gate_up_proj"] = np.concatenate([np.stack(parts["gate"]), np.stack(parts["up"])], axis=1)
        out[prefix + "down_proj"] = np.stack(parts["down"])
    return out


def expected_values(name: str, storage: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a coding makes of values."""
    return FORMATS[storage].values(ENCODERS[storage](values)).reshape(values.shape)


@pytest.mark.parametrize("precision", MATRIX)
@pytest.mark.parametrize("arch", ARCH)
def test_every_tensor_is_coded_as_the_precision_says(tmp_path: Path, arch: str, precision: Precision) -> None:
    source = source_of(tmp_path / "m", arch)
    assert convert(source, tmp_path / "out", precision) == tmp_path / "out"
    written = open_checkpoint(tmp_path / "out")
    assert_fits(written)
    assert written.stored_precision == precision and written.names() == source.names()
    for name in source.names():
        plain = source.weight(name).float32()
        if plain.ndim < 2 or name.endswith("mlp.gate.weight"):
            storage = "F32"
        else:
            storage = (EMBEDDING if name in (EMBED, HEAD) else MATRIX)[precision]
        weight = written.weight(name)
        assert (weight.shape, weight.storage) == (plain.shape, storage), name
        np.testing.assert_array_equal(weight.float32(), expected_values(name, storage, plain), err_msg=name)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_floats_of_half_the_width(tmp_path: Path, dtype: Any) -> None:
    source = source_of(tmp_path / "m", "glm4", dtype)
    convert(source, tmp_path / "out", "bfloat16")
    written = open_checkpoint(tmp_path / "out")
    for name in source.names():
        plain = source.weight(name).float32()
        exact = dtype is ml_dtypes.bfloat16 or plain.ndim < 2
        np.testing.assert_allclose(written.weight(name).float32(), plain, rtol=0 if exact else 2**-8)
    assert written.weight("model.norm.weight").storage == source.weight("model.norm.weight").storage


@pytest.mark.parametrize("kind", [Q.Q4_0, Q.Q4_1, Q.Q8_0])
def test_what_has_the_precision_already_is_copied_bit_for_bit(tmp_path: Path, kind: Q) -> None:
    config = hf_config("glm4")
    tensors = to_gguf_names("glm4", model_tensors(config), LAYERS)
    types = {name: kind for name, array in tensors.items() if array.ndim == 2}
    source = open_checkpoint(write_gguf(tmp_path / "m.gguf", "glm4", keys_of("glm4", config), tensors, types))
    convert(source, tmp_path / "out", "int8" if kind == Q.Q8_0 else "int4")
    written = open_checkpoint(tmp_path / "out")
    for name in source.names():
        assert written.weight(name).storage == source.weight(name).storage
        assert written.weight(name).raw().tobytes() == source.weight(name).raw().tobytes()


@pytest.mark.parametrize("arch", ["llama", "glm4moe"])
def test_a_gguf_file_becomes_a_folder(tmp_path: Path, arch: str) -> None:
    path, _, tensors = make(tmp_path / "m.gguf", arch)
    source = open_checkpoint(path)
    convert(source, tmp_path / "out", "float32", save_tokenizer=lambda folder: (folder / "tokenizer.json").touch())
    written = open_checkpoint(tmp_path / "out")
    assert_fits(written)
    assert written.config == source.config | {"dtype": "float32"}
    assert (tmp_path / "out/tokenizer.json").exists()
    for name in written.names():
        parts = [name.replace("gate_up", part) for part in ("gate", "up")] if name not in tensors else [name]
        expected = np.concatenate([tensors[part] for part in parts])
        np.testing.assert_array_equal(written.weight(name).float32(), expected, err_msg=name)


def test_gate_and_up_of_two_codings_become_one_matrix(tmp_path: Path) -> None:
    path, config, tensors = make(tmp_path / "m.gguf", "llama")
    stored = to_gguf_names("llama", tensors, LAYERS)
    write_gguf(path, "llama", keys_of("llama", config), stored, {"blk.0.ffn_gate.weight": Q.Q4_0})
    convert(open_checkpoint(path), tmp_path / "out", "int4")
    fused = open_checkpoint(tmp_path / "out").weight("model.layers.0.mlp.gate_up_proj.weight")
    gate, up = (tensors[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up"))
    gate = gguf.dequantize(gguf.quantize(gate, Q.Q4_0), Q.Q4_0)
    assert fused.storage == "Q4_1"
    np.testing.assert_array_equal(fused.float32(), expected_values("", "Q4_1", np.concatenate([gate, up])))


def test_rows_that_no_block_divides_stay_as_they_are(tmp_path: Path) -> None:
    source = source_of(tmp_path / "m", "glm4", ml_dtypes.bfloat16, intermediate_size=72)
    convert(source, tmp_path / "out", "int4")
    written = open_checkpoint(tmp_path / "out")
    down = "model.layers.0.mlp.down_proj.weight"
    assert written.weight(down).storage == "BF16" and written.weight(HEAD).storage == "Q8_0"
    np.testing.assert_array_equal(written.weight(down).float32(), source.weight(down).float32())


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    source = source_of(tmp_path / "m", "glm4", tie_word_embeddings=True)
    convert(source, tmp_path / "out", "int8")
    written = open_checkpoint(tmp_path / "out")
    assert HEAD not in written.names() and written.config["tie_word_embeddings"] is True
    assert_fits(written)


CARRIED = {
    "tokenizer.json": "{}", "tokenizer_config.json": '{"a": "ü"}', "chat_template.jinja": "{{ x }}",
    "generation_config.json": '{"eos_token_id": [7]}', "special_tokens_map.json": "{}", "LICENSE": "MIT",
}  # fmt: skip


def test_what_belongs_to_the_model_is_carried_over(tmp_path: Path) -> None:
    folder = source_of(tmp_path / "m", "glm4").path
    for name, text in {**CARRIED, "pytorch_model.bin": "x", "README.md": "x", "tokenizer.json.lock/x": "x"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    convert(open_checkpoint(folder), tmp_path / "out", "int4")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert found.keys() == CARRIED.keys() | {"config.json", "model.safetensors"}
    assert {name: found[name].decode() for name in CARRIED} == CARRIED
    config = json.loads((folder / "config.json").read_text())
    assert json.loads(found["config.json"]) == config | {"dtype": "bfloat16"}


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    convert(source_of(tmp_path / "m", "glm4moe"), tmp_path / "out", "int8", progress=lambda *call: calls.append(call))
    total = open_checkpoint(tmp_path / "out").size_bytes
    assert {call[1] for call in calls} == {total} and calls[-1][0] == total
    assert [call[0] for call in calls] == sorted({call[0] for call in calls})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_not_quantised(tmp_path: Path, value: float) -> None:
    source = source_of(tmp_path / "m", "glm4")
    tensors = {name: source.weight(name).float32() for name in source.names()}
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 5] = value
    damaged = open_checkpoint(write_model(tmp_path / "damaged", tensors, source.config))
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.o_proj\.weight has values that are no finite"):
        convert(damaged, tmp_path / "out", "int4")
    assert not (tmp_path / "out").exists()
    convert(damaged, tmp_path / "out", "bfloat16")


def test_overwriting_is_asked_for(tmp_path: Path) -> None:
    source = source_of(tmp_path / "m", "glm4")
    convert(source, tmp_path / "out", "int8")
    convert(source, tmp_path / "out", "int4", overwrite=True)
    assert open_checkpoint(tmp_path / "out").stored_precision == "int4"


@pytest.mark.parametrize("arch", ["chatglm", "glm4", "glm4moe", "llama"])
def test_transformers_computes_the_same_from_a_converted_gguf(tmp_path: Path, arch: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from gallium import LLM

    path, _, _ = make(tmp_path / "m.gguf", arch)
    convert(open_checkpoint(path), tmp_path / "out", "float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = [1, 5, 9, 2, 40, 7]
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    with LLM(str(tmp_path / "out"), backend="reference", precision="float32") as llm:
        np.testing.assert_allclose(llm.logits(ids), theirs, atol=1e-3, rtol=1e-3)
