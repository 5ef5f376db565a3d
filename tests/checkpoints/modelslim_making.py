"""Folders as msModelSlim writes them, made by hand: every tensor and every key of the description is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.checkpoints.safetensors_making import entries_of, write_file

Tensors = Mapping[str, NDArray[Any]]
AT = "model.layers.0.self_attn.q_proj."


def write_quantised(
    folder: Path,
    tensors: Tensors,
    types: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    description: str = "quant_model_description.json",
) -> Path:
    """One weight file with its index; `types` is the description as it stands."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "glm"}))
    (folder / description).write_text(json.dumps(types))
    file = "quant_model_weights-00001-of-00001.safetensors"
    write_file(folder / file, *entries_of(tensors))
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, file)}
    (folder / "quant_model_weights.safetensors.index.json").write_text(json.dumps(index))
    return folder


def module(kind: str, parts: Mapping[str, NDArray[Any]], at: str = AT) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and types of one Linear; a bias is FLOAT whatever the weight is."""
    tensors = {at + suffix: value for suffix, value in parts.items()}
    types = {name: "FLOAT" if name.endswith(".bias") else kind for name in tensors}
    return tensors, types


def floats(*values: float, shape: tuple[int, ...] | None = None) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(shape or (len(values),))


def w8a8_dynamic() -> dict[str, NDArray[Any]]:
    """A weight of 2 rows and 4 columns."""
    return {
        "weight": np.array([[1, -2, 3, 127], [0, 5, -128, 7]], np.int8),
        "weight_scale": floats(0.5, 2.0, shape=(2, 1)),
        "weight_offset": floats(0, 0, shape=(2, 1)),
    }


def w8a8_static(bias: bool = False, half: bool = False) -> dict[str, NDArray[Any]]:
    """The same integers with static activations: input_scale 0.25, input_offset -3; `half` codes deq_scale as int64."""
    codes = w8a8_dynamic()["weight"]
    deq = floats(0.125, 0.5)
    correction = 3 * codes.astype(np.int64).sum(axis=1)
    folded = np.rint(floats(1.0, -2.0) / deq).astype(np.int64) if bias else 0
    parts: dict[str, NDArray[Any]] = {
        "weight": codes,
        "input_scale": floats(0.25),
        "input_offset": floats(-3),
        "deq_scale": deq.view(np.int32).astype(np.int64) if half else deq,
        "quant_bias": (correction + folded).astype(np.int32),
    }
    return parts | ({"bias": floats(1.0, -2.0)} if bias else {})


CODES4 = np.array([[1, -2, 7, -8], [-1, 3, -8, 7], [0, 1, 2, 3], [-4, -5, -6, -7]], np.int8)


def w4a8(packed: bool = True, groups: int = 1) -> dict[str, NDArray[Any]]:
    """4 rows and 4 columns of int4; with groups the two levels of scales."""
    pairs = (CODES4[1::2] << 4) | (CODES4[0::2] & 15)
    parts: dict[str, NDArray[Any]] = {
        "weight": pairs.astype(np.int8) if packed else CODES4,
        "weight_scale": floats(0.5, 1, 2, 4, shape=(4, 1)),
        "weight_offset": floats(0, 0, 0, 0, shape=(4, 1)),
    }
    if groups > 1:
        parts["weight_scale_second"] = np.arange(1, 4 * groups + 1, dtype=np.float32).reshape(4, groups)
        parts["weight_offset_second"] = np.zeros((4, groups), np.int64)
    if packed:
        parts["scale_bias"] = floats(1, 2, 3, 4, shape=(4, 1))
    return parts
