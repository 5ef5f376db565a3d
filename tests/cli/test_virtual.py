"""`--virtual`: the command becomes itself in a process with virtual NPUs, or says why not."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from gallium.vnpu import launch

VIRTUAL = ("--backend", "ascend", "--virtual")


class Became(Exception):
    """In the place of the new process: its command and environment."""


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What processes were become; torch_npu counts as installed."""
    found: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, command: list[str], environment: dict[str, str]) -> None:
        assert path == command[0]
        found.append((command, environment))
        raise Became

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(launch, "missing", lambda: None)
    return found


@pytest.mark.parametrize(
    "line",
    [("run", *VIRTUAL, "Hello"), ("chat", *VIRTUAL), ("serve", "--port", "0", *VIRTUAL), ("doctor", *VIRTUAL)],
)
def test_a_command_becomes_itself_on_one_virtual_npu(
    gallium: Any, started: list[Any], monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gallium", *line])
    assert "Became" in gallium(*line).stderr
    ((command, environment),) = started
    assert command == [sys.executable, "-m", "gallium", *line]
    assert environment["GALLIUM_VNPU"] == "1"
    assert (environment["GALLIUM_VNPU_SOC"], environment["GALLIUM_VNPU_DEVICES"]) == ("Ascend910B2", "1")


def test_there_are_as_many_devices_as_ranks_of_the_chip_that_was_named(gallium: Any, started: list[Any]) -> None:
    gallium("run", *VIRTUAL, "--soc", "Ascend910_9391", "--tp", "2", "--ep", "4", "Hello")
    ((_, environment),) = started
    assert (environment["GALLIUM_VNPU_SOC"], environment["GALLIUM_VNPU_DEVICES"]) == ("Ascend910_9391", "4")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--virtual",), "--virtual emulates the chips of the backend ascend: add --backend ascend."),
        (("--virtual", "--backend", "cpu"), "add --backend ascend."),
        (("--soc", "Ascend910B2", "--backend", "ascend"), "--soc names the chip that --virtual shows: add --virtual."),
        ((*VIRTUAL, "--soc", "H20"), "unknown chip 'H20'; known: "),
        ((*VIRTUAL, "--soc", "Ascend910C"), "torch_npu knows no chip 'Ascend910C'; say Ascend910_9391"),
    ],
)
def test_what_makes_no_sense_is_refused(
    gallium: Any, started: list[Any], options: tuple[str, ...], sentence: str
) -> None:
    result = gallium("run", *options, "Hello")
    assert (result.exit_code, started) == (2, [])
    assert sentence in result.stderr


def test_a_process_that_is_virtual_goes_on(
    gallium: Any, pretend: Any, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend()
    monkeypatch.setenv("GALLIUM_VNPU", "1")
    monkeypatch.setenv("GALLIUM_VNPU_SOC", "Ascend310P3")
    assert gallium("run", *VIRTUAL, "Hello").exit_code == 0
    other = gallium("run", *VIRTUAL, "--soc", "Ascend910A", "Hello")
    assert "this process was started with a virtual Ascend310P3" in other.stderr
    assert started == []


def test_without_torch_npu_the_cure_is_named(gallium: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "missing", lambda: 'torch_npu is not installed: pip install "gallium[vnpu]"')
    result = gallium("run", *VIRTUAL, "Hello")
    assert result.exit_code == 1
    assert 'the virtual NPU cannot run here: torch_npu is not installed: pip install "gallium[vnpu]".' in result.stderr
