"""`gallium pull` end to end, against a hub on loopback."""

from __future__ import annotations

import os
import pty
import signal
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.checkpoints.hub_server import Hub, digest, finish, model_files, parts_of

MIB = 1 << 20


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_the_folder_is_all_there_is_on_standard_output(hub: Hub, home: Path, tmp_path: Path) -> None:
    hub.repos["o/m"] = files = model_files(tmp_path / "source", 2 * MIB)
    done = hub.run(home, "pull", "o/m")
    assert (done.code, done.err) == (0, "o/m is ready:  gallium chat o/m\n")
    assert {path.name: path.read_bytes() for path in done.path.iterdir()} == files


@pytest.mark.parametrize(("size", "stall", "resumed"), [(12 * MIB, 11 * MIB, 10 * MIB), (MIB // 2, MIB // 4, 0)])
def test_a_killed_download_leaves_no_final_name_and_goes_on_in_the_next_run(
    hub: Hub, home: Path, tmp_path: Path, size: int, stall: int, resumed: int
) -> None:
    hub.repos["o/m"] = files = model_files(tmp_path / "source", size)
    hub.faults.stall = stall
    process = hub.start(home, "pull", "o/m")
    assert hub.faults.stalled.wait(60)
    if resumed:
        (part,) = parts_of(home)
        while part.stat().st_size < resumed:  # what has been sent is on its way to the disk
            assert process.poll() is None
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    hub.faults.released.set()
    data = files["model.safetensors"]
    assert digest(data) not in {path.name for path in home.rglob("*")}
    assert not list(home.rglob("model.safetensors"))
    done = hub.run(home, "pull", "o/m")
    assert (done.path / "model.safetensors").read_bytes() == data
    assert [request.start for request in hub.transfers] == [0, resumed]


def test_ctrl_c_is_exit_code_130(hub: Hub, home: Path, tmp_path: Path) -> None:
    hub.repos["o/m"] = model_files(tmp_path / "source", 2 * MIB)
    hub.faults.stall = MIB
    process = hub.start(home, "pull", "o/m")
    assert hub.faults.stalled.wait(60)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130 and "Traceback" not in done.err


def test_a_name_that_is_none_is_wrong_usage(hub: Hub, home: Path) -> None:
    done = hub.run(home, "pull", "just-a-model")
    assert (done.code, done.out) == (2, "") and "not a hub name" in done.err
    assert hub.requests == []


def test_on_a_terminal_a_bar_shows_the_progress(hub: Hub, home: Path, tmp_path: Path) -> None:
    hub.repos["o/m"] = model_files(tmp_path / "source", 2 * MIB)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 120))
    process = hub.start(home, "pull", "o/m", stderr=slave)
    os.close(slave)
    assert finish(process).code == 0
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "model.safetensors: 100%" in shown
