"""A hub on loopback that speaks the part of the Hugging Face API that its client uses, and breaks on request.

Served: model info, the tree listing, and files, large ones by redirect to another host name, as LFS files are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from tests.checkpoints.safetensors_making import write_model

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "a" * 40
LFS = 1 << 18  # files from here on are served as LFS files are
REVISIONS = ("main", "v1", COMMIT)
PIECE = 1 << 18


@dataclass
class Request:
    """What the client asked for."""

    method: str
    path: str
    start: int  # of a range
    token: str | None


@dataclass
class Faults:
    """What goes wrong: each list is used up one entry per transfer of file data, None meaning nothing."""

    cut: list[int | None] = field(default_factory=list)  # bytes sent before the connection closes
    status: list[int | None] = field(default_factory=list)  # answered instead of data
    stall: int | None = None  # bytes sent before the transfer waits for `released`
    no_ranges: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


class Hub(ThreadingHTTPServer):
    """The server with its repositories, a log of requests, and the way to run `gallium` against it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.api_status: int | None = None
        self.faults = Faults()
        self.requests: list[Request] = []
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop answering."""
        self.faults.released.set()
        self.shutdown()
        self.server_close()

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def transfers(self) -> list[Request]:
        """Requests for data of LFS files."""
        return [r for r in self.requests if r.method == "GET" and r.path.startswith("/cdn/")]

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a client that uses this hub and keeps its cache in `home`."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "GALLIUM_"))}
        own = {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "HF_HOME": str(home), "NO_PROXY": "*"}
        return {**kept, **own, "HF_HUB_DISABLE_TELEMETRY": "1", **more}

    def start(
        self, home: Path, *args: str, before: Sequence[str] = (), stderr: int = subprocess.PIPE, **more: str
    ) -> subprocess.Popen[str]:
        """`gallium ARGS` in a process of its own; `before` is a command that runs it."""
        return self._start([*before, sys.executable, "-m", "gallium.cli.main", *args], home, more, stderr)

    def run(self, home: Path, *args: str, before: Sequence[str] = (), **more: str) -> Done:
        """`gallium ARGS`, to its end."""
        return finish(self.start(home, *args, before=before, **more))

    def python(self, home: Path, code: str, **more: str) -> Done:
        """Python code in a process that uses this hub."""
        return finish(self._start([sys.executable, "-c", code], home, more, subprocess.PIPE))

    def _start(self, command: list[str], home: Path, more: dict[str, str], stderr: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment(home, **more), text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip


@dataclass
class Done:
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def path(self) -> Path:
        """What `gallium pull` printed."""
        assert self.code == 0, self.err
        return Path(self.out.removesuffix("\n"))


def finish(process: subprocess.Popen[str]) -> Done:
    """Wait for the end."""
    out, err = process.communicate(timeout=120)
    return Done(process.returncode, out, err)


def model_files(folder: Path, size: int) -> dict[str, bytes]:
    """A repository with a model of one file whose data has `size` bytes."""
    weight = np.random.default_rng(size).integers(0, 255, size, np.uint8)
    write_model(folder, {"model.norm.weight": weight})
    (folder / "tokenizer.json").write_text("{}")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@lru_cache(maxsize=8)
def digest(data: bytes) -> str:
    """The name of an LFS file's content."""
    return hashlib.sha256(data).hexdigest()


def parts_of(home: Path) -> list[Path]:
    """Unfinished downloads below a cache."""
    return [path for path in (home / "hub").rglob("*") if path.name.endswith((".gallium-part", ".incomplete"))]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.server.requests.append(Request(self.command, path, start, self.headers.get("Authorization")))
        if path.startswith("/cdn/"):
            return self.send_data(path.removeprefix("/cdn/"), start)
        if self.server.api_status is not None:
            return self.refuse(self.server.api_status, None)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            return self.send_listing(match[1], match[2], match[3] or "main")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.send_file(match[1], match[2], match[3])
        return self.refuse(404, None)

    def send_listing(self, repo: str, kind: str | None, revision: str) -> None:
        files = self.server.repos.get(repo)
        if files is None:
            return self.refuse(401, "RepoNotFound")  # the real hub does not say which names exist
        if revision not in REVISIONS:
            return self.refuse(404, "RevisionNotFound")
        listing = [{"type": "file", "path": name, **facts(data)} for name, data in files.items()]
        siblings = [{"rfilename": name, "blobId": digest(data)[:40], **facts(data)} for name, data in files.items()]
        info = {"_id": "1", "id": repo, "sha": COMMIT, "siblings": siblings}
        self.send(200, {"Content-Type": "application/json"}, json.dumps(listing if kind == "tree" else info).encode())

    def send_file(self, repo: str, revision: str, name: str) -> None:
        data = self.server.repos.get(repo, {}).get(name)
        if repo in self.server.gated:
            return self.refuse(403, "GatedRepo")
        if data is None or revision not in REVISIONS:
            return self.refuse(404, "EntryNotFound")
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if len(data) < LFS:
            return self.send(200, headers | {"ETag": f'"{digest(data)[:40]}"'}, data)
        headers |= {"X-Linked-Etag": f'"{digest(data)}"', "X-Linked-Size": str(len(data))}
        where = f"http://localhost:{self.server.server_port}/cdn/{digest(data)}"
        return self.send(302, headers | {"Location": where}, b"")

    def send_data(self, name: str, start: int) -> None:
        faults = self.server.faults
        data = next(d for files in self.server.repos.values() for d in files.values() if digest(d) == name)
        if faults.no_ranges:
            start = 0
        status = faults.status.pop(0) if faults.status else None
        if status is not None:
            return self.refuse(status, None)
        cut = faults.cut.pop(0) if faults.cut else None
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.send(206 if start else 200, headers, data[start:], cut)

    def send(self, status: int, headers: Mapping[str, str], body: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        faults = self.server.faults
        try:
            for at in range(0, len(body), PIECE):
                if cut is not None and at >= cut:
                    self.close_connection = True
                    return
                if faults.stall is not None and at >= faults.stall and not faults.stalled.is_set():
                    faults.stalled.set()
                    faults.released.wait(60)
                self.wfile.write(body[at : at + PIECE])
        except OSError:  # the client has gone
            self.close_connection = True

    def refuse(self, status: int, code: str | None) -> None:
        self.send(status, {"X-Error-Code": code} if code else {}, b"")


def facts(data: bytes) -> dict[str, Any]:
    """Size and hashes as listings have them."""
    if len(data) < LFS:
        return {"size": len(data), "oid": digest(data)[:40]}
    return {
        "size": len(data), "oid": digest(data)[:40],
        "lfs": {"oid": digest(data), "sha256": digest(data), "size": len(data), "pointerSize": 134},
    }  # fmt: skip
