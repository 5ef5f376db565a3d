"""`python -m benchmarks.contest`: measure cells that are not finished yet, and write what is known."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

from benchmarks.contest.cells import choose, groups
from benchmarks.contest.install import install
from benchmarks.contest.limits import measure_limits
from benchmarks.contest.peers import PEERS, ROOT, Peer
from benchmarks.contest.plots import draw
from benchmarks.contest.process import Refused
from benchmarks.contest.report import entry, inserted
from benchmarks.contest.rounds import Contest, OutOfTime
from benchmarks.contest.store import Store
from benchmarks.machine import cores, machine

HERE = Path(__file__).parents[1]


def main() -> int:
    """0: all chosen cells are finished; 3: the budget is spent, call again to go on."""
    how = _arguments()
    if how.prepare:
        _install([PEERS[name] for name in how.peers])
    store = Store(how.store)
    known = [peer for name in how.peers if (peer := PEERS[name]).installed]
    for missing in set(how.peers) - {peer.name for peer in known}:
        print(f"{missing} is not installed (--prepare installs it): left out", file=sys.stderr)
    begin = time.monotonic()
    contest = Contest(known, store, threads=how.threads, rounds=how.rounds, budget=how.budget, patience=how.patience)
    open_cells = [c for c in choose(how.cells) if store.missing(c.key, [peer.name for peer in known])]
    code = 0
    if open_cells and not how.report:
        store.machine = machine() | {"threads": how.threads, "rounds": how.rounds}
        store.limits.append(measure_limits(how.threads))
        try:
            for group in groups(open_cells):
                contest.run(group)
        except OutOfTime:
            code = 3
        store.limits.append(measure_limits(how.threads))
        store.save()
        left = sum(store.missing(c.key, [peer.name for peer in known]) for c in open_cells)
        print(f"{len(open_cells) - left} cells in {time.monotonic() - begin:.0f} s, {left} left")
    if how.report or code == 0:
        _write(how, store)
    return code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contest", description=__doc__)
    parser.add_argument("--peers", type=_names, default=["gallium"], help=f"of {', '.join(PEERS)}, or all")
    parser.add_argument("--cells", type=lambda t: t.split(","), default=["alone"],
                        help="keys, patterns such as 'W1/int4/*', or a set: all, goals, telling, alone")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no new cell is begun")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds for one answer of a contender")
    parser.add_argument("--store", type=Path, default=ROOT / "contest.json", help="where finished cells are kept")
    parser.add_argument("--prepare", action="store_true", help="first install the peers that are missing")
    parser.add_argument("--report", action="store_true", help="measure nothing: print what is known, and draw")
    parser.add_argument("--results", type=Path, help="the RESULTS.md to put the entry into")
    parser.add_argument("--called", help="the command that the entry names, if not this one")
    parser.add_argument(
        "--causes", type=Path, help="a TOML file: why goals are missed, by patterns such as 'W1 * decode*'"
    )
    parser.add_argument("--plots", type=Path, default=HERE / "plots")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = list(PEERS) if text == "all" else text.split(",")
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    return names


def _install(peers: list[Peer]) -> None:
    for peer in peers:
        try:
            install(peer)
        except Refused as refusal:
            print(f"{peer.name} cannot be installed here: {refusal}", file=sys.stderr)


def _write(how: argparse.Namespace, store: Store) -> None:
    drawn = _draw(how, store)
    causes = tomllib.loads(how.causes.read_text(encoding="utf-8")) if how.causes else {}
    base = (how.results or how.plots).resolve().parent
    plots = [os.path.relpath(path.resolve(), base) for path in drawn]
    found = entry(store, how.called or "python -m benchmarks.contest " + shlex.join(sys.argv[1:]), causes, plots)
    print(found)
    if how.results is not None:
        how.results.write_text(inserted(how.results.read_text(encoding="utf-8"), found), encoding="utf-8")


def _draw(how: argparse.Namespace, store: Store) -> list[Path]:
    if find_spec("matplotlib") is None:
        print("no plots: they need matplotlib (the extra `bench`)", file=sys.stderr)
        return []
    return draw(store, how.plots)


if __name__ == "__main__":
    sys.exit(main())
