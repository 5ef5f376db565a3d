"""The shapes that bench knows, against the numbers of GLM's own configs; what a step reads and computes, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tests.checkpoints.gguf_making import FFN, HEAD_DIM, HEADS, HIDDEN, KV, LAYERS, VOCAB, hf_config

from gallium.cli.random_model import RandomCheckpoint
from gallium.cli.shapes import SHAPES, shape_config
from gallium.cli.work import Work
from gallium.errors import UsageError
from gallium.models.catalog import expected_tensors
from gallium.models.config import read_spec

QKV, OUT = HIDDEN * HEAD_DIM * (HEADS + 2 * KV), HEADS * HEAD_DIM * HIDDEN
MLP, HEAD = 3 * HIDDEN * FFN, HIDDEN * VOCAB
EXPERT, EXPERTS = 3 * HIDDEN * 32, 4  # as hf_config("glm4moe") has them: four routed, two chosen, one shared


@pytest.mark.parametrize(
    ("name", "billions", "kv_bytes_per_token", "head_dim"),
    [
        ("smollm2-135m", 0.1345, 23_040, 64),
        ("glm-edge-1.5b", 1.47, 57_344, 128),
        ("glm-edge-4b", 4.33, 122_880, 128),
        ("glm-4-9b", 9.4, 40_960, 128),
        ("glm-4-9b-0414", 9.4, 40_960, 128),
        ("glm-4-32b-0414", 32.6, 62_464, 128),
        ("glm-4.5-small", 7.97, 49_152, 128),
        ("glm-4.5-air", 106.9, 188_416, 128),
        ("glm-4.5", 352.8, 376_832, 128),
    ],
)
def test_sizes_of_the_shapes(name, billions, kv_bytes_per_token, head_dim):
    spec = read_spec(shape_config(name))
    at = spec.attention
    assert at.head_dim == head_dim
    assert 2 * at.num_kv_heads * (at.head_dim + at.v_head_dim) * spec.num_layers == kv_bytes_per_token
    assert Work.of(spec).total / 1e9 == pytest.approx(billions, rel=0.005)


def test_every_shape_is_tested():
    (mark,) = test_sizes_of_the_shapes.pytestmark
    assert [row[0] for row in mark.args[1]] == list(SHAPES)


def test_active_weights_are_those_of_the_models_name():
    """GLM-4.5 is called 355B-A32B, Air 106B-A12B."""
    for name, billions in (("glm-4.5", 32), ("glm-4.5-air", 12)):
        work = Work.of(read_spec(shape_config(name)))
        assert work.share_read(1) * work.total / 1e9 == pytest.approx(billions, rel=0.1)


def test_unknown_shape_names_the_known():
    with pytest.raises(UsageError, match=r"unknown shape 'cube'; choose from smollm2-135m, .*glm-4\.5\."):
        shape_config("cube")


@pytest.mark.parametrize("tied", [True, False])
def test_work_of_a_dense_model(tied):
    work = Work.of(read_spec(hf_config("glm4", tie_word_embeddings=tied)))
    layers = LAYERS * (QKV + OUT + MLP)
    assert (work.layers, work.routed, work.head) == (layers, 0, HEAD)
    assert work.total == layers + HEAD * (1 if tied else 2)
    assert work.share_read(1) == work.share_read(16) == (layers + HEAD) / work.total
    attention = 2 * (1 + 2 + 3) * HEADS * 2 * HEAD_DIM * LAYERS  # three causal rows; q·k and weights·v
    assert work.prefill_operations(3) == 2 * 3 * layers + 2 * HEAD + attention


def test_work_of_a_mixture():
    work = Work.of(read_spec(hf_config("glm4moe", attention_bias=False)))
    layers = LAYERS * (QKV + OUT) + MLP + EXPERT + HIDDEN * EXPERTS  # one dense layer, one shared expert, one router
    assert (work.layers, work.routed, work.head) == (layers, EXPERTS * EXPERT, HEAD)
    for batch, met in ((1, 0.5), (2, 0.75), (3, 0.875)):
        assert work.share_read(batch) * work.total == pytest.approx(layers + HEAD + met * EXPERTS * EXPERT)
    attention = 2 * 1 * HEADS * 2 * HEAD_DIM * LAYERS
    assert work.prefill_operations(1) == 2 * (layers + 2 * EXPERT) + 2 * HEAD + attention


def test_random_weights_have_the_models_names_and_the_same_values_in_both_forms():
    spec = read_spec(hf_config("glm4moe"))
    checkpoint = RandomCheckpoint(spec)
    expected = expected_tensors(spec, ())
    assert {name: checkpoint.shape(name) for name in checkpoint.names()} == expected
    for name, shape in expected.items():
        weight = checkpoint.weight(name)
        values = weight.float32()
        assert values.shape == weight.shape == shape
        assert np.array_equal(weight.raw().view(np.uint16).reshape(shape), values.view(np.uint32) >> 16)
        assert np.array_equal(weight.float32(1, 3), values[1:3])
        assert abs(values.mean() - (1 if len(shape) == 1 else 0)) < 0.02 and 0.01 < values.std() < 0.03
    again = RandomCheckpoint(spec).weight("lm_head.weight").raw()
    assert np.array_equal(again, checkpoint.weight("lm_head.weight").raw())
    assert not np.array_equal(again, RandomCheckpoint(spec, seed=1).weight("lm_head.weight").raw())
