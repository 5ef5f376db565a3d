"""Quantised folders as msModelSlim releases them: layouts byte by byte, what is refused, and traps of real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.checkpoints.modelslim_making import (
    AT,
    CODES4,
    floats,
    module,
    w4a8,
    w8a8_dynamic,
    w8a8_static,
    write_quantised,
)

from gallium.checkpoints import Checkpoint, open_checkpoint
from gallium.checkpoints.modelslim import SUPPORTED
from gallium.errors import CheckpointError, UnsupportedFormat


def opened(folder: Path, kind: str, parts: dict[str, NDArray[Any]], **about: Any) -> Checkpoint:
    tensors, types = module(kind, parts)
    return open_checkpoint(write_quantised(folder, tensors, types | about))


def refusal(folder: Path, kind: str, parts: dict[str, NDArray[Any]], **about: Any) -> str:
    with pytest.raises((CheckpointError, UnsupportedFormat)) as caught:
        opened(folder, kind, parts, **about)
    return str(caught.value)


# -- layouts ------------------------------------------------------------------
def test_w8a8_dynamic(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "W8A8_DYNAMIC", w8a8_dynamic(), version="1.0.0", group_size=0)
    weight = checkpoint.weight(AT + "weight")
    assert checkpoint.names() == [AT + "weight"]  # the companions are no tensors of their own
    assert (weight.shape, weight.storage) == ((2, 4), "I8")
    assert weight.raw().view(np.int8).tolist() == [1, -2, 3, 127, 0, 5, -128, 7]
    how = weight.quantisation
    assert how is not None and (how.bits, how.activations, how.scale.tolist()) == (8, "dynamic", [[0.5], [2.0]])
    assert weight.float32().tolist() == [[0.5, -1, 1.5, 63.5], [0, 10, -256, 14]]
    assert checkpoint.stored_precision == "int8"


@pytest.mark.parametrize("half", [False, True])
def test_w8a8_static(tmp_path: Path, half: bool) -> None:
    how = opened(tmp_path, "W8A8", w8a8_static(half=half)).weight(AT + "weight").quantisation
    assert how is not None and how.activations == "static"
    assert (how.input_scale, how.input_offset) == (0.25, -3)
    assert how.output_scale is not None and how.output_scale.tolist() == [0.125, 0.5]
    assert how.scale.tolist() == [[0.5], [2.0]]
    assert how.correction is not None and how.correction.tolist() == [3 * 129, 3 * -116]


def test_a_bias_that_is_folded_into_the_integers_is_taken_out(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "W8A8", w8a8_static(bias=True))
    how = checkpoint.weight(AT + "weight").quantisation
    assert how is not None and how.correction is not None and how.correction.tolist() == [3 * 129, 3 * -116]
    assert checkpoint.weight(AT + "bias").float32().tolist() == [1.0, -2.0]


def test_older_static_files_have_weight_scales_too(tmp_path: Path) -> None:
    parts = w8a8_static() | {"weight_scale": floats(0.5, 2), "weight_offset": floats(0, 0)}
    how = opened(tmp_path, "W8A8", parts).weight(AT + "weight").quantisation
    assert how is not None and how.scale.tolist() == [[0.5], [2.0]]


@pytest.mark.parametrize("packed", [True, False])
def test_w4a8(tmp_path: Path, packed: bool) -> None:
    """Two rows in a byte, the even one in the low half; before version 1.0.0 one integer in a byte."""
    about = {"version": "1.0.0"} if packed else {}
    checkpoint = opened(tmp_path, "W4A8_DYNAMIC", w4a8(packed), **about)
    weight = checkpoint.weight(AT + "weight")
    assert (weight.shape, weight.storage, checkpoint.stored_precision) == ((4, 4), "I4", "int4")
    np.testing.assert_array_equal(weight.raw().view(np.int8).reshape(4, 4), CODES4)
    np.testing.assert_array_equal(weight.float32(), CODES4 * floats(0.5, 1, 2, 4, shape=(4, 1)))


def test_the_first_byte_of_a_packed_weight(tmp_path: Path) -> None:
    """Rows 0 and 1 of column 0 are 1 and -1: 0xF1."""
    assert w4a8()["weight"].view(np.uint8)[0, 0] == 0xF1
    weight = opened(tmp_path, "W4A8_DYNAMIC", w4a8()).weight(AT + "weight")
    assert weight.raw().view(np.int8).reshape(4, 4)[:2, 0].tolist() == [1, -1]


@pytest.mark.parametrize("packed", [True, False])
def test_w4a8_in_groups_has_two_levels_of_scales(tmp_path: Path, packed: bool) -> None:
    weight = opened(tmp_path, "W4A8_DYNAMIC", w4a8(packed, groups=2), group_size=2).weight(AT + "weight")
    how = weight.quantisation
    wanted = np.array([[0.5, 1], [3, 4], [10, 12], [28, 32]], np.float32)
    assert how is not None
    np.testing.assert_array_equal(how.scale, wanted)
    np.testing.assert_array_equal(weight.float32(), CODES4 * np.repeat(wanted, 2, axis=1))


@pytest.mark.parametrize("packed", [True, False])
def test_rows(tmp_path: Path, packed: bool) -> None:
    """Any rows, odd ones too, with their scales; and rows of rows."""
    weight = opened(tmp_path, "W4A8_DYNAMIC", w4a8(packed, groups=2), group_size=2).weight(AT + "weight")
    for start, stop in ((0, 4), (1, 4), (1, 2), (2, 3), (3, 3)):
        part = weight.rows(start, stop)
        np.testing.assert_array_equal(part.float32(), weight.float32()[start:stop])
        np.testing.assert_array_equal(part.raw().view(np.int8).reshape(-1, 4), CODES4[start:stop])
        assert part.quantisation is not None and weight.quantisation is not None
        np.testing.assert_array_equal(part.quantisation.scale, weight.quantisation.scale[start:stop])
        np.testing.assert_array_equal(weight.float32(start, stop), weight.float32()[start:stop])
    np.testing.assert_array_equal(weight.rows(1, 4).rows(1, 2).float32(), weight.float32()[2:3])


def test_rows_of_a_static_weight(tmp_path: Path) -> None:
    whole = opened(tmp_path, "W8A8", w8a8_static(bias=True)).weight(AT + "weight")
    how, all_rows = whole.rows(1, 2).quantisation, whole.quantisation
    assert how is not None and all_rows is not None
    assert how.correction is not None and all_rows.correction is not None
    assert how.output_scale is not None and how.output_scale.tolist() == [0.5]
    assert how.correction.tolist() == all_rows.correction.tolist()[1:]


def test_float_tensors_stay(tmp_path: Path) -> None:
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic())
    tensors["lm_head.weight"] = floats(1, 2, 3, 4, shape=(2, 2))
    types["lm_head.weight"] = "FLOAT"
    head = open_checkpoint(write_quantised(tmp_path, tensors, types)).weight("lm_head.weight")
    assert (head.storage, head.quantisation) == ("F32", None)


def test_kv_cache_scales_are_vectors(tmp_path: Path) -> None:
    at = "model.layers.0.self_attn."
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic(), at + "k_proj.")
    tensors |= {
        at + "k_proj.kv_cache_scale": floats(0.5, 2, shape=(1, 2)),
        at + "k_proj.kv_cache_offset": np.array([0, 3], np.int32),
    }
    types |= {at + "k_proj.kv_cache_scale": "C8", at + "k_proj.kv_cache_offset": "C8"}
    types |= {"kv_cache_type": "C8", "kv_quant_type": "C8"}
    checkpoint = open_checkpoint(write_quantised(tmp_path, tensors, types))
    assert checkpoint.weight(at + "k_proj.kv_cache_scale").float32().tolist() == [0.5, 2]
    assert checkpoint.weight(at + "k_proj.kv_cache_offset").float32().tolist() == [0, 3]


# -- traps --------------------------------------------------------------------
def test_the_description_may_be_named_after_the_type(tmp_path: Path) -> None:
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic())
    write_quantised(tmp_path, tensors, types, description="quant_model_description_w8a8_dynamic.json")
    assert open_checkpoint(tmp_path).weight(AT + "weight").storage == "I8"
    (tmp_path / "quant_model_description.json").write_text(json.dumps(types))
    with pytest.raises(CheckpointError, match="2 descriptions"):
        open_checkpoint(tmp_path)


def test_an_index_of_the_float_model_that_was_left_behind_is_not_followed(tmp_path: Path) -> None:
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic())
    write_quantised(tmp_path, tensors, types)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    assert open_checkpoint(tmp_path).names() == [AT + "weight"]


def test_files_without_an_index(tmp_path: Path) -> None:
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic())
    write_quantised(tmp_path, tensors, types)
    (tmp_path / "quant_model_weights.safetensors.index.json").unlink()
    assert open_checkpoint(tmp_path).names() == [AT + "weight"]


def test_a_float_tensor_that_the_description_does_not_name(tmp_path: Path) -> None:
    """The layer for multi-token prediction is often added in float afterwards (floatmtp)."""
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic())
    extra = "model.layers.92.eh_proj.weight"
    checkpoint = open_checkpoint(write_quantised(tmp_path, tensors | {extra: floats(1, 2, shape=(1, 2))}, types))
    assert checkpoint.weight(extra).quantisation is None


def test_an_integer_tensor_that_the_description_does_not_name(tmp_path: Path) -> None:
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic())
    del types[AT + "weight"]
    with pytest.raises(CheckpointError, match=r"q_proj\.weight' is I8, and the description does not name it"):
        open_checkpoint(write_quantised(tmp_path, tensors, types))


def test_older_files_label_norms_like_the_model(tmp_path: Path) -> None:
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic())
    norm = "model.layers.0.input_layernorm.weight"
    checkpoint = open_checkpoint(
        write_quantised(tmp_path, tensors | {norm: floats(1, 2)}, types | {norm: "W8A8_DYNAMIC"})
    )
    assert checkpoint.weight(norm).float32().tolist() == [1, 2]


def test_rotations_within_the_weights_are_no_obstacle(tmp_path: Path) -> None:
    about = {"optional": {"quarot": {"rotation_map": {"global_rotation": "optional/quarot.safetensors"}}}}
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic())
    folder = write_quantised(tmp_path, tensors, types | about)
    (folder / "optional").mkdir()
    (folder / "optional" / "quarot.safetensors").write_bytes(b"never read")
    assert open_checkpoint(folder).names() == [AT + "weight"]


@pytest.mark.parametrize("method", ["ascend", "modelslim", None])
def test_a_quantization_config_that_says_the_same(tmp_path: Path, method: str | None) -> None:
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic())
    config = {"model_type": "glm", "quantization_config": {"quant_method": method}}
    assert open_checkpoint(write_quantised(tmp_path, tensors, types, config)).config == {"model_type": "glm"}


def test_a_quantization_config_of_another_model(tmp_path: Path) -> None:
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic())
    config = {"model_type": "glm", "quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(UnsupportedFormat, match="quant_method 'fp8'"):
        open_checkpoint(write_quantised(tmp_path, tensors, types, config))


# -- refusals -----------------------------------------------------------------
@pytest.mark.parametrize("kind", ["W8A8_MXFP8", "W4A4_DYNAMIC", "W8A16", "W8A8_MIX", "WFP8AFP8_DYNAMIC", "W4A8_MXFP"])
def test_other_types_are_refused_by_name_with_what_there_is(tmp_path: Path, kind: str) -> None:
    text = refusal(tmp_path, kind, w8a8_dynamic())
    assert f"{kind} (of {AT}weight)" in text and all(name in text for name in SUPPORTED)


@pytest.mark.parametrize(
    ("key", "value"), [("fa_quant_type", "FAKQuant"), ("indexer_quant_type", "INT8_DYNAMIC"), ("kv_cache_type", "C4")]
)
def test_other_quantised_attention_is_refused(tmp_path: Path, key: str, value: str) -> None:
    assert f"{value} ({key})" in refusal(tmp_path, "W8A8_DYNAMIC", w8a8_dynamic(), **{key: value})


@pytest.mark.parametrize("suffix", ["left_trans", "div.mul_scale", "heads_rotation", "module.bias"])
def test_transforms_of_activations_are_refused(tmp_path: Path, suffix: str) -> None:
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic())
    folder = write_quantised(tmp_path, tensors | {AT + suffix: floats(1)}, types | {AT + suffix: "FLOAT"})
    with pytest.raises(UnsupportedFormat, match="transforms activations while it runs"):
        open_checkpoint(folder)


def test_online_rotation_in_the_metadata_is_refused(tmp_path: Path) -> None:
    assert "metadata: quarot" in refusal(tmp_path, "W8A8_DYNAMIC", w8a8_dynamic(), metadata={"quarot": {"heads": 1}})


@pytest.mark.parametrize("name", ["weight_offset", "weight_offset_second"])
def test_asymmetric_weights_are_refused_when_they_are_read(tmp_path: Path, name: str) -> None:
    parts = w4a8(groups=2)
    parts[name] = np.ones_like(parts[name])
    weight = opened(tmp_path, "W4A8_DYNAMIC", parts, group_size=2).weight(AT + "weight")
    with pytest.raises(UnsupportedFormat, match=name):
        _ = weight.quantisation
    with pytest.raises(UnsupportedFormat, match=name):
        weight.float32()


@pytest.mark.parametrize("lost", ["input_scale", "input_offset", "quant_bias", "deq_scale"])
def test_missing_companions_are_named(tmp_path: Path, lost: str) -> None:
    parts = w8a8_static()
    del parts[lost]
    assert f"{AT}{lost} is missing" in refusal(tmp_path, "W8A8", parts)


def test_companions_of_another_type_are_named(tmp_path: Path) -> None:
    parts = w8a8_dynamic() | {"deq_scale": floats(1, 1)}
    assert f"{AT}deq_scale is not used by this type" in refusal(tmp_path, "W8A8_DYNAMIC", parts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_scale", floats(1, 1, 1, shape=(3, 1))),
        ("weight_offset", floats(0, 0, 0, 0, 0, shape=(5, 1))),
        ("weight_scale_second", floats(*range(8), shape=(2, 4))),
        ("scale_bias", floats(1, 2)),
    ],
)
def test_misshapen_companions_are_named(tmp_path: Path, name: str, value: NDArray[np.float32]) -> None:
    assert f"{AT}{name} is {list(value.shape)}" in refusal(tmp_path, "W4A8_DYNAMIC", w4a8() | {name: value})


def test_a_group_size_that_is_not_that_of_the_scales(tmp_path: Path) -> None:
    text = refusal(tmp_path, "W4A8_DYNAMIC", w4a8(groups=2), group_size=256)
    assert "has groups of 2 columns, the description says 256" in text


def test_a_weight_that_is_no_integers(tmp_path: Path) -> None:
    parts = w8a8_dynamic() | {"weight": floats(*range(8), shape=(2, 4))}
    assert f"{AT}weight is F32 [2, 4], not a matrix of int8" in refusal(tmp_path, "W8A8_DYNAMIC", parts)


def test_integers_that_four_bits_cannot_hold(tmp_path: Path) -> None:
    parts = w4a8(packed=False)
    parts["weight"] = parts["weight"] * np.int8(2)
    with pytest.raises(CheckpointError, match="outside -8 to 7"):
        opened(tmp_path, "W4A8_DYNAMIC", parts).weight(AT + "weight").raw()


@pytest.mark.parametrize("offset", [0.5, 200.0])
def test_an_input_offset_that_is_none(tmp_path: Path, offset: float) -> None:
    weight = opened(tmp_path, "W8A8", w8a8_static() | {"input_offset": floats(offset)}).weight(AT + "weight")
    with pytest.raises(CheckpointError, match="input_offset"):
        _ = weight.quantisation


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_an_input_scale_that_is_none(tmp_path: Path, scale: float) -> None:
    weight = opened(tmp_path, "W8A8", w8a8_static() | {"input_scale": floats(scale)}).weight(AT + "weight")
    with pytest.raises(CheckpointError, match="input_scale"):
        _ = weight.quantisation


def test_scales_of_more_axes_than_needed(tmp_path: Path) -> None:
    parts = w8a8_dynamic() | {"weight_scale": floats(0.5, 2.0, shape=(2, 1, 1))}
    assert opened(tmp_path, "W8A8_DYNAMIC", parts).weight(AT + "weight").float32()[0].tolist() == [0.5, -1, 1.5, 63.5]


@pytest.mark.parametrize("value", [7, ["W8A8"], {"a": 1}, None])
def test_a_type_that_is_no_text(tmp_path: Path, value: object) -> None:
    tensors, types = module("W8A8_DYNAMIC", w8a8_dynamic())
    with pytest.raises(CheckpointError, match="does not name it"):
        open_checkpoint(write_quantised(tmp_path, tensors, types | {AT + "weight": value}))


def test_many_faults_are_shortened(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {}
    types: dict[str, Any] = {}
    for layer in range(12):
        more, kinds = module("W8A8", {"weight": w8a8_dynamic()["weight"]}, f"model.layers.{layer}.mlp.up_proj.")
        tensors, types = tensors | more, types | kinds
    with pytest.raises(CheckpointError, match="and 40 more"):
        open_checkpoint(write_quantised(tmp_path, tensors, types))
