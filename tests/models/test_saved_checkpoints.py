"""Checkpoints that Hugging Face transformers wrote, read from disk: the same model as from memory."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.models import hf_tiny
from tests.models.driving import logits_of
from tests.models.memory_checkpoint import MemoryCheckpoint
from tests.models.real_configs import Config
from tests.models.targets import REFERENCE

from gallium.checkpoints import Checkpoint, open_checkpoint
from gallium.errors import CheckpointError
from gallium.models.config import read_spec
from gallium.models.decoder import Model

ONE_OF_EACH = ("glm-edge-tied", "glm4-bias", "glm4_moe-355b-like", "llama-biased-tied")
TOKENS = list(range(3, 40))


def from_memory(model: Any) -> Model:
    return REFERENCE.load(MemoryCheckpoint(hf_tiny.tensors(model)), read_spec(hf_tiny.config_of(model)))


def from_disk(checkpoint: Checkpoint) -> Model:
    return REFERENCE.load(checkpoint, read_spec(checkpoint.config, checkpoint.generation_config))


def in_bfloat16(variant: str) -> Any:
    import torch

    return copy.deepcopy(hf_tiny.make(variant)).to(torch.bfloat16)


def older_dialect(config: Config) -> Config:
    """A 5.x config.json as a 4.x transformers would have written it."""
    rope = config.pop("rope_parameters")
    assert rope.pop("rope_type") == "default"
    return config | rope | {"rope_scaling": None, "torch_dtype": config.pop("dtype")}


@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_float32(variant: str, max_shard_size: str, tmp_path: Path) -> None:
    model = hf_tiny.make(variant)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 2) == (max_shard_size == "20KB")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.stored_precision == "float32"
    assert np.array_equal(logits_of(from_disk(checkpoint), TOKENS), logits_of(from_memory(model), TOKENS))


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_bfloat16(variant: str, tmp_path: Path) -> None:
    model = in_bfloat16(variant)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.stored_precision == "bfloat16"
    assert np.array_equal(logits_of(from_disk(checkpoint), TOKENS), logits_of(from_memory(model), TOKENS))


def test_a_model_stored_in_float16_runs_in_bfloat16(tmp_path: Path) -> None:
    """The activations of GLM-4-0414 and Z1 overflow in float16; nothing computes in it."""
    model = copy.deepcopy(hf_tiny.make("glm4-bias")).half()
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.weight("model.norm.weight").storage == "F16"
    assert checkpoint.stored_precision == "bfloat16"
    assert np.array_equal(logits_of(from_disk(checkpoint), TOKENS), logits_of(from_memory(model), TOKENS))


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_both_dialects_on_disk(variant: str, tmp_path: Path) -> None:
    hf_tiny.make(variant).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    new = open_checkpoint(tmp_path)
    path.write_text(json.dumps(older_dialect(json.loads(path.read_text()))))
    old = open_checkpoint(tmp_path)
    assert "rope_theta" in old.config and "rope_theta" not in new.config
    assert read_spec(old.config, old.generation_config) == read_spec(new.config, new.generation_config)


def test_end_tokens_come_from_the_generation_config(tmp_path: Path) -> None:
    model = hf_tiny.make("glm4-bias")
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config["eos_token_id"] == [3, 5]
    assert read_spec(checkpoint.config, checkpoint.generation_config).eos_ids == (7, 9)


def test_the_config_of_another_model_is_noticed(tmp_path: Path) -> None:
    hf_tiny.make("glm4-bias").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "glm", "intermediate_size": 60}))
    with pytest.raises(CheckpointError, match=r"not used by this model: .*post_(mlp|self_attn)_layernorm") as caught:
        from_disk(open_checkpoint(tmp_path))
    assert "mlp.gate_up_proj.weight is [100, 36], the config says [120, 36]" in str(caught.value)
