"""Tokens per second against batch, context and precision, as small PNG files. Needs the extra `bench`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.contest.cells import BATCHES, CONTEXTS, PRECISIONS, WORKLOADS, Cell
from benchmarks.contest.peers import PEERS
from benchmarks.contest.store import Store

SIZE, DOTS = (5.0, 3.2), 90


def draw(store: Store, folder: Path) -> list[Path]:
    """One plot per question that at least two points answer; the files written."""
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for workload in WORKLOADS.values():
        for precision in workload.precisions:
            where = f"{workload.name} {precision}"
            batches = [(batch, Cell(workload.name, precision, "decode", batch, 128)) for batch in BATCHES]
            contexts = [(size, Cell(workload.name, precision, "decode", 1, size)) for size in CONTEXTS]
            for name, title, axis, points in (
                ("batch", f"{where}: decoding after 128 tokens", "sequences together", batches),
                ("context", f"{where}: decoding one sequence", "tokens before", contexts),
            ):
                path = folder / f"{workload.name}-{precision}-{name}.png".lower()
                if _lines(store, points, title, axis, path):
                    written.append(path)
        bars = [(precision, Cell(workload.name, precision, "prefill", 1, 512)) for precision in PRECISIONS]
        path = folder / f"{workload.name}-prefill.png".lower()
        if _bars(store, bars, f"{workload.name}: prefill of 512 tokens", path):
            written.append(path)
    return written


def _series(store: Store, points: list[tuple[int, Cell]]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for x, cell in points:
        for name, score in store.cells.get(cell.key, {}).items():
            if score.median is not None:
                found.setdefault(name, []).append((x, score.median))
    return {name: found[name] for name in PEERS if len(found.get(name, [])) > 1}


def _lines(store: Store, points: list[tuple[int, Cell]], title: str, axis: str, path: Path) -> bool:
    from matplotlib import pyplot

    series = _series(store, points)
    if not series:
        return False
    figure, axes = pyplot.subplots(figsize=SIZE, dpi=DOTS)
    for name, values in series.items():
        axes.plot(*zip(*values, strict=True), marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([x for x, _ in points], [str(x) for x, _ in points])
    axes.set(title=title, xlabel=axis, ylabel="tokens/s", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return True


def _bars(store: Store, points: list[tuple[str, Cell]], title: str, path: Path) -> bool:
    from matplotlib import pyplot

    names = [
        n for n in PEERS if any(n in store.cells.get(c.key, {}) and store.cells[c.key][n].rounds for _, c in points)
    ]
    if not names:
        return False
    figure, axes = pyplot.subplots(figsize=SIZE, dpi=DOTS)
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        heights = [
            (scores[name].median or 0.0) if name in (scores := store.cells.get(cell.key, {})) else 0.0
            for _, cell in points
        ]  # fmt: skip
        axes.bar([x + i * width for x in range(len(points))], heights, width, label=name)
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(points))], [label for label, _ in points])
    axes.set(title=title, ylabel="tokens/s")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return True
