"""Servers under load: each contender's own HTTP server, one load generator that speaks OpenAI's streaming API."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contest.cells import Cell, Group
from benchmarks.contest.peers import ROOT, Peer
from benchmarks.contest.process import Refused
from benchmarks.contest.servers import Load, Server, server_of
from benchmarks.contest.store import Score

PROMPT_WORDS, NEW_TOKENS, REQUESTS = 60, 48, 2  # a prompt of about 128 tokens; requests per stream, one after the other
REQUEST_LIMIT = 300.0  # seconds without a byte
CONTEXT = 1024


@dataclass
class Answer:
    """One streamed answer: when it was asked for, and when each piece of text came."""

    asked: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0  # as the server counts them, else the pieces

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.asked

    @property
    def tpot(self) -> float:
        """Seconds per token after the first."""
        return (self.arrivals[-1] - self.arrivals[0]) / max(1, self.tokens - 1)


def percentile(values: list[float], part: float) -> float:
    """The least value that at least `part` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(len(ordered) * part * 1000) // 1000) - 1)]


def parse_events(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, up to `[DONE]`."""
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        yield json.loads(data)


def measure_served(
    peers: list[Peer], group: Group, cell: Cell, threads: int, rounds: int, patience: float
) -> dict[str, Score]:
    """Tokens per second of all streams together; facts have the percentiles in seconds. `patience` is for the start."""
    from benchmarks.contest.rounds import model_of

    scores = {peer.name: Score() for peer in peers}
    answers: dict[str, list[Answer]] = {peer.name: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            score = scores[peer.name]
            if score.reason:
                continue
            try:
                how = Load(_free_port(), group.precision, threads, cell.size, CONTEXT)
                server = server_of(peer, model_of(peer, group), how)
                with _running(server, how, patience, ROOT / "logs" / f"served-{peer.name}.log"):
                    load(how.port, 1, 1)
                    start = time.perf_counter()
                    found = load(how.port, cell.size, REQUESTS)
                    score.rounds.append(sum(a.tokens for a in found) / (time.perf_counter() - start))
                    score.facts = {"server": server.name}
                    answers[peer.name] += found
            except Refused as refusal:
                score.reason, score.rounds = str(refusal), []
    for name, score in scores.items():
        if score.rounds:
            score.facts |= percentiles(answers[name])
    return scores


def percentiles(answers: list[Answer]) -> dict[str, float]:
    """p50 and p95 of the seconds to the first token and per token after it."""
    kinds = {"ttft": [a.ttft for a in answers], "tpot": [a.tpot for a in answers]}
    return {
        f"{what}_{label}": percentile(values, part)
        for what, values in kinds.items()
        for label, part in (("p50", 0.5), ("p95", 0.95))
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(server: Server, how: Load, patience: float, log_file: Path) -> Iterator[None]:
    """A server that answers."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1",
                                "VLLM_CPU_OMP_THREADS_BIND": f"0-{how.threads - 1}"}  # fmt: skip
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        process = subprocess.Popen(server.command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        end = time.monotonic() + patience
        while not _answers(how.port, server.ready):
            if process.poll() is not None:
                raise Refused(f"its server ended with code {process.returncode}")
            if time.monotonic() > end:
                raise Refused(f"its server did not start within {patience:.0f} s")
            time.sleep(0.2)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        with connection.getresponse() as reply:
            return reply.status == 200
    except OSError:
        return False
    finally:
        connection.close()


def load(port: int, streams: int, requests: int) -> list[Answer]:
    """So many clients at once, each with its requests one after the other."""
    found: list[Answer] = []
    failures: list[Exception] = []

    def client(number: int) -> None:
        try:
            for request in range(requests):
                found.append(_ask(port, f"{number} {request} " + _words(number * 100 + request)))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise Refused(f"a request failed: {failures[0]}"[:200])
    return found


def _words(seed: int) -> str:
    """Text of which no two requests share a beginning."""
    return " ".join(f"{chr(97 + (seed * 7 + i * 5) % 26)}{chr(97 + (seed + i * 3) % 26)}" for i in range(PROMPT_WORDS))


def _ask(port: int, prompt: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_LIMIT)
    body = {"model": "model", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
    answer = Answer(time.perf_counter())
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        with connection.getresponse() as reply:
            if reply.status != 200:
                raise OSError(f"status {reply.status}: {reply.read(200)!r}")
            for event in parse_events(iter(reply.readline, b"")):
                if event.get("choices") and event["choices"][0].get("text"):
                    answer.arrivals.append(time.perf_counter())
                if event.get("usage"):
                    answer.tokens = event["usage"]["completion_tokens"]
    finally:
        connection.close()
    if not answer.arrivals:
        raise OSError("an answer without text")
    answer.tokens = answer.tokens or len(answer.arrivals)
    return answer
