"""What a checkpoint must hold, may hold and may not: faults are named before anything is read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from tests.models.driving import logits_of
from tests.models.memory_checkpoint import MemoryCheckpoint, random_checkpoint
from tests.models.small_specs import CONFIGS, spec_of
from tests.models.targets import REFERENCE

from gallium.errors import CheckpointError
from gallium.models.catalog import expected_tensors, ignored_tensors, load_model
from gallium.models.decoder import Model
from gallium.models.spec import ModelSpec
from gallium.ops.handles import FloatArray

Tensors = dict[str, FloatArray]
TOKENS = [5, 7, 11, 2, 3]
LAYER = "model.layers.2."
MOE = "glm4_moe-odd"


def tensors_of(spec: ModelSpec) -> Tensors:
    return dict(random_checkpoint(spec).tensors)


def load(tensors: Tensors, spec: ModelSpec) -> Model:
    return REFERENCE.load(MemoryCheckpoint(tensors), spec)


def logits(tensors: Tensors, spec: ModelSpec) -> FloatArray:
    return logits_of(load(tensors, spec), TOKENS)


def fault(tensors: Tensors, spec: ModelSpec) -> str:
    """What is said of a wrong checkpoint, of which nothing has been read."""
    checkpoint = MemoryCheckpoint(tensors)
    with pytest.raises(CheckpointError) as caught:
        REFERENCE.load(checkpoint, spec)
    assert checkpoint.reads == []
    return str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_is_read_once(name: str) -> None:
    spec = spec_of(name)
    checkpoint = random_checkpoint(spec)
    REFERENCE.load(checkpoint, spec)
    assert Counter(checkpoint.reads) == Counter(checkpoint.names())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_missing_tensor_is_named(name: str) -> None:
    spec = spec_of(name)
    tensors = tensors_of(spec)
    for absent in tensors:
        assert fault({n: t for n, t in tensors.items() if n != absent}, spec) == f"missing {absent}"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_of_another_shape_is_named(name: str) -> None:
    spec = spec_of(name)
    tensors = tensors_of(spec)
    for odd, array in tensors.items():
        assert f"{odd} has shape" in fault(tensors | {odd: array[..., :-1]}, spec)


@pytest.mark.parametrize(
    "extra",
    [
        LAYER + "self_attn.q_proj.weight_scale",
        LAYER + "self_attn.o_proj.bias",
        LAYER + "mlp.gate_proj.bias",
        "model.layers.3.input_layernorm.weight",
        "model.embed_tokens.bias",
        "visual.patch_embed.weight",
        "lm_head.bias",
    ],
)
def test_a_tensor_that_nobody_reads_is_named(extra: str) -> None:
    spec = spec_of("glm4-odd")
    assert fault(tensors_of(spec) | {extra: np.zeros(3, np.float32)}, spec) == f"unused {extra}"


def test_all_faults_are_in_one_error() -> None:
    spec = spec_of("glm-odd")
    tensors = tensors_of(spec) | {"extra": np.zeros(1, np.float32), "model.norm.weight": np.zeros(7, np.float32)}
    del tensors[LAYER + "mlp.down_proj.weight"]
    text = fault(tensors, spec)
    assert "missing model.layers.2.mlp.down_proj.weight" in text and "unused extra" in text
    assert "model.norm.weight has shape (7,), not (36,)" in text


@pytest.mark.parametrize("name", ["glm-odd", "glm4-odd"])
def test_gate_and_up_may_be_fused_or_apart(name: str) -> None:
    spec = spec_of(name)
    fused = tensors_of(spec)
    apart = dict(fused)
    for index in range(spec.num_layers):
        at = f"model.layers.{index}.mlp."
        both = apart.pop(at + "gate_up_proj.weight")
        apart[at + "gate_proj.weight"], apart[at + "up_proj.weight"] = both[: spec.ffn], both[spec.ffn :]
    np.testing.assert_array_equal(logits(apart, spec), logits(fused, spec))
    del apart[LAYER + "mlp.up_proj.weight"]
    assert fault(apart, spec) == f"missing {LAYER}mlp.up_proj.weight"
    assert "unused model.layers.0.mlp.gate_proj.weight" in fault(fused | apart, spec)


def packed_experts(tensors: Tensors, spec: ModelSpec) -> Tensors:
    """As transformers 5 keeps them: two 3-D tensors per layer."""
    assert spec.moe is not None
    out = dict(tensors)
    for index in range(spec.first_dense, spec.num_layers):
        at = f"model.layers.{index}.mlp.experts."
        gate, up, down = (
            np.stack([out.pop(f"{at}{e}.{part}_proj.weight") for e in range(spec.moe.num_experts)])
            for part in ("gate", "up", "down")
        )
        out[at + "gate_up_proj"], out[at + "down_proj"] = np.concatenate([gate, up], axis=1), down
    return out


@pytest.mark.parametrize("name", ["glm4_moe-odd", "glm4_moe-even"])
def test_experts_may_be_packed_or_one_by_one(name: str) -> None:
    spec = spec_of(name)
    single = tensors_of(spec)
    packed = packed_experts(single, spec)
    np.testing.assert_array_equal(logits(packed, spec), logits(single, spec))
    del packed[LAYER + "mlp.experts.down_proj"]
    assert fault(packed, spec) == f"missing {LAYER}mlp.experts.down_proj"
    both = packed_experts(single, spec) | single
    assert "unused model.layers.1.mlp.experts.0.gate_proj.weight" in fault(both, spec)


def test_a_model_without_a_shared_expert() -> None:
    spec = spec_of(MOE, n_shared_experts=0)
    tensors = tensors_of(spec)
    assert not any("shared" in name for name in tensors)
    assert np.isfinite(logits(tensors, spec)).all()
    assert "unused model.layers.1.mlp.shared_experts" in fault(tensors_of(spec_of(MOE)), spec)


TIED, OWN = spec_of("glm-odd", tie_word_embeddings=True), spec_of("glm-odd")


def test_a_tied_head_that_is_not_in_the_file() -> None:
    model = load(tensors_of(TIED), TIED)
    assert model.head is model.embedding


def test_a_tied_head_that_the_file_has_twice() -> None:
    tensors = tensors_of(TIED)
    copied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    model = load(copied, TIED)
    assert model.head is model.embedding
    np.testing.assert_array_equal(logits_of(model, TOKENS), logits(tensors, TIED))


def test_a_head_that_the_config_calls_tied_and_the_file_has_of_its_own() -> None:
    model = load(tensors_of(OWN), TIED)
    assert model.head is not model.embedding
    np.testing.assert_array_equal(logits_of(model, TOKENS), logits(tensors_of(OWN), OWN))


def test_a_head_of_its_own_must_be_there() -> None:
    assert fault(tensors_of(TIED), OWN) == "missing lm_head.weight"


def test_a_head_of_its_own_may_be_a_copy() -> None:
    tensors = tensors_of(TIED)
    copied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    np.testing.assert_array_equal(logits(copied, OWN), logits(tensors, TIED))


WITH_MTP, WITHOUT_MTP = spec_of(MOE, num_mtp_layers=1), spec_of(MOE, num_mtp_layers=0)
MTP_LAYER = "model.layers.3."


def mtp_tensors(*, packed: bool = False) -> Tensors:
    """One whole sparse layer after the last, and what joins it to the model; files of the 4.5 era have all of it."""
    longer = spec_of(MOE, num_hidden_layers=4)
    tensors = packed_experts(tensors_of(longer), longer) if packed else tensors_of(longer)
    joined = ("eh_proj", "enorm", "hnorm", "embed_tokens", "shared_head.norm", "shared_head.head")
    layer = {name: array for name, array in tensors.items() if name.startswith(MTP_LAYER)}
    return layer | {f"{MTP_LAYER}{name}.weight": np.zeros((2, 2), np.float32) for name in joined}


@pytest.mark.parametrize("packed", [False, True])
def test_mtp_layers_are_neither_missed_nor_read(packed: bool) -> None:
    tensors = tensors_of(WITH_MTP)
    base = packed_experts(tensors, WITH_MTP) if packed else tensors
    checkpoint = MemoryCheckpoint(base | mtp_tensors(packed=packed))
    model = REFERENCE.load(checkpoint, WITH_MTP)
    assert not any(name.startswith(MTP_LAYER) for name in checkpoint.reads)
    np.testing.assert_array_equal(logits_of(model, TOKENS), logits(tensors, WITHOUT_MTP))


def test_an_mtp_layer_that_the_file_lacks_is_no_fault() -> None:
    """Some quantised repositories drop it, and so does transformers when it saves."""
    assert np.isfinite(logits(tensors_of(WITH_MTP), WITH_MTP)).all()


def test_an_mtp_layer_that_the_config_does_not_know_is_unused() -> None:
    text = fault(tensors_of(WITHOUT_MTP) | mtp_tensors(), WITHOUT_MTP)
    assert f"unused {MTP_LAYER}eh_proj.weight" in text and f"unused {MTP_LAYER}embed_tokens.weight" in text


def test_a_strange_tensor_in_an_mtp_layer_is_named() -> None:
    strange = MTP_LAYER + "eh_proj.weight_scale"
    tensors = tensors_of(WITH_MTP) | mtp_tensors() | {strange: np.zeros(1, np.float32)}
    assert fault(tensors, WITH_MTP) == f"unused {strange}"


def test_rope_tables_of_old_files_are_ignored_in_the_model_s_layers_only() -> None:
    spec = spec_of("glm-odd")
    table = np.zeros(4, np.float32)
    old = tensors_of(spec) | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": table for i in range(3)}
    np.testing.assert_array_equal(logits(old, spec), logits(tensors_of(spec), spec))
    beyond = "model.layers.3.self_attn.rotary_emb.inv_freq"
    assert fault(old | {beyond: table}, spec) == f"unused {beyond}"


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_both_needed_and_ignored(name: str) -> None:
    spec = spec_of(name, num_mtp_layers=1)
    assert not expected_tensors(spec, ()).keys() & ignored_tensors(spec, ())


def test_progress_counts_up_to_the_end() -> None:
    spec = spec_of("glm-odd")
    seen: list[tuple[int, int]] = []
    load_model(random_checkpoint(spec), spec, REFERENCE.open(spec), lambda *now: seen.append(now))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_layers_say_which_tensor_is_what() -> None:
    """Names as the released files have them."""
    names: dict[str, Any] = expected_tensors(spec_of(MOE), ())
    assert names["model.layers.1.mlp.gate.e_score_correction_bias"] == (8,)
    assert names["model.layers.1.mlp.experts.7.down_proj.weight"] == (36, 18)
    assert names["model.layers.1.mlp.shared_experts.up_proj.weight"] == (36, 36)
    assert names["model.layers.0.mlp.gate_proj.weight"] == (50, 36)
    assert names["model.layers.2.self_attn.q_norm.weight"] == (12,)
    sandwich = expected_tensors(spec_of("glm4-odd"), ())
    assert sandwich["model.layers.0.post_self_attn_layernorm.weight"] == (36,)
    assert sandwich["model.layers.0.post_mlp_layernorm.weight"] == (36,)
