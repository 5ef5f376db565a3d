"""`gallium serve`: what it checks before it loads a model, what it says, and how it ends."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess

import httpx
import pytest

from gallium.cli.serve import example


@pytest.fixture
def taken():
    """A port that another program has."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


@pytest.fixture
def serve(program):
    """Start `gallium serve` over a pretend default model: (process, its URL, the lines that it has written)."""

    def start(*args):
        process = program("serve", "--port", "0", *args, environment={"PRETEND_DEFAULT": "1"})
        lines = []
        for line in process.stderr:
            lines.append(line.decode().strip())
            if lines[-1].startswith("curl "):
                (ready,) = [line for line in lines if " is ready at http://" in line]
                return process, ready.partition(" is ready at ")[2].split("/v1")[0], lines
        raise AssertionError(lines)

    return start


def rest(process: subprocess.Popen[bytes]) -> str:
    """What it writes to its end, which must be a clean one."""
    written = process.stderr.read().decode()
    assert process.wait(60) == 0
    assert process.stdout.read() == b""
    return written


def test_a_port_in_use_is_found_before_the_model_is_loaded(gallium, pretend, taken):
    assembly = pretend()
    result = gallium("serve", "--port", str(taken))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: port {taken} of 127.0.0.1 is in use")
    assert assembly.settings is None


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--port", "70000"], "port must be 0 to 65535"),
        (["--port", "http"], "not a valid integer"),
        (["--host", "no such host!"], "not known"),
        (["--api-key", ""], "API key"),
        (["--api-key", " key"], "API key"),
        (["--served-name", ""], "name"),
        (["--grace", "-1"], "grace time"),
        (["--grace", "nan"], "grace time"),
        (["--max-batch", "0"], "max_batch"),
        (["--prot", "8000"], "--port"),
        (["a", "--model", "b"], "named twice"),
    ],
)
def test_wrong_usage_is_exit_code_2(gallium, pretend, args, part):
    assembly = pretend()
    result = gallium("serve", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert part in result.stderr
    assert assembly.settings is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_exit_code_0(serve, number):
    process, url, _ = serve()
    assert httpx.get(url + "/nowhere", timeout=60).status_code == 404
    process.send_signal(number)
    written = rest(process)
    assert "GET /nowhere 404 " in written and written.endswith("stopped.\n")


def test_it_says_what_is_served_where_and_how_to_ask(serve):
    _, url, lines = serve("--served-name", "my-model")
    assert lines[0] == "pretend: summary"
    assert any("stand-in" in line for line in lines) and any("gallium serve zai-org/" in line for line in lines)
    assert any(line.startswith(f"my-model is ready at {url}/v1") for line in lines)
    assert shlex.split(lines[-1])[1] == url + "/v1/chat/completions"
    assert not any("--api-key" in line for line in lines)


@pytest.mark.parametrize(("args", "warned"), [([], True), (["--api-key", "k"], False)])
def test_an_open_door_is_pointed_out(serve, args, warned):
    process, url, lines = serve("--host", "0.0.0.0", "--no-access-log", *args)
    assert any("--api-key" in line for line in lines) is warned
    assert httpx.get(url + "/nowhere", timeout=60).status_code == (404 if warned else 401)
    process.terminate()
    assert rest(process) == "\nstopped.\n"  # no line per request


@pytest.mark.parametrize(("args", "key"), [([], "of-the-environment"), (["--api-key", "given"], "given")])
def test_the_key_may_stand_in_the_environment(serve, monkeypatch, args, key):
    monkeypatch.setenv("GALLIUM_API_KEY", "of-the-environment")
    _, url, lines = serve("--host", "0.0.0.0", *args)
    for sent in ("of-the-environment", "given"):
        answer = httpx.get(url + "/nowhere", headers={"Authorization": f"Bearer {sent}"}, timeout=60)
        assert answer.status_code == (404 if sent == key else 401)
    assert "Bearer $KEY" in lines[-1] and not any(key in line or "--api-key" in line for line in lines)


@pytest.mark.parametrize(("key", "part"), [(" key", "has spaces around it"), ("caf\udce9", "not valid UTF-8")])
def test_a_key_in_the_environment_is_checked_too(gallium, pretend, monkeypatch, key, part):
    assembly = pretend()
    monkeypatch.setenv("GALLIUM_API_KEY", key)
    result = gallium("serve")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "API key" in result.stderr and part in result.stderr
    assert assembly.settings is None


@pytest.mark.parametrize(("chats", "path"), [(True, "chat/completions"), (False, "completions")])
def test_the_example_is_a_command_line(chats, path):
    words = shlex.split(example("http://127.0.0.1:8000", chats=chats, key=True))
    assert words[:2] == ["curl", f"http://127.0.0.1:8000/v1/{path}"]
    assert words[-2:] == ["-H", "Authorization: Bearer $KEY"]
