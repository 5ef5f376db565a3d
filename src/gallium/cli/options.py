"""Options that several commands share, made from the fields of EngineSettings and SamplingParams."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from gallium.errors import UsageError
from gallium.settings import (
    EngineSettings,
    Hub,
    KvPrecisionChoice,
    PrecisionChoice,
    check_environment,
    environment,
)
from gallium.types import SamplingParams

F = TypeVar("F", bound=Callable[..., Any])


def size(text: str) -> int:
    """`"2GiB"` -> bytes."""
    from gallium.engine.memory import parse_bytes

    try:
        return parse_bytes(text)
    except UsageError as error:
        raise click.BadParameter(error.message) from None


def bias(text: str) -> tuple[int, float]:
    """`"42=-1.5"` -> (42, -1.5)."""
    token_id, _, value = text.partition("=")
    try:
        return int(token_id), float(value)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form ID=BIAS, for example 42=-1.5.") from None


def numbers(text: str) -> tuple[int, ...]:
    """`"1,4,16"` -> (1, 4, 16)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r} is not a list such as 1,4,16.")
    return tuple(int(part) for part in parts)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How values of one annotation are read from the command line."""

    type: Any  # of click
    metavar: str | None = None
    multiple: bool = False


KINDS = {
    "str": Kind(str),
    "str | None": Kind(str),
    "int": Kind(int),
    "int | None": Kind(int),
    "float": Kind(float),
    "bool": Kind(bool),
    "tuple[str, ...]": Kind(str, multiple=True),
    "tuple[int, ...]": Kind(int, multiple=True),
    "dict[int, float]": Kind(bias, "ID=BIAS", multiple=True),
    "PrecisionChoice": Kind(click.Choice(get_args(PrecisionChoice))),
    "KvPrecisionChoice": Kind(click.Choice(get_args(KvPrecisionChoice))),
    "Hub": Kind(click.Choice(get_args(Hub))),
    "Speculation": Kind(str, "off|ngram|MODEL"),
}
"""By the annotation of the field."""
SIZE = Kind(size, "SIZE")

ENGINE_HELP = {
    "backend": "Hardware to run on; `gallium doctor` lists what there is.",
    "precision": "Precision of the weights; auto is that of the file.",
    "kv_precision": "Precision of the KV cache. int8 takes half the memory of bfloat16; auto is float32 for a model in "
    "float32, what the checkpoint is calibrated for if it is, and else the 16-bit type of the backend.",
    "hub": "Where hub names are looked up.",
    "revision": "Branch, tag or commit at the hub.",
    "threads": "Threads that compute.  [default: the cores this process may use]",
    "tp": "Tensor parallel: devices that share each sequence's work.",
    "dp": "Data parallel: groups of --tp devices, each with sequences of its own.  [default: --ep / --tp, or 1]",
    "ep": "Expert parallel: devices that the experts are spread over, all (--tp times --dp) or 1. "
    "Given alone, --ep N takes N devices, and sequences are spread over them too.",
    "kv_memory": "Memory for the KV cache of each device, such as 2GiB.  [default: a quarter of the free memory]",
    "max_context": "Tokens of prompt and answer together.  [default: what model and KV cache allow]",
    "block_size": "Tokens per block of the KV cache.  [default: what suits the backend]",
    "max_batch": "Sequences that are computed together, in each group of --dp.",
    "max_step_tokens": "Tokens per step; longer prompts are computed in chunks of this size.",
    "prefix_cache": "Compute a common beginning of prompts once.",
    "graphs": "Capture decode steps, where the backend can, and run each as a whole.",
    "speculate": "Guess tokens and check several in one step; answers stay the same. ngram takes what followed the "
    "same text before. A MODEL (folder, .gguf file or hub name) that is smaller, or in fewer bits, and has the same "
    "tokenizer drafts where that finds nothing.",
    "draft_precision": "Precision of the weights of the MODEL of --speculate; auto is that of its file.",
}
ENGINE_COMMON = (
    "backend", "precision", "threads", "tp", "dp", "ep", "kv_precision", "kv_memory", "max_context", "graphs",
    "speculate", "draft_precision", "hub", "revision",
)  # fmt: skip
ENGINE_SERVING = ("max_batch", "max_step_tokens", "block_size", "prefix_cache")

SAMPLING_HELP = {
    "temperature": "Randomness; 0 always takes the likeliest token.",
    "top_k": "Draw from the K likeliest tokens; 0 is off.",
    "top_p": "Draw from the likeliest tokens that together have this probability; 1 is off.",
    "min_p": "Leave out tokens that are less likely than this share of the likeliest; 0 is off.",
    "repetition_penalty": "Divide the logits of tokens that have occurred; 1 is off.",
    "presence_penalty": "Subtract this from the logits of tokens already in the answer.",
    "frequency_penalty": "Subtract this once per occurrence in the answer.",
    "logit_bias": "Add BIAS (-100 to 100) to the logit of token ID; may be repeated.",
    "seed": "Makes the answer repeatable.  [default: a new one each time]",
    "max_tokens": "Longest answer, in tokens.  [default: until the context is full]",
    "min_tokens": "Shortest answer, in tokens.",
    "stop": "End the answer before this text; may be repeated.",
    "stop_token_ids": "End the answer at this token; may be repeated.",
    "include_stop": "Keep the stop text in the answer.",
    "ignore_eos": "Go on after the model's own end.",
    "logprobs": "Also give log-probabilities, with this many alternatives (needs --json).",
    "n": "Number of answers (more than one needs --json).",
    "skip_special_tokens": "Leave special tokens out of the text.",
}


def engine_options(*extra: str, without: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Add the common engine options and `extra` ones; the command gets them as `settings`."""
    names = tuple(name for name in (*ENGINE_COMMON, *extra) if name not in without)

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def packed(**values: Any) -> Any:
            settings = EngineSettings(**{name: values.pop(name) for name in names})
            return command(settings=settings, **values)

        fields = {f.name: f for f in dataclasses.fields(EngineSettings)}
        decorated: Any = packed
        for name in reversed(names):
            decorated = _option(fields[name], ENGINE_HELP[name], "Engine", with_default=True)(decorated)
        found: F = decorated
        return found

    return decorate


def sampling_options(*, without: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Add the sampling options; the command gets those that were given, checked, as the dict `sampling`."""
    fields = [f for f in dataclasses.fields(SamplingParams) if f.name not in without]

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def packed(**values: Any) -> Any:
            given = {f.name: values.pop(f.name) for f in fields}
            sampling = {name: value for name, value in given.items() if value not in (None, ())}
            if "logit_bias" in sampling:
                sampling["logit_bias"] = dict(sampling["logit_bias"])
            SamplingParams(**sampling)  # refuses now what would be refused after loading
            return command(sampling=sampling, **values)

        decorated: Any = packed
        for field in reversed(fields):
            decorated = _option(field, SAMPLING_HELP[field.name], "Sampling", with_default=False)(decorated)
        found: F = decorated
        return found

    return decorate


def _option(field: dataclasses.Field[Any], text: str, section: str, *, with_default: bool) -> Callable[[Any], Any]:
    kind = SIZE if field.name == "kv_memory" else KINDS[str(field.type)]
    flag = field.name.replace("_", "-")
    default = field.default if with_default else None
    return click.option(
        f"--{flag}/--no-{flag}" if kind.type is bool and field.default else f"--{flag}",
        field.name,
        cls=SectionOption,
        section=section,
        is_flag=kind.type is bool,
        type=kind.type,
        metavar=kind.metavar,
        multiple=kind.multiple,
        default=() if kind.multiple else default,
        show_default=default is not None,
        help=text,
    )


class SectionOption(click.Option):
    """An option that stands under a heading of its own in --help."""

    def __init__(self, *args: Any, section: str, **named: Any) -> None:
        super().__init__(*args, **named)
        self.section = section


def model_argument(command: F) -> F:
    """MODEL as an argument, or as -m/--model."""

    @functools.wraps(command)
    def merged(model: str | None, model_option: str | None, **values: Any) -> Any:
        if model is not None and model_option is not None:
            raise UsageError("the model was named twice, as an argument and with --model: name it once.")
        return command(model=model if model_option is None else model_option, **values)

    decorated: Any = click.argument("model", required=False)(merged)
    decorated = click.option("-m", "--model", "model_option", metavar="MODEL", help="The same as the argument.")(
        decorated
    )
    found: F = decorated
    return found


def model_option(command: F) -> F:
    """MODEL as -m/--model, for a command whose argument is something else."""
    decorate = click.option(
        "-m", "--model", metavar="MODEL", help="Folder, .gguf file or hub name.  [default: the embedded model]"
    )
    return decorate(command)


class Command(click.Command):
    """A command that knows --debug, wherever it stands, and refuses misspelt settings in the environment."""

    def invoke(self, ctx: click.Context) -> Any:
        """click's, after the check: --help, which comes before, is shown in any case."""
        check_environment()
        return super().invoke(ctx)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """click's, with --debug before --help."""
        return _with_debug(super().get_params(ctx))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """click's, with a heading per section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(row)
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


class CommandGroup(click.Group):
    """A command of several that knows --debug."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """click's, with --debug before --help."""
        return _with_debug(super().get_params(ctx))


def _with_debug(params: list[click.Parameter]) -> list[click.Parameter]:
    return [*params[:-1], _debug_option(), params[-1]] if params else [_debug_option()]


@functools.cache
def _debug_option() -> click.Option:
    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().meta["gallium.debug"] = True

    return click.Option(["--debug"], is_flag=True, expose_value=False, callback=remember, help="Print tracebacks.")


def wants_debug(ctx: click.Context) -> bool:
    """Whether --debug was given, before or after the command, or GALLIUM_DEBUG is set."""
    root = ctx.find_root()
    asked = root.params.get("debug") or root.meta.get("gallium.debug")
    return bool(asked) or environment("GALLIUM_DEBUG") not in (None, "0")
