"""A character-level GPT in the manner of nanoGPT, trained on one NPU on this file's own text."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import torch_npu  # noqa: F401
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Shape:
    """Sizes of the model."""

    vocabulary: int
    context: int = 64
    width: int = 64
    heads: int = 4
    layers: int = 2


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward network, each on the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.attention = Attention(shape)
        self.feed = nn.Sequential(
            nn.Linear(shape.width, 4 * shape.width), nn.GELU(), nn.Linear(4 * shape.width, shape.width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same."""
        x = x + self.attention(self.norm_1(x))
        return x + self.feed(self.norm_2(x))


class Gpt(nn.Module):
    """The model: logits of the next character at every position."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.characters = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, time) to (batch, time, vocabulary)."""
        x = self.characters(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


@torch.no_grad()
def write(model: Gpt, ids: Tensor, length: int, context: int) -> Tensor:
    """Greedy continuation of (1, time)."""
    for _ in range(length):
        ids = torch.cat((ids, model(ids[:, -context:])[:, -1].argmax(-1, keepdim=True)), dim=1)
    return ids


def train(steps: int, device: str) -> list[float]:
    """Train, print a sample, and return the losses."""
    torch.manual_seed(0)
    text = Path(__file__).read_text(encoding="utf-8")
    letters = sorted(set(text))
    data = torch.tensor([letters.index(letter) for letter in text])
    shape = Shape(len(letters))
    model = Gpt(shape).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(data) - shape.context - 1, (16,)).tolist()
        batch = torch.stack([data[start : start + shape.context + 1] for start in starts]).to(device)
        loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    sample = write(model, data[None, :16].to(device), 40, shape.context)[0].tolist()
    print("sample:", repr("".join(letters[i] for i in sample)))
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="npu")
    options = parser.parse_args()
    found = train(options.steps, options.device)
    print("losses:", " ".join(f"{loss:.6f}" for loss in found))
