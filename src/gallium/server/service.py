"""What every endpoint needs: the model, the settings, and the requests that are open."""

from __future__ import annotations

import asyncio
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from gallium import __version__
from gallium.errors import ContextTooLong, GalliumError
from gallium.server.failures import RefusedRequest
from gallium.server.generation import Generation
from gallium.server.scoring import score
from gallium.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gallium.engine.assembly import Assembly
    from gallium.text.tokenizer import Tokenizer
    from gallium.types import SamplingParams, TokenLogprob


@dataclass(eq=False)
class Service:
    """One served model."""

    assembly: Assembly
    settings: ServerSettings
    created: int = field(default_factory=lambda: int(time.time()))
    open: set[Generation] = field(default_factory=set)
    _scorer: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "gallium-scoring"), init=False, repr=False
    )  # one, for the logits of a whole prompt are big

    @property
    def model_name(self) -> str:
        """The model's id in the API."""
        return self.settings.served_name or self.assembly.label

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises TokenizerError if it has none."""
        return self.assembly.tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """What decides the numbers: version, model, precision, backend."""
        parts = (f"gallium-{__version__}", self.assembly.label, self.assembly.precision, self.assembly.backend_name)
        asked = self.assembly.settings.kv_precision
        kv = "" if asked == "auto" else f"/kv-{asked}"
        return "/".join(parts) + kv + ("/emulated" if self.assembly.emulated else "")

    def now(self) -> int:
        """The time of an answer, in seconds since 1970."""
        return int(time.time())

    def check_model(self, name: str | None) -> None:
        """Refuse requests for another model. None means: the one that is served."""
        if name is not None and name != self.model_name:
            raise RefusedRequest(
                f"the model {name!r} is not served here; this server has {self.model_name!r}.",
                "model",
                code="model_not_found",
                status=404,
            )

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, prediction: Sequence[int] = ()
    ) -> Generation:
        """Submit prompts to the engine; `prediction` are tokens that answers may have.

        Raises InvalidRequest, ContextTooLong or EngineDead.
        """
        engine = self.assembly.engine
        try:
            return Generation(engine, prompts, params, self.open, prediction)
        except ContextTooLong as refusal:
            if any(len(prompt) >= engine.max_context for prompt in prompts):
                refusal.param = "prompt"  # whatever the length of the answer
            raise

    async def score(self, prompt: Sequence[int], top: int) -> list[TokenLogprob]:
        """The prompt's own log-probabilities, one prompt at a time; see scoring.score."""
        events = asyncio.get_running_loop()
        return await events.run_in_executor(self._scorer, score, self.assembly, prompt, top)

    def abort_all(self, error: GalliumError) -> None:
        """End every open request with `error`."""
        for generation in list(self.open):
            generation.abort(error)


def new_id(prefix: str) -> str:
    """A fresh response id."""
    return f"{prefix}-{uuid.uuid4().hex}"


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON, as msgspec writes it."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")
