"""GALLIUM_TRACE over whole commands: written when they end, also by Ctrl-C, and refused before anything is loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import ROOT


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Start `gallium` with a trace; whatever is left of it is ended."""
    running: list[subprocess.Popen[str]] = []

    def started(*args: str, **pipes: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gallium", *args], cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
            env={**os.environ, "GALLIUM_TRACE": str(tmp_path / "trace.json")}, **pipes,
        )  # fmt: skip
        running.append(process)
        return process

    yield started
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def steps_of(path: Path) -> list[dict[str, Any]]:
    events = json.loads(path.read_text())["traceEvents"]
    return [event for event in events if event.get("cat") == "step"]


def test_ctrl_c_leaves_a_whole_trace(start: Any, tmp_path: Path) -> None:
    process = start("run", "--ignore-eos", "--max-tokens", "4000", "Hello", stdout=subprocess.PIPE)
    assert process.stdout.read(1)  # the answer has begun
    assert not (tmp_path / "trace.json").exists()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    steps = steps_of(tmp_path / "trace.json")
    assert steps[0]["name"] == "prefill" and steps[-1]["name"] == "decode"
    assert 2 <= len(steps) < 4000
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def test_a_server_writes_its_trace_when_it_is_stopped(start: Any, tmp_path: Path) -> None:
    process = start("serve", "--port", "0", stderr=subprocess.PIPE)
    url = next(word for line in process.stderr if " is ready at " in line for word in line.split() if "http" in word)
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert [step["name"] for step in steps_of(tmp_path / "trace.json")] == ["prefill", *["decode"] * 3]


def test_a_place_that_cannot_be_written_is_an_error_before_loading(gallium: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("GALLIUM_TRACE", "/nowhere/trace.json")
    result = gallium("run", "Hello")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no trace can be written to /nowhere/trace.json" in result.stderr


def test_ranks_are_refused_before_loading(gallium: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("GALLIUM_TRACE", str(tmp_path / "trace.json"))
    result = gallium("run", "--tp", "3", "--backend", "torch", "Hello")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "GALLIUM_TRACE traces a model in one process" in result.stderr
