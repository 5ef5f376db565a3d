"""Speculation on and off in turn: an editing workload with lookup and with predictions, and free text."""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from machine import machine, write_result

from gallium.engine.assembly import Assembly, assemble
from gallium.engine.memory import parse_bytes
from gallium.errors import GalliumError
from gallium.settings import EngineSettings
from gallium.types import Delta, SamplingParams

Arrivals: TypeAlias = queue.SimpleQueue[tuple[int, float, Delta | GalliumError]]
SOURCE = {
    "code": '''\
def total_price(items, discount):
    """Sum the prices of all items and take the discount off."""
    total = 0.0
    for item in items:
        if item.quantity < 1:
            raise ValueError("the quantity must be at least one")
        total += item.price * item.quantity
    if discount > 0:
        total -= total * discount
    return round(total, 2)


def print_receipt(items, discount):
    """Print one line per item and the total at the end."""
    for item in items:
        print(item.name, item.quantity, item.price)
    print("total", total_price(items, discount))
''',
    "prose": """\
The river rises in the hills to the north and runs for about ninety miles before it meets the sea. In spring, when the
snow melts, it floods the low fields on both banks, and the farmers move their sheep to higher ground. In summer it is
so shallow that children can wade across it. Three old bridges cross the river. The oldest of them was built of grey
stone more than four hundred years ago and is still used by carts and walkers every day.
""",
    "list": """\
- Apples: 12 boxes, cold store, order again on Monday
- Pears: 7 boxes, cold store, order again on Friday
- Carrots: 20 bags, cellar, order again on Monday
- Potatoes: 35 bags, cellar, order again next month
- Onions: 18 nets, dry room, order again next month
- Walnuts: 4 sacks, dry room, order again in autumn
""",
}
EDITS = {
    "code": "Repeat this code exactly, but rename the function total_price to sum_of_prices:",
    "prose": "Repeat this text exactly, but write hundred miles instead of ninety miles:",
    "list": "Repeat this list exactly, but change Pears to Plums:",
}
FREE = [
    "Tell me a story about a lighthouse keeper who finds a letter.",
    "Explain how a bicycle stays upright.",
    "What should one think of before moving to another country?",
    "Describe a market in a small town on a rainy morning.",
    "Why is the sky blue, and why is it red in the evening?",
    "Write a short speech for the opening of a library.",
]


@dataclass(frozen=True)
class Job:
    """One request."""

    prompt: list[int]
    prediction: list[int]
    params: SamplingParams


@dataclass(frozen=True)
class Way:
    """One way of running the same jobs."""

    name: str
    speculate: Literal["off", "ngram"]
    predicts: bool = False


OFF = Way("off", "off")
LOOKUP = Way("--speculate ngram", "ngram")
PREDICTED = Way("prediction", "off", predicts=True)
BOTH = Way("both", "ngram", predicts=True)


def jobs(assembly: Assembly, workload: str, tokens: int, temperature: float) -> list[Job]:
    """Greedy or sampled, and never ended by the model, so that all ways do the same work."""
    texts = FREE if workload == "free" else [f"{EDITS[name]}\n\n{text}" for name, text in SOURCE.items()]
    foreseen = [""] * len(FREE) if workload == "free" else list(SOURCE.values())
    template, tokenizer = assembly.template, assembly.tokenizer
    assert template is not None
    result = []
    for number, (text, expected) in enumerate(zip(texts, foreseen, strict=True)):
        prompt = tokenizer.encode(template.render([{"role": "user", "content": text}]))
        predicted = tokenizer.encode(expected)
        most = tokens if workload == "free" else len(predicted)
        params = SamplingParams(temperature=temperature, seed=number, max_tokens=most, ignore_eos=workload == "free")
        result.append(Job(prompt, predicted, params))
    return result


def stamped(number: int, arrived: Arrivals) -> Callable[[Delta | GalliumError], None]:
    """A listener that notes whose delta came when."""
    return lambda delta: arrived.put((number, time.perf_counter(), delta))


def run(assembly: Assembly, work: list[Job], way: Way, at_once: int) -> tuple[float, list[list[int]]]:
    """(Tokens per second from the first token of a group to its last, all answers); `at_once` requests together."""
    answers: list[list[int]] = []
    seconds, counted = 0.0, 0
    for first in range(0, len(work), at_once):
        group = work[first : first + at_once]
        arrived: Arrivals = queue.SimpleQueue()
        found: list[list[int]] = [[] for _ in group]
        times: list[float] = []
        for number, job in enumerate(group):
            assembly.engine.submit(
                job.prompt,
                job.params,
                stamped(number, arrived),
                prediction=job.prediction if way.predicts else (),
            )
        left = len(group)
        while left:
            number, when, delta = arrived.get()
            if isinstance(delta, GalliumError):
                raise delta
            found[number] += delta.token_ids
            times += [when] * len(delta.token_ids)
            left -= delta.finish_reason is not None
        seconds += times[-1] - times[0]
        counted += len(times) - 1
        answers += found
    return counted / seconds, answers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=160, help="tokens of an answer of free text")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    how = parser.parse_args()
    engines = {
        name: assemble(
            how.model,
            EngineSettings(backend="cpu", precision=how.precision, kv_memory=parse_bytes("256MiB"), speculate=name),
        )
        for name in ("off", "ngram")
    }
    rows = []
    for workload, temperature, ways, at_once in (
        ("edits", 0.0, (OFF, LOOKUP, PREDICTED, BOTH), 1),
        ("edits", 0.7, (OFF, LOOKUP, PREDICTED), 1),
        ("edits", 0.0, (OFF, LOOKUP, PREDICTED), 3),
        ("free", 0.0, (OFF, LOOKUP), 1),
        ("free", 0.8, (OFF, LOOKUP), 1),
        ("free", 0.8, (OFF, LOOKUP), 6),
    ):
        work = jobs(engines["off"], workload, how.tokens, temperature)
        speeds: dict[str, list[float]] = {way.name: [] for way in ways}
        expected = run(engines["off"], work, OFF, at_once)[1]
        before = engines["ngram"].engine.stats()
        for number in range(how.rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                speed, answers = run(engines[way.speculate], work, way, at_once)
                if answers != expected:
                    raise SystemExit(f"{workload}, {way.name}: the answers differ from those without speculation")
                speeds[way.name].append(speed)
        after = engines["ngram"].engine.stats()
        for way in ways:
            ratios = [a / b for a, b in zip(speeds[way.name], speeds[OFF.name], strict=True)]
            rows.append({
                "workload": workload, "temperature": temperature, "at_once": at_once, "way": way.name,
                "tokens_per_second": statistics.median(speeds[way.name]), "ratio": statistics.median(ratios),
                "rounds": speeds[way.name],
            })  # fmt: skip
            print(
                f"{workload:8} T {temperature}  {at_once} at once  {way.name:18} {rows[-1]['tokens_per_second']:7.1f} "
                f"tokens/s  x {rows[-1]['ratio']:.2f}  (rounds {min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )
        drafted = after.drafted_tokens - before.drafted_tokens
        print(
            f"{'':8} engine with ngram: {after.accepted_tokens - before.accepted_tokens} of {drafted} drafts accepted"
        )
    result = {"what": "speculation", "machine": machine(), "model": how.model or "embedded default", "rows": rows}
    if how.out:
        write_result(how.out, json.dumps(result, indent=2))
    for assembly in engines.values():
        assembly.close()


if __name__ == "__main__":
    main()
