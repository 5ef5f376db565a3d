"""Stretched weights compute the same function; divergence is the one of its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from benchmarks.contest.quality import (
    CHUNK,
    Costs,
    chunks_of,
    divergence,
    over_draws,
    ratio_interval,
    resampled,
    stretched,
)

from gallium.cli.random_model import RandomCheckpoint
from gallium.models.config import read_spec

CONFIG: dict[str, Any] = {
    "model_type": "glm", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
    "attention_bias": False, "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 0,
}  # fmt: skip


def test_divergence_is_kl_per_row() -> None:
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    wanted = (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(divergence(np.log(p) + 3, np.log(q) - 5), wanted, rtol=1e-6, atol=1e-9)


def test_stretched_weights_are_the_same_function() -> None:
    source = RandomCheckpoint(read_spec(CONFIG))
    before = {name: source.weight(name).float32() for name in source.names()}
    after = stretched(before, CONFIG)
    x = np.random.default_rng(1).standard_normal(32).astype(np.float32)
    layer, at, mlp = "model.layers.0.", "model.layers.0.self_attn.", "model.layers.0.mlp."
    for part in "qk":
        name = at + f"{part}_proj.weight"
        wanted, got = (w[name] @ (x * w[layer + "input_layernorm.weight"]) for w in (before, after))
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
        assert not np.allclose(after[name], before[name])

    def mixed(w: dict[str, Any]) -> Any:  # every query head sees the values of its group
        v = w[at + "v_proj.weight"] @ (x * w[layer + "input_layernorm.weight"])
        return w[at + "o_proj.weight"] @ np.repeat(v.reshape(2, 8), 2, axis=0).reshape(-1)

    def dense(w: dict[str, Any]) -> Any:
        gate, up = np.split(w[mlp + "gate_up_proj.weight"] @ (x * w[layer + "post_attention_layernorm.weight"]), 2)
        return w[mlp + "down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)

    assert mixed(after) == pytest.approx(mixed(before), rel=1e-3, abs=1e-5)
    assert dense(after) == pytest.approx(dense(before), rel=1e-3, abs=1e-5)


def test_every_text_has_its_share_of_the_tokens() -> None:
    texts = [[0] * (3 * CHUNK + 5), [1] * CHUNK, [2] * (CHUNK - 1)]
    assert [chunk[0] for chunk in chunks_of(texts, 100 * CHUNK)] == [0, 1, 0, 0]
    assert [chunk[0] for chunk in chunks_of(texts, 2 * CHUNK)] == [0, 1]


def test_an_interval_is_about_two_standard_errors() -> None:
    chunks = np.random.default_rng(0).normal(5, 1, 400)
    low, high = resampled(chunks, np.mean)
    assert low < chunks.mean() < high
    assert high - low == pytest.approx(4 * 1 / 20, rel=0.15)


def costs(level: float, seed: int) -> Costs:
    """Of 30 pieces, some of which are hard for everybody."""
    hard = np.random.default_rng(0).exponential(1, (1, 30, 1))
    kl = level * hard * np.random.default_rng(seed).uniform(0.9, 1.1, (1, 30, CHUNK))
    return Costs(kl.astype(np.float32), kl < level)


def test_draws_are_averaged_and_pieces_are_paired() -> None:
    ours, theirs = over_draws([costs(1.0, 1), costs(3.0, 2)]), over_draws([costs(4.0, 3), costs(4.0, 4)])
    found = ours.summary()
    assert found["draws"] == 2 and found["tokens"] == 2 * 30 * CHUNK
    np.testing.assert_allclose(ours.of_pieces, ours.kl.reshape(2, 30, CHUNK).mean(2).mean(0), rtol=1e-5)
    low, high = ratio_interval(ours, theirs)
    assert low < 0.5 < high and high - low < 0.02  # pieces differ by factors, their ratio hardly does
    assert found["interval"][1] - found["interval"][0] > 0.2
