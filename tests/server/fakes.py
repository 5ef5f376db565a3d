"""A served model that says what its script says: the real engine, a pretend device, bytes as tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from gallium.engine.assembly import Assembly, Draft
from gallium.engine.async_engine import Engine, EngineLimits, EngineStats, RequestHandle
from gallium.engine.memory import KvPlan
from gallium.engine.request import OnDelta
from gallium.engine.runner import NOTHING, LaneStep, Runner, StepResult
from gallium.ops.handles import FloatArray, Step
from gallium.server.app import make_server
from gallium.server.lifecycle import Server
from gallium.server.listener import listen, url_of
from gallium.server.settings import ServerSettings
from gallium.settings import EngineSettings
from gallium.text.detokenizer import Detokenizer
from gallium.text.template import ChatTemplate
from gallium.text.tokenizer import Tokenizer
from gallium.types import SamplingParams

SPECIAL = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
TOKENS = {name: 256 + i for i, name in enumerate(SPECIAL + MARKS)}
EOS = TOKENS["<|endoftext|>"]
VOCAB = 256 + len(TOKENS)
HEAD_ROWS = VOCAB + 9  # with padding

GLM_TEMPLATE = """[gMASK]<sop>
{%- if tools -%}
<|system|># Tools
<tools>
{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}</tools>
For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value></tool_call>
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}<|observation|><tool_response>{{ m.content }}</tool_response>
{%- else -%}<|{{ m.role }}|>{{ m.content }}
{%- for call in m.tool_calls or [] -%}<tool_call>{{ call.function.name }}
{%- for k, v in call.function.arguments.items() -%}<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>
{%- endfor -%}</tool_call>{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>
{{- '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}
{%- endif -%}"""
PLAIN_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


class ByteTokenizer:
    """A token is a byte, or one of TOKENS. `prefix` is what add_special_tokens puts before a text."""

    vocab_size = VOCAB
    eos_ids = (EOS,)
    special_ids = frozenset(TOKENS[name] for name in SPECIAL)
    special_tokens: dict[str, str] = {}  # noqa: RUF012
    drops_leading_space = False

    def __init__(self, chat_template: str | None, prefix: tuple[int, ...] = ()) -> None:
        self.chat_template = chat_template
        self.prefix = prefix

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return [*(self.prefix if add_special_tokens else ()), *encode(text)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        shown = [i for i in ids if not (skip_special_tokens and i in self.special_ids)]
        return b"".join(self.token_bytes(i) for i in shown).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        names = {i: name for name, i in TOKENS.items()}
        return bytes([token_id]) if token_id < 256 else names.get(token_id, "").encode()


def encode(text: str) -> list[int]:
    """Token ids of `text`, with the names of TOKENS read as such."""
    for name, token_id in TOKENS.items():
        before, found, after = text.partition(name)
        if found:
            return [*encode(before), token_id, *encode(after)]
    return list(text.encode())


Script = Callable[[list[int]], Sequence[int]]


def echo(prompt: list[int]) -> list[int]:
    """The bytes of the prompt, then the end."""
    return [i for i in prompt if i < 256] + [EOS]


def says(text: str, end: str = "<|endoftext|>") -> Script:
    """Always the same answer."""
    return lambda prompt: encode(text + end)


class ScriptedRunner(Runner):
    """A pretend device: reads the text of each sequence through its block table, and goes on as the script says.

    `gate` (if set) lets one step through per release; `fail` makes the next step raise.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.script: Script = echo
        self.prompts: list[list[int]] = []
        self.gate: threading.Semaphore | None = None
        self.fail = False
        self._cache: dict[int, int] = {}

    def run(self, lanes: Sequence[LaneStep | None]) -> list[StepResult]:
        if self.gate is not None:
            self.gate.acquire()
        if self.fail:
            raise RuntimeError("the device caught fire")
        return [NOTHING if lane is None else self._compute(lane) for lane in lanes]

    def _compute(self, lane: LaneStep) -> StepResult:
        step, how = lane.step, lane.how
        for slot, token in zip(step.slots(self.block_size), step.token_ids, strict=True):
            self._cache[int(slot)] = int(token)
        nexts = [self._next(step, int(row)) for row in step.logit_rows]
        logits = np.stack([pretend_logits(token) for token in nexts]) if lane.want_logits else None
        return StepResult(nexts[: len(how.seed)] if how is not None else [], logits)

    def _next(self, step: Step, row: int) -> int:
        seq = int(np.searchsorted(step.query_start, row, side="right")) - 1
        text = []
        for position in range(int(step.positions[row]) + 1):
            block = int(step.block_tables[seq, position // self.block_size])
            text.append(self._cache[block * self.block_size + position % self.block_size])
        known = [p for p in self.prompts if text[: len(p)] == p]
        if not known:
            return EOS  # a prompt that is scored
        prompt = max(known, key=len)
        answer = self.script(prompt)
        done = len(text) - len(prompt)
        return answer[done] if done < len(answer) else EOS


def pretend_logits(token: int) -> FloatArray:
    """Logits `[HEAD_ROWS]` that favour `token`; the others fall with their distance. Padding is best of all."""
    logits = -0.01 * np.abs(np.arange(HEAD_ROWS, dtype=np.float32) - token)
    logits[token] = 5
    logits[VOCAB:] = 100
    return logits


class ScriptedEngine(Engine):
    """The engine, which tells its runner the prompts, so that it knows where answers begin."""

    def __init__(self, runner: ScriptedRunner, limits: EngineLimits, tokenizer: ByteTokenizer) -> None:
        def detokenizer(params: SamplingParams) -> Detokenizer:
            return Detokenizer(cast(Tokenizer, tokenizer), skip_special_tokens=params.skip_special_tokens)

        ends = [TOKENS[name] for name in ("<|endoftext|>", "<|user|>", "<|observation|>")]
        super().__init__(runner, limits, eos_ids=ends, detokenizer=detokenizer)
        self.runner = runner
        self.seen: list[tuple[list[int], SamplingParams]] = []

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        on_delta: OnDelta,
        *,
        prediction: Sequence[int] = (),
    ) -> RequestHandle:
        self.runner.prompts.append(list(prompt_token_ids))
        self.seen.append((list(prompt_token_ids), params))
        return super().submit(prompt_token_ids, params, on_delta, prediction=prediction)


@dataclass(frozen=True)
class FakeSpec:
    arch: str = "glm"
    vocab_size: int = HEAD_ROWS


@dataclass
class FakeAssembly:
    """The part of an Assembly that the server looks at."""

    engine: ScriptedEngine
    tokenizer: ByteTokenizer
    template: ChatTemplate | None
    spec: FakeSpec = field(default_factory=FakeSpec)
    label: str = "fake-glm"
    is_default: bool = False
    precision: str = "float32"
    backend_name: str = "pretend"
    emulated: bool = False
    kv: KvPlan = field(default_factory=lambda: KvPlan(256, 1 << 20, 1000))
    draft: Draft | None = None
    kv_precision: str | None = "float32"
    settings: EngineSettings = field(default_factory=EngineSettings)

    @property
    def runner(self) -> ScriptedRunner:
        return self.engine.runner

    def settled(self) -> EngineStats:
        """The figures after the engine has taken in everything that was posted so far."""
        if self.runner.gate is not None:
            self.runner.gate.release(1000)
        self.engine.logits([0])
        return self.engine.stats()

    def real(self) -> Assembly:
        """As what the server takes it for."""
        return cast(Assembly, self)


def fake_assembly(template: str | None = GLM_TEMPLATE, prefix: tuple[int, ...] = (), **changes: int) -> FakeAssembly:
    """A running one."""
    numbers: dict[str, Any] = {
        "num_blocks": 256, "block_size": 8, "max_context": 1000, "max_batch": 32, "max_step_tokens": 256,
        "prefix_cache": True, "vocab_size": VOCAB, "head_rows": HEAD_ROWS,
    }  # fmt: skip
    limits = EngineLimits(**(numbers | changes))
    tokenizer = ByteTokenizer(template, prefix)
    engine = ScriptedEngine(ScriptedRunner(limits.block_size), limits, tokenizer)
    engine.start()
    return FakeAssembly(engine, tokenizer, ChatTemplate(template, {}) if template else None)


@dataclass(frozen=True)
class Live:
    """A running server."""

    url: str
    server: Server

    def stop(self) -> None:
        """As a signal would."""
        self.server.should_exit = True


@contextmanager
def live(assembly: Assembly, **settings: Any) -> Iterator[Live]:
    """The assembly behind a real port of the loopback interface."""
    sock = listen("127.0.0.1", 0)
    ready = threading.Event()
    server = make_server(assembly, sock, ServerSettings(**{"grace_s": 5.0, **settings}), ready.set)
    thread = threading.Thread(target=server.run_until_stopped, daemon=True)
    thread.start()
    try:
        assert ready.wait(20)
        yield Live(url_of(sock), server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
