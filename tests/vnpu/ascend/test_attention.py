"""Which kernel attends: by phase, by the widths of heads and blocks, and by type; conformance holds the results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.conformance.cases import block_tables, step_of
from tests.conformance.targets import facts
from tests.vnpu.support import called

from gallium.backends.ascend import backend, soc
from gallium.backends.ascend.cache import fused_for
from gallium.backends.ascend.reasons import op_reasons
from gallium.ops.handles import AttentionSpec, Precision, RopeSpec
from gallium.ops.interface import Ops, op_names

GQA = AttentionSpec("gqa", 8, 2, 128, 128, 128**-0.5, RopeSpec(64, 1e4, True))
MLA = AttentionSpec("mla", 16, 16, 192, 256, 0.1, RopeSpec(64, 1e4, True), latent_dim=512)
SPARSE = replace(MLA, kind="mla_sparse", index_dim=128, index_topk=4)
FUSED = "FusedInferAttentionScoreV3"
DECODE, MIXED = [(40, 1), (3, 1)], [(40, 1), (0, 5)]
B2 = soc.find("Ascend910B2")


def attend(spec: AttentionSpec, chunks: list[tuple[int, int]], block_size: int, precision: Precision) -> set[str]:
    """The functions that one call of `attend` or `attend_latent` uses."""
    ops: Ops = backend.open(facts(spec), precision)
    tables, num_blocks = block_tables([first + count for first, count in chunks], block_size)
    cache, step = ops.make_kv_cache(spec, num_blocks, block_size), step_of(chunks, tables)
    tokens, plan = len(step.token_ids), ops.plan(step)
    width = spec.head_dim if spec.kind == "gqa" else spec.latent_dim
    q = torch.randn(tokens, spec.num_heads, width).npu()
    with called() as names:
        if spec.kind == "gqa":
            ops.attend(q, cache, plan, spec)
        else:
            q_rope, chosen = torch.randn(tokens, spec.num_heads, spec.rope.dim).npu(), None
            if spec.index_topk:
                keys, weights = torch.randn(tokens, 32, spec.index_dim).npu(), torch.randn(tokens, 32).npu()
                chosen = ops.index_topk(keys, weights, cache, plan, spec.index_topk)
            ops.attend_latent(q, q_rope, cache, plan, spec, chosen)
    return names


@pytest.mark.parametrize("chunks", [DECODE, MIXED], ids=["decode", "mixed"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("width", [64, 128])
def test_one_kernel_for_heads_of_real_models(width: int, precision: Precision, chunks: list[tuple[int, int]]) -> None:
    assert FUSED in attend(replace(GQA, head_dim=width, v_head_dim=width), chunks, 128, precision)


@pytest.mark.parametrize("chunks", [DECODE, MIXED], ids=["decode", "mixed"])
def test_one_kernel_for_latents(chunks: list[tuple[int, int]]) -> None:
    assert FUSED in attend(MLA, chunks, 128, "bfloat16")


@pytest.mark.parametrize("chunks", [DECODE, MIXED], ids=["decode", "mixed"])
def test_sparse_attention_and_its_indexer(chunks: list[tuple[int, int]]) -> None:
    names = attend(SPARSE, chunks, 128, "bfloat16")
    assert {"LightningIndexer", "SparseFlashAttention"} <= names and FUSED not in names


def test_heads_of_other_widths_decode_in_one_kernel_and_prefill_is_composed() -> None:
    narrow = replace(GQA, head_dim=32, v_head_dim=32)
    assert FUSED in attend(narrow, DECODE, 16, "bfloat16")
    assert FUSED not in attend(narrow, MIXED, 16, "bfloat16")


@pytest.mark.parametrize(
    ("change", "block_size", "dtype", "reason"),
    [
        ({}, 128, torch.float32, "float16 and bfloat16, not float32"),
        ({}, 24, torch.bfloat16, "multiple of 16 tokens"),
        ({"head_dim": 24, "v_head_dim": 24}, 128, torch.bfloat16, "a multiple of 16 up to 512, not 24"),
        ({"v_head_dim": 64}, 128, torch.bfloat16, "one width"),
        ({"num_heads": 130, "num_kv_heads": 2}, 128, torch.bfloat16, "64 per KV head, not 130 and 2"),
    ],
)
def test_what_decoding_cannot_fuse(change: dict[str, int], block_size: int, dtype: torch.dtype, reason: str) -> None:
    assert reason in fused_for(B2, dtype, replace(GQA, **change), block_size).decode


def test_every_limit_of_latents_is_told() -> None:
    fused = fused_for(B2, torch.bfloat16, replace(MLA, num_heads=6), 128)
    assert "power of 2" in fused.latent and fused.chosen == fused.latent and "no indexer" in fused.indexer
    assert "512 wide" in fused_for(B2, torch.bfloat16, replace(MLA, latent_dim=256), 128).latent
    assert "not 2049" in fused_for(B2, torch.bfloat16, replace(SPARSE, index_topk=2049), 128).indexer


def test_a_chip_without_the_kernels_says_so() -> None:
    fused = fused_for(soc.find("Ascend310P3"), torch.float16, GQA, 128)
    assert fused.decode == fused.packed == "Ascend310P3 has no npu_fused_infer_attention_score"
    assert fused.write == "Ascend310P3 has no npu_scatter_pa_kv_cache"


@pytest.mark.parametrize("spec", [GQA, MLA, SPARSE], ids=lambda s: s.kind)
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("chip", ["Ascend910B2", "Ascend910_9391", "Ascend310P3", "Ascend910A"])
def test_every_op_has_a_reason(chip: str, precision: Precision, spec: AttentionSpec) -> None:
    found = op_reasons(soc.find(chip), facts(spec), precision)
    assert set(found) == set(op_names()) and all(found.values())


def test_the_reasons_name_the_kernel_or_why_there_is_none() -> None:
    found = op_reasons(B2, facts(GQA), "bfloat16")
    assert found["attend"].startswith("npu_fused_infer_attention_score for decode (BSND) and prefill")
    assert found["rms_norm"] == "npu_rms_norm" and found["kv_write"] == "npu_scatter_pa_kv_cache"
    wide = op_reasons(B2, facts(GQA), "float32")["attend"]
    assert wide == "composed on the device: it takes float16 and bfloat16, not float32"
    partly = op_reasons(B2, facts(replace(GQA, head_dim=32, v_head_dim=32)), "bfloat16")["attend"]
    assert "for decode (BSND); prefill and mixed batches (TND) composed on the device: heads of several" in partly


def test_explain_tells_kernels_from_composed_ops() -> None:
    rows = {row.op: row.how for row in backend.open(facts(GQA), "float32").explain()}
    assert rows["rms_norm"] == "kernel" and rows["attend"] == "composed" and rows["mla"] == "composed"
