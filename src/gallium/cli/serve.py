"""`gallium serve`: a model behind an OpenAI-compatible API, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import json
import logging
import shlex
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import click

from gallium.cli.loading import announce, loaded
from gallium.cli.options import ENGINE_SERVING, Command, engine_options, model_argument
from gallium.cli.terminal import checked_text, note
from gallium.cli.virtual import virtual_options
from gallium.settings import EngineSettings, environment

if TYPE_CHECKING:
    import socket

    from gallium.engine.assembly import Assembly
    from gallium.server.settings import ServerSettings

QUESTION = "What is gravity?"
EPILOG = """\b
Examples:
  gallium serve
  gallium serve zai-org/glm-edge-1.5b-chat --port 9000
  gallium serve ./glm-4-9b-0414.gguf --precision int4 --host 0.0.0.0 --api-key SECRET

\b
Endpoints:
  POST /v1/chat/completions  /v1/completions  /tokenize  /detokenize
  GET  /v1/models  /health
"""


@click.command(cls=Command, epilog=EPILOG)
@model_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option("--port", type=int, default=8000, show_default=True, help="Port to listen on; 0 takes a free one.")
@click.option(
    "--api-key",
    metavar="KEY",
    help="Answer only requests that carry this key.  [default: GALLIUM_API_KEY, else all requests]",
)
@click.option("--served-name", metavar="NAME", help="The model's name in the API.  [default: that of MODEL]")
@click.option("--cors-origin", "cors_origins", metavar="ORIGIN", multiple=True,
              help="Let web pages from this origin call the server; * is all. May be repeated.")  # fmt: skip
@click.option("--grace", "grace_s", metavar="SECONDS", type=float, default=30.0, show_default=True,
              help="Time for open requests to end in when the server is stopped.")  # fmt: skip
@click.option("--access-log/--no-access-log", default=True, help="Write a line per request to standard error.")
@engine_options(*ENGINE_SERVING)
@virtual_options
def serve(model: str | None, host: str, port: int, access_log: bool, settings: EngineSettings, **served: Any) -> None:
    """Serve MODEL (default: the embedded one) with OpenAI's API.

    Any client of that API can use it, with the base URL that is printed when the server is ready. Ctrl-C and SIGTERM
    stop it: open requests may end within the grace time. A second Ctrl-C ends them at once.
    """
    from gallium.server.app import serve as serve_assembly
    from gallium.server.listener import listen
    from gallium.server.settings import ServerSettings

    if served["api_key"] is None:
        served["api_key"] = environment("GALLIUM_API_KEY")
    for name, what in (("api_key", "the API key"), ("served_name", "--served-name")):
        if served[name] is not None:
            checked_text(served[name], what)
    how = ServerSettings(**served)
    with listen(host, port) as listener, loaded(model, settings) as assembly:
        announce(assembly, "serve")
        _log_to_stderr(access_log)
        serve_assembly(
            assembly,
            settings=how,
            listener=listener,
            on_ready=lambda url: _say_ready(assembly, how, listener, url),
        )
        note("stopped.")


def _log_to_stderr(access_log: bool) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    logging.getLogger("gallium").setLevel(logging.INFO)
    if not access_log:
        logging.getLogger("gallium.access").setLevel(logging.WARNING)


def _say_ready(assembly: Assembly, how: ServerSettings, listener: socket.socket, url: str) -> None:
    if how.api_key is None and not ip_address(listener.getsockname()[0]).is_loopback:
        note("Everybody who can reach this address may use the server; --api-key limits it to those who have the key.")
    note(f"{how.served_name or assembly.label} is ready at {url}/v1 (Ctrl-C stops it). Try:\n")
    note(f"  {example(url, chats=assembly.template is not None, key=how.api_key is not None)}\n")


def example(url: str, *, chats: bool, key: bool) -> str:
    """A command line that asks the server something."""
    path = "chat/completions" if chats else "completions"
    body = {"messages": [{"role": "user", "content": QUESTION}]} if chats else {"prompt": QUESTION}
    words = ["curl", f"{url}/v1/{path}", "-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return shlex.join(words) + (' -H "Authorization: Bearer $KEY"' if key else "")
