"""The model of a workload in every contender's format, all from the same random weights with one seed."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from benchmarks.contest.cells import AFTER, CONTEXTS, WORKLOADS, Workload
from benchmarks.contest.gguf_file import STORED, write_gguf
from benchmarks.contest.process import Refused
from benchmarks.contest.vocabulary import end_token, write_tokenizer

from gallium.checkpoints.opening import open_checkpoint
from gallium.checkpoints.resolve import default_model_path
from gallium.cli.random_model import RandomCheckpoint
from gallium.cli.shapes import shape_config
from gallium.models.config import read_spec

ARCHITECTURES = {"glm": "GlmForCausalLM", "glm4": "Glm4ForCausalLM", "glm4_moe": "Glm4MoeForCausalLM"}
PRECISIONS = {"bf16": "bfloat16", "int8": "int8", "int4": "int4"}
GALLIUM = Path(sys.executable).parent / "gallium"
PROJECT = Path(__file__).parents[2]
ALL_FORMS = 5  # times a bfloat16 folder's bytes: itself and what three peers' formats take in three precisions
PACKING_CODE = (
    "native/src/pack.cpp", "native/src/best_line.*", "native/src/best_scale.*", "native/src/group_sums.h",
    "native/src/decode.*", "native/src/half.h", "native/src/magnitude.h", "native/src/round_even.h",
    "native/src/matrix.h", "src/gallium/backends/cpu/kernels_linear.py", "src/gallium/backends/cpu/matrices.py",
    "src/gallium/backends/cpu/stored.py", "src/gallium/checkpoints/packed_writing.py",
    "src/gallium/engine/packing.py", "src/gallium/models/catalog.py", "src/gallium/text/vocabulary.py",
)  # fmt: skip
OPENVINO_WEIGHTS = {
    "bf16": ("--weight-format", "fp16"),
    "int8": ("--weight-format", "int8"),
    "int4": ("--weight-format", "int4", "--sym", "--ratio", "1.0"),
}


def config_of(shape: str) -> dict[str, Any]:
    """The shape's config.json, in the words of transformers 4 and 5."""
    facts = shape_config(shape)
    rope = {key: facts[key] for key in ("rope_theta", "partial_rotary_factor")}
    end = end_token(facts["vocab_size"])
    positions = max(facts["max_position_embeddings"], CONTEXTS[-1] + AFTER)  # what follows the longest context, too
    return {
        "architectures": [ARCHITECTURES[facts["model_type"]]], **facts, "torch_dtype": "bfloat16", "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", **rope}, "eos_token_id": end, "pad_token_id": end,
        "max_position_embeddings": positions,
    }  # fmt: skip


def kv_bytes(config: dict[str, Any]) -> int:
    """Bytes of one token in a KV cache of 16 bits a value."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(config["num_hidden_layers"] * 2 * config["num_key_value_heads"] * head * 2)


def facts_of(workload: Workload, root: Path) -> dict[str, Any]:
    """The config of a workload's model."""
    if workload.shape is not None:
        return config_of(workload.shape)
    text = (make_folder(workload, root) / "config.json").read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text)
    return facts


def make_folder(workload: Workload, root: Path) -> Path:
    """A Hugging Face folder in bfloat16. For the default model: its own weights, written by `gallium convert`."""
    folder = root / workload.name / "hf"
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        if workload.layers is not None:
            cut = {"num_hidden_layers": workload.layers, "max_position_embeddings": workload.positions}
            _write_random(facts_of(WORKLOADS["W2"], root) | cut, folder)
        elif workload.shape is None:
            _convert_default(folder)
        else:
            _write_random(config_of(workload.shape), folder)
    return folder


def make_gguf(workload: Workload, precision: str, root: Path) -> Path:
    """A GGUF file with matrices in BF16, Q8_0 or Q4_0; embedding and head of the last in Q8_0, as in Gallium."""
    path = root / workload.name / f"model-{STORED[precision]}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        config = facts_of(workload, root)
        tokenizer = path.parent / "tokenizer.json"
        source: Any
        if workload.shape is None:
            source = open_checkpoint(make_folder(workload, root))
            tokenizer = make_folder(workload, root) / "tokenizer.json"
        else:
            source = RandomCheckpoint(read_spec(shape_config(workload.shape)))
            write_tokenizer(path.parent, config["vocab_size"])
        write_gguf(path, config, source, precision, tokenizer)
    return path


def make_packed(workload: Workload, precision: str, root: Path) -> Path:
    """What `gallium convert --packed` writes of the common folder; made anew when the code that decides its bytes
    changes. Where there is only int4, of the GGUF file that llama.cpp reads too, whose weights are then the peer's own:
    bfloat16 of 9 billion weights would fill the disk."""
    folder = root / workload.name / f"packed-{precision}"
    mark = folder.with_suffix(".mark")
    of_gguf = "bf16" not in workload.precisions
    source = make_gguf(workload, precision, root) if of_gguf else make_folder(workload, root)
    wanted = packing_mark(source)
    if not folder.exists() or not mark.exists() or mark.read_text(encoding="utf-8") != wanted:
        mark.unlink(missing_ok=True)
        run([GALLIUM, "convert", "--packed", "--force", source, folder, "--precision", PRECISIONS[precision]])
        mark.write_text(wanted, encoding="utf-8")
    return folder


def packing_mark(source: Path, project: Path = PROJECT, code: tuple[str, ...] = PACKING_CODE) -> str:
    """What decides a packed folder's bytes: the model, and the code that rounds, packs and writes it."""
    weights = source / "model.safetensors" if source.is_dir() else source
    facts = weights.stat()
    found = sha256(f"{weights.name} {facts.st_size} {facts.st_mtime_ns}".encode())
    for pattern in code:
        files = sorted(project.glob(pattern))
        if not files:
            raise FileNotFoundError(f"{project / pattern}: code that packs has moved; say where in {__name__}.")
        for file in files:  # an import that moves decides nothing
            lines = file.read_text(encoding="utf-8").splitlines()
            found.update("\n".join(line for line in lines if not line.startswith(("import ", "from "))).encode())
    return found.hexdigest()


def check_room(folder: Path, needed: int) -> None:
    """Raises Refused where the disk has no room for all forms of a model whose bfloat16 folder takes `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < ALL_FORMS * needed:
        raise Refused(f"its model takes {ALL_FORMS * needed / 1e9:.0f} GB in all formats; {free / 1e9:.0f} GB are free")


def _write_random(config: dict[str, Any], folder: Path) -> None:
    source = RandomCheckpoint(read_spec(config))
    check_room(folder, 2 * sum(math.prod(source.shape(name)) for name in source.names()))
    write_tokenizer(folder, config["vocab_size"])
    with (folder / "model.safetensors").open("wb") as out:
        write_safetensors(out, source)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def write_safetensors(out: BinaryIO, source: RandomCheckpoint) -> None:
    """Header first, then every tensor; only one is in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in source.names():
        end = position + 2 * int(np.prod(source.shape(name)))
        header[name] = {"dtype": "BF16", "shape": list(source.shape(name)), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    out.write(len(text).to_bytes(8, "little") + text)
    for name in source.names():
        out.write(source.weight(name).raw().data)


def _convert_default(folder: Path) -> None:
    """The embedded model's own weights, as a folder that every peer reads."""
    folder.rmdir()
    run([GALLIUM, "convert", str(default_model_path()), str(folder), "--precision", "bfloat16"])


def make_openvino(workload: Workload, precision: str, root: Path) -> Path:
    """OpenVINO's own format, through optimum-intel: int4 symmetric in groups of 128, or of 64 where those do not divide
    a row; embedding and head in int8."""
    folder = root / workload.name / f"openvino-{precision}"
    if not (folder / "openvino_model.xml").exists():
        group = 128 if facts_of(workload, root)["hidden_size"] % 128 == 0 else 64
        grouped = ("--group-size", str(group)) if precision == "int4" else ()
        python = root.parent / "openvino" / "bin" / "python"  # a script beside it knows only where it was installed
        run([
            python, "-m", "optimum.commands.optimum_cli", "export", "openvino", "--task", "text-generation-with-past",
            "--model", str(make_folder(workload, root)), *OPENVINO_WEIGHTS[precision], *grouped, str(folder),
        ])  # fmt: skip
    return folder


def run(command: list[Any]) -> None:
    """Raises Refused with the last line of what the command said."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"code {done.returncode}").splitlines()[-1]
        raise Refused(f"{Path(command[0]).name} failed: {last[:200]}")
