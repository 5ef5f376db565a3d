"""Gallium beside Hugging Face transformers: the same weights, machine, threads and run, measured in turns."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from machine import cores, machine, write_result

Task = tuple[str, int, int, int]  # kind, batch, context, new tokens


def make_checkpoint(shape: str, folder: Path) -> None:
    """Random weights of one shape as transformers saves them, in bfloat16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gallium.cli.shapes import shape_config

    facts = shape_config(shape)
    rope = {"rope_type": "default"} | {key: facts.pop(key) for key in ("rope_theta", "partial_rotary_factor")}
    config = AutoConfig.for_model(
        facts.pop("model_type"), **facts, rope_parameters=rope, pad_token_id=0, eos_token_id=0, dtype="bfloat16"
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)  # type: ignore[no-untyped-call]


def serve_tasks(pipe: Connection, tasks: dict[str, Callable[[int, int, int], float]]) -> None:
    """Answer tasks with tokens per second until None comes. Idle meanwhile, so that the others have the machine."""
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        kind, batch, context, new = task
        pipe.send(tasks[kind](batch, context, new))


def transformers_worker(pipe: Connection, folder: str, precision: str, threads: int) -> None:
    """transformers as its documentation has it: eager mode, SDPA attention, dynamic cache, one forward per token."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision))
    model.eval()  # type: ignore[no-untyped-call]
    vocab = model.config.vocab_size

    def prompt(batch: int, context: int) -> Any:
        return torch.randint(1, vocab, (batch, context))

    def prefill(batch: int, context: int, new: int) -> float:
        ids = prompt(batch, context)
        start = time.perf_counter()
        model(input_ids=ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)
        return batch * context / (time.perf_counter() - start)

    def decode(batch: int, context: int, new: int) -> float:
        out = model(input_ids=prompt(batch, context), use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        start = time.perf_counter()
        for _ in range(new):
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
        return batch * new / (time.perf_counter() - start)

    serve_tasks(pipe, {"prefill": prefill, "decode": decode})


def gallium_worker(pipe: Connection, folder: str, precision: str, threads: int) -> None:
    """Gallium's engine: scheduler, paged cache and sampling included."""
    from gallium import LLM
    from gallium.cli.measuring import Stopwatch

    with LLM(folder, precision=precision, threads=threads, prefix_cache=False, max_context=2048, max_batch=16) as llm:  # type: ignore[arg-type]
        watch = Stopwatch(llm.assembly.engine, llm.assembly.spec.vocab_size)

        def prefill(batch: int, context: int, new: int) -> float:
            return context / watch.prefill(context)

        serve_tasks(pipe, {"prefill": prefill, "decode": watch.decode})


class Contender:
    """One program in one precision, in a process of its own."""

    def __init__(self, name: str, precision: str, folder: str, threads: int) -> None:
        self.name, self.precision = name, precision
        worker = transformers_worker if name == "transformers" else gallium_worker
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=worker, args=(theirs, folder, precision, threads), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def measure(self, task: Task) -> float:
        self._pipe.send(task)
        return float(self._pipe.recv())

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="smollm2-135m", help="random weights of this shape")
    parser.add_argument("--model", help="instead of --shape: a safetensors folder")
    parser.add_argument("--contenders", default="transformers:float32,gallium:float32,transformers:bfloat16,"
                        "gallium:bfloat16,gallium:int8,gallium:int4")  # fmt: skip
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    how = parser.parse_args()
    tasks: dict[str, Task] = {f"prefill of {how.prompt_tokens}": ("prefill", 1, how.prompt_tokens, 1)}
    for batch in map(int, how.batch.split(",")):
        tasks[f"decode, batch {batch}"] = ("decode", batch, how.context, how.new_tokens)
    with ExitStack() as stack:
        folder = how.model
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            make_checkpoint(how.shape, Path(folder))
        contenders = []
        for entry in how.contenders.split(","):
            name, _, precision = entry.partition(":")
            contenders.append(Contender(name, precision, folder, how.threads))
            stack.callback(contenders[-1].close)
        result = compare(contenders, tasks, how.rounds)
    result |= {"model": how.model or f"{how.shape} (random weights)", "threads": how.threads}
    print(shown(result))
    if how.out:
        write_result(how.out, json.dumps(result, indent=2))


def compare(contenders: list[Contender], tasks: dict[str, Task], rounds: int) -> dict[str, Any]:
    """Every round, every task, every contender in turn; the first round warms up and does not count."""
    rows: dict[str, dict[str, list[float]]] = {task: {} for task in tasks}
    for number in range(rounds + 1):
        for label, task in tasks.items():
            for one in contenders:
                speed = one.measure(task)
                if number:
                    rows[label].setdefault(f"{one.name} {one.precision}", []).append(speed)
    return {
        "what": "vs_transformers",
        "machine": machine(),
        "rounds": rounds,
        "tokens_per_second": {
            label: {name: {"median": statistics.median(s), "rounds": s} for name, s in speeds.items()}
            for label, speeds in rows.items()
        },
    }


def shown(result: dict[str, Any]) -> str:
    """A table: tokens per second, and how many times transformers in bfloat16 or float32, whichever is faster."""
    lines = [f"{result['model']}, {result['threads']} threads; tokens/s, medians of {result['rounds']} rounds"]
    for label, speeds in result["tokens_per_second"].items():
        best = max((row["median"] for name, row in speeds.items() if name.startswith("transformers")), default=None)
        lines.append(label)
        for name, row in speeds.items():
            times = "" if best is None else f"  {row['median'] / best:6.2f} x the faster transformers"
            lines.append(f"  {name:22} {row['median']:10.1f}{times}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
