"""Speculation on and off in turn: an editing workload and free text, with lookup, predictions and a draft model."""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from machine import machine, write_result

from gallium.checkpoints.resolve import default_model_path
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
    speculate: Literal["off", "ngram", "model"]
    predicts: bool = False


OFF = Way("off", "off")
LOOKUP = Way("--speculate ngram", "ngram")
PREDICTED = Way("prediction", "off", predicts=True)
BOTH = Way("both", "ngram", predicts=True)
DRAFTED = Way("--speculate MODEL", "model")


PLAN: tuple[tuple[str, float, tuple[Way, ...], int], ...] = (
    ("edits", 0.0, (OFF, LOOKUP, PREDICTED, BOTH), 1),
    ("edits", 0.7, (OFF, LOOKUP, PREDICTED), 1),
    ("edits", 0.0, (OFF, LOOKUP, PREDICTED), 3),
    ("free", 0.0, (OFF, LOOKUP), 1),
    ("free", 0.8, (OFF, LOOKUP), 1),
    ("free", 0.8, (OFF, LOOKUP), 6),
)
"""Workload, temperature, ways, requests at once."""


def jobs(assembly: Assembly, workload: str, tokens: int, temperature: float) -> list[Job]:
    """Greedy or sampled. Free text is not ended by the model; an edit is, and has the length of its source at most."""
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


@dataclass
class Spent:
    """What groups of requests took, from the first token of each to its last."""

    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of the process: says more than the clock while others use the machine


def run(assembly: Assembly, group: list[Job], way: Way, spent: Spent) -> list[list[int]]:
    """The answers of these requests, run together."""
    arrived: Arrivals = queue.SimpleQueue()
    found: list[list[int]] = [[] for _ in group]
    begin, cpu = 0.0, 0.0
    for number, job in enumerate(group):
        prediction = job.prediction if way.predicts else ()
        assembly.engine.submit(job.prompt, job.params, stamped(number, arrived), prediction=prediction)
    left = len(group)
    while left:
        number, when, delta = arrived.get()
        if isinstance(delta, GalliumError):
            raise delta
        if not begin:
            begin, cpu = when, time.process_time()
        found[number] += delta.token_ids
        left -= delta.finish_reason is not None
    spent.cpu_seconds += time.process_time() - cpu
    spent.seconds += when - begin
    spent.tokens += sum(map(len, found)) - 1
    return found


def measure(
    engines: dict[str, Assembly], work: list[Job], ways: Sequence[Way], at_once: int, rounds: int
) -> dict[Way, list[Spent]]:
    """Every round runs every group in every way, one right after the other, in an order that turns."""
    spent: dict[Way, list[Spent]] = {way: [] for way in ways}
    groups = [work[first : first + at_once] for first in range(0, len(work), at_once)]
    for number in range(-1, rounds):  # the first is for warmth
        now = {way: Spent() for way in ways}
        for group in groups:
            expected: list[list[int]] | None = None
            for way in ways if number % 2 == 0 else reversed(ways):
                answers = run(engines[way.speculate], group, way, now[way])
                if expected not in (None, answers):
                    raise SystemExit(f"{way.name}: the answers differ from those of another way")
                expected = answers
        if number >= 0:
            for way in ways:
                spent[way].append(now[way])
    return spent


def engine(how: argparse.Namespace, speculate: str) -> Assembly:
    """One engine for all cells."""
    model = speculate not in ("off", "ngram")
    settings = EngineSettings(
        backend="cpu",
        precision=how.precision,
        threads=how.threads,
        kv_memory=parse_bytes("256MiB"),
        speculate=speculate,
        draft_precision=how.draft_precision if model else "auto",
    )
    return assemble(how.model, settings)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96, help="tokens of an answer of free text")
    parser.add_argument("--cells", type=int, nargs="+", default=range(len(PLAN)), help="which lines of PLAN, from 0")
    parser.add_argument("--draft", help="a model that drafts, or `default`: each cell then is run in that way, too")
    parser.add_argument("--draft-precision", default="auto")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    how = parser.parse_args()
    draft = str(default_model_path()) if how.draft == "default" else how.draft
    engines = {name: engine(how, name) for name in ("off", "ngram")}
    if draft is not None:
        engines["model"] = engine(how, draft)
    rows = []
    print("each cell: tokens/s (ratio to off, its range over rounds), and the same ratio by CPU time")
    for workload, temperature, ways, at_once in (PLAN[cell] for cell in how.cells):
        work = jobs(engines["off"], workload, how.tokens, temperature)
        if draft is not None:
            ways = (*ways, DRAFTED)
        before = {name: one.engine.stats() for name, one in engines.items()}
        spent = measure(engines, work, ways, at_once, how.rounds)
        for way, rounds in spent.items():
            pairs = list(zip(rounds, spent[OFF], strict=True))
            by_clock = [b.seconds / a.seconds for a, b in pairs]
            by_cpu = [b.cpu_seconds / a.cpu_seconds for a, b in pairs]
            rows.append({
                "workload": workload, "temperature": temperature, "at_once": at_once, "way": way.name,
                "tokens_per_second": statistics.median(one.tokens / one.seconds for one in rounds),
                "ratio": statistics.median(by_clock), "ratio_by_cpu_time": statistics.median(by_cpu),
                "rounds": [asdict(one) for one in rounds],
            })  # fmt: skip
            print(
                f"{workload:6} T {temperature}  {at_once} at once  {way.name:18} {rows[-1]['tokens_per_second']:6.1f} "
                f"(x {rows[-1]['ratio']:.2f}, {min(by_clock):.2f} to {max(by_clock):.2f})"
                f"  CPU x {rows[-1]['ratio_by_cpu_time']:.2f}, {min(by_cpu):.2f} to {max(by_cpu):.2f}",
                flush=True,
            )
        for name, one in engines.items():
            after = one.engine.stats()
            drafted = after.drafted_tokens - before[name].drafted_tokens
            accepted = after.accepted_tokens - before[name].accepted_tokens
            print(f"{'':6} engine with {name}: {accepted} of {drafted} drafts accepted", flush=True)
    result = {
        "what": "speculation",
        "machine": machine(),
        "model": how.model or "embedded default",
        "draft": how.draft,
        "rows": rows,
    }
    if how.out:
        write_result(how.out, json.dumps(result, indent=2))
    for assembly in engines.values():
        assembly.close()


if __name__ == "__main__":
    main()
