"""Gallium's own engine: scheduler, paged cache and sampling included."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from protocol import FIRST_PROMPT, Contender, Plan, answer

from gallium import LLM, __version__
from gallium.cli.measuring import answer_times

PRECISIONS = {"bf16": "bfloat16", "int8": "int8", "int4": "int4"}
KV_PRECISIONS = {16: "bfloat16", 8: "int8"}
KV_SHARE = {16: 1.0, 8: 9 / 16}  # of a cache of 16 bits; with 8, scales are less than an eighth of the codes
SPARE = 64  # tokens of KV cache per sequence beside those of the plan: blocks are not always full


class Gallium(Contender):
    """Greedy decoding. Rows keep their prompts' blocks through the prefix cache."""

    def load(self, plan: Plan) -> dict[str, Any]:
        room = int(plan.kv_bytes * KV_SHARE[plan.kv]) * plan.sequences * (plan.max_context + SPARE)
        self.llm = LLM(
            plan.model, precision=PRECISIONS[plan.precision], threads=plan.threads, max_context=plan.max_context,
            max_batch=plan.max_batch, kv_memory=room, kv_precision=KV_PRECISIONS[plan.kv],
        )  # fmt: skip
        self.vocab = self.llm.assembly.spec.vocab_size
        self._run([self.fresh(FIRST_PROMPT)], 1)
        ops = self.llm.assembly.ops
        return {
            "version": f"gallium {__version__}", "note": self.llm.assembly.label,
            "kv_bytes": self.llm.assembly.kv.num_bytes,
            "weight_bytes": getattr(ops, "weight_bytes", None),
        }  # fmt: skip

    def prefill(self, tokens: int) -> float:
        prompt = self.fresh(tokens)
        start = time.perf_counter()
        ((first,),) = self._run([prompt], 1)
        return tokens / (first - start)

    def decode(self, batch: int, context: int, tokens: int) -> float:
        """While all rows decode: between the last first token and the first last one."""
        prompts = [self.row(number, context) for number in range(batch)]
        self._run(prompts, 1)  # in the cache from here on
        times = self._run(prompts, tokens + 1)
        begin, end = max(t[0] for t in times), min(t[-1] for t in times)
        return sum(begin < when <= end for t in times for when in t) / (end - begin)

    def logits(self, ids: list[int], path: str) -> int:
        found = self.llm.logits(ids)
        np.save(path, found)
        return len(found)

    def _run(self, prompts: list[list[int]], tokens: int) -> list[list[float]]:
        return answer_times(self.llm.assembly.engine, prompts, tokens)


if __name__ == "__main__":
    answer(Gallium())
