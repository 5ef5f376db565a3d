"""Decode steps as programs: a forward pass is recorded once for a number of tokens, then run by one native call."""

from __future__ import annotations

import ctypes
import logging
from collections import OrderedDict
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any

import numpy as np

from gallium.backends.cpu import library
from gallium.backends.cpu.arrays import address, aligned_zeros, check_memory, require
from gallium.backends.cpu.plan import FixedPlan
from gallium.backends.cpu.recording import CALLS, Arena, NotRecordable, Recorded, Recorder
from gallium.ops.handles import FloatArray, Step

if TYPE_CHECKING:
    from gallium.backends.cpu.ops import CpuOps

_CALL = Struct("@qQ")  # ga_call
_PROGRAM = Struct("@Q2q")  # ga_program
_POINTER = Struct("@Q")
MOST_TOKENS = 64
"""Steps of more tokens run eagerly: there the calls cost little beside what they compute, and memory counts."""
PROGRAMS_KEPT = 32
log = logging.getLogger(__name__)


class Program:
    """The calls of one forward pass, their arguments in one piece of memory, and where its result's address stands."""

    def __init__(self, recorder: Recorder, plan: FixedPlan, logits: Recorded) -> None:
        self.plan = plan
        self._shape = logits.shape
        self._run = library.load().ga_run
        args = b"".join(packed for _, packed in recorder.calls)  # structs of 8-byte members: each stays aligned
        self._args = aligned_zeros(len(args), np.uint8)
        self._args[:] = np.frombuffer(args, np.uint8)
        offsets = np.cumsum([0, *(len(packed) for _, packed in recorder.calls)])
        at = address(self._args)
        calls = b"".join(_CALL.pack(op, at + int(o)) for (op, _), o in zip(recorder.calls, offsets, strict=False))
        self._calls = ctypes.create_string_buffer(calls, len(calls))
        self._ops = [op for op, _ in recorder.calls]
        self._program = ctypes.create_string_buffer(
            _PROGRAM.pack(ctypes.addressof(self._calls), len(self._ops), 0), _PROGRAM.size
        )
        last = self._args[int(offsets[-2]) :].view(np.uint64)  # the last call's: it writes the logits
        found = np.flatnonzero(last == address(logits))
        if not len(found):
            raise NotRecordable("the last call does not write the result")
        self._result = last[found[0] : found[0] + 1]

    def run(self, step: Step) -> FloatArray:
        """The step's logits, in memory of their own. Raises BackendError if the step does not fit, or OutOfMemory."""
        self.plan.load(step)
        logits = np.empty(self._shape, np.float32)
        self._result[0] = address(logits)
        status = self._run(self._program)
        if status:
            self._fail(status)
        return logits

    def _fail(self, status: int) -> None:
        name = CALLS[self._ops[_PROGRAM.unpack(self._program.raw)[2]]]
        require(name != "ga_embed", "embed: a token id is outside the vocabulary.")
        check_memory(status, name.removeprefix("ga_"))


class ProgrammedStep:
    """What `compile_step` returns: steps that want the logits of all their tokens are programs, all others run eagerly.

    Those are decode steps and the verification of drafts. A program serves one number of tokens and sequences, with no
    padding: results do not depend on it, and recording costs little more than an eager step. It is recorded when its
    numbers are first met, and again when the block tables have outgrown it.
    """

    def __init__(self, ops: CpuOps, forward: Callable[[Any], Any], most_sequences: int) -> None:
        self.ops = ops
        self.forward = forward
        self.most_sequences = most_sequences
        self.refusal: str | None = None
        """Why this model's steps cannot be recorded, once it is known."""
        self.programs: OrderedDict[tuple[int, int], Program] = OrderedDict()
        self._arena = Arena()

    def __call__(self, step: Step) -> FloatArray:
        """The step's logits; the caller may keep them."""
        if self.refusal is not None or not self._fits(step):
            return self._eager(step)
        key = len(step.token_ids), len(step.context_lens)
        program = self.programs.get(key)
        if program is None or not program.plan.has_room(step):
            return self._record(key, step)
        self.programs.move_to_end(key)
        return program.run(step)

    def _fits(self, step: Step) -> bool:
        tokens = len(step.token_ids)
        return (
            0 < tokens <= MOST_TOKENS
            and len(step.context_lens) <= self.most_sequences
            and len(step.logit_rows) == tokens
            and bool((step.logit_rows == np.arange(tokens)).all())
        )

    def _eager(self, step: Step) -> FloatArray:
        logits: FloatArray = self.forward(self.ops.plan(step))
        return logits

    def _record(self, key: tuple[int, int], step: Step) -> FloatArray:
        """Run the step once with every call written down; this is its result."""
        recorder, plan = Recorder(self._arena), FixedPlan(step)
        try:
            with self.ops.recording(recorder):
                logits = self.forward(plan)
            self.programs[key] = Program(recorder, plan, logits)
        except NotRecordable as cause:
            self.refusal = str(cause)
            log.warning("decode steps run op by op, not as recorded programs: %s.", cause)
            return self._eager(step)
        self.programs.move_to_end(key)
        if len(self.programs) > PROGRAMS_KEPT:
            self.programs.popitem(last=False)
        return np.array(logits)
