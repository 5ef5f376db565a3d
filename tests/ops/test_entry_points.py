"""Entry points, beside what importlib.metadata finds."""

from __future__ import annotations

import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from gallium.ops.entry_points import EntryPoint, entry_points

GROUP = "some.group"
TEXT = f"""[other]
no = nowhere

[{GROUP}]
# a remark
join = os.path:join
  spaced=json : dumps [extra]
whole = json
"""


def package(folder: Path, name: str, text: str = TEXT) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(text)


def expected(group: str) -> list[tuple[str, str]]:
    return sorted((point.name, point.value) for point in metadata.entry_points(group=group))


@pytest.mark.parametrize("group", ["gallium.backends", "console_scripts", "pytest11", "a group that nobody has"])
def test_it_finds_what_importlib_finds(group: str) -> None:
    assert sorted(entry_points(group)) == expected(group)


def test_what_a_line_names_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "strange")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {point.name: point.load() for point in entry_points(GROUP)}
    import json
    import os

    assert found == {"join": os.path.join, "spaced": json.dumps, "whole": json}


def test_of_a_package_that_is_there_twice_the_first_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path / "behind", "Some.Package", f"[{GROUP}]\nname = behind\n")
    package(tmp_path / "front", "some_package", f"[{GROUP}]\nname = front\n")
    monkeypatch.syspath_prepend(str(tmp_path / "behind"))
    monkeypatch.syspath_prepend(str(tmp_path / "front"))
    assert entry_points(GROUP) == [EntryPoint("name", "front")]
    assert expected(GROUP) == [("name", "front")]


def test_packages_in_archives_are_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("inside-1.0.dist-info/METADATA", "Name: inside\nVersion: 1.0\n")
        out.writestr("inside-1.0.dist-info/entry_points.txt", f"[{GROUP}]\nname = inside\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(archive)])
    assert entry_points(GROUP) == [EntryPoint("name", "inside")]
