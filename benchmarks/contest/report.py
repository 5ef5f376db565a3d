"""A contest as an entry of RESULTS.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from types import MappingProxyType

from benchmarks.contest.cells import all_cells
from benchmarks.contest.goals import verdicts
from benchmarks.contest.limits import best
from benchmarks.contest.peers import PEERS
from benchmarks.contest.store import Score, Store, best_peer


def entry(
    store: Store, command: str, causes: Mapping[str, str] = MappingProxyType({}), plots: Iterable[str] = ()
) -> str:
    """Head, limits, cells, goals, plots; cells that were not measured are left out.

    `causes`: why goals are missed, by the pattern of what they are of. `plots`: addresses of pictures.
    """
    machine, limits = store.machine, best(store.limits)
    lines = [
        f"## {str(machine.get('date', ''))[:10]}, commit {machine.get('commit')}, {machine.get('cores')} cores of "
        f"{machine.get('chip')}: beside its peers",
        "", f"`{command}`; {machine.get('threads')} threads, medians of {machine.get('rounds')} rounds "
        "in turns, after one that warms up.",
    ]  # fmt: skip
    if limits:
        peaks = ", ".join(f"{peak / 1e9:,.0f} GOP/s in {name}" for name, peak in limits["peak"].items())
        lines += [f"Measured limits, best of {len(store.limits)}: read {limits['read'] / 1e9:.1f} GB/s; peak {peaks}."]
    lines += [
        "",
        *_cells(store),
        "",
        *_starts(store),
        "",
        *_served(store),
        "",
        *quality_table(store),
        "",
        *_goals(store, causes),
        "",
        *_refusals(store),
        "",
        *(f"![{PurePosixPath(address).stem}]({address})" for address in plots),
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def inserted(results: str, new: str) -> str:
    """RESULTS.md with an entry on top; one with the same heading is replaced."""
    head, *old = re.split(r"^(?=## )", results, flags=re.MULTILINE)
    heading = new.partition("\n")[0]
    return head + new.rstrip() + "\n\n" + "".join(one for one in old if one.partition("\n")[0] != heading)


def _names(store: Store) -> list[str]:
    used = {name for scores in store.cells.values() for name, score in scores.items() if score.rounds}
    return [name for name in PEERS if name in used]


def _figure(score: Score | None) -> str:
    if score is None or score.median is None:
        return "–"
    return f"{score.median:.1f}"


def _cells(store: Store) -> list[str]:
    names = _names(store)
    lines = [
        "Tokens per second:",
        "",
        f"| cell | {' | '.join(names)} | Gallium / best peer |",
        "|---" * (len(names) + 2) + "|",
    ]
    for cell in all_cells():
        scores = store.cells.get(cell.key)
        if scores is None or cell.kind == "start" or not any(score.rounds for score in scores.values()):
            continue
        peer, ours = best_peer(scores), scores.get("gallium", Score()).median
        ratio = "–" if peer is None or ours is None else f"{ours / peer[1]:.2f}"
        lines.append(f"| {cell.key} | {' | '.join(_figure(scores.get(name)) for name in names)} | {ratio} |")
    return lines


def _starts(store: Store) -> list[str]:
    names = _names(store)
    rows = []
    for cell in all_cells():
        scores = store.cells.get(cell.key)
        if scores is None or cell.kind != "start":
            continue
        shown = [
            "–" if (s := scores.get(name)) is None or s.median is None
            else f"{s.median:.2f} s, " + (f"{peak / 1e9:.2f} GB" if (peak := s.facts.get("peak_bytes")) else "too slow")
            for name in names
        ]  # fmt: skip
        rows.append(f"| {cell.key} | {' | '.join(shown)} |")
    head = ["Start to first token (file in the page cache), and peak memory after a prefill of 512 and 24 tokens:", "",
            f"| cell | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]  # fmt: skip
    return head + rows if rows else []


def _served(store: Store) -> list[str]:
    """Who served how, one line per contender and cell."""
    rows = []
    for cell in all_cells():
        for name, score in store.cells.get(cell.key, {}).items():
            if cell.kind != "served" or score.median is None:
                continue
            facts = score.facts
            times = [f"{facts[f'{what}_p50']:{form}} / {facts[f'{what}_p95']:{form}}"
                     for what, form in (("ttft", ".2f"), ("tpot", ".3f"))]  # fmt: skip
            server = facts.get("server", name)
            rows.append(f"| {cell.key} | {server} | {score.median:.1f} | {times[0]} | {times[1]} |")
    head = ["Served over HTTP, every stream with prompts of its own; seconds as p50 / p95:", "",
            "| cell | server | tokens/s | TTFT | TPOT |", "|---|---|---|---|---|"]  # fmt: skip
    return head + rows if rows else []


def _goals(store: Store, causes: Mapping[str, str]) -> list[str]:
    limits = best(store.limits)
    found = verdicts(store, limits) if limits else []
    lines = ["| goal of | goal | reached | reached / goal | |", "|---|---|---|---|---|"]
    for one in found:
        ratio = "–" if one.ratio is None else f"{one.ratio:.2f}"
        said = "met" if one.met else f"missed: {_cause(one.what, causes)}"
        lines.append(f"| {one.what} | {one.goal} | {one.reached} | {ratio} | {said} |")
    return lines if found else []


def _cause(what: str, causes: Mapping[str, str]) -> str:
    """That of the first pattern that fits."""
    return next((cause for pattern, cause in causes.items() if fnmatchcase(what, pattern)), "cause not known")


def quality_table(store: Store) -> list[str]:
    """What quantisation costs on text."""
    if not store.quality:
        return []
    first = next(iter(store.quality.values()))
    lines = [
        f"KL against the contender's own bf16 over {first['tokens']} tokens of English text, the default model with",
        f"weights that lie on no format's grid, drawn {first['draws']} times (`python -m benchmarks.contest.quality`):",
        "", "| | mean, nats (95 % interval) | 95th percentile | same first choice |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, found in store.quality.items():
        label = f"{name.partition(' ')[0]} {found['called']}"
        low, high = found["interval"]
        mean = f"{found['kl_mean']:.5f} ({low:.5f} to {high:.5f})"
        lines.append(f"| {label} | {mean} | {found['kl_p95']:.5f} | {found['same']:.1%} |")
    for name, found in store.quality.items():
        if "ratio_interval" in found:
            low, high = found["ratio_interval"]
            there = store.quality[f"llama.cpp {name.partition(' ')[2]}"]
            ratio = found["kl_mean"] / there["kl_mean"]
            lines += ["", f"{name} / {there['called']}, the same pieces: {ratio:.3f} ({low:.3f} to {high:.3f})."]
    return lines


def _refusals(store: Store) -> list[str]:
    """Why cells are empty, each reason once per contender."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for key, scores in store.cells.items():
        for name, score in scores.items():
            if score.reason:
                reasons.setdefault((name, score.reason), []).append(key)
    return [f"* {name}: {reason} ({len(keys)} cells, such as {keys[0]})" for (name, reason), keys in reasons.items()]
