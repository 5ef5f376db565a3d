"""Decode steps of quantised models: captured as eager, and with the kernels that fuse what can be fused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from tests.models.driving import Driver
from tests.models.integer_checkpoint import Kind, integer_checkpoint
from tests.vnpu.ascend import models

from gallium.models.catalog import load_model
from gallium.models.decoder import Model
from gallium.models.spec import ModelSpec
from gallium.ops.handles import FloatArray, Precision
from gallium.vnpu.loader import call_counts

PROMPTS = {"a": [3, 1, 4, 1, 5], "b": [9, 2, 6]}
STEPS = 4
FORMS: dict[str, tuple[Kind | None, Precision]] = {
    "w8a8-dynamic": ("dynamic", "int8"),
    "w8a8-static": ("static", "int8"),
    "w4a8-groups": ("groups", "int4"),
    "own int8": (None, "int8"),
    "own int4": (None, "int4"),
}


def spec_of(arch: str) -> ModelSpec:
    """Experts of a width that npu_dequant_swiglu_quant takes."""
    spec = models.wide_spec(arch)
    return spec if spec.moe is None else replace(spec, moe_ffn=128)


@cache
def load(arch: str, form: str) -> Model:
    kind, precision = FORMS[form]
    if kind is None:
        return models.load(arch, precision)
    spec = spec_of(arch)
    return load_model(integer_checkpoint(spec, kind), spec, models.open_ops(spec, precision))


def decode(driver: Driver) -> list[FloatArray]:
    """Prefill, then some greedy steps of both sequences."""
    rows = driver.step(PROMPTS)
    found = []
    for _ in range(STEPS):
        rows = driver.step({name: [int(rows[name][-1].argmax())] for name in PROMPTS})
        found.append(np.stack([rows[name][-1] for name in PROMPTS]))
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arch", ["glm", "glm4_moe"])
def test_captured_steps_are_eager_steps(arch: str, form: str) -> None:
    model = load(arch, form)
    captured = Driver(model, 32, 16)
    captured.run = model.ops.compile_step(lambda plan: model.forward(plan, captured.caches), (len(PROMPTS),))
    for ours, theirs in zip(decode(captured), decode(Driver(model, 32, 16)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def kernels(model: Model) -> Counter[str]:
    """The CANN functions of one eager decode step, and how often each was called."""
    driver = Driver(model, 32, 16)
    driver.step(PROMPTS)
    before = Counter(call_counts())
    driver.step({name: [7] for name in PROMPTS})
    return Counter(call_counts()) - before


def test_a_dense_layer_in_integers() -> None:
    """Four products, of which two are joined by the gate; three rows of quantisation outside of it."""
    model = load("glm", "w8a8-dynamic")
    layers, found = model.spec.num_layers, kernels(model)
    assert found["QuantMatmulWeightNz"] == 4 * layers
    assert sum(n for name, n in found.items() if name.startswith("DequantSwigluQuant")) == layers
    assert sum(n for name, n in found.items() if name.startswith("DynamicQuant")) == 3 * layers
    assert found["SwiGlu"] == 0


def test_a_layer_of_experts_in_integers() -> None:
    """Gating, sorting with quantisation, two grouped products with the gate between, and the way back: one each."""
    model = load("glm4_moe", "w8a8-dynamic")
    sparse, found = model.spec.num_layers - model.spec.first_dense, kernels(model)
    for name in ("MoeGatingTopK", "MoeInitRoutingV3", "MoeFinalizeRoutingV4"):
        assert found[name] == sparse, (name, found)
    assert found["GroupedMatmulWeightNz"] == 2 * sparse
    gates = sum(n for name, n in found.items() if name.startswith("DequantSwigluQuant"))
    assert gates == model.spec.num_layers + sparse  # a dense or shared MLP in each layer, and the experts
    assert found["SwiGlu"] == 0
