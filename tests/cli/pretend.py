"""A pretend model for the commands: it says what its script says. Run as a program, it is `gallium` over that model."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gallium.errors import ContextTooLong, GalliumError
from gallium.settings import EngineSettings
from gallium.types import Delta, Message, SamplingParams, TokenLogprob

SLOW = 0.05  # seconds between two deltas, for tests that interrupt


class PretendTokenizer:
    """A token is a UTF-8 byte."""

    chat_template: str | None = "a template of no known family"

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return ([0] if add_special_tokens else []) + list(text.encode())


class PretendTemplate:
    """`role: content` lines."""

    def __init__(self) -> None:
        self.seen: list[list[Message]] = []

    def render(self, messages: Sequence[Message], **named: Any) -> str:
        self.seen.append([dict(m) for m in messages])
        return "".join(f"{m['role']}: {m['content']}\n" for m in messages)


class PretendEngine:
    """Emits the script's words, one delta each; then the last error or finish reason."""

    max_context = 400

    def __init__(self, words: Sequence[str], *, pause: float = 0.0, fail: GalliumError | None = None) -> None:
        self.words = list(words)
        self.pause = pause
        self.fail = fail
        self.requests: list[tuple[list[int], SamplingParams]] = []
        self.cancelled = 0

    def submit(
        self, prompt: Sequence[int], params: SamplingParams, on_delta: Callable[[Delta | GalliumError], None]
    ) -> PretendHandle:
        if len(prompt) >= self.max_context:
            raise ContextTooLong("the prompt does not fit: shorten it.", "prompt")
        self.requests.append((list(prompt), params))
        handle = PretendHandle(self)
        threading.Thread(target=self._speak, args=(params, on_delta, handle), daemon=True).start()
        return handle

    def _speak(
        self, params: SamplingParams, on_delta: Callable[[Delta | GalliumError], None], handle: PretendHandle
    ) -> None:
        words = self.words[: params.max_tokens]
        for number, word in enumerate(words):
            if handle.gone.wait(self.pause if number else 0):
                for index in range(params.n):
                    on_delta(Delta(index, (), "", finish_reason="cancelled"))
                return
            for index in range(params.n):
                logprobs = (TokenLogprob(number, -0.5, ((number, -0.5),)),) if params.logprobs is not None else ()
                on_delta(Delta(index, (number,), word, logprobs, cached_tokens=0 if number else 3))
        if self.fail is not None:
            on_delta(self.fail)
            return
        for index in range(params.n):
            on_delta(Delta(index, (), "", finish_reason="length" if len(words) < len(self.words) else "stop"))


@dataclass
class PretendHandle:
    engine: PretendEngine
    gone: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.engine.cancelled += 1
        self.gone.set()


@dataclass
class PretendAssembly:
    """The part of an Assembly that the commands look at."""

    engine: PretendEngine
    label: str = "pretend"
    is_default: bool = False
    emulated: bool = False
    precision: str = "float32"
    backend_name: str = "pretend"
    template: PretendTemplate | None = field(default_factory=PretendTemplate)
    tokenizer: PretendTokenizer = field(default_factory=PretendTokenizer)
    closed: bool = False
    settings: EngineSettings | None = None

    @property
    def summary(self) -> str:
        return f"{self.label}: summary"

    def close(self) -> None:
        self.closed = True


def pretend_assembly(script: Mapping[str, Any] | None = None) -> PretendAssembly:
    """An assembly that says "Hello there, friend." unless the script has other `words`."""
    script = {"words": ["Hello", " there", ", friend", "."], **(script or {})}
    engine = PretendEngine(script["words"], pause=script.get("pause", 0.0), fail=script.get("fail"))
    return PretendAssembly(engine, is_default=bool(script.get("is_default")))


def install(assembly: PretendAssembly, patch: Callable[[str, Any], None]) -> PretendAssembly:
    """Let `assemble` give this assembly, whatever it is asked for."""

    def assemble(
        model: str | None,
        settings: EngineSettings,
        *,
        progress: Any = None,
        need_tokenizer: bool = True,
        recorder: Any = None,
    ) -> PretendAssembly:
        if progress is not None:
            progress(1, 1)
        assembly.settings = settings
        assembly.label = model or assembly.label
        return assembly

    patch("gallium.engine.assembly.assemble", assemble)
    return assembly


def main() -> None:
    """`gallium` over a pretend model; PRETEND_WORDS and PRETEND_PAUSE are its script."""
    import gallium.engine.assembly as home
    from gallium.cli.main import main as gallium

    words = os.environ.get("PRETEND_WORDS")
    script: dict[str, Any] = {"pause": float(os.environ.get("PRETEND_PAUSE", "0"))}
    if words is not None:
        script["words"] = [word + " " for word in words.split()]
    script["is_default"] = "PRETEND_DEFAULT" in os.environ
    install(pretend_assembly(script), lambda name, value: setattr(home, name.rpartition(".")[2], value))
    gallium()


if __name__ == "__main__":
    main()
