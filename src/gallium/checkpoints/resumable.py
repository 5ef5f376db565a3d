"""Fetches large files of Hugging Face into its cache so that an interrupted download goes on where it stopped.

The layout is the documented one of the hub's cache (models--OWNER--NAME/blobs/ETAG): a part grows beside the place of
the finished blob, under a name that the client never looks at, and is renamed when it is whole. Afterwards the client
finds the blob and only links it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from gallium.errors import DownloadError

LARGE = 1 << 20  # smaller files are not worth resuming
PART = ".gallium-part"
SHA256 = re.compile(r"[0-9a-f]{64}")
CHUNK = 1 << 20


class RemoteFile(NamedTuple):
    """What a listing says of a file."""

    size: int
    etag: str  # the name of its blob in the cache


def fetch_large(repo: str, revision: str | None, files: Mapping[str, RemoteFile]) -> None:
    """Fetch every file of at least LARGE bytes that the cache lacks. Raises DownloadError, or the client's errors."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    check_space(folder / "blobs", files.values())
    largest = getattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", 50 * 1000**3)
    for name, file in files.items():
        if LARGE <= file.size <= largest:  # beyond, only the client's own protocol is served
            _fetch(repo, revision, name, folder)


def check_space(blobs: Path, files: Iterable[RemoteFile]) -> None:
    """Raise DownloadError if the files, or what is missing of them, do not fit on the disk."""
    needed = sum(max(0, file.size - _arrived(blobs / file.etag)) for file in files)
    blobs.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(blobs).free
    if free < needed:
        raise DownloadError(
            f"the disk is full: {needed:,} more bytes are needed, and {blobs} has {free:,} free. Free some space and "
            "run the command again, or set HF_HOME to a folder on another disk: what has arrived is kept."
        )


def _arrived(blob: Path) -> int:
    """Bytes that are there of a blob, finished or not."""
    return next((path.stat().st_size for path in (blob, _part(blob)) if path.is_file()), 0)


def _part(blob: Path) -> Path:
    return blob.with_name(blob.name + PART)


def _fetch(repo: str, revision: str | None, file: str, folder: Path) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    url = hf_hub_url(repo, file, revision=revision)
    facts = get_hf_file_metadata(url)
    if facts.etag is None or facts.size is None or not re.fullmatch(r"[\w-]+", facts.etag):
        return  # a server that does not say what it sends: the client copes, without resuming
    blob = folder / "blobs" / facts.etag
    lock = folder.parent / ".locks" / folder.name / f"{facts.etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):  # the one that the client uses for this blob
        if not blob.exists():
            _grow(_part(blob), url, facts.location, facts.size, facts.etag, file)
            _part(blob).replace(blob)


def _grow(part: Path, url: str, location: str, size: int, etag: str, file: str) -> None:
    """Append to `part` until it has `size` bytes."""
    from huggingface_hub import get_token
    from huggingface_hub.file_download import http_get

    headers = {"Accept-Encoding": "identity"}
    token = get_token()
    if token and urlsplit(location).netloc == urlsplit(url).netloc:  # a signed address elsewhere must not see it
        headers["Authorization"] = f"Bearer {token}"
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    with part.open("ab") as growing:
        http_get(location, growing, resume_size=have, headers=headers, expected_size=size, displayed_filename=file)
    if part.stat().st_size != size or (have and SHA256.fullmatch(etag) and _sha256(part) != etag):
        part.unlink()
        raise DownloadError(f"{file} arrived damaged and was thrown away. Run the command again.")


def _sha256(path: Path) -> str:
    """Of a resumed file: its halves may be of different versions."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
