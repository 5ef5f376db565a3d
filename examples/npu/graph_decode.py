"""A decode loop captured once as a torch.npu.NPUGraph and replayed for every token.

Fused attention takes the length of the cache as a host integer, which a plain replay would freeze: `graph.update` gives
the captured attention its new length before each replay.
"""

from __future__ import annotations

import argparse

import torch
import torch_npu
from torch import Tensor, nn

VOCABULARY, WIDTH, HEADS, CONTEXT = 256, 64, 4, 128


class Decoder(nn.Module):
    """One layer of attention over a cache of fixed size, which takes one token at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, HEADS, CONTEXT, WIDTH // HEADS))

    def step(self, token: Tensor, position: Tensor, length: int) -> Tensor:
        """The token after `token`, which stands at `position` and is number `length` of the text."""
        x = self.tokens(token) + self.positions(position)
        query, key, value = (part.view(1, HEADS, 1, -1) for part in self.qkv(x).chunk(3, dim=-1))
        self.keys.index_copy_(2, position, key)
        self.values.index_copy_(2, position, value)
        mixed, _ = torch_npu.npu_fused_infer_attention_score(
            query,
            self.keys,
            self.values,
            num_heads=HEADS,
            input_layout="BNSD",
            scale=(WIDTH // HEADS) ** -0.5,
            actual_seq_lengths_kv=[length],
        )
        return self.head(self.norm(x + mixed.view(1, WIDTH))).argmax(-1)


@torch.no_grad()
def decode(steps: int, captured: bool) -> list[int]:
    """`steps` tokens, each from the one before; from a captured graph or one call at a time."""
    torch.manual_seed(0)
    model = Decoder().npu().half().eval()
    token = torch.tensor([1], device="npu")
    position = torch.tensor([0], device="npu")
    if not captured:
        found = []
        for length in range(1, steps + 1):
            token = model.step(token, position, length)
            position += 1
            found.append(token.item())
        return found
    model.step(token, position, 1)  # warm up before the capture
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, auto_dispatch_capture=True):
        token.copy_(model.step(token, position, 1))
        position += 1
    found = []
    for length in range(1, steps + 1):
        graph.update(cpu_update_input=[{"actual_seq_lengths_kv": [length]}])
        graph.replay()
        found.append(token.item())
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=32, help="how many tokens to generate")
    options = parser.parse_args()
    replayed = decode(options.steps, captured=True)
    print("tokens:", *replayed)
    print("as without a graph:", replayed == decode(options.steps, captured=False))
