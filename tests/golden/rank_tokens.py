"""One rank of the default model, or of a folder: greedy tokens of given prompts, printed as JSON."""

from __future__ import annotations

import json
import sys
import traceback
from importlib import import_module
from pathlib import Path

import torch
from tests.models.driving import greedy

from gallium.checkpoints.opening import open_checkpoint
from gallium.models.catalog import load_model
from gallium.models.config import read_spec
from gallium.models.decoder import Model
from gallium.models.sharding import local_spec
from gallium.ops.handles import ALONE, Placement

TOKENS = 10  # greedy ones per prompt; each costs a collective per layer among processes that share few cores


def load(path: Path, placement: Placement = ALONE, backend: str = "torch") -> Model:
    """One rank's part in float32."""
    opened = import_module(f"gallium.backends.{backend}").backend
    checkpoint = open_checkpoint(path)
    spec = read_spec(checkpoint.config, checkpoint.generation_config)
    ops = opened.open(local_spec(spec, placement).facts, "float32", 1, placement)
    return load_model(checkpoint, spec, ops, lambda done, total: checkpoint.release_memory(), placement=placement)


def main(
    world: int, rank: int, rendezvous: str, tp: int, ep: int, path: Path, prompts: list[list[int]], backend: str
) -> None:
    """Prompt i goes to data-parallel group i; all are of one length, so that all groups make equally many steps."""
    placement = Placement(rank, tp, world // tp, ep, rendezvous)
    model = load(path, placement, backend)
    tokens = greedy(model, prompts[placement.dp_rank], TOKENS)
    held = sum(layer.attention.qkv.out_features for layer in model.layers)
    print(json.dumps({"rank": rank, "tokens": tokens, "qkv_rows": held}), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        world, rank, rendezvous, tp, ep, path, prompts, backend = sys.argv[1:]
        main(int(world), int(rank), rendezvous, int(tp), int(ep), Path(path), json.loads(prompts), backend)
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
