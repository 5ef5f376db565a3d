"""The sandboxed Jinja2 environment that chat templates are written for; imported only when one is rendered.

The behaviour (trimming, `tojson`, `raise_exception`, `strftime_now`, the `generation` tag) is that of Hugging Face
Transformers, utils/chat_template_utils.py, for which checkpoints' templates are made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the model wrote, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, non-ASCII kept: Jinja2's own filter would escape both."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> NoReturn:
    """What a template calls to refuse its messages."""
    raise TemplateError(message)


def strftime_now(form: str) -> str:
    """The local time, for templates that tell the model the date."""
    return datetime.now().strftime(form)


def compile_template(source: str) -> Template:
    """Compile `source`. Raises jinja2.TemplateError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(source)


@dataclass(frozen=True, slots=True)
class Dialect:
    """In which form a template reads its messages, as far as it differs from the usual one."""

    parts: bool
    """It walks through the parts of a content and never asks whether it is a string."""
    glm4: bool
    """It is of GLM-4 (2024): calls are `metadata`, tools stand on a message."""


def dialect_of(source: str) -> Dialect:
    """The dialect, told by what the template names. Raises jinja2.TemplateError."""
    tree = ImmutableSandboxedEnvironment(extensions=[GenerationTag, loopcontrols]).parse(source)
    tests_string = any(test.name == "string" for test in tree.find_all(nodes.Test))
    walks = any(_name(loop.iter) == "content" for loop in tree.find_all(nodes.For))
    named = {_name(node) for node in tree.find_all((nodes.Getattr, nodes.Getitem))}
    return Dialect(walks and not tests_string, {"metadata", "tools"} <= named and "tool_calls" not in named)


def _name(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return str(node.arg.value)
    return node.name if isinstance(node, nodes.Name) else None
