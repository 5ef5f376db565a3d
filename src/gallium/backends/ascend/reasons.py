"""Which of torch_npu's functions serves each op, by chip, model and precision: what `support` and `explain` say."""

from __future__ import annotations

import torch

from gallium.backends.ascend import cache, experts
from gallium.backends.ascend.soc import Soc
from gallium.ops.handles import ModelFacts, Precision
from gallium.ops.interface import op_names

BLOCK_SIZE = 128  # tokens per block that suit the attention kernels (op-plugin's page)
LINEAR = {
    "int8": "npu_dynamic_quant + npu_quant_matmul",
    "int4": "npu_weight_quant_batchmatmul, or npu_dynamic_quant + npu_quant_matmul",
}
ONE_KERNEL = ("rms_norm", "swiglu", "add_rms_norm")  # ops whose function is called npu_<op>


def activations(chip: Soc, precision: Precision) -> Precision:
    """What activations are in: quantised models have those of the widest 16-bit type of the chip."""
    if precision in ("int8", "int4"):
        return "bfloat16" if chip.bfloat16 else "float16"
    return precision


def op_reasons(chip: Soc, model: ModelFacts, precision: Precision) -> dict[str, str]:
    """Per op the functions that compute it, or "composed on the device: " and why."""
    dtype = getattr(torch, activations(chip, precision))
    fused = cache.fused_for(chip, dtype, model.attention, BLOCK_SIZE)
    found = dict.fromkeys(op_names(), "one operator of torch_npu")
    found |= {op: _function(chip, f"npu_{op}") for op in ONE_KERNEL}
    found |= dict.fromkeys(("linear", "row_linear"), LINEAR.get(precision, "matmul"))
    found["logits"] = "matmul; a head stays in floating point" if precision in LINEAR else "matmul"
    if chip.has("npu_mm_all_reduce_base") and precision in ("float16", "bfloat16"):
        found["row_linear"] += "; npu_mm_all_reduce_base for many rows on 2, 4 or 8 ranks"
    found["rope"] = _rope(chip, model)
    found["kv_write"] = _or_composed(cache.SCATTER, fused.write)
    found["index_write"] = "composed on the device: an index_copy_ of PyTorch"
    found["attend"] = _attention(fused)
    if precision in LINEAR and model.attention.kind == "gqa" and not found["attend"].startswith("composed"):
        found["attend"] += _codes(cache.fused_for(chip, dtype, model.attention, BLOCK_SIZE, offset=0.0))
    found["attend_latent"] = _latent(fused)
    found["index_topk"] = _or_composed(cache.INDEXER, fused.indexer)
    found["all_reduce"] = found["all_gather"] = "HCCL, through torch.distributed"
    found["sample"] = (
        "composed on the device: npu_top_k_top_p keeps all that equal the k-th and adds up from the least likely, "
        "which is not the definition"
    )
    found["route"], found["experts"] = _route(chip, model), _experts(chip, precision)
    found["gqa"], found["gated_mlp"] = _gqa(chip), _gated_mlp(chip, precision)
    found["head_linear"] = _function(chip, "npu_transpose_batchmatmul", " for heads in multiples of 16, else bmm")
    found["moe"] = "composed of core ops"
    if found["gated_mlp"] != found["moe"]:
        found["moe"] += "; the shared expert as gated_mlp"
    found |= dict.fromkeys(("mla_prolog", "mla", "mla_sparse", "mla_epilog"), "composed of core ops")
    return found


def _function(chip: Soc, name: str, note: str = "") -> str:
    return _or_composed(name + note, "" if chip.has(name) else f"{chip.name} has no {name}")


def _or_composed(function: str, reason: str) -> str:
    return f"composed on the device: {reason}" if reason else function


def _rope(chip: Soc, model: ModelFacts) -> str:
    lacks = model.attention.rope.interleaved and not chip.has("interleaved_rotary_mul")
    reason = f"npu_rotary_mul turns halves only on {chip.name}, not neighbours"
    return _or_composed("npu_rotary_mul", reason) if lacks else _function(chip, "npu_rotary_mul")


def _attention(fused: cache.Fused) -> str:
    if fused.decode and fused.packed:
        return _or_composed(cache.ATTENTION, fused.packed)
    phases = {"decode (BSND)": fused.decode, "prefill and mixed batches (TND)": fused.packed}
    served = " and ".join(phase for phase, reason in phases.items() if not reason)
    rest = [f"; {phase} composed on the device: {reason}" for phase, reason in phases.items() if reason]
    return f"{cache.ATTENTION} for {served}{''.join(rest)}"


def _codes(fused: cache.Fused) -> str:
    """How an 8-bit cache is read."""
    decoding = f"composed on the device: {fused.decode}" if fused.decode else "read by it as they are"
    others = "composed on the device" if fused.packed else "made numbers before it"
    return f"; codes of an 8-bit cache in decode steps {decoding}, in others {others}"


def _latent(fused: cache.Fused) -> str:
    whole = _or_composed(cache.ATTENTION, fused.latent)
    return whole if fused.latent == fused.chosen else f"{whole}; {_or_composed(cache.SPARSE, fused.chosen)}"


def _route(chip: Soc, model: ModelFacts) -> str:
    refusal = experts.gating_refusal(model.moe) if model.moe else ""
    return _or_composed("npu_moe_gating_top_k", refusal) if refusal else _function(chip, "npu_moe_gating_top_k")


def _experts(chip: Soc, precision: Precision) -> str:
    middle = "npu_dequant_swiglu_quant" if precision == "int8" else "npu_swiglu"
    here = f"npu_moe_init_routing_v2, npu_grouped_matmul with {middle} between, npu_moe_finalize_routing"
    if precision == "float32" or not chip.has("npu_moe_distribute_dispatch_v2"):
        return here
    return f"{here}; among several lanes npu_moe_distribute_dispatch_v2 and _combine_v2 for batches that they take"


def _gated_mlp(chip: Soc, precision: Precision) -> str:
    if precision in LINEAR and chip.has("npu_dequant_swiglu_quant"):
        return "npu_quant_matmul, npu_dequant_swiglu_quant, npu_quant_matmul where both weights are int8, else core ops"
    return "composed of core ops"


def _gqa(chip: Soc) -> str:
    return "npu_mrope for queries and keys at once, and core ops" if chip.has("npu_mrope") else "composed of core ops"
