"""`gallium serve` with no model: the embedded default, its real text, a soak, and the memory that this may take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from tests.api.serving import BACKEND, PATIENCE_S, Served, served
from tests.api.soaking import CLIENTS, REQUESTS, assert_nothing_left, soak
from tests.golden.reexpress import default_gguf

from gallium import LLM, SamplingParams

MIB = 2**20
KV = 64 * MIB
GRAVITY: Any = [{"role": "user", "content": "What is gravity?"}]


@pytest.fixture(scope="module")
def default_server() -> Iterator[Served]:
    with served("--kv-memory", str(KV)) as running:
        yield running


@pytest.fixture
def client(default_server: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=default_server.url + "/v1", api_key="-", max_retries=0, timeout=PATIENCE_S) as made:
        yield made


@pytest.fixture
async def async_client(default_server: Served) -> AsyncIterator[AsyncOpenAI]:
    url = default_server.url + "/v1"
    async with AsyncOpenAI(base_url=url, api_key="-", max_retries=0, timeout=PATIENCE_S) as made:
        yield made


@pytest.fixture(scope="module")
def default_llm() -> Iterator[LLM]:
    with LLM(backend=BACKEND, kv_memory=KV) as loaded:
        yield loaded


def test_it_says_that_it_is_a_stand_in(default_server: Served) -> None:
    said = "\n".join(default_server.lines)
    assert "a stand-in" in said and "gallium serve zai-org/glm-edge" in said


def test_greedy_chat_is_that_of_the_python_api(client: OpenAI, default_llm: LLM) -> None:
    model = client.models.list().data[0].id
    fields: dict[str, Any] = {"model": model, "messages": GRAVITY, "temperature": 0, "max_tokens": 48}
    expected = default_llm.chat(GRAVITY, SamplingParams(temperature=0, max_tokens=48))
    answer = client.chat.completions.create(**fields, logprobs=True)
    (choice,) = answer.choices
    assert choice.message.content == expected.text and expected.text.startswith("Gravity is")
    assert choice.logprobs is not None and choice.logprobs.content is not None
    ids = [expected.token_ids[i] for i in range(len(choice.logprobs.content))]
    assert [bytes(entry.bytes or []) for entry in choice.logprobs.content] == list(
        map(default_llm.tokenizer.token_bytes, ids)
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens == len(expected.token_ids)
    with client.chat.completions.create(**fields, stream=True) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected.text


@pytest.mark.parametrize("parts", [False, True])
def test_a_prediction_gives_the_same_answer_and_is_counted(client: OpenAI, default_server: Served, parts: bool) -> None:
    text = "The river runs for ninety miles. Three old bridges cross it, and carts use them every day."
    asked: Any = [{"role": "user", "content": f"Repeat this text exactly, but write Four instead of Three: {text}"}]
    fields: dict[str, Any] = {"model": client.models.list().data[0].id, "messages": asked, "max_tokens": 40}
    content: Any = [{"type": "text", "text": text[:50]}, {"type": "text", "text": text[50:]}] if parts else text
    for sampled in ({"temperature": 0}, {"temperature": 0.6, "seed": 4}):
        plain = client.chat.completions.create(**fields, **sampled)
        answer = client.chat.completions.create(**fields, **sampled, prediction={"type": "content", "content": content})
        assert answer.choices[0].message == plain.choices[0].message
        assert answer.usage is not None and plain.usage is not None
        assert answer.usage.completion_tokens == plain.usage.completion_tokens
        details = answer.usage.completion_tokens_details
        assert details is not None and details.accepted_prediction_tokens is not None
        assert details.accepted_prediction_tokens > 0 and details.rejected_prediction_tokens is not None
        assert plain.usage.completion_tokens_details is None


def test_a_short_answer_stops_by_itself(client: OpenAI, default_llm: LLM) -> None:
    messages: Any = [{"role": "user", "content": "Say only: yes"}]
    expected = default_llm.chat(messages, SamplingParams(temperature=0, max_tokens=200))
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=200)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
        expected.text,
        expected.finish_reason,
    )
    assert expected.finish_reason == "stop"


def test_its_template_has_no_place_for_tools(client: OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f"}}]
    model = client.models.list().data[0].id
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=GRAVITY, tools=tools)
    assert caught.value.param == "tools"


async def test_a_soak(async_client: AsyncOpenAI, default_server: Served) -> None:
    ends = await soak(default_server, async_client, seed=3, most_tokens=12)
    assert_nothing_left(default_server)
    assert ends.total() == REQUESTS and ends["left"] > CLIENTS
    assert default_server.memory() < 1.2 * (default_gguf().stat().st_size + KV) + 150 * 1e6
