"""A result for people: plain text, and one HTML page that needs nothing else."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

Row = Mapping[str, Any]
WIDTH, WHY = 110, 48  # columns
MARKS = {"pass": "pass", "drift": "drift", "wrong": "WRONG"}


def text(result: Row) -> str:
    """Tables; reasons are cut, the page and the JSON file have them whole."""
    lines = []
    if result["note"]:
        lines += [*textwrap.wrap(result["note"], WIDTH), ""]
    lines += [
        f"{result['model']} ({result['arch']}, {result['layers_in_model']} layers), "
        f"prompts of {' and '.join(map(str, result['prompt_tokens']))} tokens",
        *_shown_side("tested", result["tested"]),
        *_shown_side("against", result["against"]),
        "",
    ]
    return "\n".join([*lines, *(_faults(result) if "faults" in result else _comparison(result))])


def _shown_side(what: str, side: Row) -> list[str]:
    facts = [f"           {name}: {value}" for name, value in side["facts"].items()]
    return [f"  {what:<7}  {side['label']}", *facts]


def _comparison(result: Row) -> list[str]:
    ops = [
        [op["op"], MARKS[op["verdict"]], str(op["calls"]), number(op["error"]), number(op["mean"]),
         number(op["allowed"]), f"{op['worst_layer']} {op['worst_site']}".strip(),
         textwrap.shorten(op["reason"], WHY, placeholder=" ...")]
        for op in result["ops"]
    ]  # fmt: skip
    columns = ("op", "verdict", "calls", "max error", "mean", "allowed", "worst at", "why")
    layers = [
        [row["layer"], MARKS[row["verdict"]], *_worst(row["worst_op"]), *_chained(row["chained"])]
        for row in result["layers"]
    ]
    layer_columns = ("layer", "verdict", "worst op", "max error", "allowed", "chained: max", "mean", "allowed")
    return [
        "Ops, each given the other side's inputs (errors are shares of the row's largest magnitude):", "",
        *aligned(columns, ops, right=(2, 3, 4, 5)), "",
        "Layers; chained: each side goes on with its own values:", "",
        *aligned(layer_columns, layers, right=(3, 4, 5, 6, 7)), "",
        *_tokens(result), "",
        f"Verdict: {MARKS[result['verdict']]} ({', '.join(f'{n} {v}' for v, n in result['counts'].items())}, "
        f"of {sum(result['counts'].values())} places).",
    ]  # fmt: skip


def _worst(op: Row | None) -> list[str]:
    if op is None:
        return ["", "", ""]
    return [f"{op['op']} {op['site']}".strip(), number(op["error"]), number(op["allowed"])]


def _chained(growth: Row | None) -> list[str]:
    return ["", "", ""] if growth is None else [number(growth[key]) for key in ("error", "mean", "allowed")]


def _tokens(result: Row) -> list[str]:
    lines = []
    logits = result["logits"]
    if logits is not None:
        lines.append(
            f"Logits ({MARKS[logits['verdict']]}): KL {number(logits['kl_mean'])} mean, {number(logits['kl_max'])} "
            f"largest (nats per token); same first choice {logits['same_first_choice']} of {logits['rows']}; "
            f"largest difference {number(logits['largest_error'])}"
        )
    for index, answer in enumerate(result["greedy"], 1):
        lines.append(f"Greedy decoding of prompt {index} ({MARKS[answer['verdict']]}): {told(answer)}")
    return lines


def told(answer: Row) -> str:
    """One greedy answer in a sentence."""
    if answer["diverges_at"] is None:
        return f"all {answer['tokens']} tokens are equal"
    return (
        f"token {answer['diverges_at'] + 1} of {answer['tokens']} is the first that differs "
        f"({answer['token_tested']}, not {answer['token_against']}; margin {number(answer['margin'])}): "
        f"{answer['reason']}"
    )


def _faults(result: Row) -> list[str]:
    rows = [
        [fault["fault"], fault["layer"], fault["op"], fault["status"],
         ", ".join(f"{place['op']} in {place['layer']}" for place in fault["found"]), fault["reason"]]
        for fault in result["faults"]
    ]  # fmt: skip
    columns = ("fault put in", "layer", "op", "status", "became wrong", "")
    done = "every fault was found" if result["verdict"] == "pass" else "NOT every fault was found"
    return [*aligned(columns, rows, right=()), "", f"Self-test: {done}."]


def number(value: float | None) -> str:
    """Two significant digits; what is no number says so."""
    return "not finite" if value is None else "0" if value == 0 else f"{value:.2g}"


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int]) -> list[str]:
    """The lines of a table."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    return [
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def page(result: Row) -> str:
    """The HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gallium.verify", "data"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "told": told}
    return environment.get_template("report.html.j2").render(marks=MARKS, **result)
