"""What quantisation costs on real text: KL of Gallium's int8 and int4 beside llama.cpp's Q8_0 and Q4_0.

The default model's file is quantised itself (Q4_1), so that its weights lie on a grid that some formats hit and others
do not. Here each matrix's columns are stretched by random factors, and what feeds them is shrunk by the same: the
model computes the same function, and its weights lie on nobody's grid. Each contender is compared with its own bf16.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.contest.cells import WORKLOADS
from benchmarks.contest.gguf_file import write_gguf
from benchmarks.contest.models import PRECISIONS, kv_bytes, make_folder, run, write_safetensors
from benchmarks.contest.peers import PEERS, ROOT
from benchmarks.contest.process import Process
from benchmarks.contest.report import quality_table
from benchmarks.contest.store import Store
from benchmarks.machine import cores
from numpy.typing import NDArray

from gallium.checkpoints.opening import open_checkpoint
from gallium.ops.handles import FloatArray
from gallium.text.tokenizer import Tokenizer

HERE = Path(__file__).parents[2]
TEXTS = (HERE / "tests" / "golden" / "real_text.txt", HERE / "docs" / "architecture.md")
CONTENDERS = ("gallium", "llama.cpp")
STRETCH = 0.5  # factors lie between exp(-STRETCH) and exp(STRETCH)


def divergence(exact: NDArray[Any], got: NDArray[Any]) -> FloatArray:
    """KL(exact || got) in nats of every row of logits."""
    p, q = _log_softmax(exact), _log_softmax(got)
    found: FloatArray = (np.exp(p) * (p - q)).sum(-1).astype(np.float32)
    return found


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def stretched(weights: dict[str, FloatArray], config: dict[str, Any], seed: int = 0) -> dict[str, FloatArray]:
    """The same function with other weights: columns times s behind a norm, the norm divided by s; down, o likewise."""
    rng = np.random.default_rng(seed)
    out = {name: values.copy() for name, values in weights.items()}
    group = config["num_attention_heads"] // config["num_key_value_heads"]
    head = config["head_dim"]

    def factors(count: int) -> FloatArray:
        return np.exp(rng.uniform(-STRETCH, STRETCH, count)).astype(np.float32)

    for layer in range(config["num_hidden_layers"]):
        at, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        for norm, users in (
            ("input_layernorm", [at + f"{part}_proj.weight" for part in "qkv"]),
            ("post_attention_layernorm", [mlp + "gate_up_proj.weight"]),
        ):
            s = factors(config["hidden_size"])
            out[f"model.layers.{layer}.{norm}.weight"] /= s
            for user in users:
                out[user] *= s
        s = factors(config["num_key_value_heads"] * head)
        out[at + "v_proj.weight"] /= s[:, None]
        out[at + "o_proj.weight"] *= np.repeat(s.reshape(-1, head), group, axis=0).reshape(-1)
        s = factors(config["intermediate_size"])
        out[mlp + "gate_up_proj.weight"][config["intermediate_size"] :] /= s[:, None]
        out[mlp + "down_proj.weight"] *= s
    return out


class _Held:
    """Weights in memory, as the writers of models.py and gguf_file.py read them; rounded to bfloat16."""

    def __init__(self, weights: dict[str, FloatArray]) -> None:
        self._weights = {name: _rounded(values) for name, values in weights.items()}

    def names(self) -> list[str]:
        return list(self._weights)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights[name].shape

    def weight(self, name: str) -> _HeldWeight:
        return _HeldWeight(self._weights[name])


class _HeldWeight:
    def __init__(self, bits: NDArray[np.uint16]) -> None:
        self._bits, self.shape = bits, bits.shape

    def raw(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._bits).view(np.uint8).reshape(-1)

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        values: FloatArray = (self._bits[start:stop].astype(np.uint32) << 16).view(np.float32)
        return values


def _rounded(values: FloatArray) -> NDArray[np.uint16]:
    """To the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    result: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return result


def make_models(root: Path) -> None:
    """`quality/`: folder, GGUF files and packed folders of the stretched default model."""
    source = make_folder(WORKLOADS["W2"], root)
    folder = root / "quality" / "hf"
    if (root / "quality" / "gallium-int4" / "config.json").exists():
        return
    shutil.rmtree(root / "quality", ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    opened = open_checkpoint(source)
    held = _Held(stretched({name: opened.weight(name).float32() for name in opened.names()}, config))
    with (folder / "model.safetensors").open("wb") as out:
        write_safetensors(out, held)
    for precision, name in PRECISIONS.items():
        write_gguf(root / "quality" / f"{precision}.gguf", config, held, precision, folder / "tokenizer.json")
        packed = root / "quality" / f"gallium-{precision}"
        run([PEERS["gallium"].python.parent / "gallium", "convert", str(folder), str(packed), "--precision", name])


def logits(name: str, precision: str, ids: list[int], root: Path) -> NDArray[np.float32]:
    """Of every position."""
    files = {"gallium": f"gallium-{precision}", "llama.cpp": f"{precision}.gguf"}
    config = json.loads((root / "quality" / "hf" / "config.json").read_text(encoding="utf-8"))
    process = Process(PEERS[name].python, PEERS[name].driver, ROOT / "logs" / f"quality-{name}.log")
    out = root / "quality" / "logits.npy"
    try:
        process.load({
            "model": str(root / "quality" / files[name]), "precision": precision, "threads": cores(),
            "max_context": len(ids) + 64, "max_batch": 1, "kv_bytes": kv_bytes(config),
        })  # fmt: skip
        process.ask("logits", ids=ids, path=str(out))
    finally:
        process.close()
    found: NDArray[np.float32] = np.load(out)
    out.unlink()
    return found


def main() -> None:
    """Measure, keep in the store, print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contest.quality", description=__doc__)
    parser.add_argument("--tokens", type=int, default=768)
    parser.add_argument("--store", type=Path, default=ROOT / "contest.json", help="where results are kept")
    how = parser.parse_args()
    store = Store(how.store)
    root = ROOT / "models"
    make_models(root)
    text = "\n".join(path.read_text(encoding="utf-8") for path in TEXTS)
    ids = Tokenizer.from_folder(root / "quality" / "hf").encode(text)[: how.tokens]
    for name in CONTENDERS:
        exact = logits(name, "bf16", ids, root)
        for precision in ("int8", "int4"):
            got = logits(name, precision, ids, root)
            kl, same = divergence(exact, got), float((exact.argmax(-1) == got.argmax(-1)).mean())
            store.quality[f"{name} {precision}"] = {
                "kl_mean": float(kl.mean()), "kl_p95": float(np.percentile(kl, 95)), "same": same, "tokens": len(ids),
                "called": PEERS[name].precisions[precision],
            }  # fmt: skip
    store.save()
    print("\n".join(quality_table(store)))


if __name__ == "__main__":
    main()
