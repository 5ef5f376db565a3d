"""The load generator against a server of the test's own, which speaks OpenAI's streaming API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from benchmarks.contest import servers
from benchmarks.contest.peers import PEERS
from benchmarks.contest.process import Refused
from benchmarks.contest.served import Answer, load
from benchmarks.contest.servers import Load, server_of

TOKENS = 5


class Handler(BaseHTTPRequestHandler):
    """Answers every prompt with TOKENS pieces; a status of the server's `status`."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["ignore_eos"] and asked["stream_options"] == {"include_usage": True}
        self.server.prompts.append(asked["prompt"])  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()
        for _ in range(TOKENS):
            self._event({"choices": [{"text": "a"}]})
        self._event({"choices": [], "usage": {"completion_tokens": TOKENS + 1}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def log_message(self, *_: object) -> None:
        """Be silent."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.prompts, found.status = [], 200  # type: ignore[attr-defined]
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def test_all_streams_are_answered_with_prompts_of_their_own(server: ThreadingHTTPServer) -> None:
    answers = load(server.server_port, streams=3, requests=2)
    assert [len(a.arrivals) for a in answers] == [TOKENS] * 6
    assert {a.tokens for a in answers} == {TOKENS + 1}  # the server's own count
    assert all(a.ttft >= 0 and a.tpot >= 0 for a in answers)
    assert len({prompt[:8] for prompt in server.prompts}) == 6  # type: ignore[attr-defined]


def test_a_refused_request_is_the_cells_reason(server: ThreadingHTTPServer) -> None:
    server.status = 503  # type: ignore[attr-defined]
    with pytest.raises(Refused, match="a request failed: status 503"):
        load(server.server_port, streams=1, requests=1)


def test_llama_cpps_own_server_has_a_slot_per_stream(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    how = Load(port=1, precision="int4", threads=2, streams=4, context=100)
    monkeypatch.setattr(servers, "LLAMA_SERVER", tmp_path / "llama-server")
    python = server_of(PEERS["llama.cpp"], Path("m.gguf"), how)
    assert "one sequence at a time" in python.name
    servers.LLAMA_SERVER.touch()
    own = server_of(PEERS["llama.cpp"], Path("m.gguf"), how)
    assert own.name == "llama-server, 4 slots"
    assert own.command[own.command.index("--ctx-size") + 1] == "400"
    with pytest.raises(Refused, match="no HTTP server"):
        server_of(PEERS["transformers"], Path("m"), how)


def test_time_per_token_leaves_out_the_first() -> None:
    answer = Answer(1.0, [3.0, 4.0, 5.0], tokens=3)
    assert (answer.ttft, answer.tpot) == (2.0, 1.0)
