"""Write docs/cli.md from the commands themselves; with --check, say whether the page is stale."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

import click

from gallium.cli.main import COMMANDS, cli
from gallium.settings import KNOWN_VARIABLES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 100
INTRO = """\
# The command line

This page is generated from the commands by `make docs`; CI fails when it is stale. `gallium COMMAND --help` prints the
same text.

Standard output carries results only; remarks, progress bars and errors go to standard error. Exit codes: 0 success,
1 failure, 2 wrong usage, 130 interrupted with Ctrl-C, 141 the reader of a pipe went away. An error is one sentence that
says what is wrong and what to do; `--debug` adds the traceback.
"""


def help_of(command: click.Command, name: str, parent: click.Context | None = None) -> str:
    """The text of --help, at a fixed width."""
    context = click.Context(
        command,
        parent,
        name,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines())


def sections(command: click.Command, name: str, parent: click.Context, level: int = 2) -> list[str]:
    """The command's help, and below it that of the commands it has itself."""
    parts = [f"{'#' * level} {parent.command_path} {name}\n", f"```text\n{help_of(command, name, parent)}\n```\n"]
    if isinstance(command, click.Group):
        context = click.Context(command, parent, name)
        for inner, below in command.commands.items():
            parts += sections(below, inner, context, level + 1)
    return parts


def page() -> str:
    """The whole page."""
    root = click.Context(cli, info_name="gallium")
    parts = [INTRO, "## gallium\n", f"```text\n{help_of(cli, 'gallium')}\n```\n"]
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        parts += sections(command, name, root)
    parts.append("## Environment variables\n")
    parts.append("An unknown name that begins with `GALLIUM_` is an error.\n")
    parts.append("".join(f"* `{name}`: {what}\n" for name, what in KNOWN_VARIABLES.items()))
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is stale")
    wanted = page()
    if not parser.parse_args().check:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    found = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if found == wanted:
        print("docs/cli.md: fresh")
        return 0
    changes = difflib.unified_diff(found.splitlines(), wanted.splitlines(), "docs/cli.md", "the commands", lineterm="")
    print("\n".join(changes), file=sys.stderr)
    print("docs/cli.md is stale: run `make docs`.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
