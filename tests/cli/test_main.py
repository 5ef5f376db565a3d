"""The group: help, exit codes, errors as one sentence, settings from the environment."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gallium.cli.pull
from gallium import __version__
from gallium.cli.main import COMMANDS
from gallium.errors import DownloadError, InvalidRequest

PULL = ("pull", "owner/model")


def fail_with(monkeypatch, error):
    def fetch(*args, **named):
        raise error

    monkeypatch.setattr("gallium.checkpoints.pull", fetch)


def test_help_names_every_command(gallium):
    result = gallium("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout
    assert "gallium chat" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_examples(gallium, name):
    for flag in ("--help", "-h"):
        result = gallium(name, flag)
        assert result.exit_code == 0
        assert f"gallium {name}" in result.stdout
        assert "Examples:" in result.stdout
        assert "--debug" in result.stdout


def test_version(gallium):
    assert gallium("--version").stdout == f"gallium {__version__}\n"


def test_without_arguments_it_shows_the_help(gallium):
    result = gallium()
    assert result.exit_code == 2
    assert "First steps" in result.output


def test_a_misspelt_command_gets_a_suggestion(gallium):
    result = gallium("chatt")
    assert result.exit_code == 2
    assert "Did you mean 'chat'?" in result.stderr
    assert result.stdout == ""


def test_an_unknown_command_gets_the_list(gallium):
    result = gallium("xyzzy")
    assert result.exit_code == 2
    assert "bench" in result.stderr


def test_a_misspelt_option_gets_a_suggestion(gallium):
    result = gallium("run", "--temperatur", "0", "hello")
    assert result.exit_code == 2
    assert "--temperature" in result.stderr
    assert "Usage: gallium run" in result.stderr


def test_a_failure_is_one_sentence_and_exit_code_1(gallium, monkeypatch):
    fail_with(monkeypatch, DownloadError("the disk is full. Free some space."))
    result = gallium(*PULL)
    assert result.exit_code == 1
    assert result.stderr == "Error: the disk is full. Free some space.\n"
    assert result.stdout == ""


def test_wrong_usage_found_later_is_exit_code_2(gallium, monkeypatch):
    fail_with(monkeypatch, InvalidRequest("top_p is wrong.", "top_p"))
    assert gallium(*PULL).exit_code == 2


@pytest.mark.parametrize("args", [("--debug", *PULL), (*PULL, "--debug")])
def test_debug_adds_the_traceback_wherever_it_stands(gallium, monkeypatch, args):
    fail_with(monkeypatch, DownloadError("no network."))
    result = gallium(*args)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("Error: no network.\n")


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debug_by_environment(gallium, monkeypatch, value, shown):
    monkeypatch.setenv("GALLIUM_DEBUG", value)
    fail_with(monkeypatch, DownloadError("no network."))
    assert ("Traceback" in gallium(*PULL).stderr) is shown


def test_an_internal_error_is_one_line(gallium, monkeypatch):
    fail_with(monkeypatch, KeyError("a\nb"))
    result = gallium(*PULL)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: internal error: KeyError: ")
    assert "--debug" in result.stderr
    assert result.stderr.count("\n") == 1


def test_ctrl_c_is_exit_code_130(gallium, monkeypatch):
    fail_with(monkeypatch, KeyboardInterrupt())
    result = gallium(*PULL)
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


def test_an_unknown_variable_is_refused(gallium, monkeypatch):
    monkeypatch.setenv("GALLIUM_THREAD", "2")
    result = gallium(*PULL)
    assert result.exit_code == 2
    assert "GALLIUM_THREAD" in result.stderr
    assert "GALLIUM_THREADS" in result.stderr


def test_an_unknown_variable_does_not_keep_the_help_away(gallium, monkeypatch):
    monkeypatch.setenv("GALLIUM_THREAD", "2")
    assert gallium("--help").exit_code == 0
    assert gallium("run", "--help").exit_code == 0


def test_pull_prints_the_path_alone_on_standard_output(gallium, monkeypatch, tmp_path):
    asked = []

    def fetch(name, *, hub, revision):
        asked.append((name, hub, revision))
        return tmp_path

    monkeypatch.setattr("gallium.checkpoints.pull", fetch)
    result = gallium("pull", "owner/model", "--hub", "modelscope", "--revision", "v2")
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path}\n"
    assert "gallium chat owner/model" in result.stderr
    assert asked == [("owner/model", "modelscope", "v2")]


@pytest.mark.parametrize("args", [("--help",), ("run", "--help"), ("pull", "--help")])
def test_help_imports_nothing_heavy(args):
    code = (
        "import sys\nfrom gallium.cli.main import cli\n"
        f"cli({list(args)!r}, prog_name='gallium', standalone_mode=False)\n"
        "heavy = {'numpy', 'rich', 'jinja2', 'starlette', 'uvicorn', 'huggingface_hub', 'tokenizers'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_modules_of_commands_are_named_like_them():
    assert gallium.cli.pull.pull.name == "pull"
