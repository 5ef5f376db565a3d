"""What a KV cache in fewer bits costs: divergence from a cache in float32, on real text, with weights in float32."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from machine import machine, write_result

from gallium.backends.cpu.backend import backend
from gallium.checkpoints import open_checkpoint, resolve_model
from gallium.engine.loading import load, read_tokenizer
from gallium.models.config import read_spec
from gallium.ops.handles import FloatArray, Step
from gallium.settings import EngineSettings, KvPrecisionChoice

ROOT = Path(__file__).parent.parent
TEXTS = (ROOT / "tests" / "golden" / "real_text.txt", ROOT / "docs" / "architecture.md", ROOT / "docs" / "backends.md")
BLOCK, CHUNK = 32, 128


def logits_of(model: str | None, tokens: list[list[int]], precision: KvPrecisionChoice) -> list[FloatArray]:
    """Of each text `[tokens, vocab]`: in chunks, so that most keys come from the cache."""
    checkpoint = open_checkpoint(resolve_model(model).path)
    spec = read_spec(checkpoint.config, checkpoint.generation_config)
    settings = EngineSettings(precision="float32", kv_precision=precision)
    loaded = load(checkpoint, spec, backend, settings).model
    found = []
    for ids in tokens:
        caches = loaded.make_caches(-(-len(ids) // BLOCK), BLOCK)
        run = loaded.ops.compile_step(lambda plan, caches=caches: loaded.forward(plan, caches))
        table = np.arange(-(-len(ids) // BLOCK), dtype=np.int32)[None]
        rows = []
        for first in range(0, len(ids), CHUNK):
            part = np.array(ids[first : first + CHUNK], np.int32)
            n = len(part)
            places = np.arange(first, first + n, dtype=np.int32)
            ends = np.array([first + n], np.int32)
            rows.append(run(Step(part, places, np.array([0, n], np.int32), ends, table, np.arange(n, dtype=np.int32))))
        found.append(np.concatenate(rows))
    return found


def divergence(exact: FloatArray, other: FloatArray) -> FloatArray:
    """KL(exact || other) of each row, in nats."""
    p, q = (x.astype(np.float64) - x.max(1, keepdims=True) for x in (exact, other))
    p -= np.log(np.exp(p).sum(1, keepdims=True))
    q -= np.log(np.exp(q).sum(1, keepdims=True))
    found: FloatArray = (np.exp(p) * (p - q)).sum(1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--tokens", type=int, default=1024, help="of each text at most")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    how = parser.parse_args()
    checkpoint = open_checkpoint(resolve_model(how.model).path)
    text = read_tokenizer(checkpoint, needed=True)
    assert text is not None
    tokens = [text.encode(path.read_text(encoding="utf-8"))[: how.tokens] for path in TEXTS]
    exact = logits_of(how.model, tokens, "float32")
    result: dict[str, dict[str, float]] = {}
    for precision in ("bfloat16", "int8"):
        other = logits_of(how.model, tokens, precision)
        rows = np.concatenate([divergence(*pair) for pair in zip(exact, other, strict=True)])
        same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(exact, other, strict=True)])
        result[precision] = {"mean": float(rows.mean()), "p99": float(np.quantile(rows, 0.99)), "same": same.mean()}
        print(f"{precision:9} {len(rows)} tokens: " + ", ".join(f"{k} {v:.6f}" for k, v in result[precision].items()))
    if how.out:
        write_result(how.out, json.dumps({"machine": machine(), "divergence": result}, indent=1))


if __name__ == "__main__":
    main()
