"""Runs cells: contenders are loaded side by side and take turns, round by round."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.contest.cells import AFTER, Cell, Group
from benchmarks.contest.limits import best, measure_limits
from benchmarks.contest.models import facts_of, kv_bytes
from benchmarks.contest.peers import ROOT, Peer
from benchmarks.contest.process import ASK_LIMIT, Process, Refused
from benchmarks.contest.store import Score, Store

NEW_TOKENS = 24  # decoded per round


class OutOfTime(Exception):
    """The budget is spent; what is finished is kept."""


class Contest:
    """Peers, rounds and threads of one run."""

    def __init__(
        self, peers: list[Peer], store: Store, *, threads: int, rounds: int, budget: float, patience: float = ASK_LIMIT
    ) -> None:
        self.peers, self.store, self.threads, self.rounds = peers, store, threads, rounds
        self.patience = patience  # seconds for one answer
        self._end = time.monotonic() + budget

    def run(self, group: Group) -> None:
        """All cells of one model in one precision that are not finished."""
        names = [peer.name for peer in self.peers]
        cells = [cell for cell in group.cells if self.store.missing(cell.key, names)]
        for cell in cells:
            if cell.kind == "start":
                self._keep(cell, self._start(group))
        timed = [cell for cell in cells if cell.kind in ("prefill", "decode")]
        if timed:
            with ExitStack() as stack:
                self._timed(group, timed, stack)
        for cell in cells:
            if cell.kind == "served":
                from benchmarks.contest.served import measure_served

                self._check_time()
                found = measure_served(self.peers, group, cell, self.threads, self.rounds, self.patience)
                self._keep(cell, found)

    def _timed(self, group: Group, cells: list[Cell], stack: ExitStack) -> None:
        running, refusals = self._load(group, self.peers, stack)
        for cell in cells:
            scores = {name: Score(reason=reason) for name, reason in refusals.items()}
            scores |= {name: Score(facts=facts) for name, (_, facts) in running.items()}
            for number in range(self.rounds + 1):  # the first one warms up
                self._check_time()
                for name, (process, _) in list(running.items()):
                    if scores[name].reason:
                        continue
                    try:
                        rate, limits = self._ask(process, cell if number else _warming(cell))
                    except Refused as refusal:
                        scores[name] = Score(reason=str(refusal))
                        if not process.alive:
                            refusals[name] = f"{refusal}, in {cell.key}"
                            del running[name]
                        continue
                    if number:
                        scores[name].rounds.append(rate)
                        scores[name].limits += limits
            for name, (process, _) in running.items():
                scores[name].facts = scores[name].facts | {"peak_bytes": process.peak_memory()}
            self._keep(cell, scores)

    def _ask(self, process: Process, cell: Cell) -> tuple[float, list[dict[str, Any]]]:
        """A figure; with one sequence also the machine's limits around it. Decoding is then as fast as memory is, and
        that is its neighbours' too: on a virtual machine it changes within seconds."""
        asked = {"batch": cell.batch, "context": cell.size, "tokens": NEW_TOKENS}
        if cell.kind == "prefill":
            asked = {"tokens": cell.size}
        if cell.kind == "prefill" or cell.batch > 1:
            return process.ask(cell.kind, self.patience, **asked), []
        before = measure_limits(self.threads)
        rate = process.ask("decode", self.patience, **asked)
        return rate, [best([before, measure_limits(self.threads)])]

    def _start(self, group: Group) -> dict[str, Score]:
        """Seconds from the start of the process to the first token, and peak memory after some work.

        The first round does not count: it fills the disk cache, and compiles the modules of a checkout.
        """
        scores: dict[str, Score] = {peer.name: Score() for peer in self.peers}
        for number in range(self.rounds + 1):
            for peer in self.peers:
                score = scores[peer.name]
                if score.reason:
                    continue
                self._check_time()
                with ExitStack() as stack:
                    running, refusals = self._load(group, [peer], stack, small=True)
                    if peer.name in refusals:
                        score.reason, score.rounds = refusals[peer.name], []
                        continue
                    process, facts = running[peer.name]
                    if number:
                        score.rounds.append(facts["seconds"])
                    else:
                        score.facts = facts | self._memory(process)
        return scores

    def _memory(self, process: Process) -> dict[str, int]:
        """The peak after a prefill and a few decode steps; nothing from one that is too slow for them."""
        try:
            process.ask("prefill", self.patience, tokens=512)
            process.ask("decode", self.patience, batch=1, context=128, tokens=NEW_TOKENS)
        except Refused:
            return {}
        return {"peak_bytes": process.peak_memory()}

    def _load(
        self, group: Group, peers: Iterable[Peer], stack: ExitStack, *, small: bool = False
    ) -> tuple[dict[str, tuple[Process, dict[str, Any]]], dict[str, str]]:
        """Those that run, with what they said of themselves, and why the others do not."""
        running: dict[str, tuple[Process, dict[str, Any]]] = {}
        refusals: dict[str, str] = {}
        for peer in peers:
            try:
                model = model_of(peer, group)
                log = ROOT / "logs" / f"{group.workload.name}-{group.precision}-kv{group.kv}-{peer.name}.log"
                process = Process(peer.python, peer.driver, log)
                stack.callback(process.close)
                facts = process.load({
                    "model": str(model), "precision": group.precision, "threads": self.threads,
                    "max_context": 512 + AFTER if small else group.longest, "max_batch": 1 if small else group.widest,
                    "spare": 0 if small else group.spare, "kv": group.kv,
                    "kv_bytes": kv_bytes(facts_of(group.workload, ROOT / "models")),
                }, self.patience)  # fmt: skip
                running[peer.name] = (process, facts)
            except Refused as refusal:
                refusals[peer.name] = str(refusal)
            self._check_time()
        return running, refusals

    def _keep(self, cell: Cell, scores: dict[str, Score]) -> None:
        self.store.put(cell.key, scores)
        shown = "  ".join(f"{n} {s.reason[:60] or f'{s.median:.1f}'}" for n, s in scores.items())
        print(f"{cell.key:24} {shown}", flush=True)

    def _check_time(self) -> None:
        if time.monotonic() > self._end:
            raise OutOfTime


def model_of(peer: Peer, group: Group) -> Path:
    """The file or folder that the peer loads, made if need be. Raises Refused."""
    if not peer.installed:
        raise Refused("not installed: `make bench-peers` does it")
    if group.precision not in peer.precisions:
        raise Refused("reads no weights of these bits that can be made from the common source without calibration")
    if group.kv not in peer.kv:
        raise Refused(f"its KV cache is measured in {peer.kv[0]} bits only")
    return peer.model(group.workload, group.precision, ROOT / "models")


def _warming(cell: Cell) -> Cell:
    """What warms up for a cell: of a long prompt a part, since all is computed in parts of at most so many tokens."""
    return replace(cell, size=min(cell.size, 512)) if cell.kind == "prefill" else cell
