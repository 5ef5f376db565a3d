"""`gallium verify`: a backend beside another on the same model, op by op, layer by layer, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from gallium.cli.loading import quiet_hub_without_terminal, stand_in
from gallium.cli.options import Command, engine_options, model_argument
from gallium.cli.terminal import ProgressBar, checked_text, note
from gallium.cli.virtual import virtual_options
from gallium.errors import BackendError, UsageError
from gallium.settings import EngineSettings, PrecisionChoice

if TYPE_CHECKING:
    from gallium.verify.opening import Pair

EPILOG = """\b
Examples:
  gallium verify
  gallium verify zai-org/glm-edge-1.5b-chat --backend ascend --against cpu
  gallium verify --backend cpu --precision int8 --against reference --html report.html
  gallium verify --backend ascend --virtual --self-test
  gallium verify --backend ascend --record record.json --signed-by "Jane Doe <jane@example.org>"
"""


@click.command(cls=Command, epilog=EPILOG)
@model_argument
@click.option("--against", metavar="NAME", help="The backend to compare with.  [default: cpu; for cpu: reference]")
@click.option("--against-precision", type=click.Choice(get_args(PrecisionChoice)),
              help="Its precision.  [default: float32, or what it has; of integers those]")  # fmt: skip
@click.option("--prompt", "texts", metavar="TEXT", multiple=True,
              help="Text to run; may be repeated.  [default: two built-in ones]")  # fmt: skip
@click.option("--tokens", type=click.IntRange(1, 4096), default=24, show_default=True,
              help="Longest prompt in tokens; more are cut off.")  # fmt: skip
@click.option("--new-tokens", type=click.IntRange(0, 4096), default=16, show_default=True,
              help="Tokens to decode greedily on each side.")  # fmt: skip
@click.option("--self-test", is_flag=True, help="Put known faults into the tested side, and find each.")
@click.option("--json", "json_file", metavar="FILE", help="Write everything to this file; - is standard output.")
@click.option("--html", "html_file", metavar="FILE", help="Write a page to this file.")
@click.option("--record", "record_file", metavar="FILE", help="Write a record of this run, to be contributed.")
@click.option("--signed-by", metavar="NAME", help="Who vouches for the record.")
@engine_options(
    without=("tp", "dp", "ep", "kv_precision", "kv_memory", "max_context", "graphs", "speculate", "draft_precision")
)
@virtual_options
def verify(model: str | None, settings: EngineSettings, self_test: bool, new_tokens: int, **asked: Any) -> None:
    """Compare --backend with --against on MODEL (default: the embedded one): op by op, layer by layer, token by token.

    Each op of the tested backend gets the other's inputs and is judged alone: pass, drift as expected for the
    precision, or wrong. Then each side goes on with its own values, layer after layer, and decodes greedily.

    Both sides stand in memory at once, the other by default in float32. Ends with exit code 1 if anything is wrong, or
    with --self-test if a fault is not found.
    """
    from gallium.verify.opening import open_pair, prompts_of

    texts = [checked_text(text, "--prompt") for text in asked["texts"]]
    _check(self_test, asked["record_file"], asked["signed_by"])
    quiet_hub_without_terminal()
    with ProgressBar("loading") as bar:
        pair = open_pair(model, settings, asked["against"], asked["against_precision"], bar, finest=self_test)
    prompts = prompts_of(pair, texts, asked["tokens"])
    note(f"{pair.label}: {pair.tested.label}, against {pair.other.label}")
    if pair.is_default:
        note(stand_in("verify"))
    result = _self_test(pair, prompts) if self_test else _compare(pair, prompts, new_tokens)
    _write(result, asked)
    if result["verdict"] == "wrong":
        raise BackendError(_sentence(result))


def _check(self_test: bool, record: str | None, signed_by: str | None) -> None:
    if record is not None and self_test:
        raise UsageError("--record keeps a comparison, not a self-test: leave out one of them.")
    if record is not None and not (signed_by or "").strip():
        raise UsageError("a record needs somebody who vouches for it: add --signed-by NAME.")
    if record is None and signed_by is not None:
        raise UsageError("--signed-by signs a record: add --record FILE.")


def _compare(pair: Pair, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
    from gallium.verify.comparing import compare
    from gallium.verify.results import result_of

    return result_of(pair, prompts, compare(pair.tested, pair.other, prompts, new_tokens))


def _self_test(pair: Pair, prompts: list[list[int]]) -> dict[str, Any]:
    from gallium.verify.faults import FAULTS, self_test
    from gallium.verify.results import self_test_of

    outcomes = []
    with ProgressBar("faults") as bar:
        for outcome in self_test(pair.tested, pair.other, prompts):
            outcomes.append(outcome)
            bar(len(outcomes), len(FAULTS))
    return self_test_of(pair, prompts, outcomes)


def _write(result: dict[str, Any], asked: dict[str, Any]) -> None:
    from gallium.verify.records import record_of
    from gallium.verify.report import page, text

    if asked["json_file"] == "-":
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        click.echo(text(result))
    if asked["json_file"] not in (None, "-"):
        _save(asked["json_file"], json.dumps(result, indent=1, ensure_ascii=False))
    if asked["html_file"]:
        _save(asked["html_file"], page(result))
    if asked["record_file"]:
        _save(asked["record_file"], json.dumps(record_of(result, asked["signed_by"]), indent=1, ensure_ascii=False))
        if result["emulated"]:
            note("The record says that the hardware was emulated: it verifies no chip.")


def _save(name: str, content: str) -> None:
    try:
        Path(name).write_text(content + "\n", encoding="utf-8")
    except OSError as cause:
        raise UsageError(f"{name} cannot be written: {cause.strerror}.") from None
    note(f"wrote {name}")


def _sentence(result: dict[str, Any]) -> str:
    if "faults" in result:
        missed = [
            fault["fault"] for fault in result["faults"] if fault["status"].startswith(("not found", "found else"))
        ]
        return f"the verification did not find what it should: {', '.join(missed)}."
    wrong = [f"{op['op']} in layer {op['worst_layer']}" for op in result["ops"] if op["verdict"] == "wrong"]
    tested = result["tested"]["label"]
    if wrong:
        return f"{tested} computes wrongly: {', '.join(wrong)}."
    return f"{tested} computes wrongly, though every op alone is right: see the layers and the tokens above."
