"""What the kernels are to reach, and what the finished cells say about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.contest.cells import LONG, WORKLOADS, Cell, all_cells
from benchmarks.contest.models import config_of, kv_bytes
from benchmarks.contest.store import Score, Store, best_peer

from gallium.cli.shapes import shape_config
from gallium.cli.work import Work
from gallium.models.config import read_spec

MB = 1e6


@dataclass(frozen=True)
class Verdict:
    """One line of the table: `reached` against `goal`; None where the cells are missing."""

    what: str
    goal: str
    reached: str
    ratio: float | None  # reached / wanted, 1 or more is met

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.ratio is not None and self.ratio >= 1


def verdicts(store: Store, limits: dict[str, Any]) -> list[Verdict]:
    """Every goal of which a cell was measured."""
    return [
        *_bandwidth(store), *_against(store), *_peaks(store, limits), *_context(store), *_served(store),
        *_start(store), *_memory(store), *_quality(store),
    ]  # fmt: skip


def _score(store: Store, cell: Cell, name: str = "gallium") -> Score | None:
    score = store.cells.get(cell.key, {}).get(name)
    return score if score is not None and score.rounds else None


def _bandwidth(store: Store) -> Iterator[Verdict]:
    """Bytes that decoding one sequence reads per second, beside what could be read around the same round."""
    for workload, precision in (("W1", "bf16"), ("W1", "int8"), ("W1", "int4"), ("W3", "int4")):
        score = _score(store, Cell(workload, precision, "decode", 1, 128))
        shape = WORKLOADS[workload].shape
        if score is None or shape is None or not score.facts.get("weight_bytes") or not score.limits:
            continue
        step = _bytes_read(score, shape, 128)
        share = step * _per_byte_read(score)
        rounds = zip(score.rounds, score.limits, strict=True)
        shown = ", ".join(f"{rate * step / 1e9:.1f} of {around['read'] / 1e9:.1f}" for rate, around in rounds)
        yield Verdict(
            f"{workload} {precision} decode 1@128",
            "85 % of the read limit",
            f"{share:.0%} ({shown} GB/s)",
            share / 0.85,
        )


def _bytes_read(score: Score, shape: str, context: int) -> float:
    """By a step that decodes one sequence: weights, and the KV cache of its context."""
    weights = score.facts.get("weight_bytes", 0) * Work.of(read_spec(shape_config(shape))).share_read(1)
    return float(weights + context * kv_bytes(config_of(shape)))


def _per_byte_read(score: Score) -> float:
    """Tokens per byte that could have been read meanwhile, the middle round."""
    return median(rate / around["read"] for rate, around in zip(score.rounds, score.limits, strict=True))


def _against(store: Store) -> Iterator[Verdict]:
    """Times of the best peer in the same cell."""
    wanted: list[tuple[Cell, float]] = [(Cell(w, "int4", "decode", 1, 128), 1.7) for w in ("W1", "W3", "W4")]
    wanted += [(Cell(w, "int4", "decode", 16, 128), 3.0) for w in ("W1", "W3", "W4")]
    for precision, times in (("bf16", 2.0), ("int8", 4.0), ("int4", 4.0)):
        wanted += [(Cell("W1", precision, "prefill", 1, tokens), times) for tokens in (512, 2048)]
    wanted += [(Cell(w, "int4", "prefill", 1, 512), 4.0) for w in ("W3", "W4")]
    for cell, times in wanted:
        score, peer = _score(store, cell), best_peer(store.cells.get(cell.key, {}))
        if score is None or peer is None or score.median is None:
            continue
        ratio = score.median / peer[1]
        what = f"{score.median:.1f} against {peer[1]:.1f} ({peer[0]}): {ratio:.2f} x"
        yield Verdict(cell.key.replace("/", " "), f"{times:g} x the best peer", what, ratio / times)


def _peaks(store: Store, limits: dict[str, Any]) -> Iterator[Verdict]:
    for workload, precision in (("W1", "bf16"), ("W1", "int8"), ("W1", "int4"), ("W3", "int4")):
        for tokens in (512, 2048):
            score = _score(store, Cell(workload, precision, "prefill", 1, tokens))
            shape, peak = WORKLOADS[workload].shape, limits["peak"].get(precision)
            if score is None or score.median is None or shape is None or not peak:
                continue
            done = Work.of(read_spec(shape_config(shape))).prefill_operations(tokens) * score.median / tokens
            share = done / peak
            yield Verdict(
                f"{workload} {precision} prefill {tokens}", "55 % of the peak of its type", f"{share:.0%}", share / 0.55
            )


def _context(store: Store) -> Iterator[Verdict]:
    """Decoding at a long context, beside what the additional KV bytes explain; both as shares of what memory gave."""
    for precision in ("bf16", "int8", "int4"):
        short = _score(store, Cell("W1", precision, "decode", 1, 128))
        long = _score(store, Cell("W1", precision, "decode", 1, 8192))
        shape = WORKLOADS["W1"].shape
        if short is None or long is None or shape is None or not short.limits or not long.limits:
            continue
        explained = _bytes_read(short, shape, 128) / _bytes_read(short, shape, 8192)
        ratio = _per_byte_read(long) / _per_byte_read(short)
        yield Verdict(
            f"W1 {precision} decode 1@8192 against 1@128", f"at least {0.85 * explained:.2f} x at equal memory",
            f"{ratio:.2f} x", ratio / (0.85 * explained),
        )  # fmt: skip


def _served(store: Store) -> Iterator[Verdict]:
    for precision in ("bf16", "int8", "int4"):
        cell = Cell("W1", precision, "served", 1, 16)
        scores = store.cells.get(cell.key, {})
        score, peer = _score(store, cell), best_peer(scores)
        if score is None or peer is None or score.median is None:
            continue
        ratio = score.median / peer[1]
        what = f"{score.median:.1f} against {peer[1]:.1f} ({peer[0]}): {ratio:.2f} x"
        yield Verdict(f"W1 {precision} served, 16 streams", "1.5 x the best peer", what, ratio / 1.5)
        theirs, ours = scores[peer[0]].facts["ttft_p95"], score.facts["ttft_p95"]
        yield Verdict(
            f"W1 {precision} p95 TTFT, 16 streams", "below that peer's", f"{ours:.2f} s, {theirs:.2f} s", theirs / ours
        )


def _start(store: Store) -> Iterator[Verdict]:
    for workload, precision in ((w.name, p) for w in WORKLOADS.values() for p in w.precisions):
        cell = Cell(workload, precision, "start")
        score, peer = _score(store, cell), best_peer(store.cells.get(cell.key, {}), least=True)
        if score is None or peer is None or score.median is None:
            continue
        what = f"{score.median:.2f} s against {peer[1]:.2f} s ({peer[0]})"
        yield Verdict(
            f"{workload} {precision} start to first token", "0.3 x the fastest peer", what, 0.3 * peer[1] / score.median
        )


def _memory(store: Store) -> Iterator[Verdict]:
    """Peak of a process that was loaded for one sequence, and of one that decodes after a very long context."""
    cells = [Cell(w.name, p, "start", kv=kv) for w in WORKLOADS.values() for p in w.precisions for kv in (16, 8)]
    cells += [cell for cell in all_cells() if cell.size == LONG]
    for cell in cells:
        score = _score(store, cell)
        if score is None or not score.facts.get("peak_bytes") or not score.facts.get("weight_bytes"):
            continue
        peak = score.facts["peak_bytes"]
        allowed = 1.1 * (score.facts["weight_bytes"] + score.facts["kv_bytes"]) + 150 * MB
        yield Verdict(
            f"{cell.key}: peak memory", f"{allowed / MB:.0f} MB", f"{peak / MB:.0f} MB", allowed / peak
        )  # fmt: skip


def _quality(store: Store) -> Iterator[Verdict]:
    for precision in ("int8", "int4"):
        ours, theirs = (store.quality.get(f"{name} {precision}") for name in ("gallium", "llama.cpp"))
        if ours is None or theirs is None:
            continue
        what = f"{ours['kl_mean']:.5f} against {theirs['kl_mean']:.5f}"
        ratio = theirs["kl_mean"] / ours["kl_mean"]
        yield Verdict(f"KL of {precision} on text", f"no worse than llama.cpp's {theirs['called']}", what, ratio)
