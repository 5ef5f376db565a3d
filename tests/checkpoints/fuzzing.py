"""Damages model files by seed and reads them, under a limit of memory; run as a program it prints what went wrong.

What may happen to a damaged file: an error of Gallium's own, or a model whose every tensor has the bytes it claims.
"""

from __future__ import annotations

import json
import math
import random
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tests.checkpoints.gguf_making import Array, hf_config, keys_of, random_tensors, to_gguf_names, write_gguf
from tests.checkpoints.safetensors_making import write_model
from tests.glm_tokenizer import gguf_metadata

from gallium.checkpoints import Checkpoint, convert, open_checkpoint
from gallium.errors import GalliumError
from gallium.models.catalog import expected_tensors, ignored_tensors
from gallium.models.config import read_spec
from gallium.text.tokenizer import Tokenizer

ROOM = 256 << 20  # bytes that reading may take beyond what the imports have
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 16, "num_nextn_predict_layers": 0}
SIZES = [0, 1, 2, 3, 7, 8, 31, 32, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]
VALUES: list[Any] = [
    *SIZES, -1, -(2**63), 2**70, 0.5, 1e300, math.nan, math.inf, None, True, False, "", "x", "F32", "Q4_1 1x32",
    "../x.safetensors", "\0", [], [[]], [0, 0], [2**40, 2**40], [-1], ["a", "a"], [None], {}, {"a": {}},
]  # fmt: skip


# -- damage ---------------------------------------------------------------------------


def flip(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, at: int, rng: random.Random) -> None:
    size = rng.choice([1, 2, 4, 8])
    data[at : at + size] = (rng.choice(SIZES) % (1 << 8 * size)).to_bytes(size, "little")


def truncate(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at:]


def remove(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at : at + rng.choice([1, 4, 8, 40])]


def repeat(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = data[at : at + rng.choice([1, 8, 40, 200])]


def swap(data: bytearray, at: int, rng: random.Random) -> None:
    """One piece to another place: a name, an offset or a type becomes another's."""
    size, other = rng.choice([4, 8, 16]), rng.randrange(len(data))
    data[at : at + size] = data[other : other + size]


CHANGES: list[Callable[[bytearray, int, random.Random], None]] = [flip, overwrite, truncate, remove, repeat, swap]


def damage_bytes(data: bytes, reach: int, rng: random.Random) -> bytes:
    """A few random changes, mostly within the first `reach` bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if changed:
            at = rng.randrange(min(reach, len(changed)) if rng.random() < 0.9 else len(changed))
            rng.choice(CHANGES)(changed, at, rng)
    return bytes(changed)


def damage_value(value: Any, rng: random.Random) -> Any:
    """The same JSON with one of its values, at any depth, replaced, removed or moved."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(VALUES)
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    keys = list(changed) if isinstance(changed, dict) else range(len(changed))
    key = rng.choice(keys)
    what = rng.random()
    if what < 0.1:
        del changed[key]
    elif what < 0.2:
        changed[key] = changed[rng.choice(keys)]
    else:
        changed[key] = damage_value(changed[key], rng)
    return changed


def damage_json(data: bytes, reach: int, rng: random.Random) -> bytes:
    """Damage within the text of a JSON file, or of the header of a safetensors file, whose length stays right."""
    start = 0 if data.startswith(b"{") else 8
    text = data[start:reach]
    if rng.random() < 0.3:
        text = damage_bytes(text, len(text), rng)
    else:
        text = json.dumps(damage_value(json.loads(text), rng)).encode()
    return (len(text).to_bytes(8, "little") if start else b"") + text + data[reach:]


# -- what is damaged ----------------------------------------------------------------------


class Model:
    """A whole model; `write_damaged` puts a damaged one in its place."""

    def __init__(self, opened: Path, files: list[Path]) -> None:
        self.opened = opened
        self.whole = {file: file.read_bytes() for file in files}

    def write_damaged(self, rng: random.Random) -> None:
        for file, data in self.whole.items():
            file.unlink(missing_ok=True)  # a mapping of the last case may still be there
            file.write_bytes(data)
        file = rng.choice(list(self.whole))
        data = self.whole[file]
        if file.suffix == ".gguf":
            changed = damage_bytes(data, len(data) - self.data_size, rng)
        elif file.suffix == ".json":
            changed = damage_json(data, len(data), rng)
        else:
            damage = damage_json if rng.random() < 0.8 else damage_bytes
            changed = damage(data, 8 + int.from_bytes(data[:8], "little"), rng)
        file.write_bytes(changed)

    @property
    def data_size(self) -> int:
        """Bytes of a GGUF file's tensors, nearly."""
        return 4 * 30_000


class GgufKeys(Model):
    """A GGUF file with a wrong value, a missing key or a misshapen tensor, written in good order."""

    def __init__(self, folder: Path, arch: str) -> None:
        self.arch, (self.keys, self.tensors) = arch, gguf_content(arch)
        self.opened = folder / f"{arch}-keys.gguf"
        write_gguf(self.opened, arch, {}, self.tensors, tokenizer=self.keys)

    def write_damaged(self, rng: random.Random) -> None:
        keys, tensors = dict(self.keys), dict(self.tensors)
        for _ in range(rng.choice([1, 1, 2])):
            key, name = rng.choice(list(keys)), rng.choice(list(tensors))
            what = rng.random()
            if what < 0.5:
                keys[key] = rng.choice([v for v in VALUES if is_gguf_value(v)])
            elif what < 0.6 and len(keys) > 1:
                del keys[key]
            elif what < 0.7 and isinstance(keys[key], list) and keys[key]:
                keys[key] = [*keys[key][: rng.randrange(len(keys[key]))], keys[key][0], *keys[key][:2]]
            elif what < 0.8:
                tensors[name + rng.choice(["x", ".bias", ""])] = tensors.pop(name).reshape(-1)
            elif what < 0.9:
                tensors[rng.choice(list(tensors))] = tensors[name]
            else:
                shape = rng.choice([(1,), (2, 1), (5000, 1, 1), (1, 1, 4), (3, 2, 2, 2)])
                tensors[name] = np.zeros(shape, np.float32)
        self.opened.unlink()
        write_gguf(self.opened, self.arch, {}, tensors, tokenizer=keys)


def is_gguf_value(value: Any) -> bool:
    """Whether `write_gguf` has a type for it: uint32, float32, text, bool, or a list of int32 or texts."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(v, str) or (isinstance(v, int) and abs(v) < 2**31) for v in value)
    if isinstance(value, bool | str):
        return True
    if isinstance(value, float):
        return not 1e38 < value < math.inf
    return isinstance(value, int) and 0 <= value < 2**32


def gguf_content(arch: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """All keys, the tokenizer's too, and the tensors of a small model."""
    tokenizer = gguf_metadata(padding=1)
    config = hf_config(arch, **SMALL, vocab_size=len(tokenizer["tokenizer.ggml.tokens"]))
    tensors = random_tensors(expected_tensors(read_spec(config), ()))
    return keys_of(arch, config) | tokenizer, to_gguf_names(arch, tensors, config["num_hidden_layers"])


def gguf_model(folder: Path, arch: str) -> Model:
    keys, tensors = gguf_content(arch)
    path = write_gguf(folder / f"{arch}.gguf", arch, {}, tensors, tokenizer=keys)
    return Model(path, [path])


def folder_model(folder: Path, arch: str) -> Model:
    """Two shards, an index, a config, and generation settings."""
    config = hf_config(arch, **SMALL)
    tensors = random_tensors(expected_tensors(read_spec(config), ()))
    path = write_model(folder / arch, tensors, config, shards=2)
    (path / "generation_config.json").write_text('{"eos_token_id": [40, 41], "temperature": 0.5}')
    return Model(path, sorted(path.iterdir()))


def coded_model(folder: Path) -> Model:
    """What `gallium convert` writes."""
    path = convert(open_checkpoint(folder_model(folder / "plain", "glm4").opened), folder / "coded", "int4")
    return Model(path, [path / "model.safetensors"])


MODELS: dict[str, Callable[[Path], Model]] = {
    "gguf glm4": lambda folder: gguf_model(folder, "glm4"),
    "gguf glm4moe": lambda folder: gguf_model(folder, "glm4moe"),
    "keys glm4": lambda folder: GgufKeys(folder, "glm4"),
    "keys glm4moe": lambda folder: GgufKeys(folder, "glm4moe"),
    "folder glm4": lambda folder: folder_model(folder, "glm4"),
    "folder glm4moe": lambda folder: folder_model(folder, "glm4moe"),
    "coded": coded_model,
}


# -- reading ----------------------------------------------------------------------------


def use(checkpoint: Checkpoint, scratch: Path) -> None:
    """All that loading and converting would do, on a model that may be nonsense."""
    for name in checkpoint.names():
        tensor = checkpoint.weight(name)
        try:
            values = tensor.float32()
        except GalliumError:  # a coding that is listed and not decoded
            continue
        assert values.shape == tensor.shape and values.dtype == np.float32, name
    if checkpoint.kind == "gguf":
        Tokenizer.from_gguf(checkpoint.metadata).encode("Paris 天气 <|user|>")
    spec = read_spec(checkpoint.config, checkpoint.generation_config)
    checkpoint.check(expected_tensors(spec, checkpoint.names()), ignored_tensors(spec, checkpoint.names()))
    convert(checkpoint, scratch / "out", "int4", overwrite=True)


def run(kind: str, count: int, seed: int) -> dict[str, str]:
    """Read `count` damaged models of one kind; the faults found, one of each."""
    faults: dict[str, str] = {}
    refused = 0
    with tempfile.TemporaryDirectory() as name:
        model = MODELS[kind](Path(name))
        use(open_checkpoint(model.opened), Path(name))
        for number in range(count):
            model.write_damaged(random.Random(f"{kind} {seed} {number}"))
            try:
                use(open_checkpoint(model.opened), Path(name))
            except GalliumError as error:
                refused += 1
                assert len(str(error)) < 5000
            except Exception:
                trace = traceback.format_exc()
                faults.setdefault("".join(trace.splitlines()[-4:]), f"{kind}, number {number}: {trace}")
    assert refused >= count // 3, f"{kind}: the damage does not reach what is checked"
    return faults


def main() -> None:
    """COUNT SEED: every kind of model."""
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    for kind in MODELS:  # imports what is imported late
        run(kind, 0, seed)
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    faults: dict[str, str] = {}
    for kind in MODELS:
        faults = run(kind, count, seed) | faults
    print("\n".join(faults.values()))
    sys.exit(len(faults) > 0)


if __name__ == "__main__":
    main()
