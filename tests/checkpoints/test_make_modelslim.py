"""tools/make_modelslim.py writes what msModelSlim's format asks for: names, types, shapes, dtypes, files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints.safetensors_making import write_model
from tests.models.driving import logits_of
from tests.models.memory_checkpoint import MemoryCheckpoint, random_checkpoint
from tests.models.small_specs import CONFIGS, spec_of
from tools.make_modelslim import Maker, Recipe, main, make, write_parts
from tools.make_modelslim import stored as stored_tensor
from tools.modelslim.calibration import Seen, calibrate
from tools.modelslim.parts import w4a8_dynamic, w8a8
from tools.modelslim.smoothing import smooth

from gallium.backends.cpu.ops import CpuOps
from gallium.checkpoints import Checkpoint, convert, open_checkpoint
from gallium.checkpoints.quantised import QuantisedTensor
from gallium.checkpoints.safetensors_file import read_safetensors
from gallium.errors import UsageError
from gallium.models.catalog import load_model
from gallium.models.config import read_spec
from gallium.ops.handles import FloatArray


def source_of(folder: Path, name: str = "glm4_moe-even") -> Checkpoint:
    """A small float model with random weights."""
    return open_checkpoint(write_model(folder, random_checkpoint(spec_of(name)).tensors, CONFIGS[name]))


def made(tmp_path: Path, recipe: Recipe, name: str = "glm4_moe-even") -> tuple[Checkpoint, Path]:
    """A small model and the folder made of it, without a tokenizer: what is calibrated sees ids."""
    source = source_of(tmp_path / "float", name)
    seen = calibrate(source, list(range(3, 60))) if recipe.kv or recipe.type == "w8a8" else Seen()
    return source, write(source, tmp_path / "out", recipe, seen)


def write(source: Checkpoint, out: Path, recipe: Recipe, seen: Seen) -> Path:
    out.mkdir()
    maker = Maker(source, recipe, seen)
    write_parts(out, maker.tensors(), recipe.part_bytes)
    (out / "quant_model_description.json").write_text(json.dumps(maker.description()))
    (out / "config.json").write_text(json.dumps(source.config))
    return out


def stored(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {name: (t.storage, t.shape) for name, t in read_safetensors(file).items()}
    return found


def description(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "quant_model_description.json").read_text())
    return found


Q, EXPERT = "model.layers.1.self_attn.q_proj.", "model.layers.1.mlp.experts.3.down_proj."


def test_w8a8_dynamic(tmp_path: Path) -> None:
    _, folder = made(tmp_path, Recipe("w8a8-dynamic"))
    files, types = stored(folder), description(folder)
    assert files[Q + "weight"] == ("I8", (256, 128))
    assert files[Q + "weight_scale"] == files[Q + "weight_offset"] == ("F32", (256, 1))
    assert {types[Q + s] for s in ("weight", "weight_scale", "weight_offset")} == {"W8A8_DYNAMIC"}
    assert (types["model_quant_type"], types["version"], types["group_size"]) == ("W8A8_DYNAMIC", "1.0.0", 0)
    floats = ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.gate.weight")
    assert {types[name] for name in floats} == {"FLOAT"}
    assert set(files) == {name for name in types if "." in name}


def test_w8a8_leaves_experts_dynamic(tmp_path: Path) -> None:
    _, folder = made(tmp_path, Recipe("w8a8", half=True))
    files, types = stored(folder), description(folder)
    assert (types[Q + "weight"], types[EXPERT + "weight"]) == ("W8A8", "W8A8_DYNAMIC")
    wanted = {"input_scale": ("F32", (1,)), "input_offset": ("F32", (1,)), "deq_scale": ("I64", (256,)),
              "quant_bias": ("I32", (256,))}  # fmt: skip
    assert {suffix: files[Q + suffix] for suffix in wanted} == wanted
    assert Q + "weight_scale" not in files


@pytest.mark.parametrize("packed", [True, False])
def test_w4a8(tmp_path: Path, packed: bool) -> None:
    _, folder = made(tmp_path, Recipe("w4a8", group_size=32, packed=packed))
    files, types = stored(folder), description(folder)
    assert (types[EXPERT + "weight"], types[Q + "weight"]) == ("W4A8_DYNAMIC", "W8A8_DYNAMIC")
    assert files[EXPERT + "weight"] == ("I8", (64 if packed else 128, 64))
    assert files[EXPERT + "weight_scale_second"] == ("F32", (128, 2))
    assert files[EXPERT + "weight_offset_second"] == ("I64", (128, 2))
    assert types["group_size"] == 32 and ("version" in types) == packed
    if packed:  # cut over sixteen ranks where columns are
        assert files[EXPERT + "scale_bias"] == ("F32", (128, 16))
        assert files[EXPERT.replace("down", "up") + "scale_bias"] == ("F32", (64, 1))
    else:
        assert EXPERT + "scale_bias" not in files


def test_kv_scales(tmp_path: Path) -> None:
    _, folder = made(tmp_path, Recipe("w8a8-dynamic", kv=True))
    files, types = stored(folder), description(folder)
    at = "model.layers.1.self_attn.k_proj.kv_cache_scale"
    assert (files[at], types[at]) == (("F32", (64,)), "C8")
    assert types["kv_cache_type"] == types["kv_quant_type"] == "C8"


def test_several_files_and_their_index(tmp_path: Path) -> None:
    _, folder = made(tmp_path, Recipe("w8a8-dynamic", part_bytes=100_000))
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"quant_model_weights-00001-of-{len(files):05d}.safetensors"
    index = json.loads((folder / "quant_model_weights.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files) and set(index["weight_map"]) == set(stored(folder))
    assert open_checkpoint(folder).has_integers


@pytest.mark.parametrize(
    ("recipe", "error"),
    [
        (Recipe("w8a8-dynamic", kv=True), 0.02),
        (Recipe("w8a8"), 0.02),
        (Recipe("w4a8"), 0.2),
        (Recipe("w4a8", group_size=32), 0.2),
    ],
)
@pytest.mark.parametrize("name", ["glm4_moe-even", "glm4_moe-odd", "glm-odd"])
def test_the_weights_are_nearly_the_same(tmp_path: Path, name: str, recipe: Recipe, error: float) -> None:
    if name.endswith("odd") and recipe.group_size:
        pytest.skip("widths of no whole groups")
    source, folder = made(tmp_path, recipe, name)
    quantised = open_checkpoint(folder)
    assert quantised.names() and quantised.stored_precision == ("int4" if recipe.type == "w4a8" else "int8")
    for tensor in source.names():
        exact, rough = source.weight(tensor).float32(), quantised.weight(tensor).float32()
        assert np.linalg.norm(rough - exact) <= error * np.linalg.norm(exact)


def test_what_is_made_runs(tmp_path: Path) -> None:
    _, folder = made(tmp_path, Recipe("w4a8", kv=True))
    checkpoint = open_checkpoint(folder)
    ops = CpuOps("int4")
    model = load_model(checkpoint, read_spec(checkpoint.config), ops)
    assert all(cache.data.grid is not None for cache in model.make_caches(2, 4))
    assert model.layers[1].mlp.experts.data[0].integers is not None  # type: ignore[union-attr]


def test_a_static_bias_is_folded_into_the_integers() -> None:
    weight, bias = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32), np.array([10.0, -20.0], np.float32)
    parts = w8a8(weight, bias, (-1.0, 3.0), half=False)
    step = parts["deq_scale"]
    sums = parts["weight"].astype(np.int64).sum(axis=1) * int(parts["input_offset"][0])
    np.testing.assert_array_equal(parts["quant_bias"], np.rint(bias / step - sums))
    # the whole range of the input is used: -1 is -128 and 3 is 127
    scale, offset = parts["input_scale"][0], parts["input_offset"][0]
    assert np.rint(np.array([-1.0, 3.0]) / scale + offset).tolist() == [-128, 127]


def test_rows_of_zeros_stay_zeros() -> None:
    for group_size in (0, 2):
        parts = w4a8_dynamic(np.zeros((2, 4), np.float32), "a.up_proj.weight", group_size, packed=True)
        assert not parts["weight"].any() and np.isfinite(parts["weight_scale"]).all()


def test_without_a_text_nothing_is_calibrated(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--text"):
        make(source_of(tmp_path / "float"), tmp_path / "out", Recipe("w8a8"))


def test_what_is_quantised_already_is_refused(tmp_path: Path) -> None:
    _, folder = made(tmp_path, Recipe("w8a8-dynamic"))
    with pytest.raises(UsageError, match="quantised already"):
        make(open_checkpoint(folder), tmp_path / "again", Recipe("w4a8"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source_of(tmp_path / "float")
    arguments = [str(tmp_path / "float"), str(tmp_path / "out"), "--type", "w8a8-dynamic", "--keep", "down_proj"]
    assert main(arguments) == 0
    types = description(Path(capsys.readouterr().out.strip()))
    assert types[EXPERT + "weight"] == "FLOAT" and types[Q + "weight"] == "W8A8_DYNAMIC"
    assert main([*arguments[:2], "--type", "w8a8"]) == 1
    assert "--text" in capsys.readouterr().err


def test_a_static_projection_computes_what_the_float_one_does() -> None:
    """The bias counts once, although the file has it among the integers as well."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((48, 64)).astype(np.float32)
    bias, x = rng.standard_normal(48).astype(np.float32) * 20, rng.standard_normal((9, 64)).astype(np.float32)
    parts = w8a8(weight, bias, (float(x.min()), float(x.max())), half=True) | {"bias": bias}
    tensors = {suffix: stored_tensor(suffix, array) for suffix, array in parts.items()}
    linear = QuantisedTensor("weight", (48, 64), "I8", tensors["weight"].data, tensors, "static")
    ops = CpuOps("int8")
    packed = ops.pack_linear([linear], [tensors["bias"]])
    assert packed.data.integers is not None
    np.testing.assert_allclose(ops.linear(x, packed), x @ weight.T + bias, atol=0.3)


def test_layers_for_multi_token_prediction_stay_float_and_are_not_needed(tmp_path: Path) -> None:
    name = "glm4_moe-even"
    tensors = dict(random_checkpoint(spec_of(name)).tensors)
    last = spec_of(name).num_layers
    before, after = f"layers.{last - 1}.", f"layers.{last}."
    extra = {name.replace(before, after): value for name, value in tensors.items() if before in name}
    extra[f"model.layers.{last}.eh_proj.weight"] = np.zeros((128, 256), np.float32)
    config = CONFIGS[name] | {"num_mtp_layers": 1}
    source = open_checkpoint(write_model(tmp_path / "float", tensors | extra, config))
    folder = write(source, tmp_path / "out", Recipe("w8a8-dynamic"), Seen())
    types = description(folder)
    assert {types[n] for n in extra} == {"FLOAT"}
    checkpoint = open_checkpoint(folder)
    load_model(checkpoint, read_spec(checkpoint.config), CpuOps("int8"))


def test_convert_decodes_the_integers(tmp_path: Path) -> None:
    source, folder = made(tmp_path, Recipe("w4a8", group_size=32))
    quantised = open_checkpoint(folder)
    for precision, error in (("float32", 1e-6), ("bfloat16", 0.01), ("int8", 0.02), ("int4", 0.2)):
        again = open_checkpoint(convert(quantised, tmp_path / precision, precision))  # type: ignore[arg-type]
        assert not again.has_integers and set(again.names()) == set(source.names())
        for name in source.names():
            exact = quantised.weight(name).float32()
            assert np.linalg.norm(again.weight(name).float32() - exact) <= error * np.linalg.norm(exact)


@pytest.mark.parametrize("name", ["glm-odd", "glm4_moe-odd", "glm4_moe-even"])
def test_smoothing_does_not_change_the_function(tmp_path: Path, name: str) -> None:
    """Only where rounding falls: norms and up projections are divided by what the next columns are multiplied by."""
    spec, ids = spec_of(name), list(range(3, 60))
    state = split_gates(random_checkpoint(spec).tensors)
    source = open_checkpoint(write_model(tmp_path / "float", state, CONFIGS[name]))
    seen = calibrate(source, ids)
    before = dict(seen.inputs)
    factors = smooth(source, seen)
    smoothed = {tensor: factors.applied(tensor, values) for tensor, values in state.items()}
    ops = CpuOps("float32")
    logits = [logits_of(load_model(MemoryCheckpoint(tensors), spec, ops), ids[:20]) for tensors in (state, smoothed)]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-3 * float(np.abs(logits[0]).max()))
    after = calibrate(open_checkpoint(write_model(tmp_path / "smooth", smoothed, CONFIGS[name])), ids).inputs
    for module in (Q + "weight", "model.layers.0.mlp.down_proj.weight"):
        assert not np.allclose(before[module], after[module])
        np.testing.assert_allclose(seen.inputs[module], after[module], rtol=1e-3, atol=1e-4)


def split_gates(tensors: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """gate_up_proj as two tensors, as a checkpoint with one of them is smoothed."""
    out: dict[str, FloatArray] = {}
    for name, values in tensors.items():
        if "gate_up_proj" in name:
            parts = np.split(values, 2)
            out |= {name.replace("gate_up", part): half for part, half in zip(("gate", "up"), parts, strict=True)}
        else:
            out[name] = values
    return out
