"""What requests may contain. A field that is not here is refused by name; nothing is ignored in silence.

Three groups of fields: those that are honoured; those that change nothing by their own definition, so that
accepting them is honest (marked "harmless"); and fields of OpenAI's that are not honoured (UNSUPPORTED), which
may be null, as some clients send every field they know.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

UNSUPPORTED = {
    "audio": "answers are text",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "moderation": "nothing is moderated here",
    "suffix": "the model completes at the end only",
    "web_search_options": "this server does not search the web",
}
REASONS = UNSUPPORTED | {
    "chat_template": "the model's own chat template is used",
    "continue_final_message": "end the messages with a user's, or use /v1/completions",
    "guided_choice": "guided decoding is not implemented",
    "guided_grammar": "guided decoding is not implemented",
    "guided_json": "guided decoding is not implemented",
    "guided_regex": "guided decoding is not implemented",
    "input": "that is a field of the Responses API; use messages",
    "length_penalty": "there is no beam search",
    "prompt_logprobs": "use echo and logprobs of /v1/completions",
    "thinking": "use chat_template_kwargs, for example {\"enable_thinking\": false}",
    "truncate_prompt_tokens": "a prompt that is too long is refused, never cut",
    "use_beam_search": "there is no beam search",
}  # fmt: skip


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # True is refused


class SamplingRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields that chat and completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    # of other servers in the field
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    include_stop: bool | None = None
    skip_special_tokens: bool | None = None
    # harmless
    user: str | None = None


class CompletionRequest(SamplingRequest, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | list[Any]  # text, texts, token ids or lists of token ids
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None  # only what n is
    # only null
    suffix: None = None


class ToolCallFunction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A call in a message of the past."""

    name: str
    arguments: str  # a JSON object


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One entry of a message's `tool_calls`."""

    id: str
    function: ToolCallFunction
    type: Literal["function"] = "function"
    index: int | None = None  # harmless: left over from a stream


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message. Which fields a role may have is checked in conversation.py."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    # harmless: a name is for the client's own order; the others come back with answers of OpenAI's own client
    name: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[dict[str, Any]] | None = None


class ToolFunction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a tool is; checked only, for the template gets the object as it was sent."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # True is refused


class Tool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One entry of `tools`."""

    type: Literal["function"]
    function: ToolFunction


class PredictionPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A piece of a predicted text."""

    type: Literal["text"]
    text: str


class Prediction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`prediction`: what the answer is expected to be, much of it."""

    type: Literal["content"]
    content: str | list[PredictionPart]

    @property
    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(SamplingRequest, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None  # False is refused
    reasoning_effort: str | None = None
    response_format: dict[str, Any] | None = None  # only {"type": "text"}
    prediction: Prediction | None = None
    # of other servers in the field
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    # harmless: for the operator's own records, or the value that changes nothing
    metadata: dict[str, Any] | None = None
    modalities: list[Literal["text"]] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: bool | None = None  # True is refused
    verbosity: Literal["medium"] | None = None
    # only null
    audio: None = None
    function_call: None = None
    functions: None = None
    moderation: None = None
    web_search_options: None = None


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of /tokenize: a prompt as /v1/completions takes it, or messages as the chat does."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    messages: list[ChatMessage] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of /detokenize."""

    tokens: list[int]
    model: str | None = None
    skip_special_tokens: bool | None = None
