"""Copies of a checkpoint folder in which single files are changed, cut off or gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

Content: TypeAlias = dict[str, Any] | str | bytes | int | None


def altered(folder: Path, copy: Path, files: Mapping[str, Content]) -> Path:
    """`copy`, in which each of `files` has other JSON values (a dictionary), another content (a text or bytes), only so
    many bytes (a number; negative: so many are missing), or is not there (None).
    """
    shutil.copytree(folder, copy)
    for name, content in files.items():
        path = copy / name
        if isinstance(content, dict):
            path.write_text(json.dumps(json.loads(path.read_text()) | content), encoding="utf-8")
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, int):
            path.write_bytes(path.read_bytes()[:content])
        else:
            path.unlink()
    return copy
