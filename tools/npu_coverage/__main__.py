"""Counts the entries and writes docs/npu-coverage.md; `--check` writes nothing, and fails if fewer match."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tools.npu_coverage.outcomes import FAULTS
from tools.npu_coverage.page import PAGE, count_functions, known_figures, page

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Pass:
    """One way to run the database."""

    dtype: str
    backward: bool
    limit: int  # samples per entry
    other_dtypes: bool = False  # entries without this dtype run in another one

    @property
    def name(self) -> str:
        return f"{self.dtype} {'gradient' if self.backward else 'forward'}"


PASSES = (
    Pass("float32", False, 1000, other_dtypes=True),
    Pass("bfloat16", False, 12),
    Pass("float16", False, 12),
    Pass("int64", False, 12),
    Pass("float32", True, 12),
)


def wanted_entries(one: Pass) -> list[str]:
    """Names of the entries that have this dtype (and a gradient); asked in a process without the NPU."""
    code = (
        "import torch; from torch.testing._internal.common_methods_invocations import op_db\n"
        f"dtype, backward, any_dtype = torch.{one.dtype}, {one.backward}, {one.other_dtypes}\n"
        "for op in op_db:\n"
        "    types = op.supported_backward_dtypes('cpu') if backward else op.supported_dtypes('cpu')\n"
        "    if (dtype in types or any_dtype) and (op.supports_autograd or not backward):\n"
        "        print(f'{op.name}.{op.variant_test_name}'.rstrip('.'))\n"
    )
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return out.stdout.split()


def verdicts(one: Pass, names: list[str], workers: int) -> Iterator[dict[str, Any]]:
    """A verdict for each name. A process that dies costs one entry, and another process goes on."""
    waiting: Queue[str] = Queue()
    for name in names:
        waiting.put(name)
    with ThreadPoolExecutor(workers) as pool:
        for found in pool.map(lambda _: list(_work(one, waiting)), range(workers)):
            yield from found


def _work(one: Pass, waiting: Queue[str]) -> Iterator[dict[str, Any]]:
    process = None
    while True:
        try:
            name = waiting.get_nowait()
        except Empty:
            break
        process = process or _start(one)
        assert process.stdin is not None
        process.stdin.write(name + "\n")
        process.stdin.flush()
        verdict = _read(process)
        if verdict is None:
            _stop(process)
            process = None
            verdict = {"entry": name, "outcome": "crash", "samples": 0, "left_out": {}, "detail": "", "called": []}
        if sys.stderr.isatty():
            print(f"\r{one.name}: {waiting.qsize()} left   ", end="", file=sys.stderr)
        yield verdict
    if process is not None:
        _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    with process:  # closes the pipes and waits
        pass


def _start(one: Pass) -> subprocess.Popen[str]:
    direction = "backward" if one.backward else "forward"
    command = [sys.executable, "-m", "tools.npu_coverage.worker", one.dtype, direction, str(one.limit)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    if not any(line == "READY\n" for line in iter(process.stdout.readline, "")):
        raise SystemExit(f"the virtual NPU does not start here; see: {' '.join(command)}")
    return process


def _read(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("VERDICT "):
            found: dict[str, Any] = json.loads(line[len("VERDICT ") :])
            return found
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", default="all", help="comma-separated, such as 'float32 forward'; default all")
    parser.add_argument("--entries", help="comma-separated names; nothing is written")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write all verdicts to this file")
    parser.add_argument("--check", action="store_true", help="write no page; fail if fewer entries match than it says")
    args = parser.parse_args()
    chosen = [one for one in PASSES if args.passes == "all" or one.name in args.passes.split(",")]
    results: dict[str, list[dict[str, Any]]] = {}
    for one in chosen:
        names = args.entries.split(",") if args.entries else wanted_entries(one)
        results[one.name] = sorted(verdicts(one, names, args.workers), key=lambda verdict: verdict["entry"])
        counts = {
            o: sum(v["outcome"] == o for v in results[one.name]) for o in {v["outcome"] for v in results[one.name]}
        }
        print(f"\r{one.name}: {counts}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print("{} of {} functions are emulated".format(*count_functions()))
    faults = worse_than_the_page(results) if args.check else found_faults(results)
    print("\n".join(faults) or "no faults")
    if not (args.entries or args.check or len(chosen) < len(PASSES)):
        PAGE.write_text(page(results), encoding="utf-8")
    return 1 if faults else 0


def found_faults(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One line for each entry that is wrong."""
    return [f"{name}: {v['entry']}: {v['outcome']} {v['detail']}" for name, found in results.items()
            for v in found if v["outcome"] in FAULTS]  # fmt: skip


def worse_than_the_page(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The faults, and one line for each pass in which fewer entries match than the page says."""
    known = known_figures()
    lines = found_faults(results)
    for name, found in results.items():
        counts = tuple(sum(v["outcome"] == outcome for v in found) for outcome in ("match", "partly"))
        if counts[0] < known[name][0] or sum(counts) < sum(known[name]):
            lines.append(f"{name}: {counts[0]} entries match and {counts[1]} in part; the page says {known[name]}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
