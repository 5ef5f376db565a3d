"""vLLM's CPU build: its engine in this process, stepped by hand."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from protocol import FIRST_PROMPT, Plan, answer
from stepped import Stepped


class Vllm(Stepped):
    """As its documentation advises for a CPU: compiled, threads bound to cores, room for the KV cache set."""

    def load(self, plan: Plan) -> dict[str, Any]:
        self._check_processor()
        room = plan.kv_bytes * plan.sequences * (plan.max_context + 128)
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, -(-room // 2**30)))
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{plan.threads - 1}"
        os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        os.environ["OMP_NUM_THREADS"] = str(plan.threads)  # vLLM would take one
        import vllm

        self.new = vllm.SamplingParams
        self.engine = vllm.LLM(
            plan.model, dtype="bfloat16", max_model_len=plan.max_context, max_num_seqs=plan.sequences,
            enable_prefix_caching=True, disable_log_stats=True,
        ).llm_engine  # fmt: skip
        self.vocab = self.engine.model_config.get_vocab_size()
        self.seen: dict[str, int] = {}
        self.answers([self.fresh(FIRST_PROMPT)], 1)
        return {"version": f"vllm {vllm.__version__}", "note": "", "kv_bytes": room}

    def _check_processor(self) -> None:
        """Say at once what vLLM says after minutes of compiling."""
        import torch

        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            capability = torch.backends.cpu.get_cpu_capability()
            raise RuntimeError(
                f"its matrix products are oneDNN's, which has none in bfloat16 for a CPU of {capability} (could not "
                "create a primitive descriptor for the matmul primitive)"
            )

    def submit(self, name: str, prompt: list[int], tokens: int) -> None:
        self.seen[name] = 0
        how = self.new(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self.engine.add_request(name, {"prompt_token_ids": prompt}, how)

    def step(self) -> dict[str, int]:
        found = {}
        for output in self.engine.step():
            total = len(output.outputs[0].token_ids)
            found[output.request_id] = total - self.seen[output.request_id]
            self.seen[output.request_id] = total
        return found


if __name__ == "__main__":
    answer(Vllm())
