"""llama.cpp through llama-cpp-python's low-level interface: one context, a sequence of its own per row."""

from __future__ import annotations

import ctypes
import time
from importlib.metadata import version
from typing import Any

import llama_cpp as lc
import numpy as np
from numpy.typing import NDArray
from protocol import FIRST_PROMPT, Contender, Plan, answer

UBATCH = 512  # tokens that one graph computes: llama.cpp's default
KV_TYPES = {16: lc.GGML_TYPE_F16, 8: lc.GGML_TYPE_Q8_0}


class LlamaCpp(Contender):
    """Greedy decoding. The last sequence is kept free for prompts that are timed, if there is a spare one."""

    def load(self, plan: Plan) -> dict[str, Any]:
        lc.llama_backend_init()
        facts = lc.llama_model_default_params()
        self.model = lc.llama_model_load_from_file(plan.model.encode(), facts)
        if not self.model:
            raise RuntimeError("llama.cpp could not load the model; its log says why")
        self.vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        self.timed = plan.max_batch if plan.spare else 0
        how = lc.llama_context_default_params()
        how.type_k = how.type_v = KV_TYPES[plan.kv]
        how.n_seq_max = plan.sequences
        how.n_ctx = (plan.max_context + 256) // 256 * 256 * how.n_seq_max
        how.n_batch, how.n_ubatch = max(2048, plan.max_context), UBATCH
        how.n_threads = how.n_threads_batch = plan.threads
        self.context = lc.llama_init_from_model(self.model, how)
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context; its log says why")
        self.memory = lc.llama_get_memory(self.context)
        self.batch = lc.llama_batch_init(how.n_batch, 0, 1)
        self.known: dict[int, int] = {}  # row -> tokens of its prompt that are in the cache
        self._feed(
            [(self.timed, position, token) for position, token in enumerate(self.fresh(FIRST_PROMPT))], last=True
        )
        self._greedy(FIRST_PROMPT - 1)
        info = lc.llama_print_system_info().decode()
        return {"version": f"llama-cpp-python {version('llama-cpp-python')}", "note": info}

    def prefill(self, tokens: int) -> float:
        prompt = self.fresh(tokens)
        self._clear()
        start = time.perf_counter()
        self._feed([(self.timed, position, token) for position, token in enumerate(prompt)], last=True)
        self._greedy(tokens - 1)
        return tokens / (time.perf_counter() - start)

    def decode(self, batch: int, context: int, tokens: int) -> float:
        for row in range(batch):
            self._prepare(row, context)
        next_ids = [self.row(row, context)[-1] for row in range(batch)]
        start = time.perf_counter()
        for step in range(tokens + 1):
            if step == 1:  # the first step computes the prompt's last token again
                start = time.perf_counter()
            self._feed([(row, context - 1 + step, next_ids[row]) for row in range(batch)], last=False)
            next_ids = [self._greedy(row) for row in range(batch)]
        return batch * tokens / (time.perf_counter() - start)

    def logits(self, ids: list[int], path: str) -> int:
        self._clear()
        rows = []
        for begin in range(0, len(ids), UBATCH):
            piece = ids[begin : begin + UBATCH]
            self._feed([(self.timed, begin + i, token) for i, token in enumerate(piece)], last=False)
            rows += [self._row(i).copy() for i in range(len(piece))]
        np.save(path, np.stack(rows))
        return len(rows)

    def _clear(self) -> None:
        """Forget what is in the sequence for timed prompts."""
        lc.llama_memory_seq_rm(self.memory, self.timed, 0, -1)
        self.known.pop(self.timed, None)

    def _prepare(self, row: int, context: int) -> None:
        """Bring the row's prompt, all but its last token, into the cache, and nothing behind it."""
        known = min(self.known.get(row, 0), context - 1)  # what a timed prompt left behind is removed
        lc.llama_memory_seq_rm(self.memory, row, known, -1)
        prompt = self.row(row, context)
        entries = [(row, position, prompt[position]) for position in range(known, context - 1)]
        for begin in range(0, len(entries), UBATCH):
            self._feed(entries[begin : begin + UBATCH], last=True)
        self.known[row] = context - 1

    def _feed(self, entries: list[tuple[int, int, int]], *, last: bool) -> None:
        """Compute entries (sequence, position, token); logits for the last one only, or for all."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (sequence, position, token) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = not last or i == len(entries) - 1
        code = lc.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def _greedy(self, index: int) -> int:
        return int(self._row(index).argmax())

    def _row(self, index: int) -> NDArray[np.float32]:
        pointer = lc.llama_get_logits_ith(self.context, index)
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.vocab,))


if __name__ == "__main__":
    answer(LlamaCpp())
