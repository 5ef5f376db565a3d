"""A program that serves a scripted model, one token every 0.1 s: `python -m tests.server.pretend_server GRACE_S`."""

from __future__ import annotations

import sys
import threading

from tests.server.fakes import fake_assembly, says

from gallium.server.app import serve
from gallium.server.settings import ServerSettings


def main() -> None:
    fake = fake_assembly()
    fake.runner.gate = gate = threading.Semaphore(0)
    fake.runner.script = says("abcdef")
    over = threading.Event()

    def tick() -> None:
        while not over.wait(0.1):
            gate.release()

    threading.Thread(target=tick, daemon=True).start()
    settings = ServerSettings(grace_s=float(sys.argv[1]))
    serve(fake.real(), "127.0.0.1", 0, settings=settings, on_ready=lambda url: print(url, flush=True))
    fake.engine.shutdown()
    over.set()
    print("closed", flush=True)


if __name__ == "__main__":
    main()
