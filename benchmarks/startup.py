"""Cold start to first token: a new process each time, from exec to the first byte of the answer on its output.

The stages on the way are timed as processes of their own: what one takes beyond the one before is its share.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import installed_environment, machine, write_result

FIRST_TOKEN = ["run", "--temperature", "0", "--max-tokens", "1", "What is gravity?"]
COMMANDS = {"gallium --help (all of it)": ["--help"], "gallium run (first token)": FIRST_TOKEN}
STAGES = {"Python": "", "… and NumPy": "import numpy", "… and the engine": "import numpy, gallium.engine.assembly"}
"""Name, and what the interpreter runs: each contains the one before."""


def first_byte(command: list[str]) -> float:
    """Seconds from starting a process to its first byte on standard output."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=installed_environment()
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        seen = os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - start
        process.stdout.read()
        complaint = process.stderr.read().decode()
    if not seen or process.returncode:
        raise SystemExit(f"{' '.join(command)} failed ({process.returncode}): {complaint}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--precision", default="auto", help="of --model")
    parser.add_argument("--packed", help="the same model, packed by `gallium convert --packed`: takes turns with it")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    how = parser.parse_args()
    program = str(Path(sys.executable).parent / "gallium")
    commands = {name: [sys.executable, "-c", f"{what}\nprint()"] for name, what in STAGES.items()}
    commands |= {name: [program, *rest] for name, rest in COMMANDS.items()}
    commands["gallium run (first token)"] += ["--precision", how.precision]
    if how.model:
        commands["gallium run (first token)"] += ["--model", how.model]
    if how.packed:
        commands["the same, packed"] = [program, *FIRST_TOKEN, "--model", how.packed]
    for command in commands.values():
        first_byte(command)  # fills the disk cache, and compiles what was not compiled yet
    rounds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(how.rounds):
        for name, command in commands.items():
            rounds[name].append(first_byte(command))
    for name, times in rounds.items():
        print(f"{name:28}  median {statistics.median(times):.3f} s  best {min(times):.3f}  worst {max(times):.3f}")
    seconds = {name: {"median": statistics.median(times), "rounds": times} for name, times in rounds.items()}
    result = {"what": "startup", "machine": machine(), "model": how.model or "embedded default"}
    result |= {"packed": how.packed, "seconds": seconds}
    if how.out:
        write_result(how.out, json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
