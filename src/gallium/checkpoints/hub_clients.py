"""The hubs' own clients, behind the three things that Gallium asks of them.

Large files of Hugging Face are fetched by checkpoints/resumable.py before its client is asked, because the client (2.x)
throws away what an interrupted download has brought.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gallium.checkpoints.hub_names import UNWANTED, WANTED, HubName, split_names
from gallium.checkpoints.resumable import RemoteFile, fetch_large
from gallium.errors import DownloadError
from gallium.settings import Hub

Listing = dict[str, RemoteFile]


class Client(NamedTuple):
    """One hub. All of it raises whatever the hub's own client raises."""

    list_files: Callable[[str, str | None], Listing]
    """(repository, revision) -> all its files."""
    fetch: Callable[[str, str | None, Listing], Path]
    """(repository, revision, the files that are needed) -> their folder."""
    find: Callable[[HubName, str | None], Path]
    """(name, revision) -> the local folder or GGUF file, without asking the hub."""


def _list_huggingface(repo: str, revision: str | None) -> Listing:
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    return {
        file.rfilename: RemoteFile(file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in info.siblings or []
    }


def _fetch_huggingface(repo: str, revision: str | None, files: Listing) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    fetch_large(repo, revision, files)
    if all(file.endswith(".gguf") for file in files):
        paths = {file: Path(hf_hub_download(repo, file, revision=revision)) for file in files}
        return next(path.parents[file.count("/")] for file, path in paths.items())
    return Path(snapshot_download(repo, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED))


def _find_huggingface(name: HubName, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    if name.file is not None:
        parts = split_names(name.file)
        paths = [Path(hf_hub_download(name.repo, p, revision=revision, local_files_only=True)) for p in parts]
        return paths[0]
    return Path(
        snapshot_download(
            name.repo, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED, local_files_only=True
        )
    )


def _list_modelscope(repo: str, revision: str | None) -> Listing:
    try:
        from modelscope.hub.api import HubApi
    except ImportError as cause:
        raise DownloadError(
            "ModelScope needs its client; install it with: pip install 'gallium[modelscope]'"
        ) from cause
    listed = HubApi().get_model_files(repo, revision=revision, recursive=True)
    return {file["Path"]: RemoteFile(file.get("Size", 0), "") for file in listed if file.get("Type") != "tree"}


def _fetch_modelscope(repo: str, revision: str | None, files: Listing) -> Path:
    from modelscope.hub.snapshot_download import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))


def _find_modelscope(name: HubName, revision: str | None) -> Path:
    from modelscope.hub.snapshot_download import snapshot_download

    folder = Path(snapshot_download(name.repo, revision=revision, local_files_only=True))
    return folder if name.file is None else folder / split_names(name.file)[0]


CLIENTS: dict[Hub, Client] = {
    "huggingface": Client(_list_huggingface, _fetch_huggingface, _find_huggingface),
    "modelscope": Client(_list_modelscope, _fetch_modelscope, _find_modelscope),
}
