"""What is common to programs that compute one step for all requests at a time: vLLM and OpenVINO GenAI."""

from __future__ import annotations

import time

from protocol import Contender


class Stepped(Contender):
    """Requests go in, steps are made until they are answered; when each token came is noted."""

    def submit(self, name: str, prompt: list[int], tokens: int) -> None:
        """Ask for so many tokens, greedily, whatever they are."""
        raise NotImplementedError

    def step(self) -> dict[str, int]:
        """Compute one step; the number of new tokens of each request that got some."""
        raise NotImplementedError

    def prefill(self, tokens: int) -> float:
        prompt = self.fresh(tokens)
        start = time.perf_counter()
        ((first,),) = self.answers([prompt], 1)
        return tokens / (first - start)

    def decode(self, batch: int, context: int, tokens: int) -> float:
        """While all rows decode: between the last first token and the first last one."""
        prompts = [self.row(number, context) for number in range(batch)]
        self.answers(prompts, 1)  # in the prefix cache from here on
        times = self.answers(prompts, tokens + 1)
        begin, end = max(t[0] for t in times), min(t[-1] for t in times)
        return sum(begin < when <= end for t in times for when in t) / (end - begin)

    def answers(self, prompts: list[list[int]], tokens: int) -> list[list[float]]:
        """When each token of each prompt's answer came."""
        self.asked = getattr(self, "asked", 0) + 1
        times: dict[str, list[float]] = {f"{self.asked}-{i}": [] for i in range(len(prompts))}
        for name, prompt in zip(times, prompts, strict=True):
            self.submit(name, prompt, tokens)
        while any(len(t) < tokens for t in times.values()):
            found = self.step()
            now = time.perf_counter()
            for name, new in found.items():
                times[name] += [now] * new
        return list(times.values())
