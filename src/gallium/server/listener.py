"""The socket that the server listens on; made before a model is loaded, so that a port in use is known at once."""

from __future__ import annotations

import errno
import socket

from gallium.errors import GalliumError, UsageError

BACKLOG = 2048
"""Connections that wait while the model loads, and in a rush."""


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises UsageError or GalliumError in a sentence."""
    if not 0 <= port <= 65535:
        raise UsageError(f"port must be 0 to 65535, not {port}.")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as fault:
        raise UsageError(f"the host {host!r} is not known: {fault}. Use an address of this machine.") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as fault:
        sock.close()
        raise _explained(fault, host, port) from None
    return sock


def _explained(fault: OSError, host: str, port: int) -> GalliumError:
    if fault.errno == errno.EADDRINUSE:
        return GalliumError(
            f"port {port} of {host} is in use: stop the program that has it, or choose another with --port."
        )
    if fault.errno in (errno.EACCES, errno.EPERM):
        return GalliumError(f"this user may not listen on port {port}: choose one above 1023 with --port.")
    if fault.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"{host} is not an address of this machine: use 127.0.0.1, or 0.0.0.0 for all of them.")
    return GalliumError(f"listening on {host}, port {port}, failed: {fault.strerror or fault}.")


def url_of(sock: socket.socket) -> str:
    """Where a client on this machine finds the server."""
    address = sock.getsockname()
    host, port = address[0], address[1]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
