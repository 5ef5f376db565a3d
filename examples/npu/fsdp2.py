"""Fully sharded training (FSDP2) of a small GLM over HCCL, and a checkpoint of the whole model, for torchrun."""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401
from glm_generate import small_glm
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import GlmForCausalLM

BATCH = 8


def batch() -> Tensor:
    """Token ids, the same in every process."""
    return torch.randint(3, 512, (BATCH, 16), generator=torch.Generator().manual_seed(1))


def train(model: GlmForCausalLM, ids: Tensor, steps: int) -> list[float]:
    """The losses of this process's part of the batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def weight_sum(weights: dict[str, Tensor]) -> float:
    """One number that changes with any weight."""
    return sum(weight.double().abs().sum().item() for weight in weights.values())


def main(steps: int) -> None:
    """One rank: shard the model, train on a part of the batch, gather the weights on rank 0."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.npu.set_device(rank)
    dist.init_process_group("hccl")
    world = dist.get_world_size()
    mesh = init_device_mesh("npu", (world,))
    model = small_glm()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    mean = torch.tensor(train(model, batch()[rank::world].npu(), steps), device="npu")
    dist.all_reduce(mean, op=dist.ReduceOp.AVG)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        print("losses:", " ".join(f"{loss:.6f}" for loss in mean.tolist()))
        print(f"weights: {weight_sum(weights):.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    main(parser.parse_args().steps)
