"""ServerSettings: how the server listens and what it lets through. Frozen, resolved once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gallium.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What an operator may choose. Raises UsageError on values that cannot work."""

    api_key: str | None = None  # None: everybody who can connect may use the server
    served_name: str | None = None  # the model's id in the API; None: the assembly's label
    cors_origins: tuple[str, ...] = ()  # web pages of these origins may call the server; ("*",) = all
    max_body_bytes: int = 16 * 2**20
    keep_alive_s: float = 15.0  # a stream that has nothing to say says so after this time
    grace_s: float = 30.0  # what open requests get to finish in when the server is told to stop

    def __post_init__(self) -> None:
        if self.api_key is not None and (not self.api_key or self.api_key != self.api_key.strip()):
            raise UsageError("the API key is empty or has spaces around it: give one without, or none at all.")
        if self.served_name is not None and not self.served_name.strip():
            raise UsageError("the served model name is empty: give one, or none at all.")
        if self.max_body_bytes < 1:
            raise UsageError(f"max_body_bytes must be at least 1, not {self.max_body_bytes}.")
        if self.keep_alive_s <= 0:
            raise UsageError(f"keep_alive_s must be more than 0, not {self.keep_alive_s}.")
        if not 0 <= self.grace_s < math.inf:
            raise UsageError(f"the grace time must be 0 seconds or more, and finite, not {self.grace_s}.")
