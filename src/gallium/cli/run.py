"""`gallium run`: one answer on standard output and nothing else there, fit for pipes."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from gallium.cli.answering import Answer, answer_messages, answer_raw, sampling_for
from gallium.cli.loading import loaded, stand_in
from gallium.cli.options import Command, engine_options, model_option, sampling_options
from gallium.cli.terminal import checked_text, note, read_stdin, stderr_is_terminal, stdin_is_terminal, write
from gallium.cli.virtual import virtual_options
from gallium.errors import UsageError
from gallium.settings import EngineSettings

if TYPE_CHECKING:
    from gallium.engine.assembly import Assembly

EPILOG = """\b
Examples:
  gallium run "What is gravity?"
  gallium run --temperature 0 --max-tokens 100 -m zai-org/glm-edge-1.5b-chat "Name three metals."
  gallium run --raw --temperature 0 "The capital of France is"
  git diff | gallium run --system "Write a commit message for this diff." > message.txt
  gallium run --json "Say hello." | jq .tokens_per_second
"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("prompt", required=False)
@model_option
@click.option("--system", help="The system message that stands before the prompt.")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without a chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the answer and its figures.")
@sampling_options()
@engine_options()
@virtual_options
def run(
    prompt: str | None,
    model: str | None,
    system: str | None,
    raw: bool,
    as_json: bool,
    sampling: dict[str, Any],
    settings: EngineSettings,
) -> None:
    """Answer PROMPT once.

    Without PROMPT, or with "-", the prompt is standard input (UTF-8). The answer goes to standard output as it is
    generated; reasoning, if the model thinks first, goes dimmed to standard error if that is a terminal.

    Unless told otherwise it draws with --temperature 0.6 --top-p 0.95 (0.2 and 0.9 for the embedded model).
    """
    if raw and system is not None:
        raise UsageError("--system needs the chat template, which --raw leaves out: use one of them.")
    for name in ("n", "logprobs"):
        if sampling.get(name, 1) != 1 and not as_json:
            raise UsageError(f"--{name} shows its result only with --json: add it.")
    text = _prompt_text(prompt)
    start = time.perf_counter()
    with loaded(model, settings) as assembly:
        load_s = time.perf_counter() - start
        params = sampling_for(assembly, sampling)
        if raw:
            answer = answer_raw(assembly, text, params)
        else:
            before = [] if system is None else [{"role": "system", "content": checked_text(system, "--system")}]
            answer = answer_messages(assembly, [*before, {"role": "user", "content": text}], params)
        if as_json:
            for _ in answer:
                pass
            click.echo(json.dumps(figures(assembly, answer, load_s), ensure_ascii=False, indent=2))
        else:
            _print(answer)
            if assembly.is_default and stderr_is_terminal():
                note(stand_in("run -m"))


def _prompt_text(prompt: str | None) -> str:
    if prompt is None and stdin_is_terminal():
        raise UsageError('there is no prompt: give one, as in gallium run "What is gravity?", or pipe it in.')
    text = read_stdin() if prompt in (None, "-") else checked_text(prompt or "", "the prompt")
    if not text.strip():
        raise UsageError("the prompt is empty: give some text, or pipe it in.")
    return text


def _print(answer: Answer) -> None:
    """Stream it. A reader that goes away, and Ctrl-C, end the answer too."""
    ends_line = True
    shows_reasoning = stderr_is_terminal()
    try:
        for piece in answer:
            if piece.kind == "content":
                write(piece.text)
                ends_line = piece.text.endswith("\n")
            elif shows_reasoning:
                click.secho(piece.text, nl=False, err=True, dim=True)
    except BaseException:
        answer.cancel()
        raise
    if not ends_line:
        write("\n")
    if answer.choices[0].finish_reason == "length" and shows_reasoning:
        note("(cut off: --max-tokens or the context was reached)")


def figures(assembly: Assembly, answer: Answer, load_s: float) -> dict[str, Any]:
    """What --json prints. Times in seconds; tokens per second are those after the first token."""
    choices = []
    for index, choice in enumerate(answer.choices):
        entry: dict[str, Any] = {
            "index": index,
            "text": choice.content,
            "reasoning": choice.reasoning or None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "tokens": len(choice.token_ids),
            "token_ids": choice.token_ids,
        }
        if choice.logprobs:
            entry["logprobs"] = [
                {"token_id": p.token_id, "logprob": p.logprob, "top": [list(pair) for pair in p.top]}
                for p in choice.logprobs
            ]
        choices.append(entry)
    times: dict[str, float | None] = {
        "load_s": load_s,
        "first_token_s": answer.first_token_s,
        "total_s": answer.total_s,
        "tokens_per_second": answer.tokens_per_second,
    }
    if assembly.emulated:  # an emulator's speed says nothing about the hardware's
        times = dict.fromkeys(times)
    return {
        "model": assembly.label,
        "backend": assembly.backend_name,
        "emulated": assembly.emulated,
        "precision": assembly.precision,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "completion_tokens": answer.completion_tokens,
        **{name: None if value is None else round(value, 4) for name, value in times.items()},
        "choices": choices,
    }
