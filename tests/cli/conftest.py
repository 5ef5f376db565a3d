"""The program over a pretend model, in this process and in others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.cli.pretend import PretendAssembly, install, pretend_assembly

from gallium.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "tests.cli.pretend"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's files or settings."""
    for name in [name for name in os.environ if name.startswith("GALLIUM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PretendAssembly]:
    """Put a pretend model in the place of every other; keywords are its script."""
    return lambda **script: install(pretend_assembly(script), monkeypatch.setattr)


@pytest.fixture
def gallium() -> Callable[..., Result]:
    """Run one command line in this process."""

    def run(*args: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(cli, args, input=stdin, prog_name="gallium")

    return run


@pytest.fixture
def program() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the program over a pretend model in another process; environment variables are its script."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: str, environment: dict[str, str] | None = None, **pipes: Any) -> subprocess.Popen[bytes]:
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
        process = subprocess.Popen([*PROGRAM, *args], cwd=ROOT, env={**os.environ, **(environment or {})}, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
