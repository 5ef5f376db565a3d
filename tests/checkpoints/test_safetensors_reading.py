"""Folders of safetensors files: what is read, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.checkpoints.safetensors_making import entries_of, write_file, write_model

from gallium.checkpoints import open_checkpoint
from gallium.errors import CheckpointError, UnsupportedFormat

RNG = np.random.default_rng(5)
TENSORS: dict[str, np.ndarray[Any, Any]] = {
    "model.embed_tokens.weight": RNG.standard_normal((8, 4)).astype(np.float32),
    "model.layers.0.self_attn.q_proj.weight": RNG.standard_normal((6, 4)).astype(ml_dtypes.bfloat16),
    "model.layers.0.self_attn.k_proj.weight": RNG.standard_normal((6, 4)).astype(np.float16),
    "model.norm.weight": RNG.standard_normal(4).astype(np.float32),
}


@pytest.mark.parametrize("shards", [1, 3])
def test_names_shapes_and_values(tmp_path: Path, shards: int) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path / "m", TENSORS, {"model_type": "glm4"}, shards))
    assert (checkpoint.kind, checkpoint.config, checkpoint.metadata) == ("safetensors", {"model_type": "glm4"}, {})
    assert sorted(checkpoint.names()) == sorted(TENSORS)
    assert checkpoint.size_bytes == sum(array.nbytes for array in TENSORS.values())
    for name, array in TENSORS.items():
        weight = checkpoint.weight(name)
        assert weight.name == name and weight.shape == checkpoint.shape(name) == array.shape
        np.testing.assert_array_equal(weight.float32(), array.astype(np.float32))
        assert weight.raw().tobytes() == array.tobytes()


def test_a_file_that_the_library_wrote(tmp_path: Path) -> None:
    tensors = {name: array for name, array in TENSORS.items() if array.dtype.name != "bfloat16"}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    for name, array in tensors.items():
        np.testing.assert_array_equal(checkpoint.weight(name).float32(), array.astype(np.float32))


def test_raw_bytes_are_a_view_of_the_file(tmp_path: Path) -> None:
    raw = open_checkpoint(write_model(tmp_path, TENSORS)).weight("model.norm.weight").raw()
    assert not raw.flags.owndata and not raw.flags.writeable


def test_weights_can_be_read_again_after_their_pages_were_released(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path, TENSORS))
    weight = checkpoint.weight("model.embed_tokens.weight")
    before = weight.float32()
    checkpoint.release_memory()
    np.testing.assert_array_equal(weight.float32(), before)


def test_packed_experts_are_taken_by_index(tmp_path: Path) -> None:
    packed = RNG.standard_normal((3, 6, 4)).astype(np.float32)
    checkpoint = open_checkpoint(write_model(tmp_path, {"experts.gate_up_proj": packed}))
    for e in range(3):
        weight = checkpoint.weight("experts.gate_up_proj", e)
        assert weight.shape == (6, 4)
        np.testing.assert_array_equal(weight.float32(2, 5), packed[e, 2:5])
        assert weight.raw().tobytes() == packed[e].tobytes()


def test_generation_config_is_read(tmp_path: Path) -> None:
    write_model(tmp_path, TENSORS)
    assert open_checkpoint(tmp_path).generation_config == {}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert open_checkpoint(tmp_path).generation_config == {"eos_token_id": [1, 2]}


@pytest.mark.parametrize(
    ("dtype", "precision"), [(np.float32, "float32"), (np.float16, "bfloat16"), (ml_dtypes.bfloat16, "bfloat16")]
)
def test_the_precision_that_auto_means(tmp_path: Path, dtype: Any, precision: str) -> None:
    tensors = {"w": np.ones((8, 8), dtype), "norm": np.ones(8, np.float32), "b": np.ones((2, 2), np.float32)}
    assert open_checkpoint(write_model(tmp_path, tensors)).stored_precision == precision


def test_auto_looks_at_projections_not_at_the_embedding(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": np.ones((99, 8), np.float32), "w": np.ones((2, 8), np.float16)}
    assert open_checkpoint(write_model(tmp_path, tensors)).stored_precision == "bfloat16"


# -- what is refused ------------------------------------------------------------------


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\xff", '{"a": ' + "[" * 5000, "nul"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_broken_json(tmp_path: Path, file: str, text: str) -> None:
    write_model(tmp_path, TENSORS)
    (tmp_path / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        open_checkpoint(tmp_path)


def test_a_config_that_is_no_text_of_a_reasonable_size(tmp_path: Path) -> None:
    write_model(tmp_path, TENSORS)
    with (tmp_path / "config.json").open("ab") as file:
        file.truncate(1 << 32)
    with pytest.raises(CheckpointError, match=r"config\.json is too large"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: Is a directory"):
        open_checkpoint(tmp_path)


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_model(tmp_path, TENSORS, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 3 weight files: model-00002-of-00003\.safetensors.*pull"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("target", ["../secret.safetensors", "/etc/passwd", "..", "a\\b.safetensors", 7, None])
def test_an_index_that_leaves_its_folder(tmp_path: Path, target: object) -> None:
    write_model(tmp_path, TENSORS)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": target}}))
    with pytest.raises(CheckpointError, match="no valid weight_map"):
        open_checkpoint(tmp_path)


def test_pickles_are_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(UnsupportedFormat, match=r"only as pickles \(pytorch_model\.bin\).*run any program"):
        open_checkpoint(tmp_path)
    with pytest.raises(UnsupportedFormat, match="pickle"):
        open_checkpoint(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"\x80\x02}q\x00", b"\x80\x04\x95"])
def test_a_pickle_under_another_name_is_recognised(tmp_path: Path, head: bytes) -> None:
    write_model(tmp_path, TENSORS)
    (tmp_path / "model.safetensors").write_bytes(head + bytes(64))
    with pytest.raises(UnsupportedFormat, match="is a pickle"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_begins_like_a_pickle(tmp_path: Path, length: int) -> None:
    write_model(tmp_path, TENSORS)
    entries, data = entries_of(TENSORS)
    write_file(tmp_path / "model.safetensors", json.dumps(entries).encode().ljust(length), data)
    assert set(open_checkpoint(tmp_path).names()) == set(TENSORS)


def test_one_file_of_a_folder_points_to_the_folder(tmp_path: Path) -> None:
    write_model(tmp_path, TENSORS)
    with pytest.raises(UnsupportedFormat, match=f"name its folder, {tmp_path}"):
        open_checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UnsupportedFormat, match=r"neither a \.gguf file nor a folder"):
        open_checkpoint(tmp_path / "notes.txt")


def test_a_name_in_two_files(tmp_path: Path) -> None:
    write_model(tmp_path, TENSORS)
    write_file(tmp_path / "more.safetensors", *entries_of({"model.norm.weight": np.ones(4, np.float32)}))
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' stands in more than one file"):
        open_checkpoint(tmp_path)


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_HEADERS: list[tuple[object, bytes, str]] = [
    ({"w": GOOD | {"data_offsets": [0, 16]}}, bytes(8), "bytes 0 to 16 are stored"),
    ({"w": GOOD | {"shape": [4]}}, bytes(8), "bytes 0 to 8 are stored"),
    ({"w": GOOD}, bytes(7), "end at byte 8, the data has 7"),
    ({"w": GOOD}, bytes(9), "end at byte 8, the data has 9"),
    ({"w": GOOD | {"data_offsets": [4, 12]}}, bytes(12), "bytes 0 to 4 belong to no tensor"),
    ({"a": GOOD, "b": GOOD | {"data_offsets": [4, 12]}}, bytes(12), "'b' overlaps another tensor"),
    ({"w": GOOD | {"data_offsets": [8, 0]}}, bytes(8), "bytes 8 to 0"),
    ({"w": GOOD | {"data_offsets": [-8, 0]}}, bytes(8), "impossible offsets"),
    ({"w": GOOD | {"data_offsets": [0, 8.0]}}, bytes(8), "impossible offsets"),
    ({"w": GOOD | {"data_offsets": [0, 2**70]}}, bytes(8), "impossible offsets"),
    ({"w": GOOD | {"shape": [2**60, 2**60]}}, bytes(8), "impossible shape"),
    ({"w": GOOD | {"shape": [-1]}}, bytes(8), "impossible shape"),
    ({"w": GOOD | {"shape": [True, 2]}}, bytes(8), "impossible shape"),
    ({"w": GOOD | {"shape": [1] * 9}}, bytes(8), "impossible shape"),
    ({"w": GOOD | {"shape": [2**40, 2**40, 2**40]}}, bytes(8), "bytes 0 to 8"),
    ({"w": GOOD | {"shape": "2"}}, bytes(8), "impossible shape"),
    ({"w": {"dtype": "F32"}}, bytes(8), "impossible shape"),
    ({"w": GOOD | {"dtype": "F12"}}, bytes(8), "unknown dtype 'F12'"),
    ({"w": GOOD | {"dtype": ["F32"]}}, bytes(8), "unknown dtype"),
    ({"w": 3}, bytes(8), "entry of 'w' is not an object"),
    ({"w": GOOD, "__metadata__": {"a": 1}}, bytes(8), "__metadata__"),
    ({"w": GOOD, "__metadata__": [1]}, bytes(8), "__metadata__"),
    ([], b"", "not a JSON object"),
    (b"{", b"", "not JSON"),
    (b"\xff\xfe", b"", "not JSON"),
    (b"[" * 10000, b"", "not JSON"),
    ({"w": GOOD, "__metadata__": {"gallium.w": "Q4_1 1x32"}}, bytes(8), "said to be coded as 'Q4_1 1x32'"),
]


@pytest.mark.parametrize(("header", "data", "message"), BAD_HEADERS)
def test_bad_headers(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert message in str(caught.value) and "model.safetensors" in str(caught.value)


BAD_CODES = ["Q4_1 1x32", "Q4_1 2x32x1", "Q4_1 64", "Q4_1 1x-64", "Q4_1", "Q4_1 ", "Q9_9 1x64", "F32 1x10", "Q4_1 ²x32"]


@pytest.mark.parametrize("code", [*BAD_CODES, "Q4_1 99999999999999999x32", "Q4_1 1x1x1x1x1x1x1x1x64"])
def test_a_coded_tensor_must_have_the_bytes_it_claims(tmp_path: Path, code: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    entry = {"dtype": "U8", "shape": [60], "data_offsets": [0, 60]}
    write_file(tmp_path / "model.safetensors", {"w": entry, "__metadata__": {"gallium.w": code}}, bytes(60))
    with pytest.raises(CheckpointError, match="'w' is said to"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 7])
def test_files_too_short_for_a_header(tmp_path: Path, length: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(length))
    with pytest.raises(CheckpointError, match="is empty" if length == 0 else f"only {length} bytes"):
        open_checkpoint(tmp_path)


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2**63).to_bytes(8, "little") + bytes(100))
    with pytest.raises(CheckpointError, match=f"claims {2**63} bytes, the file has 108"):
        open_checkpoint(tmp_path)


def test_a_folder_named_like_a_weight_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="is not a file"):
        open_checkpoint(tmp_path)
