"""OpenVINO GenAI: its continuous-batching pipeline, stepped by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from protocol import FIRST_PROMPT, Plan, answer
from stepped import Stepped


class OpenVino(Stepped):
    """Default properties of the CPU plugin, which keep the KV cache in 8 bits."""

    def load(self, plan: Plan) -> dict[str, Any]:
        room = plan.kv_bytes * plan.sequences * (plan.max_context + 128)
        how = openvino_genai.SchedulerConfig()
        how.cache_size = max(1, -(-room // 2**30))
        how.max_num_seqs = plan.sequences
        how.max_num_batched_tokens = max(2048, plan.max_context)
        how.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": plan.threads}
        self.pipe = openvino_genai.ContinuousBatchingPipeline(plan.model, how, "CPU", properties)
        self.vocab = json.loads((Path(plan.model) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        self.open: dict[str, Any] = {}
        self.number = 0
        self.answers([self.fresh(FIRST_PROMPT)], 1)
        return {"version": f"openvino-genai {openvino_genai.__version__}", "note": "", "kv_bytes": room}

    def submit(self, name: str, prompt: list[int], tokens: int) -> None:
        how = openvino_genai.GenerationConfig()
        how.max_new_tokens, how.ignore_eos, how.do_sample, how.apply_chat_template = tokens, True, False, False
        self.number += 1
        ids = openvino.Tensor(np.asarray([prompt], dtype=np.int64))
        self.open[name] = self.pipe.add_request(self.number, ids, how)

    def step(self) -> dict[str, int]:
        self.pipe.step()
        found = {}
        for name, handle in self.open.items():
            new = 0
            while handle.can_read():
                new += sum(len(output.generated_ids) for output in handle.read().values())
            if new:
                found[name] = new
        return found

    def answers(self, prompts: list[list[int]], tokens: int) -> list[list[float]]:
        self.open.clear()
        times = super().answers(prompts, tokens)
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
        return times


if __name__ == "__main__":
    answer(OpenVino())
