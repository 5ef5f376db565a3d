"""ChatTemplate: renders a conversation with the checkpoint's Jinja2 chat template, sandboxed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gallium.errors import TemplateError
from gallium.text.messages import prepare_messages, to_glm4_dialect

if TYPE_CHECKING:
    import jinja2

    from gallium.text.template_environment import Dialect


class ChatTemplate:
    """A chat template and the special tokens that it may name (`bos_token`, …). Compiled at the first rendering."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The text that the model continues. Encode it with `add_special_tokens=False`: it has its prefix.

        `tools` are OpenAI tool objects, passed as they are. `kwargs` reach the template by name (`enable_thinking`,
        `clear_thinking`, `reasoning_effort`, `documents`, …); which of them it knows is the template's affair.
        Raises TemplateError, with the template's own words if it refuses the messages, and InvalidRequest for
        messages that are none.
        """
        template, dialect = self._compiled
        prepared = prepare_messages(messages, wants_parts=dialect.parts)
        if dialect.glm4:
            prepared = to_glm4_dialect(prepared, tools)
        values = {
            **self.special_tokens,
            **kwargs,
            "messages": prepared,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        values.setdefault("documents", None)
        try:
            return template.render(values)
        except Exception as cause:  # a template can fail in any way that Python code can
            raise TemplateError(
                f"The chat template failed on these messages: {_reason(cause).rstrip('.')}. Change the messages, or "
                "give a plain prompt, which needs no template."
            ) from cause

    @cached_property
    def _compiled(self) -> tuple[jinja2.Template, Dialect]:
        """(Template, the form in which it reads messages)."""
        import jinja2

        from gallium.text.template_environment import compile_template, dialect_of

        try:
            return compile_template(self.source), dialect_of(self.source)
        except jinja2.TemplateSyntaxError as cause:
            raise TemplateError(
                f"The chat template is damaged, line {cause.lineno}: {cause.message}. Fetch the model again."
            ) from cause
        except (jinja2.TemplateError, RecursionError) as cause:
            raise TemplateError(f"The chat template is damaged: {_reason(cause)}. Fetch the model again.") from cause


def _reason(cause: BaseException) -> str:
    import jinja2

    said = str(cause)
    if isinstance(cause, jinja2.TemplateError) and said:
        return said
    return f"{type(cause).__name__}: {said}" if said else type(cause).__name__
