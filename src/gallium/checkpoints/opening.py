"""Opens a model on this machine: a folder of safetensors files, or a GGUF file. Only headers are read.

The reader of each format is imported when a file of that format is there: a start waits for no other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from gallium.checkpoints.checkpoint import SHOWN, Checkpoint
from gallium.checkpoints.mapping import PICKLE_DANGER, PICKLE_SUFFIXES
from gallium.checkpoints.safetensors_file import read_safetensors
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import CheckpointError, UnsupportedFormat

PACKED_FILE = "packed.safetensors"
INDEX = "model.safetensors.index.json"
QUANTISED_INDEX = "quant_model_weight*.safetensors.index.json"
MAX_JSON = 64 << 20
INCOMPLETE = "If it was downloaded, `gallium pull` fetches what is missing."


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder with config.json and *.safetensors, packed or not, a .gguf file, or a folder with one GGUF model.

    Raises CheckpointError when something is missing or damaged, UnsupportedFormat for pickles and unknown codings, and
    UnsupportedModel for a GGUF architecture that Gallium does not run.
    """
    path = Path(path)
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist.")
    if not (path / "config.json").exists() or not any(path.glob("*.safetensors*")):
        ggufs = gguf_models([p.name for p in path.glob("*.gguf")])
        if len(ggufs) == 1:
            return _open_gguf(path / ggufs[0])
        if ggufs:
            listed = "\n".join(f"  {path / name}" for name in ggufs)
            raise CheckpointError(f"{path} holds {len(ggufs)} GGUF models; name one of them:\n{listed}")
    return _open_folder(path)


def gguf_models(names: list[str]) -> list[str]:
    """The GGUF files that are models of their own, sorted: of a split model the first part, no image encoders."""
    from gallium.checkpoints.gguf_file import SPLIT_NAME

    firsts = []
    for name in sorted(names):
        match = SPLIT_NAME.fullmatch(name.rpartition("/")[2])
        if name.endswith(".gguf") and (match is None or int(match["number"]) == 1) and "mmproj" not in name.lower():
            firsts.append(name)
    return firsts


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".gguf":
        return _open_gguf(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise UnsupportedFormat(f"{path} looks like a pickle: {PICKLE_DANGER}. Use safetensors or GGUF files.")
    if path.suffix == ".safetensors" or path.name in (INDEX, "config.json"):
        raise UnsupportedFormat(f"{path} is one file of a model; name its folder, {path.parent}, instead.")
    raise UnsupportedFormat(f"{path} is neither a .gguf file nor a folder with config.json and *.safetensors.")


def _open_gguf(path: Path) -> Checkpoint:
    from gallium.checkpoints.gguf_file import read_gguf
    from gallium.checkpoints.gguf_model import architecture, translate_config, translate_names

    metadata, stored = read_gguf(path)
    config = translate_config(metadata, stored)
    return Checkpoint(path, "gguf", config, {}, translate_names(stored, architecture(metadata), config), metadata)


def _open_folder(path: Path) -> Checkpoint:
    if not (path / "config.json").exists():
        raise CheckpointError(f"{path} has no config.json, so it is not a model. {INCOMPLETE}")
    config = read_json(path / "config.json")
    generation_config = read_json(path / "generation_config.json")
    if (path / PACKED_FILE).exists():
        from gallium.checkpoints.packed_file import open_packed

        return open_packed(path, config, generation_config)
    from gallium.checkpoints.modelslim import find_description, plain_config, read_quantised

    description = find_description(path)
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(path):
        for name, tensor in read_safetensors(file).items():
            if name in tensors:
                raise CheckpointError(f"{path}: tensor {name!r} stands in more than one file.")
            tensors[name] = tensor
    if description is not None:
        config, tensors = plain_config(config), read_quantised(path, read_json(description), tensors)
    return Checkpoint(path, "safetensors", config, generation_config, tensors)


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files of a folder: those of its index, or all. msModelSlim names its index after its files."""
    indexes = [*sorted(path.glob(QUANTISED_INDEX)), path / INDEX]
    if indexes[0].exists():
        return _indexed_files(path, indexes[0])
    files = sorted(path.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise UnsupportedFormat(
            f"{path} has its weights only as pickles ({pickles[0]}): {PICKLE_DANGER}. Look for a version of this model "
            "with safetensors or GGUF files."
        )
    raise CheckpointError(f"{path} has no *.safetensors file. {INCOMPLETE}")


def _indexed_files(path: Path, index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(_is_plain_name(s) for s in shards.values()):
        raise CheckpointError(f"{index} has no valid weight_map; fetch it again.")
    files = [path / shard for shard in dict.fromkeys(shards.values())]
    absent = [f.name for f in files if not f.exists()]
    if absent:
        more = ", …" if len(absent) > SHOWN else ""
        raise CheckpointError(
            f"{path} lacks {len(absent)} of {len(files)} weight files: {', '.join(absent[:SHOWN])}{more}. {INCOMPLETE}"
        )
    return files


def _is_plain_name(name: object) -> bool:
    """Whether an index names a file of its own folder, and nothing else."""
    return isinstance(name, str) and name.endswith(".safetensors") and "/" not in name and "\\" not in name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} if there is no such file. Raises CheckpointError with what is wrong."""
    if not path.exists():
        return {}
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path} is too large to be what its name says ({path.stat().st_size} bytes).")
        value = msgspec.json.decode(path.read_bytes())
    except OSError as cause:
        raise CheckpointError(f"{path} cannot be read: {cause.strerror or cause}.") from cause
    except (msgspec.DecodeError, RecursionError, ValueError) as cause:
        raise CheckpointError(f"{path} is not valid JSON ({cause}); fetch it again.") from cause
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return value
