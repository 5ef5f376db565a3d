"""`gallium convert`: writes a model again in another precision, as a folder that loads fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from gallium.cli.loading import quiet_hub_without_terminal
from gallium.cli.options import Command
from gallium.cli.terminal import ProgressBar, note
from gallium.settings import EngineSettings, Hub, PrecisionChoice

if TYPE_CHECKING:
    from gallium.checkpoints import Checkpoint
    from gallium.ops.handles import Precision

EPILOG = """\b
Examples:
  gallium convert zai-org/glm-edge-1.5b-chat glm-edge-int4
  gallium convert zai-org/GLM-4-9B-0414 /models/glm-4-9b-int8 --precision int8
  gallium convert model-Q4_K_M.gguf model-folder
  gallium chat glm-edge-int4
"""
CHOICES = [choice for choice in get_args(PrecisionChoice) if choice not in ("auto", "float16")]


@click.command(cls=Command, epilog=EPILOG)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--precision", type=click.Choice(CHOICES), default="int4", show_default=True,
              help="Precision of the matrices.")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite OUT if it is the folder of a model.")
@click.option("--hub", type=click.Choice(get_args(Hub)), default="huggingface", show_default=True,
              help="Where a hub name is looked up.")  # fmt: skip
@click.option("--revision", help="Branch, tag or commit at the hub.  [default: the hub's main one]")
def convert(model: str, out: Path, precision: Precision, force: bool, hub: Hub, revision: str | None) -> None:
    """Write MODEL in another precision, as the new folder OUT.

    OUT has the model's own tokenizer, chat template and settings, and runs like any other folder. Matrices that MODEL
    already has in this precision are copied as they are; with int4, embedding and head are kept in int8. OUT appears
    when it is whole, and its name is printed on standard output.
    """
    settings = EngineSettings(hub=hub, revision=revision)
    quiet_hub_without_terminal()
    from gallium.checkpoints import convert as write
    from gallium.checkpoints import open_checkpoint, resolve_model
    from gallium.checkpoints.replacing import check_target
    from gallium.engine.memory import show_bytes

    check_target(out, overwrite=force)  # before a model is fetched for it
    source = open_checkpoint(resolve_model(model, hub=settings.hub, revision=settings.revision).path)
    _check_complete(source)
    with ProgressBar("converting") as bar:
        write(source, out, precision, overwrite=force, save_tokenizer=_tokenizer_writer(source), progress=bar)
    sizes = [show_bytes(checkpoint.size_bytes) for checkpoint in (source, open_checkpoint(out))]
    note(f"{sizes[0]} became {sizes[1]}:  gallium chat {out}")
    click.echo(out)


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
