"""The Python API: load a model, generate, chat, score."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeAlias

from gallium.engine.assembly import Assembly, assemble
from gallium.engine.memory import parse_bytes
from gallium.errors import GalliumError, InvalidRequest, TemplateError
from gallium.models.spec import ModelSpec
from gallium.ops.handles import FloatArray
from gallium.settings import EngineSettings, Hub, KvPrecisionChoice, PrecisionChoice, Speculation
from gallium.text.tokenizer import Tokenizer
from gallium.types import Completion, Delta, FinishReason, Message, SamplingParams, TokenLogprob

Params: TypeAlias = SamplingParams | Sequence[SamplingParams]
Arrivals: TypeAlias = queue.SimpleQueue[tuple[int, Delta | GalliumError]]


class LLM:
    """A loaded model that answers; also a context manager.

    `model` is a folder, a GGUF file or a hub name; None is the embedded default. The keywords are the fields
    of EngineSettings; `kv_memory` may also be a string such as "2GiB". Raises a GalliumError that says what is
    wrong.

    A checkpoint without a tokenizer can be used with token ids: completions then have no text.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        backend: str = "auto",
        precision: PrecisionChoice = "auto",
        hub: Hub = "huggingface",
        revision: str | None = None,
        threads: int | None = None,
        tp: int = 1,
        dp: int | None = None,
        ep: int = 1,
        kv_precision: KvPrecisionChoice = "auto",
        kv_memory: int | str | None = None,
        block_size: int | None = None,
        max_context: int | None = None,
        max_batch: int = 64,
        max_step_tokens: int = 512,
        prefix_cache: bool = True,
        graphs: bool = True,
        speculate: Speculation = "off",
        draft_precision: PrecisionChoice = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        settings = EngineSettings(
            backend=backend,
            precision=precision,
            hub=hub,
            revision=revision,
            threads=threads,
            tp=tp,
            dp=dp,
            ep=ep,
            kv_precision=kv_precision,
            kv_memory=None if kv_memory is None else parse_bytes(kv_memory),
            block_size=block_size,
            max_context=max_context,
            max_batch=max_batch,
            max_step_tokens=max_step_tokens,
            prefix_cache=prefix_cache,
            graphs=graphs,
            speculate=speculate,
            draft_precision=draft_precision,
        )
        name = None if model is None else str(model)
        self.assembly: Assembly = assemble(name, settings, progress=progress, need_tokenizer=False)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises TokenizerError if the checkpoint has none."""
        return self.assembly.tokenizer

    @property
    def spec(self) -> ModelSpec:
        """The facts of the loaded model."""
        return self.assembly.spec

    def generate(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        params: Params | None = None,
    ) -> list[Completion]:
        """Complete each prompt as it is, without a chat template; waits for all.

        Give text or token ids, one prompt or several; `params` for all prompts, or one for each. The result is
        in the order of the prompts, the `n` choices of each together. If one prompt is refused, or the engine
        dies, the error is raised and the other prompts are cancelled.
        """
        if prompts is not None and prompt_token_ids is None:
            texts = [prompts] if isinstance(prompts, str) else list(prompts)
            ids = [self.tokenizer.encode(text, add_special_tokens=True) for text in texts]
        elif prompts is None and prompt_token_ids is not None:
            ids = _as_lists(prompt_token_ids)
        else:
            raise InvalidRequest("give either prompts or prompt_token_ids.", "prompts")
        if params is None or isinstance(params, SamplingParams):
            each = [params or SamplingParams()] * len(ids)
        else:
            each = list(params)
        if len(each) != len(ids):
            raise InvalidRequest(f"{len(each)} params were given for {len(ids)} prompts.", "params")
        if not all(isinstance(one, SamplingParams) for one in each):
            raise InvalidRequest("params must be SamplingParams: one for all prompts, or one for each.", "params")
        return self._run(ids, each)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        tools: list[dict[str, Any]] | None = None,
        **template_kwargs: Any,
    ) -> Completion:
        """Answer a conversation; `template_kwargs` go to the chat template (`enable_thinking=False`, …).

        The text is the model's own: reasoning and tool calls are not split off. Raises TemplateError if the
        checkpoint has no chat template.
        """
        params = params or SamplingParams()
        if params.n != 1:
            raise InvalidRequest("chat gives one answer; use generate for n > 1.", "n")
        prompt = self.render(messages, tools, **template_kwargs)
        return self._run([self.tokenizer.encode(prompt)], [params])[0]

    def render(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None, **template_kwargs: Any
    ) -> str:
        """The prompt that `chat` would use. Raises TemplateError if the checkpoint has no chat template."""
        template = self.assembly.template
        if template is None:
            raise TemplateError(f"{self.assembly.label} has no chat template: use generate with plain prompts.")
        return template.render(list(messages), tools=tools, **template_kwargs)

    def logits(self, prompt_token_ids: Sequence[int]) -> FloatArray:
        """Raw logits float32 `[tokens, vocab]` of every position, padding of the vocabulary included."""
        return self.assembly.engine.logits(prompt_token_ids)

    def close(self) -> None:
        """Stop the engine. Safe to call again."""
        self.assembly.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "assembly"):
            self.close()

    def _run(self, prompts: list[list[int]], params: list[SamplingParams]) -> list[Completion]:
        """Submit all, gather until the last choice ends, in the order of the prompts."""
        arrived: Arrivals = queue.SimpleQueue()
        choices: dict[tuple[int, int], _Gathered] = {}
        handles = []
        try:
            for number, (ids, how) in enumerate(zip(prompts, params, strict=True)):
                if how.stop:
                    _ = self.tokenizer  # without one a stop string could never be found
                for index in range(how.n):
                    choices[number, index] = _Gathered(index, ids, how.logprobs is not None)
                handles.append(self.assembly.engine.submit(ids, how, _labelled(number, arrived)))
            still_open = len(choices)
            while still_open:
                number, delta = arrived.get()
                if isinstance(delta, GalliumError):
                    raise delta
                choices[number, delta.index].take(delta)
                still_open -= delta.finish_reason is not None
        except BaseException:  # a refusal, the engine's death, Ctrl-C: nothing goes on unseen
            for handle in handles:
                handle.cancel()
            raise
        return [choice.completion() for choice in choices.values()]


class _Gathered:
    """The deltas of one choice, put together."""

    def __init__(self, index: int, prompt: list[int], logprobs: bool) -> None:
        self._index = index
        self._prompt = prompt
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] | None = [] if logprobs else None
        self._finish: FinishReason = "error"
        self._stop: int | str | None = None
        self._cached = 0

    def take(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self._tokens += delta.token_ids
        self._cached += delta.cached_tokens
        if self._logprobs is not None:
            self._logprobs += delta.logprobs
        if delta.finish_reason is not None:
            self._finish, self._stop = delta.finish_reason, delta.stop_reason

    def completion(self) -> Completion:
        return Completion(
            index=self._index,
            text="".join(self._texts),
            token_ids=self._tokens,
            finish_reason=self._finish,
            prompt_token_ids=list(self._prompt),
            logprobs=self._logprobs,
            stop_reason=self._stop,
            cached_tokens=self._cached,
        )


def _labelled(number: int, arrived: Arrivals) -> Callable[[Delta | GalliumError], None]:
    """A listener that says whose delta it passes on."""
    return lambda delta: arrived.put((number, delta))


def _as_lists(ids: Sequence[Any]) -> list[list[int]]:
    """One prompt or several, as several."""
    entries = _as_list(ids)
    if entries and all(hasattr(entry, "__len__") for entry in entries):
        return [_as_list(entry) for entry in entries]
    return [entries]


def _as_list(ids: Any) -> list[Any]:
    """A list of Python's own numbers, of an array too."""
    return list(ids.tolist() if hasattr(ids, "tolist") else ids)
