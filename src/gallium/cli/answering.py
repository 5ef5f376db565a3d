"""One answer as it comes: pieces of content and reasoning, then the figures."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gallium.errors import GalliumError, TemplateError
from gallium.types import Delta, FinishReason, Message, SamplingParams, TokenLogprob

if TYPE_CHECKING:
    from gallium.engine.assembly import Assembly
    from gallium.text.router import StreamRouter

SAMPLING = {"temperature": 0.6, "top_p": 0.95}
"""What `run` and `chat` draw with unless told otherwise: calmer than the API's raw distribution."""
STAND_IN_SAMPLING = {"temperature": 0.2, "top_p": 0.9}
"""The same for the embedded default model, as its makers advise."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of one choice."""

    index: int
    kind: Literal["content", "reasoning"]
    text: str


@dataclass
class Choice:
    """One of the `n` answers, as far as it has come."""

    content: str = ""
    reasoning: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class Answer:
    """Submitted when made; iterate once over its pieces, then read `choices` and the figures."""

    def __init__(
        self, assembly: Assembly, prompt: Sequence[int], params: SamplingParams, *, rendered: str | None
    ) -> None:
        """`rendered` is the prompt as the chat template wrote it; None: a plain prompt, whose answer is not split.

        Raises InvalidRequest, ContextTooLong or EngineDead.
        """
        self.choices = [Choice() for _ in range(params.n)]
        self.prompt_tokens = len(prompt)
        self.cached_tokens = 0
        self._failed = False
        self._routers = [_router(assembly, rendered) for _ in self.choices]
        self._arrived: queue.SimpleQueue[tuple[float, Delta | GalliumError]] = queue.SimpleQueue()
        self._started = time.perf_counter()
        self._first = self._last = self._started
        self._handle = assembly.engine.submit(
            prompt, params, lambda delta: self._arrived.put((time.perf_counter(), delta))
        )

    def __iter__(self) -> Iterator[Piece]:
        """The pieces, until every choice has ended. Raises what the engine reports."""
        while not self._failed and any(choice.finish_reason is None for choice in self.choices):
            when, delta = self._arrived.get()
            if isinstance(delta, GalliumError):
                self._failed = True  # nothing comes after it
                raise delta
            if delta.token_ids:
                self._first = when if self.completion_tokens == 0 else self._first
                self._last = when
            self._note(delta)
            yield from self._pieces(delta)

    def cancel(self) -> None:
        """End it now; what was generated stays."""
        self._handle.cancel()
        for _ in self:
            pass

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices so far."""
        return sum(len(choice.token_ids) for choice in self.choices)

    @property
    def first_token_s(self) -> float:
        """From submitting to the first token."""
        return self._first - self._started

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token, of all choices together; None with too few tokens to tell."""
        spent, later = self._last - self._first, self.completion_tokens - len(self.choices)
        return later / spent if spent > 0 and later > 0 else None

    @property
    def total_s(self) -> float:
        """From submitting to the last token."""
        return self._last - self._started

    def _note(self, delta: Delta) -> None:
        choice = self.choices[delta.index]
        choice.token_ids += delta.token_ids
        choice.logprobs += delta.logprobs
        choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
        self.cached_tokens = max(self.cached_tokens, delta.cached_tokens)

    def _pieces(self, delta: Delta) -> Iterator[Piece]:
        for piece in _split(self._routers[delta.index], delta):
            choice = self.choices[piece.index]
            if piece.kind == "content":
                choice.content += piece.text
            else:
                choice.reasoning += piece.text
            yield piece


def _router(assembly: Assembly, rendered: str | None) -> StreamRouter | None:
    if rendered is None:
        return None
    from gallium.text.router import StreamRouter, detect_format, starts_in_reasoning

    form = detect_format(assembly.tokenizer.chat_template)
    return StreamRouter(form, in_reasoning=starts_in_reasoning(rendered), tools=None)


def _split(router: StreamRouter | None, delta: Delta) -> Iterator[Piece]:
    """One delta's text as pieces; with a router, whatever it holds back comes at the end."""
    if router is None:
        if delta.text:
            yield Piece(delta.index, "content", delta.text)
        return
    from gallium.text.router import Content, Reasoning

    events = router.feed(delta.text) if delta.text else []
    if delta.finish_reason is not None:
        events = [*events, *router.close()]
    for event in events:
        if isinstance(event, Content):
            yield Piece(delta.index, "content", event.text)
        elif isinstance(event, Reasoning):
            yield Piece(delta.index, "reasoning", event.text)
        # No tools were offered, so the router passes what looks like a call on as content.


def sampling_for(assembly: Assembly, given: Mapping[str, Any]) -> SamplingParams:
    """The given fields over the calmer defaults of interactive use."""
    usual = STAND_IN_SAMPLING if assembly.is_default else SAMPLING
    return SamplingParams(**{**usual, **given})


def answer_messages(assembly: Assembly, messages: Sequence[Message], params: SamplingParams) -> Answer:
    """Answer a conversation. Raises TemplateError without a chat template, and as Answer does."""
    template = assembly.template
    if template is None:
        raise TemplateError(
            f"{assembly.label} has no chat template, so it can only continue text: use `gallium run --raw PROMPT`."
        )
    rendered = template.render(list(messages), add_generation_prompt=True)
    return Answer(assembly, assembly.tokenizer.encode(rendered), params, rendered=rendered)


def answer_raw(assembly: Assembly, prompt: str, params: SamplingParams) -> Answer:
    """Continue a text as it is. Raises as Answer does."""
    ids = assembly.tokenizer.encode(prompt, add_special_tokens=True)
    return Answer(assembly, ids, params, rendered=None)
