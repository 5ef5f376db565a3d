"""Reads what Huawei's msModelSlim releases: integers with their scales, and a description that types every tensor.

A folder has `quant_model_description.json` (older: `quant_model_description_<type>.json`), a flat map from tensor name
to type among keys about the whole model, and safetensors files `quant_model_weights…` with an index of their own. A
quantised Linear is several tensors of one module: `weight` (int8) and companions. Here it becomes one tensor, named as
in the float model. How the parts are laid out (`out`, `in` of the float weight):

* W8A8 (static activations): weight `[out, in]`; input_scale, input_offset `[1]`; deq_scale `[out]`, float32 or its bits
  as int64; quant_bias int32 `[out]`, into which a bias is folded; older files also weight_scale, weight_offset.
* W8A8_DYNAMIC: weight `[out, in]`; weight_scale `[out, 1]` or `[out, groups]`; weight_offset like it, zeros.
* W4A8_DYNAMIC: weight `[out / 2, in]`, two rows in a byte (since "version" 1.0.0), or `[out, in]`, one integer in a
  byte (before): shapes tell which. weight_scale `[out, 1]`; in groups of columns also weight_scale_second
  `[out, groups]`; offsets like them, zeros; scale_bias, eight times each row's sum, a constant of one way to compute
  that is not needed here.
* C8 (8-bit KV cache): k_proj.kv_cache_scale, .kv_cache_offset and v_proj's, a number per channel; plain tensors here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gallium.checkpoints.quantised import QuantisedTensor, numbers
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import CheckpointError, UnsupportedFormat

DESCRIPTIONS = "quant_model_description*.json"
METHODS = (None, "ascend", "modelslim")  # a quantization_config of config.json that says nothing else
FLOAT, KV_CACHE = "FLOAT", "C8"
FLOATS = ("F32", "F16", "BF16")
ABOUT_MODEL = frozenset({
    "model_quant_type", "version", "group_size", "kv_quant_type", "kv_cache_type", "fa_quant_type",
    "indexer_quant_type", "reduce_quant_type", "metadata", "optional",
})  # fmt: skip
KV_SUFFIXES = ("kv_cache_scale", "kv_cache_offset")
ONLINE = (
    "heads_rotation", "kronecker_rotation_m", "kronecker_rotation_n", "q_rot", "k_rot", "left_trans", "right_trans",
    "clip_ratio", "mul_scale", "svd_lowrank_l1", "svd_lowrank_l2", "module.weight", "module.bias",
)  # fmt: skip
"""Tensors that change what a layer computes: rotations and smoothing of activations, norms with a bias."""
SHOWN = 8


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one type stores a Linear."""

    bits: Literal[4, 8]
    activations: Literal["dynamic", "static"]
    needed: tuple[str, ...]
    optional: tuple[str, ...]


SCHEMES = {
    "W8A8": Scheme(
        8, "static", ("input_scale", "input_offset", "quant_bias", "deq_scale"), ("weight_scale", "weight_offset")
    ),
    "W8A8_DYNAMIC": Scheme(8, "dynamic", ("weight_scale",), ("weight_offset",)),
    "W4A8_DYNAMIC": Scheme(
        4, "dynamic", ("weight_scale",), ("weight_offset", "weight_scale_second", "weight_offset_second", "scale_bias")
    ),
}
SUPPORTED = (*SCHEMES, KV_CACHE, FLOAT)


def find_description(folder: Path) -> Path | None:
    """The description of a quantised folder; None if it is none. Raises CheckpointError if there are several."""
    found = sorted(folder.glob(DESCRIPTIONS))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"{folder} has {len(found)} descriptions of its quantisation ({names}); keep one.")
    return found[0] if found else None


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config without a quantization_config that only says "ascend". Raises UnsupportedFormat for another one."""
    how = config.get("quantization_config")
    method = how.get("quant_method") if isinstance(how, Mapping) else how
    if method not in METHODS:
        raise UnsupportedFormat(
            f"the folder has msModelSlim's description, but its config.json says quant_method {method!r}: one of them "
            "is left over from another model."
        )
    return {key: value for key, value in config.items() if key != "quantization_config"}


def read_quantised(
    folder: Path, description: Mapping[str, Any], stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The logical tensors of a quantised folder by name. Nothing but headers is read.

    Raises UnsupportedFormat naming types and transforms that Gallium does not compute, and CheckpointError naming
    companions that are missing, not used, or of another shape than their weight.
    """
    types = {k: v for k, v in description.items() if k not in ABOUT_MODEL and isinstance(v, str)}
    check_supported(folder, description, types, stored)
    tensors: dict[str, StoredTensor] = {}
    used: set[str] = set()
    faults: list[str] = []
    for name, tensor in stored.items():
        scheme = SCHEMES.get(types.get(name, FLOAT))
        if scheme is None or not name.endswith(".weight") or (tensor.storage in FLOATS and len(tensor.shape) < 2):
            continue  # older files label norms like the model
        companions, more = _companions(name, scheme, stored)
        faults += more
        used.update(companions[suffix].name for suffix in companions if suffix != "bias")
        if not more:
            one, wrong = _logical(tensor, scheme, companions, description.get("group_size", 0))
            faults += wrong
            tensors[name] = one
    if faults:
        raise CheckpointError(
            f"{folder} does not fit its own description:\n  " + "\n  ".join(_shown(faults)) + "\nIs the download whole?"
        )
    return {name: _plain(tensors.get(name, tensor)) for name, tensor in stored.items() if name not in used}


def check_supported(
    folder: Path, description: Mapping[str, Any], types: Mapping[str, str], stored: Mapping[str, StoredTensor]
) -> None:
    """Raise UnsupportedFormat for what would change the function that the model computes, before anything is made."""
    strange: dict[str, str] = {}
    for name in stored:
        kind = types.get(name, FLOAT)
        if kind not in SUPPORTED:
            strange.setdefault(kind, name)
        elif name not in types and stored[name].storage not in FLOATS:
            raise CheckpointError(
                f"{folder}: {name!r} is {stored[name].storage}, and the description does not name it."
            )
    for key in ("fa_quant_type", "indexer_quant_type", "kv_quant_type", "kv_cache_type"):
        about = description.get(key)
        if about and not (key.startswith("kv_") and about == KV_CACHE):
            strange.setdefault(f"{about} ({key})", "attention")
    if strange:
        listed = ", ".join(f"{kind} (of {name})" for kind, name in strange.items())
        raise UnsupportedFormat(f"{folder} is quantised as {listed}; Gallium computes {', '.join(SUPPORTED)}.")
    online = [name for name in stored if name.endswith(tuple(f".{suffix}" for suffix in ONLINE))]
    metadata = description.get("metadata")
    if online or (isinstance(metadata, Mapping) and metadata.get("quarot")):
        raise UnsupportedFormat(
            f"{folder} transforms activations while it runs ({', '.join(_shown(online)) or 'metadata: quarot'}), which "
            "Gallium does not compute: quantise without online rotation, smoothing of single layers or norm biases. "
            "Rotations that are part of the weights (`optional`) are no obstacle."
        )


def _companions(
    name: str, scheme: Scheme, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """The other tensors of a weight's module by suffix, and what is wrong with them."""
    module = name.removesuffix("weight")
    known = (*scheme.needed, *scheme.optional, "bias")
    found = {suffix: stored[module + suffix] for suffix in known if module + suffix in stored}
    missing = [f"{module}{suffix} is missing" for suffix in scheme.needed if suffix not in found]
    strange = {s for other in SCHEMES.values() for s in (*other.needed, *other.optional)} - {*known}
    extra = [f"{module}{suffix} is not used by this type" for suffix in sorted(strange) if module + suffix in stored]
    return found, missing + extra


def _logical(
    weight: StoredTensor, scheme: Scheme, companions: Mapping[str, StoredTensor], group_size: object
) -> tuple[StoredTensor, list[str]]:
    """The tensor of one Linear, and what does not fit."""
    if weight.storage != "I8" or len(weight.shape) != 2:
        return weight, [f"{weight.name} is {weight.storage} {list(weight.shape)}, not a matrix of int8"]
    rows, width = weight.shape
    scale = companions.get("weight_scale")
    out = scale.shape[0] if scale is not None and scale.shape else rows
    packed = scheme.bits == 4 and out == 2 * rows
    out = out if packed else rows
    groups = _groups(companions)
    faults = [
        f"{tensor.name} is {list(tensor.shape)}, for a weight of {out} rows"
        for suffix, tensor in companions.items()
        if not _fits(suffix, tensor, out, groups)
    ]
    if width % groups:
        faults.append(f"{weight.name} has {width} columns, which are not {groups} groups")
    elif groups > 1 and group_size != width // groups:
        faults.append(f"{weight.name} has groups of {width // groups} columns, the description says {group_size}")
    return (
        QuantisedTensor(
            weight.name, (out, width), f"I{scheme.bits}", weight.data, companions, scheme.activations, packed
        ),
        faults,
    )


def _groups(companions: Mapping[str, StoredTensor]) -> int:
    """Groups of columns, by the finer scale that there is."""
    scale = companions.get("weight_scale_second", companions.get("weight_scale"))
    return max(scale.shape[1], 1) if scale is not None and len(scale.shape) == 2 else 1


def _fits(suffix: str, tensor: StoredTensor, out: int, groups: int) -> bool:
    """Whether a companion has a number for each row, or for all."""
    size = math.prod(tensor.shape)
    if suffix in ("input_scale", "input_offset"):
        return size == 1
    if suffix == "scale_bias":
        return len(tensor.shape) == 2 and tensor.shape[0] == out
    if suffix.startswith("weight_"):
        return tensor.shape[:1] == (out,) and size in (out, out * groups)
    return size == out


def _plain(tensor: StoredTensor) -> StoredTensor:
    """A scale or offset of the KV cache as a vector of float32; others as they are."""
    if not tensor.name.endswith(KV_SUFFIXES):
        return tensor
    values = numbers(tensor).astype(np.float32).reshape(-1)
    return replace(tensor, shape=values.shape, storage="F32", data=values.view(np.uint8))


def _shown(items: Sequence[str]) -> Iterator[str]:
    yield from items[:SHOWN]
    if len(items) > SHOWN:
        yield f"and {len(items) - SHOWN} more"
