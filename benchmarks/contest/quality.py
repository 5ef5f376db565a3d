"""What quantisation costs on real text: KL of Gallium's int8 and int4 beside llama.cpp's Q8_0 and Q4_0.

The default model's file is quantised itself (Q4_1), so that its weights lie on a grid that some formats hit and others
do not. Here each matrix's columns are stretched by random factors, and what feeds them is shrunk by the same: the
model computes the same function, and its weights lie on nobody's grid. Each contender is compared with its own bf16, on
pieces of several texts and with several draws of the factors; intervals come from drawing pieces anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchmarks.contest.cells import WORKLOADS
from benchmarks.contest.gguf_file import write_gguf
from benchmarks.contest.models import (
    GALLIUM,
    PACKING_CODE,
    PRECISIONS,
    kv_bytes,
    make_folder,
    packing_mark,
    run,
    write_safetensors,
)
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
TEXTS = tuple(
    HERE / name
    for name in (
        "tests/golden/real_text.txt", "docs/architecture.md", "README.md", "docs/ascend.md", "docs/verify.md",
        "docs/virtual-npu.md", "docs/packed.md", "docs/kernels.md", "LICENSE",
    )
)  # fmt: skip
ENCODING_CODE = ("src/gallium/checkpoints/quantise.py", "src/gallium/checkpoints/fitting.py")
CHUNK = 256  # tokens that stand alone
QUANTISED = ("int8", "int4")
RESAMPLED = 2000  # times, for an interval
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


def make_models(root: Path, draw: int) -> Path:
    """The folder with one stretched default model: as safetensors, GGUF files and folders of `gallium convert`."""
    source = make_folder(WORKLOADS["W2"], root)
    made = root / "quality" / str(draw)
    folder, mark = made / "hf", made / "mark"
    made_of = packing_mark(source, code=(*PACKING_CODE, *ENCODING_CODE))
    if mark.exists() and mark.read_text(encoding="utf-8") == made_of:
        return made
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    opened = open_checkpoint(source)
    held = _Held(stretched({name: opened.weight(name).float32() for name in opened.names()}, config, draw))
    with (folder / "model.safetensors").open("wb") as out:
        write_safetensors(out, held)
    for precision, name in PRECISIONS.items():
        write_gguf(made / f"{precision}.gguf", config, held, precision, folder / "tokenizer.json")
        packed = made / f"gallium-{precision}"
        run([GALLIUM, "convert", str(folder), str(packed), "--precision", name])
    mark.write_text(made_of, encoding="utf-8")
    return made


class Rated:
    """One contender with the model in one precision, in a process of its own."""

    def __init__(self, name: str, precision: str, made: Path) -> None:
        files = {"gallium": f"gallium-{precision}", "llama.cpp": f"{precision}.gguf"}
        config = json.loads((made / "hf" / "config.json").read_text(encoding="utf-8"))
        self._out = made / f"logits-{precision}.npy"
        self._process = Process(PEERS[name].python, PEERS[name].driver, ROOT / "logs" / f"quality-{name}.log")
        self._process.load({
            "model": str(made / files[name]), "precision": precision, "threads": cores(),
            "max_context": CHUNK + 64, "max_batch": 1, "kv_bytes": kv_bytes(config),
        })  # fmt: skip

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Of every position of a text that stands alone."""
        self._process.ask("logits", ids=ids, path=str(self._out))
        found: NDArray[np.float32] = np.load(self._out)
        self._out.unlink()
        return found

    def close(self) -> None:
        """End the process."""
        self._process.close()


def chunks_of(texts: list[list[int]], tokens: int) -> list[list[int]]:
    """About `tokens` tokens in pieces of CHUNK, one of each text in turn, so that every text has its share."""
    pieces = [[ids[i : i + CHUNK] for i in range(0, len(ids) - CHUNK + 1, CHUNK)] for ids in texts]
    turns = [piece for turn in zip_longest(*pieces) for piece in turn if piece is not None]
    return turns[: max(1, round(tokens / CHUNK))]


def resampled(chunks: NDArray[Any], statistic: Callable[[NDArray[Any]], NDArray[Any]]) -> list[float]:
    """95 % interval of a statistic by bootstrap over `[chunks, ...]`, since tokens of one text depend on each other."""
    rng = np.random.default_rng(0)
    draws = [statistic(chunks[rng.integers(0, len(chunks), len(chunks))]) for _ in range(RESAMPLED)]
    return [float(bound) for bound in np.percentile(draws, (2.5, 97.5))]


class Costs(NamedTuple):
    """What a precision costs: KL of each token and whether it has the same first choice, `[draws, pieces, CHUNK]`."""

    kl: FloatArray
    same: NDArray[np.bool_]

    @property
    def of_pieces(self) -> FloatArray:
        """Mean KL of each piece of text, over all draws of weights: draws share the texts, so they are no new ones."""
        found: FloatArray = self.kl.mean(axis=(0, 2))
        return found

    def summary(self) -> dict[str, Any]:
        """What is kept in the store."""
        return {
            "kl_mean": float(self.kl.mean()), "interval": resampled(self.of_pieces, np.mean),
            "kl_p95": float(np.percentile(self.kl, 95)), "same": float(self.same.mean()), "tokens": self.kl.size,
            "draws": len(self.kl),
        }  # fmt: skip


def rate(name: str, chunks: list[list[int]], made: Path) -> dict[str, Costs]:
    """What each precision costs a contender with one draw of weights."""
    rated = {precision: Rated(name, precision, made) for precision in ("bf16", *QUANTISED)}
    kl: dict[str, list[FloatArray]] = {precision: [] for precision in QUANTISED}
    same: dict[str, list[NDArray[np.bool_]]] = {precision: [] for precision in QUANTISED}
    try:
        for ids in chunks:
            exact = rated["bf16"].logits(ids)
            for precision in QUANTISED:
                got = rated[precision].logits(ids)
                kl[precision].append(divergence(exact, got))
                same[precision].append(exact.argmax(-1) == got.argmax(-1))
    finally:
        for one in rated.values():
            one.close()
    return {precision: Costs(np.stack(kl[precision])[None], np.stack(same[precision])[None]) for precision in QUANTISED}


def over_draws(costs: list[Costs]) -> Costs:
    """Several draws of weights as one."""
    return Costs(np.concatenate([one.kl for one in costs]), np.concatenate([one.same for one in costs]))


def ratio_interval(ours: Costs, theirs: Costs) -> list[float]:
    """Of the mean KLs. The same pieces for both, so what makes a piece hard for both is not taken for a difference."""
    pairs = np.stack([ours.of_pieces, theirs.of_pieces], axis=1)
    return resampled(pairs, lambda drawn: drawn[:, 0].mean() / drawn[:, 1].mean())


def main() -> None:
    """Measure, keep in the store, print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contest.quality", description=__doc__)
    parser.add_argument("--tokens", type=int, default=6144, help="of text, for each draw")
    parser.add_argument("--draws", type=int, default=3, help="of the factors by which columns are stretched")
    parser.add_argument("--store", type=Path, default=ROOT / "contest.json", help="where results are kept")
    how = parser.parse_args()
    store = Store(how.store)
    tokenizer = Tokenizer.from_folder(make_folder(WORKLOADS["W2"], ROOT / "models"))
    chunks = chunks_of([tokenizer.encode(path.read_text(encoding="utf-8")) for path in TEXTS], how.tokens)
    drawn: dict[str, list[dict[str, Costs]]] = {name: [] for name in CONTENDERS}
    for draw in range(how.draws):
        made = make_models(ROOT / "models", draw)
        for name in CONTENDERS:
            drawn[name].append(rate(name, chunks, made))
    for precision in QUANTISED:
        ours, theirs = (over_draws([costs[precision] for costs in drawn[name]]) for name in CONTENDERS)
        for name, costs in zip(CONTENDERS, (ours, theirs), strict=True):
            called = PEERS[name].precisions[precision]
            store.quality[f"{name} {precision}"] = costs.summary() | {"called": called}
        store.quality[f"{CONTENDERS[0]} {precision}"]["ratio_interval"] = ratio_interval(ours, theirs)
    store.save()
    print("\n".join(quality_table(store)))


if __name__ == "__main__":
    main()
