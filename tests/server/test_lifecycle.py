"""The port, the ready line, and the end: a signal lets open answers finish, and no longer than the grace time."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from tests.server.fakes import fake_assembly, live

from gallium.errors import GalliumError, UsageError
from gallium.server.app import serve
from gallium.server.lifecycle import Server
from gallium.server.listener import listen, url_of

ROOT = Path(__file__).parents[2]


def test_a_port_in_use_is_a_sentence() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(GalliumError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            listen("127.0.0.1", port)
    assert caught.value.exit_code == 1
    listen("127.0.0.1", port).close()  # and at once free again


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70000), ("192.0.2.1", 0), ("no such host!", 0), ("a" * 70 + ".x", 0)]
)
def test_a_host_or_port_that_cannot_be(host: str, port: int) -> None:
    with pytest.raises(UsageError):
        listen(host, port)


def test_urls_are_those_of_a_client_on_this_machine() -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        with listen(host, 0) as sock:
            assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        six = listen("::1", 0)
    except GalliumError:
        assert not socket.has_ipv6 or not Path("/proc/net/if_inet6").read_text()
    else:
        with six:
            assert url_of(six).startswith("http://[::1]:")


def test_clients_that_come_while_the_model_loads_are_served() -> None:
    fake = fake_assembly()
    sock = listen("127.0.0.1", 0)
    url = url_of(sock)
    answers: list[int] = []
    early = threading.Thread(target=lambda: answers.append(httpx.get(url + "/health", timeout=120).status_code))
    early.start()
    before = signal.getsignal(signal.SIGINT)
    told: list[str] = []

    def stop_when_answered() -> None:
        early.join()
        os.kill(os.getpid(), signal.SIGINT)

    def ready(at: str) -> None:
        told.append(at)
        threading.Thread(target=stop_when_answered).start()

    serve(fake.real(), listener=sock, on_ready=ready)  # returns on the signal, which is not raised again
    assert (answers, told) == ([200], [url])
    assert signal.getsignal(signal.SIGINT) is before
    fake.engine.shutdown()


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_outlives_the_grace_time_ends_with_an_error(stream: bool) -> None:
    fake = fake_assembly()
    fake.runner.gate = threading.Semaphore(1)
    body = {"prompt": "x", "stream": stream, "max_tokens": 9, "ignore_eos": True}
    with live(fake.real(), grace_s=0.2) as server:
        stop = threading.Timer(0.3, server.stop)
        stop.start()
        answer = httpx.post(server.url + "/v1/completions", json=body, timeout=120)
        stop.join()
        fake.runner.gate.release(1000)
    assert "the server was stopped before the answer was complete" in answer.text
    if stream:
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert answer.status_code == 503
    assert fake.engine.healthy
    fake.engine.shutdown()


@pytest.mark.parametrize(
    ("grace_s", "signals", "whole"),
    [
        ("20", [signal.SIGTERM], True),
        ("0", [signal.SIGTERM], False),
        ("20", [signal.SIGINT], True),
        ("20", [signal.SIGINT, signal.SIGINT], False),
    ],
)
def test_signals(grace_s: str, signals: list[signal.Signals], whole: bool) -> None:
    program = [sys.executable, "-m", "tests.server.pretend_server", grace_s]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        body = {"prompt": "x", "stream": True}
        with httpx.stream("POST", url + "/v1/completions", json=body, timeout=120) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            for number in signals:
                process.send_signal(number)
                wait_until_refused(url)
            text = "\n".join([first, *lines])
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "closed\n", "")
    assert text.rstrip().endswith("data: [DONE]")
    assert ('"finish_reason":"stop"' in text) is whole
    assert ("the server was stopped" in text) is not whole


def wait_until_refused(url: str) -> None:
    """A signal has been handled when the server takes no connection any more."""
    with pytest.raises(httpx.TransportError):
        for _ in range(1000):
            httpx.get(url + "/health", timeout=120)


def test_a_request_that_never_ends_is_given_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = threading.Event()

    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("gallium.server.lifecycle.LAST_WORDS_S", 0)
    sock = listen("127.0.0.1", 0)
    url = url_of(sock)
    server = Server(stuck, sock, grace_s=0, on_ready=lambda: None, on_grace_over=lambda: None)
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.get, url, timeout=120)
        assert reached.wait(20)
        server.should_exit = True
        assert answer.result().status_code == 500
    thread.join(20)
    assert not thread.is_alive()
    assert "Cancel 1 running task" in caplog.text and "Traceback" not in caplog.text
