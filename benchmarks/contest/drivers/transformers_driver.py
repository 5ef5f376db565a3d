"""transformers as its documentation has it: eager mode, SDPA attention, dynamic cache, one forward per token."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from protocol import FIRST_PROMPT, Contender, Plan, answer


class Transformers(Contender):
    """Greedy decoding; a batch's prompts are computed anew every time."""

    def load(self, plan: Plan) -> dict[str, Any]:
        torch.set_num_threads(plan.threads)
        torch.set_grad_enabled(False)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(plan.model, dtype=torch.bfloat16).eval()
        self.vocab = self.model.config.vocab_size
        self.prefill(FIRST_PROMPT)
        return {"version": f"transformers {transformers.__version__}, torch {torch.__version__}", "note": ""}

    def prefill(self, tokens: int) -> float:
        ids = torch.tensor([self.fresh(tokens)])
        start = time.perf_counter()
        self.model(input_ids=ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)
        return tokens / (time.perf_counter() - start)

    def decode(self, batch: int, context: int, tokens: int) -> float:
        ids = torch.tensor([self.row(number, context) for number in range(batch)])
        out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        start = time.perf_counter()
        for _ in range(tokens):
            out = self.model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
        return batch * tokens / (time.perf_counter() - start)


if __name__ == "__main__":
    answer(Transformers())
