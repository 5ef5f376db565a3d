"""Writes a model again in another precision: a safetensors folder that loads fast and that `open_checkpoint` reads.

What is written. Matrices are coded as the precision says: F32, BF16, Q8_0 (int8) or Q4_1 (int4). Blocks are stored as
GGUF has them, so that every reader of GGUF blocks reads them: as a U8 tensor of the blocks' bytes under the matrix's
own name, with coding and logical shape in the header's `__metadata__` (see safetensors_file.py). A matrix that already
has a coding of the precision asked for is copied bit for bit: to quantise it again could only lose. Embedding and head
are int8 in an int4 folder, the head being what errors of the weights reach the output through. Vectors, routers and
what does not divide into blocks stay as they are (float32: everything is float32).

How. All lengths follow from the shapes, so the header is written first and the data streamed behind it, a few rows at a
time. Everything goes into a folder beside the target, which gets its name when it is whole.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gallium.checkpoints.checkpoint import EMBEDDINGS, PRECISION_OF, Checkpoint
from gallium.checkpoints.formats import FORMATS
from gallium.checkpoints.mapping import release_pages
from gallium.checkpoints.quantise import ENCODERS
from gallium.checkpoints.replacing import replacing_folder
from gallium.checkpoints.safetensors_file import CODED_PREFIX
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import CheckpointError
from gallium.ops.handles import Precision

CODING: dict[Precision, str] = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_1"}
EMBEDDING_CODING: dict[Precision, str] = CODING | {"int4": "Q8_0"}
ROUTER = ".mlp.gate.weight"
CARRIED = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja",
           "chat_template*", "generation_config.json", "LICENSE*")  # fmt: skip
CHUNK_VALUES = 1 << 19  # decoded at a time: 2 MB of float32
COPIED = 8 << 20  # bytes copied at a time
ALIGN = 64


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the new file: the rows of its sources, one after the other."""

    name: str
    sources: tuple[StoredTensor, ...]
    storage: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape."""
        first = self.sources[0].shape
        return (sum(s.shape[0] for s in self.sources), *first[1:]) if len(self.sources) > 1 else first

    @property
    def num_bytes(self) -> int:
        """Length of its data."""
        if self.storage not in FORMATS:
            return sum(s.data.nbytes for s in self.sources)
        return FORMATS[self.storage].num_bytes(math.prod(self.shape))


def convert(
    source: Checkpoint,
    folder: Path,
    precision: Precision,
    *,
    overwrite: bool = False,
    save_tokenizer: Callable[[Path], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `source` as the folder `folder` in `precision`; returns the folder.

    `save_tokenizer(path)` writes tokenizer files into a folder: for a GGUF source, whose tokenizer is no file. Those of
    a safetensors folder are copied. `progress(done, total)` counts bytes written.
    Raises UsageError if the folder exists and is not to be overwritten, CheckpointError when it cannot be written (the
    disk is full, …); nothing is left behind then.
    """
    outputs = plan(source, precision)
    total = sum(output.num_bytes for output in outputs)
    with replacing_folder(folder, overwrite=overwrite, keep=source.path, needs=total) as fresh:
        write_json(fresh / "config.json", written_config(source, precision))
        if source.kind == "safetensors":
            copy_files(source.path, fresh)
        if save_tokenizer is not None:
            save_tokenizer(fresh)
        with (fresh / "model.safetensors").open("wb") as file:
            write_tensors(file, outputs, total, progress)
    return folder


def plan(source: Checkpoint, precision: Precision) -> list[Output]:
    """What the new file holds, in order."""
    outputs = []
    for name, sources in _joined(source):
        storage = choose_storage(name, sources, precision)
        outputs.append(Output(name, sources, storage))
    return outputs


def _joined(source: Checkpoint) -> Iterator[tuple[str, tuple[StoredTensor, ...]]]:
    """Names and tensors; gate and up become one where the family writes them so, as transformers expects."""
    fuse = source.config.get("model_type") in ("glm", "glm4")
    for name in source.names():
        tensor = source.weight(name)
        if fuse and name.endswith(".mlp.gate_proj.weight"):
            up = source.tensors.get(name.replace("gate_proj", "up_proj"))
            if up is not None and up.shape[1:] == tensor.shape[1:]:
                yield name.replace("gate_proj", "gate_up_proj"), (tensor, up)
                continue
        if fuse and name.endswith(".mlp.up_proj.weight"):
            gate = source.tensors.get(name.replace("up_proj", "gate_proj"))
            if gate is not None and gate.shape[1:] == tensor.shape[1:]:
                continue
        yield name, (tensor,)


def choose_storage(name: str, sources: tuple[StoredTensor, ...], precision: Precision) -> str:
    """The coding that one tensor gets."""
    kinds = {s.storage for s in sources}
    stored = sources[0].storage
    if not sources[0].decodable:
        return stored
    if precision == "float32":
        return "F32"
    integers = stored not in FORMATS  # with scales of their own: they are decoded
    if not integers and (len(sources[0].shape) < 2 or name.endswith(ROUTER)):
        return stored
    if len(kinds) == 1 and not integers and PRECISION_OF[stored] == precision and stored != "F16":
        return stored
    wanted = (EMBEDDING_CODING if name in EMBEDDINGS else CODING)[precision]
    if sources[0].shape[-1] % FORMATS[wanted].block:
        return stored if len(kinds) == 1 and not integers and FORMATS[stored].block == 1 else "BF16"
    return wanted


def written_config(source: Checkpoint, precision: Precision) -> dict[str, Any]:
    """The source's config; "dtype" says what the plain tensors are."""
    config = {k: v for k, v in source.config.items() if k != "torch_dtype"}
    return config | {"dtype": "float32" if precision == "float32" else "bfloat16"}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Indented, as transformers writes it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_files(source: Path, target: Path) -> None:
    """Tokenizer, templates, generation settings, licence: everything besides weights and config."""
    for pattern in CARRIED:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


def write_tensors(
    file: BinaryIO, outputs: list[Output], total: int, progress: Callable[[int, int], None] | None
) -> None:
    """A safetensors file: header, then the data of every tensor."""
    file.write(header(outputs))
    done = 0
    for output in outputs:
        before = done
        for piece in encoded(output):
            file.write(piece)
            done += len(piece)
            if progress is not None:
                progress(done, total)
        if done - before != output.num_bytes:
            raise CheckpointError(f"{output.name} came out at {done - before} bytes instead of {output.num_bytes}.")
        release_pages(source.data for source in output.sources)
    file.flush()
    os.fsync(file.fileno())


def header(outputs: list[Output]) -> bytes:
    """The JSON header with its length, padded so that the data is aligned."""
    entries: dict[str, Any] = {}
    metadata = {"format": "pt"}  # what transformers asks for; it means: an ordinary model
    at = 0
    for output in outputs:
        coded = output.storage in FORMATS and FORMATS[output.storage].block > 1
        if coded:
            metadata[CODED_PREFIX + output.name] = f"{output.storage} {'x'.join(map(str, output.shape))}"
        entries[output.name] = {
            "dtype": "U8" if coded else output.storage,
            "shape": [output.num_bytes] if coded else list(output.shape),
            "data_offsets": [at, at + output.num_bytes],
        }
        at += output.num_bytes
    text = json.dumps({"__metadata__": metadata} | entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    return len(text).to_bytes(8, "little") + text


def encoded(output: Output) -> Iterator[memoryview]:
    """The tensor's bytes, a few rows at a time."""
    for source in output.sources:
        if source.storage == output.storage:
            yield from _slices(source.raw().data)
            continue
        rows = source.shape[0] if len(source.shape) > 1 else 1
        step = max(1, CHUNK_VALUES // max(1, math.prod(source.shape) // max(1, rows)))
        encode = ENCODERS[output.storage]
        for start in range(0, rows, step):
            values = source.float32(start, start + step) if len(source.shape) > 1 else source.float32()
            if FORMATS[output.storage].block > 1 and not np.isfinite(values).all():
                raise CheckpointError(
                    f"{source.name} has values that are no finite numbers, which cannot be quantised: is the file "
                    "damaged?"
                )
            with np.errstate(over="ignore"):  # what float16 scales cannot hold is clipped
                yield encode(values).data


def _slices(data: memoryview) -> Iterator[memoryview]:
    """A long piece in parts, so that progress moves."""
    for start in range(0, len(data), COPIED):
        yield data[start : start + COPIED]
