"""`gallium npu`: run torch_npu programs on a virtual Ascend NPU, and see what it has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gallium.cli.options import Command, CommandGroup
from gallium.cli.terminal import table
from gallium.errors import GalliumError, UsageError

if TYPE_CHECKING:
    from gallium.vnpu.options import Options

F = TypeVar("F", bound=Callable[..., Any])

EPILOG = """\b
Examples:
  gallium npu run train.py --epochs 1
  gallium npu doctor
  gallium npu ops --missing
"""

RUN_EPILOG = """\b
Examples:
  gallium npu run train.py --epochs 1
  gallium npu run --devices 4 -m torch.distributed.run --nproc-per-node 4 train_ddp.py
  gallium npu run --soc Ascend310P3 --strict infer.py
  gallium npu run --report report.html infer.py
"""


def machine_options(function: F) -> F:
    """The options that describe the virtual machine."""
    for option in (
        click.option("--traceback", is_flag=True, help="Errors of operators carry the emulator's traceback."),
        click.option("--strict", is_flag=True, help="torch_npu's own moves of an operator to the CPU are errors."),
        click.option(
            "--memory-gib", type=click.FloatRange(0.001, 4096), help="Memory per device.  [default: the chip's]"
        ),
        click.option("--devices", type=click.IntRange(1, 64), default=1, show_default=True, help="How many NPUs."),
        click.option(
            "--soc", default="Ascend910B2", show_default=True, help="The chip; `gallium npu doctor` lists them."
        ),
    ):
        function = option(function)
    return function


@click.group(cls=CommandGroup, epilog=EPILOG)
def npu() -> None:
    """Run torch_npu programs on a virtual Ascend NPU: no chip, no CANN, the torch_npu wheel as published.

    It tells whether a program runs, which operators it calls and with which arguments. It cannot tell speed, the
    numerics of the cube unit, or races.
    """


@npu.command(cls=Command, epilog=RUN_EPILOG, context_settings={"allow_interspersed_args": False})
@machine_options
@click.option("--report", help="Write what the program did to this file (.html or .json).")
@click.option("-m", "module", is_flag=True, help="TARGET is a module, as for python -m.")
@click.argument("target", nargs=-1, type=click.UNPROCESSED, required=True)
def run(target: tuple[str, ...], module: bool, report: str | None, **machine: Any) -> None:
    """Run TARGET, a script with its arguments, or with -m a module. Its processes inherit the virtual NPU."""
    start(["-m", *target] if module else [*target], checked(machine), report)


@npu.command(cls=Command)
@machine_options
def shell(**machine: Any) -> None:
    """An interactive Python with torch and torch_npu imported."""
    start(["-i", "-c", "import torch, torch_npu"], checked(machine), None)


@npu.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Show what is emulated: versions, chips, and how many operators; exits with 1 if it cannot run here."""
    from gallium.vnpu import inventory

    found = inventory.facts()
    click.echo(json.dumps(found, indent=2) if as_json else doctor_text(found))
    if found["problem"]:
        raise GalliumError(f"the virtual NPU cannot run here: {found['problem']}.")


@npu.command(cls=Command)
@click.option("--missing", is_flag=True, help="Only what is not emulated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.argument("names", nargs=-1)
def ops(names: tuple[str, ...], missing: bool, as_json: bool) -> None:
    """List CANN's operators that torch_npu calls: emulated or not, their limits, where their signature is from.

    NAMES limit the list to operators whose names contain one of them.
    """
    from gallium.vnpu import inventory

    rows = [
        row
        for row in inventory.operator_rows()
        if not (missing and row["status"] == "emulated")
        and (not names or any(name.lower() in row["name"].lower() for name in names))
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(
        table(["operator", "status", "limits", "signature from"], [[row[k] for k in inventory.COLUMNS] for row in rows])
    )


def checked(machine: dict[str, Any]) -> Options:
    """The options. Raises UsageError for an unknown chip, GalliumError where torch_npu is missing."""
    from gallium.vnpu import launch, soc
    from gallium.vnpu.options import OptionError, Options

    try:
        soc.find(machine["soc"])
    except OptionError as error:
        raise UsageError(str(error)) from None
    if problem := launch.missing():
        raise GalliumError(f"the virtual NPU cannot run here: {problem}.")
    return Options(**machine)


def start(arguments: list[str], options: Options, report: str | None) -> None:
    """Become the program. Raises UsageError for a script that is not there."""
    from gallium.vnpu import launch

    script = arguments[0]
    if not script.startswith("-") and not os.path.exists(script):  # noqa: PTH110
        raise UsageError(f"there is no script {script!r}; for a module, say -m MODULE.")
    if report is not None and not report.endswith((".html", ".json")):
        raise UsageError(f"--report {report}: the file's name ends with .html or .json.")
    command = launch.command(arguments)
    os.execve(command[0], command, launch.environment(options, report))


def doctor_text(found: dict[str, Any]) -> str:
    """The facts as text."""
    lines = ["Virtual Ascend NPU"]
    lines += [
        f"  {name.replace('_', ' '):22} {value}" for name, value in found.items() if name not in ("chips", "problem")
    ]
    lines.append("\n  chips (--soc):")
    lines.append(
        "\n".join("  " + line for line in table(["name", "family", "memory", "bfloat16"], found["chips"]).splitlines())
    )
    return "\n".join(lines)
