"""Prompt and incremental attention, the oldest version, and what attention for inference refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import FAR, attention, close, seen_by
from tests.vnpu.fused_infer_calls import ENDS, HALF, TO, fused, operands, packed, pages
from tests.vnpu.support import called

from gallium.vnpu.registry import operators


def test_prompt_attention() -> None:
    """Its default for next_tokens is 0, and modes 10 to 14 ask for high precision."""
    x, mask = operands(), torch.zeros(6, 10, dtype=torch.bool)
    with called() as names:
        out = torch_npu.npu_prompt_flash_attention(
            *[t.npu() for t in x],
            num_heads=4,
            num_key_value_heads=2,
            scale_value=0.2,
            input_layout="BNSD",
            atten_mask=mask.npu(),
            sparse_mode=10,
        )
    assert "PromptFlashAttentionV3" in names
    close(out, attention(*x, 0.2, seen_by(0, 6, 10, FAR, 0)).out, HALF)


def test_incremental_attention() -> None:
    x, mask = operands(queries=1, keys=300), torch.rand(2, 1, 1, 384) < 0.3
    caches = []
    for t in x[1:]:
        torch.manual_seed(3)
        caches.append(pages(t, 128, "BnBsH"))
    with called() as names:
        out = torch_npu.npu_incre_flash_attention(
            TO["BSH"](x[0]).npu(),
            caches[0][0].npu(),
            caches[1][0].npu(),
            num_heads=4,
            num_key_value_heads=2,
            scale_value=0.2,
            input_layout="BSH",
            block_table=caches[0][1].npu(),
            block_size=128,
            actual_seq_lengths=[300, 150],
            atten_mask=mask.npu(),
        )
    assert "IncreFlashAttentionV4" in names
    for b, n in enumerate((300, 150)):
        part = [x[0][b : b + 1], *(t[b : b + 1, :, :n] for t in x[1:])]
        close(out[b : b + 1], TO["BSH"](attention(*part, 0.2, ~mask[b, 0, :, :n]).out), HALF)


def test_keys_of_length_0_give_zeros() -> None:
    x = operands()
    out, lse = fused([x[0], x[1][:, :, :0], x[2][:, :, :0]], softmax_lse_flag=True)
    assert out.abs().sum() == 0 and torch.isneginf(lse).all()


def test_the_oldest_version_by_its_body() -> None:
    """torch_npu calls V2 only with a CANN older than 8.1."""
    x, out = operands(), torch.empty(2, 4, 6, 32, dtype=HALF)
    none = (None,) * 5
    operators()["FusedInferAttentionScoreV2"].body(
        x[0],
        (x[1],),
        (x[2],),
        None,
        None,
        None,
        None,
        *none,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        4,
        0.2,
        FAR,
        FAR,
        "BNSD",
        2,
        0,
        0,
        0,
        0,
        False,
        0,
        0,
        out,
        None,
    )
    close(out, attention(*x, 0.2).out, HALF)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sparse_mode": 5}, "sparse_mode"),
    ({"sparse_mode": 1}, "atten_mask"),
    ({"sparse_mode": 3, "atten_mask": torch.ones(6, 10, dtype=torch.bool)}, "atten_mask"),
    ({"atten_mask": torch.ones(6, 9, dtype=torch.bool)}, "atten_mask"),
    ({"inner_precise": 4}, "inner_precise"),
    ({"quant_scale2": torch.ones(7)}, "quant_scale2"),
    ({"quant_scale2": torch.ones(1).half()}, "quant_scale2"),
    ({"quant_offset2": torch.ones(1)}, "quant_offset2"),
    ({"key_antiquant_scale": torch.ones(1).half()}, "value_antiquant_scale"),
    ({"antiquant_scale": torch.ones(2).half()}, "scale of keys and values"),
    ({"query_rope": torch.ones(2, 4, 6, 64).half()}, "key_rope"),
    ({"key_shared_prefix": torch.ones(1, 2, 3, 32).half()}, "value_shared_prefix"),
    ({"actual_seq_lengths_kv": [11]}, "actual_seq_lengths_kv"),
    ({"block_table": torch.zeros(2, 1, dtype=torch.int32), "block_size": 128}, "block_size"),
    ({"dequant_scale1": torch.ones(1)}, "dequant_scale1"),
    ({"num_key_value_heads": 3}, "the number of heads"),
    ({"key_rope_antiquant_scale": torch.ones(1)}, "key_rope_antiquant_scale"),
    ({"pse_shift": torch.zeros(2, 4, 6, 9).half()}, "pse_shift"),
    ({"query_padding_size": torch.tensor([1]), "atten_mask": torch.zeros(6, 10, dtype=torch.bool)}, "atten_mask"),
]


@pytest.mark.parametrize(("options", "named"), REFUSED)
def test_refusals(options: dict[str, Any], named: str) -> None:
    with pytest.raises(RuntimeError, match=named):
        fused(operands(), **options)


def test_refuses_sizes_that_the_pages_exclude() -> None:
    for size in (24, 528):
        with pytest.raises(RuntimeError, match="head size"):
            fused(operands(size=size))
    with pytest.raises(RuntimeError, match="head sizes of query and value"):
        torch_npu.npu_fused_infer_attention_score(
            *[t.npu() for t in packed(96, 96)], num_heads=4, num_key_value_heads=2, input_layout="TND", **ENDS
        )
    x = operands(queries=1, keys=300)
    key, table = pages(x[1], 128, "BnNBsD")
    options = {"num_heads": 4, "num_key_value_heads": 2, "input_layout": "BNSD", "block_size": 128}
    for bad, named in ((table + 10, "block_table"), (table[:, :1], "block_table")):
        with pytest.raises(RuntimeError, match=named):
            torch_npu.npu_fused_infer_attention_score(
                x[0].npu(),
                key.npu(),
                key.npu(),
                block_table=bad.contiguous().npu(),
                actual_seq_lengths_kv=[300, 9],
                **options,
            )
