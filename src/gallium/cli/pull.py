"""`gallium pull`: fetches a model into the hub's own cache."""

from __future__ import annotations

import click

from gallium.cli.loading import quiet_hub_without_terminal
from gallium.cli.options import Command
from gallium.cli.terminal import note
from gallium.settings import EngineSettings, Hub

EPILOG = """\b
Examples:
  gallium pull zai-org/glm-edge-1.5b-chat
  gallium pull zai-org/GLM-4-9B-0414 --revision 645b8482494e31b6b752272bf7f7f273ef0f3caf
  gallium pull owner/some-model-GGUF:some-model-Q4_K_M.gguf
  gallium pull ZhipuAI/glm-edge-1.5b-chat --hub modelscope
"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("model")
@click.option("--hub", type=click.Choice(["huggingface", "modelscope"]), default="huggingface", show_default=True,
              help="Where to fetch from.")  # fmt: skip
@click.option("--revision", help="Branch, tag or commit.  [default: the hub's main one]")
def pull(model: str, hub: Hub, revision: str | None) -> None:
    """Fetch MODEL from a hub, so that later commands start at once.

    Prints the folder or file on standard output. A download that was interrupted goes on where it stopped when the
    command is run again. HF_HUB_OFFLINE=1, HF_HOME and HF_ENDPOINT are respected.
    """
    settings = EngineSettings(hub=hub, revision=revision)
    quiet_hub_without_terminal()
    from gallium.checkpoints import pull as fetch

    path = fetch(model, hub=settings.hub, revision=settings.revision)
    note(f"{model} is ready:  gallium chat {model}")
    click.echo(path)
