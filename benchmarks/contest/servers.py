"""How each contender's own HTTP server is started: as its documentation advises for many streams at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest.models import GALLIUM
from benchmarks.contest.peers import LLAMA_SERVER, Peer
from benchmarks.contest.process import Refused


@dataclass(frozen=True)
class Server:
    """One server. `name` says in the results which program answered; `ready` is answered with 200 from then on."""

    name: str
    command: list[str]
    ready: str = "/v1/models"


@dataclass(frozen=True)
class Load:
    """What a server must be ready for: `streams` sequences of `context` tokens each, on so many threads."""

    port: int
    precision: str
    threads: int
    streams: int
    context: int


def server_of(peer: Peer, model: Path, load: Load) -> Server:
    """Raises Refused where a contender has none."""
    if peer.name not in SERVERS:
        raise Refused("has no HTTP server of its own in this package")
    return SERVERS[peer.name](peer, model, load)


def _gallium(peer: Peer, model: Path, load: Load) -> Server:
    return Server("gallium serve", [
        str(GALLIUM), "serve", str(model), "--port", str(load.port),
        "--precision", peer.precisions[load.precision], "--threads", str(load.threads), "--max-batch",
        str(load.streams), "--max-context", str(load.context), "--served-name", "model",
    ])  # fmt: skip


def _vllm(peer: Peer, model: Path, load: Load) -> Server:
    return Server("vllm", [
        str(peer.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port",
        str(load.port), "--max-model-len", str(load.context), "--max-num-seqs", str(load.streams),
        "--served-model-name", "model", "--dtype", "bfloat16",
    ])  # fmt: skip


def _llama(peer: Peer, model: Path, load: Load) -> Server:
    return _llama_server(model, load) if LLAMA_SERVER.exists() else _llama_in_python(peer, model, load)


def _llama_server(model: Path, load: Load) -> Server:
    """A slot per stream and continuous batching. No two prompts share a beginning, so what it would do to keep finished
    prompts is switched off."""
    return Server(f"llama-server, {load.streams} slots", [
        str(LLAMA_SERVER), "--model", str(model), "--host", "127.0.0.1", "--port", str(load.port), "--alias", "model",
        "--parallel", str(load.streams), "--ctx-size", str(load.streams * load.context), "--cont-batching",
        "--threads", str(load.threads), "--threads-batch", str(load.threads), "--no-cache-prompt", "--cache-ram", "0",
        "--no-ui", "--no-slots",
    ], "/health")  # fmt: skip


def _llama_in_python(peer: Peer, model: Path, load: Load) -> Server:
    """Where `llama-server` could not be built. It has a lock around the model."""
    return Server("llama_cpp.server, one sequence at a time", [
        str(peer.python), "-m", "llama_cpp.server", "--model", str(model), "--port", str(load.port),
        "--n_ctx", str(load.context), "--n_threads", str(load.threads), "--n_threads_batch", str(load.threads),
        "--interrupt_requests", "False", "--model_alias", "model",
    ])  # fmt: skip


SERVERS: dict[str, Callable[[Peer, Path, Load], Server]] = {"gallium": _gallium, "llama.cpp": _llama, "vllm": _vllm}
