"""`gallium chat`: a conversation at the terminal; without one, a single answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gallium import __version__
from gallium.cli.answering import Answer, answer_messages, sampling_for
from gallium.cli.conversation import Conversation
from gallium.cli.line_editing import read_line, start_line_editing
from gallium.cli.loading import announce, loaded
from gallium.cli.options import Command, engine_options, model_argument, sampling_options
from gallium.cli.terminal import checked_text, note, read_stdin, stdin_is_terminal, write
from gallium.cli.virtual import virtual_options
from gallium.errors import ContextTooLong, GalliumError, TemplateError, UsageError
from gallium.settings import EngineSettings
from gallium.types import SamplingParams

if TYPE_CHECKING:
    from gallium.engine.assembly import Assembly

FIRST_QUESTION = "What is gravity?"
FIRST_SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 160}
"""For the one question that is answered when there is nobody to ask another: the same answer each time."""

HELP = """\
/help          this list
/system TEXT   set the system message; without TEXT, show it; "/system -" takes it away
/reset         forget the conversation, keep the system message
/save FILE     write the conversation as JSON
/load FILE     go on with a saved conversation
/exit          leave (also Ctrl-D)
Ctrl-C stops an answer. \"\"\" begins and ends a text of several lines."""

EPILOG = f"""\b
In the chat:
{HELP.replace(chr(92), "")}

\b
Examples:
  gallium chat
  gallium chat zai-org/glm-edge-1.5b-chat --temperature 0.8
  gallium chat ./glm-4-9b-0414.gguf --precision int4 --system "Answer in one sentence."
  echo "What is gravity?" | gallium chat
"""


@click.command(cls=Command, epilog=EPILOG)
@model_argument
@click.option("--system", help="The system message.")
@sampling_options(without=("n", "logprobs"))
@engine_options()
@virtual_options
def chat(model: str | None, system: str | None, sampling: dict[str, Any], settings: EngineSettings) -> None:
    """Talk to MODEL (default: the embedded one).

    With no terminal on standard input, the text there is one question, answered on standard output; if there is
    none, a fixed question is asked.

    Unless told otherwise it draws with --temperature 0.6 --top-p 0.95 (0.2 and 0.9 for the embedded model).
    """
    conversation = Conversation(None if system is None else checked_text(system, "--system"))
    if stdin_is_terminal():
        with loaded(model, settings) as assembly:
            Chat(assembly, conversation, sampling_for(assembly, sampling)).run()
        return
    question = read_stdin()
    with loaded(model, settings) as assembly:
        announce(assembly, "chat")
        if not question.strip():
            question, sampling = FIRST_QUESTION, {**FIRST_SAMPLING, **sampling}
            write(f"> {question}\n\n")
        conversation.ask(question)
        answer = answer_messages(assembly, conversation.messages, sampling_for(assembly, sampling))
        show(answer)
        if not assembly.emulated:
            note(speed(answer))


def show(answer: Answer) -> None:
    """Stream to standard output, reasoning dimmed. Whatever ends this early ends the answer too."""
    kind = "content"
    try:
        for piece in answer:
            if piece.kind != kind:
                if kind == "reasoning":
                    write("\n\n")
                kind = piece.kind
            write(piece.text, dim=piece.kind == "reasoning")
    except BaseException:
        answer.cancel()
        raise
    write("\n")


def speed(answer: Answer) -> str:
    """One line of figures."""
    parts = [f"{answer.completion_tokens} tokens"]
    if answer.tokens_per_second is not None:
        parts.append(f"{answer.tokens_per_second:.1f} tokens/s")
    parts.append(f"first token after {answer.first_token_s:.2f} s")
    if answer.choices[0].finish_reason == "length":
        parts.append("cut off by --max-tokens or the context")
    return ", ".join(parts)


class Chat:
    """The loop: read a line, obey or answer it."""

    def __init__(self, assembly: Assembly, conversation: Conversation, params: SamplingParams) -> None:
        self.assembly = assembly
        self.conversation = conversation
        self.params = params
        self.commands = {
            "/help": self.help,
            "/system": self.system,
            "/reset": self.reset,
            "/save": self.save,
            "/load": self.load,
        }

    def run(self) -> None:
        """Until /exit or Ctrl-D."""
        click.secho(f"Gallium {__version__}", bold=True)
        announce(self.assembly, "chat")
        note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.")
        start_line_editing([*self.commands, "/exit"])
        while True:
            try:
                line = read_line()
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:
                click.echo()
                note("Ctrl-D or /exit leaves.")
                continue
            if line.strip() in ("/exit", "/quit"):
                return
            if line.strip():
                self.obey(line)

    def obey(self, line: str) -> None:
        """One line of input; what is wrong with it is said, and the chat goes on."""
        try:
            if line.startswith("/"):
                self.command(line)
            else:
                self.answer(checked_text(line, "this text"))
        except ContextTooLong as error:
            note(f"{error.message} Or start anew with /reset.")
        except (UsageError, TemplateError) as error:
            note(error.message)

    def command(self, line: str) -> None:
        """A line that begins with a slash."""
        name, _, rest = line.strip().partition(" ")
        if name not in self.commands:
            raise UsageError(
                f"there is no command {name}; /help lists them. To say it to the model, put a space before it."
            )
        self.commands[name](rest.strip())

    def answer(self, question: str) -> None:
        """Stream the answer; Ctrl-C keeps what has come so far."""
        self.conversation.ask(question)
        try:
            answer = answer_messages(self.assembly, self.conversation.messages, self.params)
        except GalliumError:
            self.conversation.unask()
            raise
        try:
            show(answer)
        except KeyboardInterrupt:
            click.echo()
            note("(stopped)")
        if not answer.completion_tokens:
            self.conversation.unask()
            return
        self.conversation.take(answer.choices[0])
        if not self.assembly.emulated:
            note(speed(answer))

    def help(self, rest: str) -> None:
        """/help."""
        note(HELP)

    def system(self, rest: str) -> None:
        """/system TEXT."""
        if rest:
            self.conversation.set_system(None if rest == "-" else rest)
        note(f"System message: {self.conversation.system or '(none)'}")

    def reset(self, rest: str) -> None:
        """/reset."""
        self.conversation.reset()
        note("The conversation starts anew.")

    def save(self, rest: str) -> None:
        """/save FILE."""
        path = _path(rest, "/save")
        self.conversation.save(path)
        note(f"{len(self.conversation.messages)} messages saved in {path}")

    def load(self, rest: str) -> None:
        """/load FILE."""
        path = _path(rest, "/load")
        self.conversation.load(path)
        note(f"{len(self.conversation.messages)} messages loaded from {path}")


def _path(rest: str, command: str) -> Path:
    if not rest:
        raise UsageError(f"{command} needs the name of a file.")
    return Path(rest)
