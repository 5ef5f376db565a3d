"""Collectives: how a rank of a model talks to the others, through torch.distributed; nothing to do when alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from gallium.errors import BackendError
from gallium.ops.handles import ALONE, Placement

DEFAULT_TIMEOUT = timedelta(minutes=30)  # the first collective waits until the slowest rank has loaded its weights


class Collectives:
    """Sums and exchanges among the ranks of a placement. Every rank must make the same calls in the same order.

    `tensor_group` has the `tp` ranks that share heads, columns and vocabulary; `expert_group` has all ranks, which
    share the experts when `placement.ep > 1`. Either is None where one rank is all there is.
    """

    def __init__(
        self,
        placement: Placement = ALONE,
        tensor_group: dist.ProcessGroup | None = None,
        expert_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.placement = placement
        self.tensor_group = tensor_group
        self.expert_group = expert_group

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the tensor-parallel group, equal on all of its ranks. x itself holds it afterwards."""
        if self.tensor_group is None:
            return x
        total = x.contiguous()
        dist.all_reduce(total, group=self.tensor_group)
        return total

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """The last axes of the tensor-parallel group's tensors side by side, in the order of the ranks."""
        if self.tensor_group is None:
            return x
        part = x.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.placement.tp)]
        dist.all_gather(parts, part, group=self.tensor_group)
        return torch.cat(parts, dim=-1)

    def exchange_counts(self, send: torch.Tensor) -> torch.Tensor:
        """`send[r]` rows go from here to rank r -> how many come here from each rank; int64 `[ranks]` both."""
        if self.expert_group is None:
            return send
        receive = torch.empty_like(send)
        dist.all_to_all_single(receive, send.contiguous(), group=self.expert_group)
        return receive

    def exchange(self, rows: torch.Tensor, send: Sequence[int], receive: Sequence[int]) -> torch.Tensor:
        """Send the first `send[0]` rows to rank 0, the next to rank 1, …; what comes, in the order of the ranks.

        A rank that has nothing to send or to receive takes part all the same.
        """
        if self.expert_group is None:
            return rows
        received = rows.new_empty((sum(receive), *rows.shape[1:]))
        dist.all_to_all_single(received, rows.contiguous(), list(receive), list(send), group=self.expert_group)
        return received


def connect(
    placement: Placement, device: torch.device, transport: str, timeout: timedelta = DEFAULT_TIMEOUT
) -> Collectives:
    """Meet the other ranks at `placement.rendezvous` ("tcp://host:port" or "file:///path") and form the groups.

    `transport` is the backend of torch.distributed that serves the rank's device: "gloo" for the CPU, "hccl", "nccl", …
    The device must have been selected. All ranks call this at the same time. A process that has joined its ranks
    already (for an earlier model of the same placement) only forms new groups. Raises BackendError if they cannot meet.
    """
    if placement.world == 1:
        return Collectives(placement)
    _check_transport(device, transport)
    _join(placement, transport, timeout)
    ranks = range(placement.world)
    tensor_group: dist.ProcessGroup | None = None
    if placement.tp > 1:
        for first in ranks[:: placement.tp]:  # every rank takes part in forming every group
            group = dist.new_group(list(ranks[first : first + placement.tp]), timeout=timeout, backend=transport)
            if placement.rank in range(first, first + placement.tp):
                tensor_group = group
    expert_group = dist.group.WORLD if placement.ep > 1 else None
    return Collectives(placement, tensor_group, expert_group)


def _check_transport(device: torch.device, transport: str) -> None:
    """Whether this PyTorch can send tensors of `device` through `transport`."""
    if not dist.is_available():
        raise BackendError("this build of PyTorch has no torch.distributed, so a model cannot be spread over ranks.")
    if device.type not in dist.Backend.backend_capability.get(transport, []):
        raise BackendError(
            f"torch.distributed has no transport {transport!r} for tensors on {device.type} here, so a model cannot be "
            "spread over ranks."
        )


def _join(placement: Placement, transport: str, timeout: timedelta) -> None:
    """Make this process one of the ranks."""
    if dist.is_initialized():
        if (dist.get_world_size(), dist.get_rank()) != (placement.world, placement.rank):
            raise BackendError(
                f"this process is rank {dist.get_rank()} of {dist.get_world_size()} already and cannot become rank "
                f"{placement.rank} of {placement.world}: start a new process for each rank."
            )
        return
    if not placement.rendezvous:
        raise BackendError(
            f"rank {placement.rank} of {placement.world} was not told where the ranks meet: set Placement.rendezvous, "
            "for example to tcp://127.0.0.1:29500."
        )
    try:
        dist.init_process_group(
            transport,
            init_method=placement.rendezvous,
            world_size=placement.world,
            rank=placement.rank,
            timeout=timeout,
        )
    except (RuntimeError, ValueError, OSError) as cause:
        raise BackendError(
            f"rank {placement.rank} of {placement.world} could not meet the others at {placement.rendezvous} "
            f"through {transport}: {cause}"
        ) from cause
