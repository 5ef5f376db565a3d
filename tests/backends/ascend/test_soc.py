"""The table of chips: every name that torch_npu knows to run language models, and what is refused on which."""

from __future__ import annotations

import dataclasses

import pytest

from gallium.backends.ascend import soc
from gallium.errors import BackendError
from gallium.ops.handles import AttentionSpec, ModelFacts, MoeSpec, RopeSpec

ATTENTION = AttentionSpec("gqa", 4, 2, 16, 16, 0.25, RopeSpec(8, 1e4, True))
GLM = ModelFacts("glm", 2, 64, 100, ATTENTION)
GLM4 = dataclasses.replace(GLM, name="glm4")
MOE = dataclasses.replace(GLM, name="glm4_moe", moe=MoeSpec(4, 2, "sigmoid", True, 1.0))


@pytest.mark.parametrize(
    ("name", "precision", "word"),
    [
        ("Ascend910A", "bfloat16", "no bfloat16"),
        ("Ascend310P3", "bfloat16", "no bfloat16"),
        ("Ascend910A", "float32", "would round float32 to float16"),
        ("Ascend310P3", "int8", "not there on Ascend310P3"),
        ("Ascend910B2", "int8", ""),
        ("Ascend910_9391", "int4", ""),
        ("Ascend910B4", "float32", ""),
        ("Ascend310P3", "float16", ""),
    ],
)
def test_precisions(name: str, precision: soc.Precision, word: str) -> None:
    refusal = soc.find(name).refusal(GLM, precision)
    assert word in refusal and bool(word) == bool(refusal)


@pytest.mark.parametrize("name", ["Ascend910A", "Ascend310P3", "Ascend910B2", "Ascend910_9391"])
def test_glm4_is_refused_in_float16_on_every_chip(name: str) -> None:
    refusal = soc.find(name).refusal(GLM4, "float16")
    assert "overflow in float16" in refusal and "zai-org/GLM-4#760" in refusal


def test_a_router_needs_products_in_float32() -> None:
    assert "a router computes in float32" in soc.find("Ascend310P3").refusal(MOE, "float16")
    assert soc.find("Ascend910B2").refusal(MOE, "bfloat16") == ""


def test_the_old_910b_is_not_the_new_one() -> None:
    assert soc.find("Ascend910B").family == "910"
    assert soc.find("Ascend910B1").family == "910B"


def test_an_unknown_chip_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BackendError, match=r"does not know the chip 'Ascend910C'; known are .*Ascend910_9391"):
        soc.find("Ascend910C")


def test_functions_are_asked_for_by_names_of_the_table() -> None:
    assert soc.find("Ascend910B2").has("npu_mm_all_reduce_base")
    assert not soc.find("Ascend910_9391").has("npu_mm_all_reduce_base")
    with pytest.raises(KeyError):
        soc.find("Ascend910B2").has("npu_typo")
