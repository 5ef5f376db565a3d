"""The models of the contest read back as what was written: GGUF through Gallium's reader, tokenizer and folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.contest import models
from benchmarks.contest.cells import WORKLOADS, Workload, all_cells, groups
from benchmarks.contest.gguf_file import write_gguf
from benchmarks.contest.process import Refused
from benchmarks.contest.vocabulary import END, vocabulary, write_tokenizer

from gallium.checkpoints.opening import open_checkpoint
from gallium.cli import shapes
from gallium.cli.random_model import RandomCheckpoint
from gallium.models.config import read_spec
from gallium.text.tokenizer import Tokenizer

DENSE: dict[str, Any] = {
    "model_type": "glm", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 320, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "attention_bias": False, "tie_word_embeddings": True,
}  # fmt: skip
MOE: dict[str, Any] = DENSE | {
    "model_type": "glm4_moe", "attention_bias": True, "tie_word_embeddings": False, "moe_intermediate_size": 32,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "use_qk_norm": False,
}  # fmt: skip


@pytest.fixture(params=["dense", "moe"])
def shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"tiny-{request.param}"
    monkeypatch.setitem(shapes.SHAPES, name, DENSE if request.param == "dense" else MOE)
    return name


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_a_gguf_file_reads_back(shape: str, precision: str, tmp_path: Path) -> None:
    config = models.config_of(shape)
    source = RandomCheckpoint(read_spec(shapes.shape_config(shape)))
    write_tokenizer(tmp_path, config["vocab_size"])
    write_gguf(tmp_path / "m.gguf", config, source, precision, tmp_path / "tokenizer.json")
    found = open_checkpoint(tmp_path / "m.gguf")
    assert set(found.names()) == set(source.names())
    spec = read_spec(found.config)
    assert spec.attention == read_spec(config).attention
    for name in source.names():
        wanted, got = source.weight(name).float32(), found.weight(name).float32()
        assert got.shape == wanted.shape, name
        # a group's greatest value decides its step: 1/127 of it in Q8_0, 1/8 in Q4_0
        allowed = {"bf16": 0.0, "int8": 0.1 / 250, "int4": 0.1 / 14}[precision] if wanted.ndim > 1 else 0.0
        np.testing.assert_allclose(got, wanted, atol=allowed + 1e-9, err_msg=name)


def test_a_folder_reads_back(shape: str, tmp_path: Path) -> None:
    folder = models.make_folder(Workload("T", "tiny", shape, ("bf16",)), tmp_path)
    source = RandomCheckpoint(read_spec(shapes.shape_config(shape)))
    found = open_checkpoint(folder)
    found.check({name: source.shape(name) for name in source.names()})
    for name in source.names():
        np.testing.assert_array_equal(found.weight(name).float32(), source.weight(name).float32())
    assert models.kv_bytes(json.loads((folder / "config.json").read_text())) == 2 * 2 * 2 * 32 * 2


def test_a_packed_folder_is_made_anew_for_another_model_or_packing_code(tmp_path: Path) -> None:
    source, code = tmp_path / "m.gguf", tmp_path / "pack.cpp"
    source.write_bytes(b"weights")
    code.write_text("round")
    first = models.packing_mark(source, tmp_path, ("*.cpp",))
    code.write_text("import cmath\nround")
    assert models.packing_mark(source, tmp_path, ("*.cpp",)) == first
    code.write_text("round better")
    second = models.packing_mark(source, tmp_path, ("*.cpp",))
    source.write_bytes(b"other weights")
    assert len({first, second, models.packing_mark(source, tmp_path, ("*.cpp",))}) == 3
    with pytest.raises(FileNotFoundError, match="has moved"):
        models.packing_mark(source, tmp_path, ("*.cpp", "gone.py"))
    assert models.packing_mark(source)  # the project's own files are all there


def test_a_model_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="takes 5000000000 GB in all formats"):
        models.check_room(tmp_path, 10**18)
    models.check_room(tmp_path, 1)


@pytest.mark.parametrize("size", [300, 2000])
def test_every_id_is_text(size: int, tmp_path: Path) -> None:
    vocab, merges = vocabulary(size)
    assert sorted(vocab.values()) == list(range(size))
    assert all(left in vocab and right in vocab and left + right in vocab for left, right in merges)
    write_tokenizer(tmp_path, size)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("z") == [vocab["z"]]
    assert tokenizer.encode(END) == [size - 1]


@pytest.mark.parametrize("workload", [workload for workload in WORKLOADS.values() if workload.shape is not None])
def test_random_models_have_room_for_their_longest_cell(workload: Workload) -> None:
    assert workload.shape is not None
    longest = max(group.longest for group in groups(all_cells()) if group.workload is workload)
    assert models.config_of(workload.shape)["max_position_embeddings"] >= longest
