"""The language of every driver: one JSON object a line in, one a line out. Standard library only.

A driver is a script that runs in its contender's environment and keeps one loaded model. It answers

    {"do": "load", ...Plan}                               -> {"version": str, "note": str, "kv_bytes": int, ...}
    {"do": "prefill", "tokens": n}                        -> {"value": tokens/s}
    {"do": "decode", "batch": b, "context": c, "tokens": n} -> {"value": tokens/s of all sequences together}
    {"do": "logits", "ids": [...], "path": "x.npy"}       -> {"value": rows written, float32 [tokens, vocab]}
    {"do": "quit"}

or {"error": "..."}. Loading ends with the first token of a short prompt. A driver sleeps between two questions. What a
library prints goes to standard error, never between the answers.
"""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import dataclass
from typing import Any

FIRST_PROMPT = 16  # tokens of the prompt whose answer ends loading


@dataclass
class Plan:
    """What to load, and for how much room has to be made."""

    model: str
    precision: str
    threads: int
    max_context: int
    max_batch: int
    kv_bytes: int  # of one token in the KV cache at 16 bits
    spare: int = 1  # sequences beside those that decode: prefill is timed in one of its own, or in the first one
    kv: int = 16  # bits of a value in the KV cache

    @property
    def sequences(self) -> int:
        """Sequences that there must be room for."""
        return self.max_batch + self.spare


class Contender:
    """What a driver implements. Every method may raise: the message becomes the cell's content."""

    vocab: int

    def load(self, plan: Plan) -> dict[str, Any]:
        raise NotImplementedError

    def prefill(self, tokens: int) -> float:
        """Tokens per second of a new prompt of one sequence, up to and including its first token."""
        raise NotImplementedError

    def decode(self, batch: int, context: int, tokens: int) -> float:
        """Tokens per second of `batch` sequences that decode together, each after `context` tokens of its own."""
        raise NotImplementedError

    def logits(self, ids: list[int], path: str) -> int:
        """Write the logits of every position of a text to a NumPy file."""
        raise NotImplementedError("this driver does not give logits")

    def fresh(self, tokens: int) -> list[int]:
        """A prompt that was never seen before."""
        return [random.randrange(300, self.vocab - 300) for _ in range(tokens)]

    def row(self, number: int, tokens: int) -> list[int]:
        """The prompt of one sequence of a batch: always the same, so that a program may keep what it computed."""
        dice = random.Random(number)
        return [dice.randrange(300, self.vocab - 300) for _ in range(tokens)]


def answer(contender: Contender) -> None:
    """Serve questions until `quit` or the end of input."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        kind = asked.pop("do")
        if kind == "quit":
            break
        try:
            reply = contender.load(Plan(**asked)) if kind == "load" else {"value": getattr(contender, kind)(**asked)}
        except BaseException as error:  # whatever a peer dies of is its result
            if isinstance(error, KeyboardInterrupt):
                raise
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(reply), file=out, flush=True)
