"""Makes N random calls in child processes, counts what came of them, and fails if one crashed, hung or did damage."""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "npu-fuzz.md"
FAULTS = ("crash", "hang", "damage", "silent")


@dataclass(frozen=True)
class Result:
    """What came of one call."""

    number: int
    call: str
    outcome: str
    text: str


def results(seed: int, first: int, last: int, patience: float = 60) -> Iterator[Result]:
    """Of the calls `first` to `last - 1`. A child that dies or hangs costs one call, and another goes on."""
    while first < last:
        command = [sys.executable, "-m", "tools.npu_fuzz.worker", str(seed), str(first), str(last)]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
        ) as child:
            for result in _of_child(child, patience):
                yield result
                first = result.number + 1
            child.kill()


def _of_child(child: subprocess.Popen[bytes], patience: float) -> Iterator[Result]:
    assert child.stdout is not None
    number, call, rest, started = -1, "", b"", False
    while True:
        if not select.select([child.stdout], [], [], patience if started else 300)[0]:
            yield Result(number, call, "hang", f"no answer for {patience:g} s")
            return
        piece = os.read(child.stdout.fileno(), 1 << 16)
        if not piece:
            break
        *lines, rest = (rest + piece).split(b"\n")
        for line in (line.decode("utf-8", "replace") for line in lines):
            if line.startswith("CALL "):
                number, call, started = int(line.split()[1]), line.split(" ", 2)[2], True
            elif line.startswith("DONE "):
                yield Result(number, call, *json.loads(line[len("DONE ") :]))
                call = ""
    if not started and child.wait() != 0:
        raise SystemExit(f"the fuzzer's child does not start: {' '.join(map(str, child.args))}")  # type: ignore[arg-type]
    if call or rest.startswith(b"CALL"):
        number = number if call else int(rest.split()[1])
        yield Result(number, call, "crash", f"exit status {child.wait()}")


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def run(seed: int, calls: int, workers: int) -> list[Result]:
    """All of them, in `workers` processes at a time."""
    bounds = [calls * i // workers for i in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda i: list(results(seed, bounds[i], bounds[i + 1])), range(workers))
        return [result for part in parts for result in part]


def page(found: list[Result], seed: int) -> str:
    """What docs/npu-fuzz.md says."""
    counts = Counter(result.outcome for result in found)
    internal = sum("the emulated operator failed" in result.text for result in found)
    operators = len({result.call.split()[0] for result in found if result.call})
    return (
        "# Random calls of the virtual NPU\n\n"
        "Written by `make npu-fuzz`: calls of PyTorch's and torch_npu's operators with random legal and illegal\n"
        "shapes, types, strides, values, empty tensors and absurd sizes, in child processes; tensors that take no part\n"
        "are watched for damage. Every call either works or raises an error that says why.\n\n"
        f"* seed {seed}: {len(found)} calls of {operators} operators\n"
        f"* done: {counts['done']}\n"
        f"* refused with a sentence: {counts['refused']} (of these {internal} by PyTorch's CPU kernel, whose sentence "
        "is passed on)\n"
        + "".join(f"* {fault}: {counts[fault]}\n" for fault in FAULTS)
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="make this one call")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    if args.only is not None:
        found = list(results(args.seed, args.only, args.only + 1))
    else:
        found = run(args.seed, args.calls, args.workers)
    faults = [result for result in found if result.outcome in FAULTS]
    for result in found if args.only is not None else faults:
        print(f"{result.number}: {result.outcome}: {result.call}\n    {result.text}")
    print(dict(Counter(result.outcome for result in found)))
    if args.write:
        PAGE.write_text(page(found, args.seed), encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
