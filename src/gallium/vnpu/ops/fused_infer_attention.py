"""FusedInferAttentionScore, PromptFlashAttention and IncreFlashAttention: attention for inference, all versions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gallium.vnpu import soc
from gallium.vnpu.attention.inference import Inference
from gallium.vnpu.attention.inference_limits import check
from gallium.vnpu.attention.limits import need_chip
from gallium.vnpu.attention.visibility import UNLIMITED
from gallium.vnpu.named import register_named
from gallium.vnpu.registry import Illegal

QUANTISED_NAMES = {
    "actual_seq_qlen": "actual_seq_lengths",
    "actual_seq_kvlen": "actual_seq_lengths_kv",
    "quant_scale_out": "quant_scale2",
    "quant_offset_out": "quant_offset2",
    "dequant_scale_key": "key_antiquant_scale",
    "dequant_offset_key": "key_antiquant_offset",
    "dequant_scale_value": "value_antiquant_scale",
    "dequant_offset_value": "value_antiquant_offset",
    "dequant_scale_key_rope": "key_rope_antiquant_scale",
    "num_query_heads": "num_heads",
    "softmax_scale": "scale",
    "return_softmax_lse": "softmax_lse_flag",
    "key_quant_mode": "key_antiquant_mode",
    "value_quant_mode": "value_antiquant_mode",
    "out_tensor": "output",
}
PROMPT_NAMES = {
    "key": "key_tensors",
    "value": "value_tensors",
    "act_seq_len": "actual_seq_lengths",
    "act_seq_len_kv": "actual_seq_lengths_kv",
    "deq_scale1": "dequant_scale1",
    "deq_scale2": "dequant_scale2",
}


@dataclass(frozen=True, kw_only=True)
class FusedInfer(Inference):
    """One operator for prompts and for decoding."""

    def run(self) -> None:
        """Compute and write all outputs."""
        page = "npu_fused_infer_attention_score"
        need_chip(page, "910B", "910_93", "950")
        if self.output.numel() == 0:
            return
        check(self, page)
        self.compute()


@dataclass(frozen=True, kw_only=True)
class Prompt(Inference):
    """For prompts; on 310P with almost no options."""

    def run(self) -> None:
        """Compute and write all outputs."""
        page = "npu_prompt_flash_attention"
        need_chip(page, "910B", "910_93", "310P")
        if self.output.numel() == 0:
            return
        if self.input_layout not in ("BSH", "BSND", "BNSD", "BNSD_BSND", "TND"):
            raise Illegal(
                "input_layout", self.input_layout, f"BSH, BSND, BNSD, BNSD_BSND or TND ({page} page of op-plugin)"
            )
        if soc.current().family == "310P":
            self._check_310p(page)
        check(self, page)
        self.compute()

    def _check_310p(self, page: str) -> None:
        plain = {
            "query": self.query.dtype == torch.float16,
            "pse_shift": self.pse_shift is None,
            "actual_seq_lengths": not self.actual_seq_lengths and not self.actual_seq_lengths_kv,
            "pre_tokens": self.pre_tokens == UNLIMITED,
            "next_tokens": self.next_tokens in (0, UNLIMITED),
            "num_key_value_heads": self.num_key_value_heads == 0,
            "sparse_mode": self.sparse_mode == 0,
            "quant_scale2": self.quant_scale2 is None,
        }
        for name, good in plain.items():
            if not good:
                raise Illegal(
                    name, getattr(self, name), f"the default, and float16, on 310P ({page} page of op-plugin)"
                )


@dataclass(frozen=True, kw_only=True)
class Incremental(Inference):
    """For decoding: one query per sequence."""

    def run(self) -> None:
        """Compute and write all outputs."""
        page = "npu_incre_flash_attention"
        need_chip(page, "910B", "910_93", "310P")
        if self.output.numel() == 0:
            return
        if self.input_layout not in ("BSH", "BSND", "BNSD"):
            raise Illegal("input_layout", self.input_layout, f"BSH, BSND or BNSD ({page} page of op-plugin)")
        if self.query_view.shape[2] != 1:
            raise Illegal("the number of queries", self.query_view.shape[2], f"1 ({page} page of op-plugin)")
        check(self, page)
        self.compute()


for _name in ("V2", "V3", "V4", "V5"):
    register_named(f"FusedInferAttentionScore{_name}", FusedInfer, same=QUANTISED_NAMES)
register_named("PromptFlashAttentionV3", Prompt, same=PROMPT_NAMES)
register_named("IncreFlashAttentionV4", Incremental, same={"actual_seq_lengths": "actual_seq_lengths_kv"})
