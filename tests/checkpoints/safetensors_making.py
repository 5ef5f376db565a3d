"""Writes safetensors files byte by byte, so that a test can make a wrong one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallium.models.catalog import expected_tensors
from gallium.models.config import read_spec

NAMES = {
    np.dtype("<f4"): "F32", np.dtype("<f2"): "F16", np.dtype("<i8"): "I64", np.dtype("u1"): "U8",
    np.dtype("i1"): "I8", np.dtype("<i4"): "I32",
}  # fmt: skip


def entries_of(tensors: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Any], bytes]:
    """The header's entries and the data."""
    entries: dict[str, Any] = {}
    data = b""
    for name, array in tensors.items():
        kind = "BF16" if array.dtype.name == "bfloat16" else NAMES[array.dtype]
        piece = array.tobytes()
        entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    return entries, data


def write_file(path: Path, header: object, data: bytes) -> Path:
    """Length, header, data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def write_model(
    folder: Path, tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any] | None = None, shards: int = 1
) -> Path:
    """A folder with config.json and one file, or several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "glm"} if config is None else config))
    if shards == 1:
        write_file(folder / "model.safetensors", *entries_of(tensors))
        return folder
    names, weight_map = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        write_file(folder / file, *entries_of(part))
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def sparse_model(folder: Path, layers: int) -> int:
    """A float32 model of zeros, 43 MB a layer, that takes no place on the disk; returns the bytes of its tensors."""
    config = {
        "model_type": "glm", "vocab_size": 512, "hidden_size": 1024, "intermediate_size": 2816,
        "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "attention_bias": False, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    }  # fmt: skip
    entries: dict[str, Any] = {}
    at = 0
    for name, shape in expected_tensors(read_spec(config), ()).items():
        end = at + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    file = write_file(folder / "model.safetensors", entries, b"")
    with file.open("ab") as data:
        data.truncate(data.tell() + at)
    return at
