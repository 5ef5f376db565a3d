"""Servers under load: each contender's own HTTP server, one load generator that speaks OpenAI's streaming API."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
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
from benchmarks.contest.store import Score

PROMPT_WORDS, NEW_TOKENS, REQUESTS = 60, 48, 2  # a prompt of about 128 tokens; requests per stream, one after the other
START_LIMIT, REQUEST_LIMIT = 600.0, 300.0  # seconds
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


def command(peer: Peer, model: Path, port: int, precision: str, threads: int, streams: int) -> list[str]:
    """How the contender's own server is started. Raises Refused where there is none."""
    python = str(peer.python)
    if peer.name == "gallium":
        return [str(Path(sys.executable).parent / "gallium"), "serve", str(model), "--port", str(port),
                "--precision", peer.precisions[precision], "--threads", str(threads), "--max-batch", str(streams),
                "--max-context", str(CONTEXT), "--served-name", "model"]  # fmt: skip
    if peer.name == "llama.cpp":  # one sequence at a time: llama-cpp-python's server has a lock
        return [python, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port), "--n_ctx", str(CONTEXT),
                "--n_threads", str(threads), "--n_threads_batch", str(threads), "--interrupt_requests", "False",
                "--model_alias", "model"]  # fmt: skip
    if peer.name == "vllm":
        return [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port),
                "--max-model-len", str(CONTEXT), "--max-num-seqs", str(streams), "--served-model-name", "model",
                "--dtype", "bfloat16"]  # fmt: skip
    raise Refused("has no HTTP server of its own in this package")


def measure_served(peers: list[Peer], group: Group, cell: Cell, threads: int, rounds: int) -> dict[str, Score]:
    """Tokens per second of all streams together; facts have the percentiles in seconds."""
    from benchmarks.contest.rounds import model_of

    scores = {peer.name: Score() for peer in peers}
    answers: dict[str, list[Answer]] = {peer.name: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            score = scores[peer.name]
            if score.reason:
                continue
            try:
                with _running(peer, model_of(peer, group), group.precision, threads, cell.size) as port:
                    load(port, 1, 1)
                    start = time.perf_counter()
                    found = load(port, cell.size, REQUESTS)
                    score.rounds.append(sum(a.tokens for a in found) / (time.perf_counter() - start))
                    answers[peer.name] += found
            except Refused as refusal:
                score.reason, score.rounds = str(refusal), []
    for name, score in scores.items():
        if score.rounds:
            ttft, tpot = [a.ttft for a in answers[name]], [a.tpot for a in answers[name]]
            score.facts = {
                f"{what}_{label}": percentile(values, part)
                for what, values in (("ttft", ttft), ("tpot", tpot))
                for label, part in (("p50", 0.5), ("p95", 0.95))
            }
    return scores


@contextmanager
def _running(peer: Peer, model: Path, precision: str, threads: int, streams: int) -> Iterator[int]:
    """A server that answers; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = command(peer, model, port, precision, threads, streams)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1",
                                "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}"}  # fmt: skip
    with (ROOT / "logs" / f"served-{peer.name}.log").open("ab") as log:
        process = subprocess.Popen(started, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        end = time.monotonic() + START_LIMIT
        while not _answers(port):
            if process.poll() is not None:
                raise Refused(f"its server ended with code {process.returncode}")
            if time.monotonic() > end:
                raise Refused(f"its server did not start within {START_LIMIT:.0f} s")
            time.sleep(0.2)
        yield port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
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
    body = {"model": "model", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "stream": True}
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
