"""What names mean on a hub: of models, and of the files among which a model's are chosen."""

from __future__ import annotations

import fnmatch
import re
from typing import NamedTuple

from gallium.checkpoints.gguf_file import SPLIT_NAME
from gallium.checkpoints.opening import gguf_models
from gallium.errors import DownloadError

HUB_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[^:\s]+\.gguf))?")
WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer*", "LICENSE*"]
UNWANTED = ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth"]  # other forms of the same weights; pickles


class HubName(NamedTuple):
    """`owner/model` or `owner/model:file.gguf`."""

    repo: str
    file: str | None


def hub_name(text: str) -> HubName | None:
    """What a text names on a hub, None if it cannot be a hub name."""
    match = HUB_NAME.fullmatch(text)
    if match is None or ".." in text:
        return None
    return HubName(match["repo"], match["file"])


def keeps_within(file: str) -> bool:
    """Whether a file name of a repository stays in its folder."""
    return not file.startswith("/") and "\\" not in file and ".." not in file.split("/")


def choose_files(name: HubName, files: list[str]) -> list[str]:
    """The files of a repository that the model needs; one GGUF file (with all its parts) or the safetensors form.

    Raises DownloadError when the named file is not there, when there are several GGUF files to choose from, or when
    there is nothing that Gallium reads.
    """
    ggufs = gguf_models(files)
    choices = "\n".join(f"  {name.repo}:{file}" for file in ggufs)
    if name.file is not None:
        parts = split_names(name.file)
        if all(part in files for part in parts):
            return parts
        known = f"; it has:\n{choices}" if ggufs else ", nor any other GGUF file."
        raise DownloadError(f"{name.repo} has no file {name.file}{known}")
    wanted = [f for f in files if _matches(f, WANTED) and not _matches(f, UNWANTED)]
    if any(f.endswith(".safetensors") for f in wanted):
        return wanted
    if len(ggufs) == 1:
        return split_names(ggufs[0])
    if ggufs:
        raise DownloadError(f"{name.repo} has {len(ggufs)} GGUF files; name one of them:\n{choices}")
    pickled = (
        " (pickles, which Gallium does not open, are all it has)" if any(f.endswith(".bin") for f in files) else ""
    )
    raise DownloadError(f"{name.repo} has neither safetensors nor GGUF files{pickled}, so Gallium cannot run it.")


def _matches(file: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)


def split_names(file: str) -> list[str]:
    """All parts of a split GGUF file, given any; of another file itself."""
    folder, slash, base = file.rpartition("/")
    match = SPLIT_NAME.fullmatch(base)
    if match is None:
        return [file]
    count = int(match["count"])
    return [f"{folder}{slash}{match['stem']}-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)]
