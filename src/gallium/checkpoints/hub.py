"""Fetches models from Hugging Face or ModelScope into the hub's own cache, so that other tools find them too."""

from __future__ import annotations

import logging
from pathlib import Path

from gallium.checkpoints.hub_clients import CLIENTS
from gallium.checkpoints.hub_errors import explain, is_offline, is_refusal
from gallium.checkpoints.hub_names import HubName, choose_files, hub_name, keeps_within
from gallium.checkpoints.opening import open_checkpoint
from gallium.checkpoints.resolve import SUGGESTED
from gallium.errors import CheckpointError, GalliumError, UnsupportedFormat, UnsupportedModel, UsageError
from gallium.settings import Hub


def pull(name: str, *, hub: Hub = "huggingface", revision: str | None = None) -> Path:
    """Fetch `owner/model` (a folder) or `owner/model:file.gguf` (a file); only what is missing or has changed.

    A progress bar is drawn on a terminal. An interrupted download goes on where it stopped when this is called again;
    no file has its final name before it is whole. With HF_HUB_OFFLINE=1, or when the hub cannot be reached, the local
    copy is used if it is complete. Raises DownloadError with what to do, UsageError if this is no hub name.
    """
    wanted = hub_name(name)
    if wanted is None:
        raise UsageError(f"{name!r} is not a hub name; one looks like {SUGGESTED} or owner/model:file.gguf.")
    try:
        return _pull(wanted, hub, revision)
    except GalliumError:
        raise
    except Exception as cause:  # each client has its own tree of errors; all of them mean "not fetched"
        raise explain(name, hub, cause) from cause


def _pull(name: HubName, hub: Hub, revision: str | None) -> Path:
    client = CLIENTS[hub]
    try:
        listed = client.list_files(name.repo, revision)
    except GalliumError:
        raise
    except Exception as cause:
        return _local_copy(name, hub, revision, cause)
    files = choose_files(name, sorted(filter(keeps_within, listed)))
    folder = client.fetch(name.repo, revision, {file: listed[file] for file in files})
    return folder / files[0] if files[0].endswith(".gguf") else folder


def _local_copy(name: HubName, hub: Hub, revision: str | None, cause: Exception) -> Path:
    """The cached model when the hub cannot be reached. If the hub said no, or nothing is cached, `cause` it is."""
    path = None if is_refusal(cause) else cached(name, hub=hub, revision=revision)
    if path is None:
        raise cause
    if not is_offline(cause):
        logging.getLogger(__name__).warning("the hub cannot be reached; using the local copy of %s", name.repo)
    return path


def cached(name: HubName, *, hub: Hub, revision: str | None) -> Path | None:
    """The complete local copy of a model, found without asking the hub; None if there is none."""
    try:
        path = CLIENTS[hub].find(name, revision)
    except Exception:  # not there: each client has its own word for it
        return None
    try:
        open_checkpoint(path)
    except (UnsupportedFormat, UnsupportedModel):
        return path  # whole, and of no use: fetching it again would not help
    except CheckpointError:
        return None
    return path
