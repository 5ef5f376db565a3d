"""Write a float checkpoint as the quantised folder that Huawei's msModelSlim would release, for tests and trials.

Real ones come from msModelSlim (https://gitcode.com/Ascend/msmodelslim), whose algorithms lose less. This one rounds to
the nearest and calibrates by the least and largest value, so that anyone can try such folders without Ascend.

  python -m tools.make_modelslim default out --type w8a8-dynamic
  python -m tools.make_modelslim zai-org/glm-edge-1.5b-chat out --type w8a8 --kv c8 --text calibration.txt
  python -m tools.make_modelslim default out --type w8a8 --text t.txt --smooth --keep down_proj
  python -m tools.make_modelslim GLM-4.5-Air out --type w4a8                      experts in 4 bits, a scale per row
  python -m tools.make_modelslim default out --type w4a8 --group-size 64         and per group of columns

Attention, MLPs and experts are quantised; embedding, head, norms, routers and layers for multi-token prediction stay in
floating point. `w4a8` means 4 bits for the experts (without experts: for the MLPs) and W8A8_DYNAMIC for the rest;
`w8a8` is static, but for experts, which are W8A8_DYNAMIC in every recipe. --kv c8 gives keys and values a grid of 8
bits.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tools.modelslim.calibration import Seen, calibrate
from tools.modelslim.parts import Parts, w4a8_dynamic, w8a8, w8a8_dynamic
from tools.modelslim.smoothing import Factors, smooth

from gallium.checkpoints import Checkpoint, open_checkpoint, resolve_model
from gallium.checkpoints.quantise import ENCODERS
from gallium.checkpoints.replacing import replacing_folder
from gallium.checkpoints.tensor import StoredTensor
from gallium.checkpoints.writing import Output, copy_files, plan, write_json, write_tensors
from gallium.errors import GalliumError, UsageError
from gallium.ops.handles import FloatArray
from gallium.text.tokenizer import Tokenizer

TYPES = ("w8a8-dynamic", "w8a8", "w4a8")
QUANTISED = re.compile(
    r"model\.layers\.(?P<layer>\d+)\.(self_attn\.[qkvo]_proj|mlp\.(\S+\.)?(gate|up|gate_up|down)_proj)\.weight"
)
STORAGE = {"float32": "F32", "int8": "I8", "int32": "I32", "int64": "I64"}
PREFIX = "quant_model_weights"
CALIBRATION_TOKENS = 2048


@dataclass(frozen=True)
class Recipe:
    """What to make."""

    type: str
    group_size: int = 0
    kv: bool = False
    packed: bool = True  # False: one int4 in a byte, as before version 1.0.0
    half: bool = False  # for float16: deq_scale as int64
    smooth: bool = False  # move outliers of activations into the weights first
    keep: tuple[str, ...] = ()  # modules that stay in floating point, by the end of their names
    part_bytes: int = 4 << 30


class Maker:
    """The tensors of the new folder, one after the other, and its description."""

    def __init__(self, source: Checkpoint, recipe: Recipe, seen: Seen) -> None:
        self.source, self.recipe, self.seen = source, recipe, seen
        self.factors = smooth(source, seen) if recipe.smooth else Factors()
        self.layers = int(source.config["num_hidden_layers"])
        self.experts = any(".mlp.experts." in name for name in source.names())
        self.types: dict[str, Any] = {}
        self.kinds: set[str] = set()

    def tensors(self) -> Iterator[StoredTensor]:
        """Everything, in the order of the source."""
        for output in plan(self.source, "bfloat16"):
            kind = self.kind_of(output.name)
            if kind is None:
                self.types[output.name] = "FLOAT"
                yield self.floats(output)
                continue
            self.kinds.add(kind)
            weight = self.values(output)
            module = output.name.removesuffix("weight")
            for suffix, array in self.parts(kind, output.name, weight).items():
                self.types[module + suffix] = kind
                yield stored(module + suffix, array)
        if self.recipe.kv:
            yield from self.kv_scales()

    def values(self, output: Output) -> FloatArray:
        """One tensor in float32, smoothed; gate and up may be one tensor of two sources."""
        names = [output.name]
        if len(output.sources) == 2:
            names = [output.name.replace("gate_up", part) for part in ("gate", "up")]
        pairs = zip(names, output.sources, strict=True)
        return np.concatenate([self.factors.applied(name, one.float32()) for name, one in pairs])

    def floats(self, output: Output) -> StoredTensor:
        """A tensor that is not quantised: as it is, or in bfloat16 if it is in blocks or is smoothed."""
        first = output.sources[0]
        if first.storage in ("F32", "F16", "BF16") and not self.factors.touches(output.name):
            data = np.concatenate([one.raw() for one in output.sources])
            return StoredTensor(output.name, output.shape, first.storage, data)
        storage = "F32" if first.storage == "F32" else "BF16"
        return StoredTensor(output.name, output.shape, storage, ENCODERS[storage](self.values(output)))

    def kind_of(self, name: str) -> str | None:
        """The type of one weight, None: it stays in floating point."""
        match = QUANTISED.fullmatch(name)
        kept = name.removesuffix(".weight").endswith(self.recipe.keep) if self.recipe.keep else False
        if match is None or int(match["layer"]) >= self.layers or kept:
            return None
        expert = ".mlp.experts." in name
        if self.recipe.type == "w4a8":
            return "W4A8_DYNAMIC" if expert or (not self.experts and ".mlp." in name) else "W8A8_DYNAMIC"
        return "W8A8" if self.recipe.type == "w8a8" and not expert else "W8A8_DYNAMIC"

    def parts(self, kind: str, name: str, weight: FloatArray) -> Parts:
        """The tensors of one Linear."""
        if kind == "W8A8_DYNAMIC":
            return w8a8_dynamic(weight)
        if kind == "W4A8_DYNAMIC":
            return w4a8_dynamic(weight, name, self.recipe.group_size, packed=self.recipe.packed)
        bias = self.source.tensors.get(name.removesuffix("weight") + "bias")
        low, high = self.seen.inputs[name if name in self.seen.inputs else name.replace("gate_up", "gate")]
        limits = float(low.min()), float(high.max())
        return w8a8(weight, None if bias is None else bias.float32(), limits, half=self.recipe.half)

    def kv_scales(self) -> Iterator[StoredTensor]:
        """A symmetric grid for each channel of each layer's keys and values."""
        for layer in range(self.layers):
            for module, largest in (("k_proj", self.seen.keys[layer]), ("v_proj", self.seen.values[layer])):
                at = f"model.layers.{layer}.self_attn.{module}.kv_cache_"
                scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
                for suffix, array in (("scale", scale), ("offset", np.zeros_like(scale))):
                    self.types[at + suffix] = "C8"
                    yield stored(at + suffix, array)

    def description(self) -> dict[str, Any]:
        """The content of quant_model_description.json, once all tensors have been made."""
        first = next((kind for kind in ("W8A8", "W8A8_DYNAMIC", "W4A8_DYNAMIC") if kind in self.kinds), "FLOAT")
        about: dict[str, Any] = {"model_quant_type": first, "group_size": self.recipe.group_size}
        if self.recipe.packed:
            about |= {"version": "1.0.0", "metadata": {}, "optional": {}}
        if self.recipe.kv:
            about |= {"kv_cache_type": "C8", "kv_quant_type": "C8"}
        return self.types | about


def stored(name: str, array: NDArray[Any]) -> StoredTensor:
    """An array as a tensor of a safetensors file."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return StoredTensor(name, array.shape, STORAGE[array.dtype.name], data)


def write_parts(folder: Path, tensors: Iterator[StoredTensor], part_bytes: int) -> None:
    """Weight files of about `part_bytes` and their index."""
    parts: list[list[str]] = []
    held: list[StoredTensor] = []

    def flush() -> None:
        if held:
            parts.append([tensor.name for tensor in held])
            with (folder / f"{len(parts)}.part").open("wb") as file:
                outputs = [Output(tensor.name, (tensor,), tensor.storage) for tensor in held]
                write_tensors(file, outputs, sum(output.num_bytes for output in outputs), None)
            held.clear()

    total = 0
    for tensor in tensors:
        if sum(one.data.nbytes for one in held) + tensor.data.nbytes > part_bytes:
            flush()
        held.append(tensor)
        total += tensor.data.nbytes
    flush()
    where: dict[str, str] = {}
    for number, names in enumerate(parts, 1):
        file = f"{PREFIX}-{number:05d}-of-{len(parts):05d}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        where |= dict.fromkeys(names, file)
    write_json(folder / f"{PREFIX}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def make(source: Checkpoint, out: Path, recipe: Recipe, text: str = "", *, overwrite: bool = False) -> Path:
    """Write the folder; `text` is what is calibrated on, where something is. Returns the folder."""
    if source.has_integers:
        raise UsageError(f"{source.path} is quantised already: name the float model.")
    gguf = source.kind == "gguf"
    seen = Seen()
    if recipe.kv or recipe.smooth or recipe.type == "w8a8":
        if not text:
            raise UsageError(
                "static activations, smoothing and a KV cache in 8 bits are calibrated: give a text with --text."
            )
        tokenizer = Tokenizer.from_gguf(source.metadata) if gguf else Tokenizer.from_folder(source.path)
        seen = calibrate(source, tokenizer.encode(text)[:CALIBRATION_TOKENS])
    maker = Maker(source, recipe, seen)
    with replacing_folder(out, overwrite=overwrite, keep=source.path, needs=0) as fresh:
        write_parts(fresh, maker.tensors(), recipe.part_bytes)
        write_json(fresh / "quant_model_description.json", maker.description())
        config = {key: value for key, value in source.config.items() if key != "torch_dtype"}
        write_json(fresh / "config.json", config | {"dtype": "float16" if recipe.half else "bfloat16"})
        if gguf:
            Tokenizer.from_gguf(source.metadata).save(fresh)
        else:
            copy_files(source.path, fresh)
    return out


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help='a folder, a .gguf file, a hub name, or "default"')
    parser.add_argument("out", type=Path, help="the new folder")
    parser.add_argument("--type", choices=TYPES, required=True, help="how weights and activations are quantised")
    parser.add_argument("--group-size", type=int, default=0, help="w4a8: columns that share a scale; 0: all of a row")
    parser.add_argument("--kv", choices=["c8"], help="an 8-bit grid for keys and values too")
    parser.add_argument("--text", type=Path, help="what to calibrate on, for w8a8, --kv and --smooth")
    parser.add_argument("--unpacked", action="store_true", help="the layout before version 1.0.0: one int4 in a byte")
    parser.add_argument("--half", action="store_true", help="for float16: deq_scale as int64")
    parser.add_argument("--smooth", action="store_true",
                        help="first move outliers of activations into the weights, where layers are dense")  # fmt: skip
    parser.add_argument("--keep", nargs="*", default=[], metavar="MODULE",
                        help="modules that stay in floating point, by the end of their names: down_proj")  # fmt: skip
    parser.add_argument("--part-size", type=float, default=4, help="GiB of one weight file")
    parser.add_argument("--force", action="store_true", help="overwrite the folder of a model")
    args = parser.parse_args(arguments)
    recipe = Recipe(
        args.type,
        args.group_size,
        args.kv is not None,
        not args.unpacked,
        args.half,
        args.smooth,
        tuple(args.keep),
        int(args.part_size * 2**30),
    )
    try:
        source = open_checkpoint(resolve_model(None if args.model == "default" else args.model).path)
        text = args.text.read_text(encoding="utf-8") if args.text else ""
        print(make(source, args.out, recipe, text, overwrite=args.force))
    except (GalliumError, OSError) as cause:
        print(f"error: {cause}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
