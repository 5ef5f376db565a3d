"""Makes N random calls in child processes, counts what came of them, and fails if one crashed, hung or did damage.

torch_npu itself ends the process for some illegal arguments, on any machine, before it calls CANN. A debugger tells
such a call (outcome: wheel) from a crash of the emulation; without one, every crash counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import select
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "npu-fuzz.md"
FAULTS = ("crash", "hang", "damage", "silent")


@dataclasses.dataclass(frozen=True)
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
                yield _looked_into(seed, result) if result.outcome == "crash" else result
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


def _looked_into(seed: int, result: Result) -> Result:
    """A crash, or what ended in torch_npu with no frame of the emulation above it."""
    if shutil.which("gdb") is None:
        return result
    worker = [sys.executable, "-m", "tools.npu_fuzz.worker", str(seed), str(result.number), str(result.number + 1)]
    command = ["gdb", "-batch", "-ex", "run", "-ex", "backtrace", "--args", *worker]
    out = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, timeout=600, check=False).stdout
    frames = [line for line in out.decode("utf-8", "replace").splitlines() if line.startswith("#")]
    if not frames:
        return dataclasses.replace(result, text=f"{result.text}; not when it is made alone")
    inside_wheel = any("libtorch_npu" in line for line in frames) and not any("libgallium" in line for line in frames)
    return dataclasses.replace(result, outcome="wheel" if inside_wheel else "crash")


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def run(seed: int, calls: int, workers: int) -> list[Result]:
    """All of them, in `workers` processes at a time."""
    bounds = [calls * i // workers for i in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda i: [_told(x) for x in results(seed, bounds[i], bounds[i + 1])], range(workers))
        return [result for part in parts for result in part]


def _told(result: Result) -> Result:
    if result.outcome in (*FAULTS, "wheel"):
        print(f"{result.number}: {result.outcome}: {result.call}\n    {result.text}", flush=True)
    return result


def page(found: list[Result], seed: int) -> str:
    """What docs/npu-fuzz.md says."""
    counts = Counter(result.outcome for result in found)
    internal = sum("the emulated operator failed" in result.text for result in found)
    operators = len({result.call.split()[0] for result in found if result.call})
    return (
        "# Random calls of the virtual NPU\n\n"
        "Written by `make npu-fuzz`: calls of PyTorch's and torch_npu's operators with random legal and illegal\n"
        "shapes, types, strides, values, empty tensors and absurd sizes, in child processes; tensors that take no\n"
        "part are watched for damage. Every call that reaches the emulation either works or\n"
        "raises an error that says why.\n\n"
        f"* seed {seed}: {len(found)} calls of {operators} operators\n"
        f"* done: {counts['done']}\n"
        f"* refused with a sentence: {counts['refused']} (of these {internal} by PyTorch's CPU kernel, whose sentence "
        "is passed on)\n"
        + "".join(f"* {fault}: {counts[fault]}\n" for fault in FAULTS)
        + _ended_by_the_wheel(found)
    )  # fmt: skip


def _ended_by_the_wheel(found: list[Result]) -> str:
    calls = sorted({result.call.split()[0] for result in found if result.outcome == "wheel"})
    number = sum(result.outcome == "wheel" for result in found)
    names = ", ".join(f"`{name}`" for name in calls)
    return (
        f"* ended inside torch_npu itself, before it calls CANN, as on any machine: {number}"
        + (f" (illegal arguments of {names})" if calls else "")
        + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="make these calls only: numbers, with commas")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    if args.only is not None:
        found = [x for number in args.only.split(",") for x in results(args.seed, int(number), int(number) + 1)]
        print(*found, sep="\n")
    else:
        found = run(args.seed, args.calls, args.workers)
    print(dict(Counter(result.outcome for result in found)))
    if args.write:
        PAGE.write_text(page(found, args.seed), encoding="utf-8")
    return 1 if any(result.outcome in FAULTS for result in found) else 0


if __name__ == "__main__":
    sys.exit(main())
