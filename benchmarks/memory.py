"""Memory of `gallium serve` under load, beside its limit: 1.1 x (weights + KV memory) + 150 MB."""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import machine, write_result

from gallium.checkpoints import open_checkpoint, resolve_model
from gallium.engine.memory import parse_bytes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def resident(pid: int, what: str) -> int:
    """VmRSS or VmHWM (the peak) of a process, bytes. Linux."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(rf"{what}:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return dict(json.load(answer))


def wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server ended before it answered")


def load(url: str, clients: int, requests: int) -> int:
    """Long and short requests from several clients at once; returns the tokens generated."""

    def client(number: int) -> int:
        generated = 0
        for i in range(requests):
            prompt = f"Request {number}-{i}. " + "The quick brown fox jumps over the lazy dog. " * (1 + 7 * (i % 8))
            body = {"model": "bench", "prompt": prompt, "max_tokens": 64, "temperature": 1.0, "seed": i}
            generated += int(post(f"{url}/v1/completions", body)["usage"]["completion_tokens"])
        return generated

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(client, range(clients)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--kv-memory", default="256MiB")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=8, help="per client")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    how = parser.parse_args()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    program = str(Path(sys.executable).parent / "gallium")
    command = [program, "serve", *([how.model] if how.model else []), "--port", str(port),
               "--served-name", "bench", "--kv-memory", how.kv_memory]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until_up(url, process)
        idle = resident(process.pid, "VmRSS")
        tokens = load(url, how.clients, how.requests)
        after, peak = resident(process.pid, "VmRSS"), resident(process.pid, "VmHWM")
    finally:
        process.terminate()
        process.wait()
    weights = open_checkpoint(resolve_model(how.model).path).size_bytes
    limit = 1.1 * (weights + parse_bytes(how.kv_memory)) + 150e6
    result = {
        "what": "memory", "machine": machine(), "model": how.model or "embedded default", "weight_bytes": weights,
        "kv_bytes": parse_bytes(how.kv_memory), "limit_bytes": limit, "idle_bytes": idle, "loaded_bytes": after,
        "peak_bytes": peak, "generated_tokens": tokens, "within": peak < limit,
    }  # fmt: skip
    print(f"weights {weights / 1e6:.0f} MB, KV {how.kv_memory}; limit {limit / 1e6:.0f} MB")
    print(f"idle {idle / 1e6:.0f} MB, after {tokens} tokens {after / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    if how.out:
        write_result(how.out, json.dumps(result, indent=2))
    if peak >= limit:
        sys.exit(1)


if __name__ == "__main__":
    main()
