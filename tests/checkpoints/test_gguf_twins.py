"""A transformers model written as GGUF, as llama.cpp's converter does it, computes what transformers computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.checkpoints.gguf_making import Array, hf_config, keys_of, random_tensors, to_gguf_names, write_gguf
from tests.checkpoints.test_formats import random_blocks
from tests.checkpoints.test_gguf_reading import assert_fits
from tests.models import hf_tiny
from tests.models.driving import logits_of
from tests.models.targets import REFERENCE

from gallium.checkpoints import convert, open_checkpoint
from gallium.errors import CheckpointError
from gallium.models.catalog import expected_tensors
from gallium.models.config import read_spec

ARCH_OF = {"glm": "chatglm", "glm4": "glm4", "glm4_moe": "glm4moe", "llama": "llama"}
BIASED = "llama-biased-tied"  # biases of o_proj and the MLP: no `glm` model has them


def permuted(rows: Array, heads: int) -> Array:
    """llama.cpp's LlamaModel.permute: q and k from the half-split order of Hugging Face to interleaved pairs."""
    split = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))


def one_by_one(tensors: dict[str, Array]) -> dict[str, Array]:
    """Packed experts as released checkpoints have them."""
    out: dict[str, Array] = {}
    for name, array in tensors.items():
        packed = re.fullmatch(r"(.+\.experts\.)(gate_up|down)_proj", name)
        if packed is None:
            out[name] = array
            continue
        for e, matrix in enumerate(array):
            if packed[2] == "down":
                out[f"{packed[1]}{e}.down_proj.weight"] = matrix
            else:
                gate, up = np.split(matrix, 2)
                out |= {f"{packed[1]}{e}.gate_proj.weight": gate, f"{packed[1]}{e}.up_proj.weight": up}
    return out


def twin(path: Path, variant: str) -> Path:
    """The GGUF file of a tiny transformers model."""
    model = hf_tiny.make(variant)
    config, tensors = hf_tiny.config_of(model), one_by_one(hf_tiny.tensors(model))
    arch = ARCH_OF[config["model_type"]]
    if arch == "llama":
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        for name in tensors:
            part = name.split(".")[-2]
            if part in heads:
                tensors[name] = permuted(tensors[name], heads[part])
    stored = to_gguf_names(arch, tensors, config["num_hidden_layers"])
    keys: dict[str, Any] = keys_of(arch, config)
    return write_gguf(path, arch, keys, stored)


@pytest.mark.parametrize("variant", [v for v in hf_tiny.VARIANTS if v != BIASED])
@pytest.mark.parametrize("converted", [False, True])
def test_logits_are_those_of_transformers(tmp_path: Path, variant: str, converted: bool) -> None:
    checkpoint = open_checkpoint(twin(tmp_path / "m.gguf", variant))
    if converted:
        checkpoint = open_checkpoint(convert(checkpoint, tmp_path / "out", "float32"))
    wanted = hf_tiny.answer(variant)
    model = REFERENCE.load(checkpoint, read_spec(checkpoint.config))
    logits = logits_of(model, wanted.prompt + wanted.tokens[:-1])
    np.testing.assert_allclose(logits, wanted.logits, atol=1e-4, rtol=0)


def test_biases_that_no_glm_has_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"12 not used by this model: model\.layers\.0\.self_attn\.o_proj\.bias"):
        assert_fits(open_checkpoint(twin(tmp_path / "m.gguf", BIASED)))


# -- K-quants, which the `gguf` package reads and does not write --------------------------


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_matrices_in_a_k_quant(tmp_path: Path, name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    config = hf_config("chatglm", hidden_size=256, intermediate_size=256)
    tensors = to_gguf_names("chatglm", random_tensors(expected_tensors(read_spec(config), ())), 2)
    blocks: dict[str, NDArray[np.uint8]] = {}
    for seed, (key, array) in enumerate(tensors.items()):
        if array.ndim == 2 and array.shape[1] % 256 == 0:
            blocks[key] = random_blocks(name, array.size // 256, seed).reshape(len(array), -1)
    path = write_gguf(
        tmp_path / "m.gguf", "chatglm", keys_of("chatglm", config), tensors | blocks, dict.fromkeys(blocks, kind)
    )
    checkpoint = open_checkpoint(path)
    assert_fits(checkpoint)
    assert checkpoint.stored_precision == ("int4" if name == "Q4_K" else "int8")
    for key, hf_name in (("token_embd", "model.embed_tokens"), ("blk.1.ffn_down", "model.layers.1.mlp.down_proj")):
        weight = checkpoint.weight(f"{hf_name}.weight")
        assert weight.storage == name
        np.testing.assert_array_equal(weight.float32(), gguf.dequantize(blocks[f"{key}.weight"], kind))
