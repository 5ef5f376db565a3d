"""Random models of every family against Hugging Face transformers, in float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.models import hf_tiny
from tests.models.driving import Driver, greedy, logits_of
from tests.models.memory_checkpoint import MemoryCheckpoint, random_checkpoint
from tests.models.small_specs import CONFIGS, spec_of
from tests.models.targets import CPU, FLOAT32, REFERENCE, TORCH, Target

from gallium.models.catalog import load_model
from gallium.models.config import read_spec
from gallium.models.decoder import Model
from gallium.ops.wrappers import checked

TOKENS = list(range(3, 40))
NEAR = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.1, "int4": 0.6}  # of the logits' deviation, on random weights
LOGIT_TOLERANCE = 1e-4  # absolute, at logits up to 8; two float32 implementations differ by about 1e-5


def load(variant: str, target: Target) -> Model:
    model = hf_tiny.make(variant)
    return target.load(MemoryCheckpoint(hf_tiny.tensors(model)), read_spec(hf_tiny.config_of(model)))


@pytest.mark.parametrize("target", FLOAT32, indirect=True, ids=str)
@pytest.mark.parametrize("variant", hf_tiny.VARIANTS)
def test_logits_and_greedy_tokens_are_those_of_transformers(target: Target, variant: str) -> None:
    wanted = hf_tiny.answer(variant)
    model = load(variant, target)
    logits = logits_of(model, wanted.prompt + wanted.tokens[:-1])
    np.testing.assert_allclose(logits, wanted.logits, atol=LOGIT_TOLERANCE, rtol=0)
    assert greedy(model, wanted.prompt, len(wanted.tokens)) == wanted.tokens


@pytest.mark.parametrize("change", [{"interleaved": False}, {"dim": 6}, {"base": 2e4}])
def test_a_wrong_rope_would_be_noticed(change: dict[str, object]) -> None:
    """The control: the comparison can tell every fact of the rope."""
    model, wanted = load("glm-edge-tied", REFERENCE), hf_tiny.answer("glm-edge-tied")
    attention = model.spec.attention
    model.spec = replace(model.spec, attention=replace(attention, rope=replace(attention.rope, **change)))
    assert np.abs(logits_of(model, wanted.prompt) - wanted.logits[: hf_tiny.PROMPT]).max() > 0.01


@pytest.mark.parametrize("target", [REFERENCE, *CPU, *TORCH], indirect=True, ids=str)
def test_activations_that_float16_cannot_hold(target: Target) -> None:
    """GLM-4-0414 and Z1 answer "!!!!" where activations are kept in float16, whose largest number is 65504."""
    spec = spec_of("glm4-odd")
    checkpoint = random_checkpoint(spec)
    checkpoint.tensors["model.layers.0.post_mlp_layernorm.weight"] *= 1e6
    logits = logits_of(target.load(checkpoint, spec), TOKENS)
    exact = logits_of(REFERENCE.load(checkpoint, spec), TOKENS)
    assert (logits - exact).std() < NEAR[target.precision] * exact.std()


@pytest.mark.parametrize("target", [*TORCH, *(t for t in CPU if t.precision != "int4")], indirect=True, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_op_inside_a_model_is_the_reference_s(target: Target, name: str) -> None:
    """Without int4, whose largest error on random weights is a matter of luck; conformance has weights that fit it."""
    spec = spec_of(name)
    ops = checked(target.open(spec), REFERENCE.open(spec), target.precision)
    driver = Driver(load_model(random_checkpoint(spec), spec, ops), block_size=16)
    driver.step({"a": TOKENS, "b": TOKENS[:3]})
    driver.step({"b": TOKENS[3:9], "a": [1]})
    driver.step({"a": [2], "b": [3]})
