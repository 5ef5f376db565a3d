"""The program `gallium`: finds the command, and turns every error into one sentence and an exit code."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from gallium import __version__
from gallium.cli.options import wants_debug
from gallium.errors import GalliumError

COMMANDS = ("chat", "run", "serve", "pull", "doctor", "verify", "bench", "convert", "npu")
"""In the order of `--help`; each is the click command of its name in the module of its name."""

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

EPILOG = """\b
First steps:
  gallium chat                                     talk to the embedded default model
  gallium run "What is gravity?"                   one answer on standard output
  gallium pull zai-org/glm-edge-1.5b-chat          fetch a small GLM
  gallium chat zai-org/glm-edge-1.5b-chat
  gallium serve zai-org/glm-edge-1.5b-chat         an OpenAI-compatible server
  gallium doctor                                   what this machine can do
  gallium npu run train.py                         a torch_npu program on a virtual Ascend NPU
"""


class Program(click.Group):
    """A group that imports a command only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(import_module(f"gallium.cli.{cmd_name}"), cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, with a suggestion for a misspelt name."""
        name = args[0]
        if not name.startswith("-") and name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Choose from {', '.join(COMMANDS)}."
            raise click.UsageError(f"There is no command {name!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Errors of click's own go on to click: usage on standard error, exit code 2."""
        try:
            return super().invoke(ctx)
        except GalliumError as error:
            _report(ctx, f"Error: {error.message}")
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo(err=True)  # ends the line that shows ^C
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            _silence_stdout()
            ctx.exit(EXIT_BROKEN_PIPE)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            again = "" if wants_debug(ctx) else " Run again with --debug for the traceback, and please report it."
            _report(ctx, f"Error: internal error: {type(error).__name__}: {_one_line(error)}.{again}")
            ctx.exit(1)


def _report(ctx: click.Context, sentence: str) -> None:
    if wants_debug(ctx):
        click.echo(traceback.format_exc(), err=True, nl=False)
    click.echo(sentence, err=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or "no details"


def _silence_stdout() -> None:
    """Nobody reads any more: what is still buffered must not fail again at exit."""
    with suppress(OSError, ValueError):  # a stream without a file needs no silencing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(
    cls=Program,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="gallium", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Print tracebacks; may also stand after the command.")
def cli(debug: bool) -> None:
    """Run Z.ai's GLM language models on this machine: no CUDA.

    MODEL is a folder with config.json and *.safetensors, a .gguf file, or a hub name such as
    zai-org/glm-edge-1.5b-chat (fetched on first use). Without one, the embedded default model is used.
    """


def main() -> None:
    """The entry point of the `gallium` script."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not end the answer.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    cli(prog_name="gallium")


if __name__ == "__main__":
    main()
