"""What the virtual NPU costs: CPU time per operator, and prefill of a random GLM, beside the same script on the CPU.

Per operator: the whole call; the call with a body that does nothing ("decoded"); torch_npu alone, whose call ends
before its arguments are read; and the same line on CPU tensors. Everything takes turns in one process, one thread, and
medians are reported. This is the cost of the emulation, never a speed of an Ascend chip.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gallium.vnpu

gallium.vnpu.install()

import torch  # noqa: E402
import torch_npu  # noqa: E402
from machine import machine, write_result  # noqa: E402
from torch.nn import functional as nn  # noqa: E402

from gallium.vnpu import loader  # noqa: E402
from gallium.vnpu.registry import operators  # noqa: E402

Line = Callable[[], Any]
LOOP = 2000
GLM = {
    "vocab_size": 32768,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def lines() -> dict[str, tuple[Line, Line]]:
    """The line on the NPU and on the CPU, on 8 x 8."""
    a, b, gain, index = torch.rand(8, 8), torch.rand(8, 8), torch.ones(8), torch.tensor([1, 3, 5])
    x, y, gain_npu, index_npu = (tensor.npu() for tensor in (a, b, gain, index))
    return {
        "x + y": (lambda: x + y, lambda: a + b),
        "mm": (lambda: torch.mm(x, y), lambda: torch.mm(a, b)),
        "softmax": (lambda: x.softmax(-1), lambda: a.softmax(-1)),
        "npu_rms_norm": (lambda: torch_npu.npu_rms_norm(x, gain_npu), lambda: nn.rms_norm(a, (8,), gain)),
        "layer_norm": (lambda: nn.layer_norm(x, (8,), gain_npu), lambda: nn.layer_norm(a, (8,), gain)),
        "index": (lambda: x[index_npu], lambda: a[index]),
        "cat": (lambda: torch.cat((x, y)), lambda: torch.cat((a, b))),
    }


def microseconds(line: Line) -> float:
    for _ in range(LOOP // 10):
        line()
    start = time.process_time()
    for _ in range(LOOP):
        line()
    return (time.process_time() - start) / LOOP * 1e6


def set_bodies(names: list[str], body: Callable[..., None] | None, own: bool = False) -> None:
    for name in names:
        loader._set_body(name, loader.function_indices()[name], loader._checked(operators()[name]) if own else body)


def functions_of(line: Line) -> list[str]:
    before = loader.call_counts()
    line()
    return [name for name, count in loader.call_counts().items() if count != before[name]]


def overhead(rounds: int) -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    found = {}
    for name, (line, on_cpu) in lines().items():
        functions = functions_of(line)
        times: dict[str, list[float]] = {"whole": [], "decoded": [], "torch_npu": [], "cpu": []}
        for _ in range(rounds):
            times["whole"].append(microseconds(line))
            set_bodies(functions, lambda *_: None)
            times["decoded"].append(microseconds(line))
            set_bodies(functions, None)
            times["torch_npu"].append(microseconds(line))
            set_bodies(functions, None, own=True)
            times["cpu"].append(microseconds(on_cpu))
        median = {kind: statistics.median(values) for kind, values in times.items()}
        median["above_torch_npu"] = median["whole"] - median["torch_npu"]
        median["of_emulation"] = median["above_torch_npu"] - median["cpu"]
        found[name] = {kind: round(value, 2) for kind, value in median.items()}
    return found


def run_once(model: Any, tokens: torch.Tensor) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        model(tokens, use_cache=False).logits[0, -1].cpu()
    return time.process_time() - cpu, time.perf_counter() - wall


def prefill(rounds: int, threads: int) -> dict[str, dict[str, float]]:
    from transformers import GlmConfig, GlmForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    on_cpu = GlmForCausalLM(GlmConfig(**GLM)).eval()
    on_npu = copy.deepcopy(on_cpu).npu()
    found = {}
    for length in (128, 512):
        tokens = torch.randint(0, GLM["vocab_size"], (1, length))
        there = tokens.npu()
        pairs = [(run_once(on_cpu, tokens), run_once(on_npu, there)) for _ in range(rounds + 1)][1:]
        times = {
            f"{side}_{kind}": statistics.median(pair[i][j] for pair in pairs)
            for i, side in enumerate(("plain", "emulated"))
            for j, kind in enumerate(("cpu", "wall"))
        }
        times["ratio_cpu"] = statistics.median(pair[1][0] / pair[0][0] for pair in pairs)
        times["ratio_wall"] = statistics.median(pair[1][1] / pair[0][1] for pair in pairs)
        found[f"{length} tokens"] = {kind: round(value, 3) for kind, value in times.items()}
    return found


def table(rows: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(rows.values())))
    shown = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    shown += [f"| {name} | {' | '.join(str(row[kind]) for kind in columns)} |" for name, row in rows.items()]
    return "\n".join(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of the prefill")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    given = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "microseconds per call": overhead(given.rounds)}
    result["seconds of prefill"] = prefill(given.rounds, given.threads)
    print(json.dumps(result["machine"], indent=2))
    for title in ("microseconds per call", "seconds of prefill"):
        print(f"\n{title}\n\n{table(result[title])}")
    if given.out:
        write_result(given.out, json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
