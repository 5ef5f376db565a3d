"""`gallium convert`: writes a model again, in another precision or packed for this machine's kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from gallium.cli.loading import quiet_hub_without_terminal
from gallium.cli.options import Command
from gallium.cli.terminal import ProgressBar, note
from gallium.errors import UsageError
from gallium.settings import EngineSettings, Hub, PrecisionChoice

if TYPE_CHECKING:
    from gallium.checkpoints import Checkpoint

EPILOG = """\b
Examples:
  gallium convert zai-org/glm-edge-1.5b-chat glm-edge-int4
  gallium convert zai-org/GLM-4-9B-0414 /models/glm-4-9b-int8 --precision int8
  gallium convert --packed zai-org/glm-edge-1.5b-chat glm-edge.packed
  gallium convert --packed --precision auto model-Q4_K_M.gguf model.packed
  gallium convert --check glm-edge.packed
  gallium chat glm-edge.packed
"""
CHOICES = [choice for choice in get_args(PrecisionChoice) if choice != "float16"]
DEFAULT_MODEL = "default"


@click.command(cls=Command, epilog=EPILOG)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--precision", type=click.Choice(CHOICES), default="int4", show_default=True,
              help="Precision of the matrices; auto, with --packed: that of MODEL.")  # fmt: skip
@click.option("--packed", is_flag=True, help="Write what the CPU's kernels read, so that it loads at once.")
@click.option("--check", is_flag=True, help="Compare every byte of the packed folder MODEL with its checksums.")
@click.option("--force", is_flag=True, help="Overwrite OUT if it is the folder of a model.")
@click.option("--hub", type=click.Choice(get_args(Hub)), default="huggingface", show_default=True,
              help="Where a hub name is looked up.")  # fmt: skip
@click.option("--revision", help="Branch, tag or commit at the hub.  [default: the hub's main one]")
def convert(
    model: str,
    out: Path | None,
    precision: PrecisionChoice,
    packed: bool,
    check: bool,
    force: bool,
    hub: Hub,
    revision: str | None,
) -> None:
    """Write MODEL in another precision, as the new folder OUT.

    OUT has the model's own tokenizer, chat template and settings, and runs like any other folder. Matrices that MODEL
    already has in this precision are copied as they are; with int4, embedding and head are kept in int8. OUT appears
    when it is whole, and its name is printed on standard output. MODEL may be "default", the embedded model.

    With --packed, OUT holds the weights as the CPU backend has them in memory. Nothing is packed when it is loaded: the
    file is mapped, shared by all processes that run it. It gives the very tokens that MODEL gives in this precision. It
    is for this backend only, and is made again when a new version of Gallium has another layout.
    """
    settings = EngineSettings(backend="cpu", hub=hub, revision=revision, precision=precision)
    if check:
        _check(model, alone=out is None and not packed)
        return
    if out is None:
        raise UsageError("the name of the new folder is missing: gallium convert MODEL OUT.")
    if precision == "auto" and not packed:
        raise UsageError("--precision auto is for --packed: without it, name the precision.")
    quiet_hub_without_terminal()
    from gallium.checkpoints import open_checkpoint, resolve_model
    from gallium.checkpoints.replacing import check_target
    from gallium.engine.memory import show_bytes

    check_target(out, overwrite=force)  # before a model is fetched for it
    name = None if model == DEFAULT_MODEL and not Path(model).exists() else model
    resolved = resolve_model(name, hub=settings.hub, revision=settings.revision)
    source = open_checkpoint(resolved.path)
    if source.kind == "packed":
        raise UsageError(f"{resolved.path} is packed already: convert the model that it was packed from.")
    _check_complete(source)
    with ProgressBar("packing" if packed else "converting") as bar:
        if packed:
            from gallium.engine.packing import pack

            pack(source, out, settings, label=resolved.label, overwrite=force, progress=bar)
        else:
            _write(source, out, precision, force, bar)
    sizes = [show_bytes(checkpoint.size_bytes) for checkpoint in (source, open_checkpoint(out))]
    note(f"{sizes[0]} became {sizes[1]}:  gallium chat {out}")
    click.echo(out)


def _write(source: Checkpoint, out: Path, precision: PrecisionChoice, force: bool, bar: ProgressBar) -> None:
    from gallium.checkpoints import convert as write

    assert precision != "auto"  # convert() has looked
    write(source, out, precision, overwrite=force, save_tokenizer=_tokenizer_writer(source), progress=bar)


def _check(model: str, *, alone: bool) -> None:
    """Compare a packed folder with its checksums."""
    from gallium.checkpoints.opening import PACKED_FILE
    from gallium.checkpoints.packed_file import check_contents
    from gallium.engine.memory import show_bytes

    folder = Path(model)
    if not alone or not (folder / PACKED_FILE).exists():
        raise UsageError(f"--check takes the name of a packed folder and nothing else; {folder} has no {PACKED_FILE}.")
    with ProgressBar("checking") as bar:
        size = check_contents(folder, bar)
    note(f"{show_bytes(size)} are as they were written.")
    click.echo(folder)


def _check_complete(source: Checkpoint) -> None:
    """Raise the errors of loading now, not when the new folder is first used."""
    from gallium.models.catalog import expected_tensors, ignored_tensors
    from gallium.models.config import read_spec

    spec = read_spec(source.config, source.generation_config)
    source.check(expected_tensors(spec, source.names()), ignored_tensors(spec, source.names()))


def _tokenizer_writer(source: Checkpoint) -> Callable[[Path], None] | None:
    """Writes the tokenizer of a GGUF file; a folder's own files are copied."""
    from gallium.text.tokenizer import Tokenizer

    return Tokenizer.from_gguf(source.metadata).save if source.kind == "gguf" else None
