"""A folder is written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gallium.checkpoints.replacing import replacing_folder
from gallium.errors import CheckpointError, UsageError


def write(folder: Path, text: str = "new", *, overwrite: bool = False, keep: Path = Path("/"), needs: int = 0) -> None:
    with replacing_folder(folder, overwrite=overwrite, keep=keep, needs=needs) as fresh:
        assert not (folder / "file").exists() or (folder / "file").read_text() == "old"
        (fresh / "config.json").write_text("{}")
        (fresh / "file").write_text(text)


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "file").write_text("old")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("before", ["nothing", "empty", "model"])
def test_it_appears_whole_and_alone(tmp_path: Path, before: str) -> None:
    folder = tmp_path / "deep" / "[out]"
    if before == "empty":
        folder.mkdir(parents=True)
    if before == "model":
        (model(folder) / "more").touch()
    write(folder, overwrite=before == "model", keep=tmp_path / "source")
    assert names(folder) == ["config.json", "file"] and (folder / "file").read_text() == "new"
    assert names(folder.parent) == ["[out]"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, CheckpointError])
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    folder = model(tmp_path / "out")
    with pytest.raises(error), replacing_folder(folder, overwrite=True, keep=Path("/"), needs=0) as fresh:
        (fresh / "file").write_text("half")
        raise error
    assert names(tmp_path) == ["out"] and (folder / "file").read_text() == "old"


def test_a_disk_that_says_no_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"out could not be written: .+\. Nothing was changed"):
        write(tmp_path / "file" / "out")


def test_more_than_the_disk_has(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"would take 1,152,921,504,606,846,976 bytes, but only"):
        write(tmp_path / "out", needs=1 << 60)
    assert names(tmp_path) == []


def test_what_is_not_replaced(tmp_path: Path) -> None:
    folder = model(tmp_path / "out")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    refusals = [
        (folder, False, "exists: give another name, or --force"),
        (tmp_path / "file", True, "not a folder of its own"),
        (tmp_path / "link", True, "not a folder of its own"),
        (tmp_path / "other", True, "not the folder of a model"),
        (Path(), True, "cannot be the name"),
        (Path("/"), True, "cannot be the name"),
        (tmp_path / ("x" * 300), False, "File name too long"),
    ]
    before = names(tmp_path)
    for target, overwrite, message in refusals:
        with pytest.raises(UsageError, match=message):
            write(target, overwrite=overwrite)
    assert names(tmp_path) == before


@pytest.mark.parametrize("read", ["out", "out/model.gguf"])
def test_what_is_being_read_is_not_replaced(tmp_path: Path, read: str) -> None:
    folder = model(tmp_path / "out")
    with pytest.raises(UsageError, match="is what is being read"):
        write(folder, overwrite=True, keep=tmp_path / read)
    assert (folder / "file").read_text() == "old"


def test_what_a_killed_process_left_is_swept_up(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".out.{ended.pid}.unfinished", f".out.{os.getppid()}.unfinished", ".out.notes.unfinished"):
        (tmp_path / name).mkdir()
    write(tmp_path / "out")
    assert names(tmp_path) == [f".out.{os.getppid()}.unfinished", ".out.notes.unfinished", "out"]
