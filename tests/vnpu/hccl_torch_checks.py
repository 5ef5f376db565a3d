"""An ordinary torch.distributed program for torchrun with backend hccl: runs its checks and says which passed."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch_npu
from torch import nn

Check = Callable[[], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def rank() -> int:
    return dist.get_rank()


def ranks() -> int:
    return dist.get_world_size()


def mine(*shape: int, dtype: torch.dtype = torch.float32, of: int | None = None) -> torch.Tensor:
    """Numbers that depend on the rank, on the CPU."""
    generator = torch.Generator().manual_seed(100 + (rank() if of is None else of))
    values = torch.randint(-20, 20, shape, generator=generator) / (1 if not dtype.is_floating_point else 8)
    return values.to(dtype)


def everyones(*shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [mine(*shape, dtype=dtype, of=r) for r in range(ranks())]


def equal(actual: torch.Tensor | list[torch.Tensor], expected: torch.Tensor | list[torch.Tensor]) -> None:
    torch.testing.assert_close(
        [each.cpu() for each in actual] if isinstance(actual, list) else actual.cpu(), expected, rtol=0, atol=0
    )


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual.detach().cpu(), expected.detach(), rtol=1e-5, atol=1e-6)


@check
def all_reduce() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8):
        parts = everyones(5, 3, dtype=dtype)
        for op, joined in (
            (dist.ReduceOp.SUM, torch.stack(parts).sum(0).to(dtype)),
            (dist.ReduceOp.MAX, torch.stack(parts).amax(0)),
            (dist.ReduceOp.MIN, torch.stack(parts).amin(0)),
        ):
            data = mine(5, 3, dtype=dtype).npu()
            dist.all_reduce(data, op)
            equal(data, joined)
    data = mine(7).npu()
    dist.all_reduce(data, dist.ReduceOp.AVG)
    equal(data, torch.stack(everyones(7)).sum(0) / ranks())
    flags = torch.tensor([rank() == 1, False]).npu()
    with_flag = torch.zeros(2, dtype=torch.int32).npu() + flags.int()
    dist.all_reduce(with_flag)
    equal(with_flag, torch.tensor([1, 0], dtype=torch.int32))
    large = torch.full((3_000_000,), float(rank())).npu()
    dist.all_reduce(large)
    equal(large, torch.full((3_000_000,), float(sum(range(ranks())))))


@check
def reduce_and_broadcast() -> None:
    data = mine(9).npu()
    dist.reduce(data, 1)
    equal(data, torch.stack(everyones(9)).sum(0) if rank() == 1 else mine(9))
    for dtype in (torch.float32, torch.bool, torch.uint8, torch.float64, torch.float8_e4m3fn):
        values = (mine(6, of=2) > 0).to(dtype) if dtype == torch.bool else mine(6, of=2).abs().to(dtype)
        data = values.npu() if rank() == 2 else torch.zeros_like(values).npu()
        dist.broadcast(data, 2)
        equal(data.view(torch.uint8), values.view(torch.uint8))


@check
def gathers() -> None:
    parts = everyones(4, 2)
    out = [torch.empty(4, 2).npu() for _ in range(ranks())]
    dist.all_gather(out, mine(4, 2).npu())
    equal(out, parts)
    whole = torch.empty(4 * ranks(), 2).npu()
    dist.all_gather_into_tensor(whole, mine(4, 2).npu())
    equal(whole, torch.cat(parts))
    out = [torch.empty(r + 1, 2).npu() for r in range(ranks())]
    dist.all_gather(out, mine(rank() + 1, 2).npu())
    equal(out, [mine(r + 1, 2, of=r) for r in range(ranks())])
    counts = [r + 1 for r in range(ranks())]
    uneven = torch.empty(sum(counts), 2).npu()
    torch_npu.distributed.all_gather_into_tensor_uneven(uneven, mine(rank() + 1, 2).npu(), counts)
    equal(uneven, torch.cat([mine(r + 1, 2, of=r) for r in range(ranks())]))
    out = [torch.empty(4, 2).npu() for _ in range(ranks())] if rank() == 3 else None
    dist.gather(mine(4, 2).npu(), out, dst=3)
    if out is not None:
        equal(out, parts)


@check
def scatters() -> None:
    inputs = [everyones(3, 2, dtype=torch.float32)[r] * (r + 1) for r in range(ranks())]  # the same lists on every rank
    out = torch.empty(3, 2).npu()
    dist.scatter(out, [part.npu() for part in inputs] if rank() == 1 else None, src=1)
    equal(out, inputs[rank()])
    dist.reduce_scatter(out, [part.npu() for part in inputs])
    equal(out, inputs[rank()] * ranks())
    dist.reduce_scatter_tensor(out, torch.cat(inputs).npu())
    equal(out, inputs[rank()] * ranks())
    uneven = [torch.full((r + 1, 2), float(r + rank())) for r in range(ranks())]
    expected = torch.full((rank() + 1, 2), float(sum(rank() + r for r in range(ranks()))))
    out = torch.empty(rank() + 1, 2).npu()
    dist.reduce_scatter(out, [part.npu() for part in uneven])
    equal(out, expected)
    torch_npu.distributed.reduce_scatter_tensor_uneven(out, torch.cat(uneven).npu(), [r + 1 for r in range(ranks())])
    equal(out, expected)


@check
def all_to_all() -> None:
    sent = torch.arange(ranks() * 2) + 100 * rank()
    out = torch.empty(ranks() * 2, dtype=torch.int64).npu()
    dist.all_to_all_single(out, sent.npu())
    equal(out, torch.cat([torch.arange(2) + 2 * rank() + 100 * r for r in range(ranks())]))
    sends = [(rank() + r) % 3 for r in range(ranks())]  # symmetric, so what is received is alike
    out = torch.empty(sum(sends), 2).npu()
    dist.all_to_all_single(out, torch.full((sum(sends), 2), float(rank())).npu(), sends, sends)
    equal(out, torch.cat([torch.full((count, 2), float(r)) for r, count in enumerate(sends)]))
    outs = [torch.empty(3).npu() for _ in range(ranks())]
    dist.all_to_all(outs, [torch.full((3,), float(10 * rank() + r)).npu() for r in range(ranks())])
    equal(outs, [torch.full((3,), float(10 * r + rank())) for r in range(ranks())])


@check
def objects() -> None:
    everything: list[Any] = [None] * ranks()
    dist.all_gather_object(everything, {"rank": rank(), "text": "x" * rank()})
    assert everything == [{"rank": r, "text": "x" * r} for r in range(ranks())]
    said: list[Any] = [("from", rank()), rank()]
    dist.broadcast_object_list(said, src=2)
    assert said == [("from", 2), 2]
    out: list[Any] = [None]
    dist.scatter_object_list(out, [f"for {r}" for r in range(ranks())] if rank() == 0 else None, src=0)
    assert out == [f"for {rank()}"]
    gathered: list[Any] | None = [None] * ranks() if rank() == 1 else None
    dist.gather_object(rank(), gathered, dst=1)
    assert gathered in (None, list(range(ranks())))


@check
def groups_and_handles() -> None:
    dist.barrier()
    pairs = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    group, other = pairs[rank() % 2], (rank() + 2) % 4
    data = mine(4).npu()
    dist.all_reduce(data, group=group)
    equal(data, mine(4) + mine(4, of=other))
    dist.barrier(group)
    data, whole = mine(4).npu(), torch.empty(4 * ranks()).npu()
    works = [dist.all_reduce(data, async_op=True), dist.all_gather_into_tensor(whole, mine(4).npu(), async_op=True)]
    for work in works:
        work.wait()
        assert work.is_completed()
    equal(data, torch.stack(everyones(4)).sum(0))
    equal(whole, torch.cat(everyones(4)))
    many = [mine(3).npu() for _ in range(3)]
    with dist._coalescing_manager(async_ops=True) as manager:
        for each in many:
            dist.all_reduce(each)
    manager.wait()
    equal(many, [torch.stack(everyones(3)).sum(0)] * 3)
    name = dist.group.WORLD._get_backend(torch.device("npu")).get_hccl_comm_name(rank())
    from gallium.vnpu.library import core

    core().ga_vnpu_hccl_find.restype = __import__("ctypes").c_void_p
    assert core().ga_vnpu_hccl_find(name.encode()), f"no communicator {name!r}"


@check
def messages() -> None:
    right, left = (rank() + 1) % ranks(), (rank() - 1) % ranks()
    got = torch.zeros(5).npu()
    operations = [dist.P2POp(dist.irecv, got, left), dist.P2POp(dist.isend, mine(5).npu(), right)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    equal(got, mine(5, of=left))
    peer = rank() ^ 1
    if rank() < peer:
        works = [dist.isend(torch.full((3,), float(i)).npu(), peer) for i in range(5)]
        got = torch.zeros(2).npu()
        works.append(dist.irecv(got, peer))
        for work in works:
            work.wait()
        equal(got, torch.full((2,), 7.0))
    else:
        for i in range(5):
            out = torch.zeros(3).npu()
            dist.recv(out, peer)
            equal(out, torch.full((3,), float(i)))
        dist.send(torch.full((2,), 7.0).npu(), peer)


@check
def graph() -> None:
    """A captured all_reduce talks to the other ranks at every replay."""
    data, total = torch.zeros(4).npu(), torch.zeros(4).npu()
    dist.all_reduce(data)
    captured = torch.npu.NPUGraph()
    with torch.npu.graph(captured):
        total.copy_(data * 2)
        dist.all_reduce(total)
    for step in range(1, 4):
        data.copy_(torch.full((4,), float(step * rank())))
        captured.replay()
        torch.npu.synchronize()
        equal(total, torch.full((4,), 2.0 * step * sum(range(ranks()))))


def small_model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 8))


def batch_of(which: int) -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(which))


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Does not magnify the rounding of small gradients; and one by one, as parameters may be sharded or not."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=False)


def train(
    model: nn.Module, device: str, steps: int = 3, *, of: list[int] | None = None, optimizer: Any = adamw
) -> nn.Module:
    """Trains on this rank's batches, or on the mean over those of the ranks given."""
    step_of = optimizer(model.parameters())
    sources = [rank()] if of is None else of
    for step in range(steps):
        losses = [model(batch_of(10 * step + r).to(device)).square().mean() for r in sources]
        (sum(losses) / len(losses)).backward()
        step_of.step()
        step_of.zero_grad()
    return model


def trained_alone(optimizer: Any = adamw, of: list[int] | None = None) -> nn.Module:
    """The model after training on the batches of all ranks, in one process on the CPU."""
    return train(small_model(), "cpu", of=of or [*range(ranks())], optimizer=optimizer)


@check
def ddp() -> None:
    """DDP on hccl gives the parameters of DDP on gloo, and of training alone."""
    from torch.nn.parallel import DistributedDataParallel

    gloo = dist.new_group(backend="gloo")
    on_cpu = DistributedDataParallel(small_model(), process_group=gloo)
    on_npu = DistributedDataParallel(small_model().npu(), device_ids=[torch.npu.current_device()])
    train(on_cpu, "cpu")
    train(on_npu, "npu")
    for ours, theirs, alone in zip(on_npu.parameters(), on_cpu.parameters(), trained_alone().parameters(), strict=True):
        close(ours, theirs)
        close(ours, alone)


@check
def fsdp2() -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = small_model().npu()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    train(model, "npu")
    for ours, alone in zip(model.parameters(), trained_alone().parameters(), strict=True):
        assert ours.to_local().numel() < alone.numel()
        close(ours.full_tensor(), alone)
    half = fully_shard(small_model().npu(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    loss = half(batch_of(rank()).npu()).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.full_tensor().isfinite().all() for p in half.parameters())


@check
def tensor_parallel() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("npu", (ranks(),))
    model = small_model().npu()
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    train(model, "npu", of=[0], optimizer=sgd)
    for ours, theirs in zip(model.parameters(), trained_alone(sgd, of=[0]).parameters(), strict=True):
        close(ours.full_tensor() if hasattr(ours, "full_tensor") else ours, theirs)


@check
def two_dimensions() -> None:
    """FSDP2 over pairs of ranks that each are tensor parallel."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("npu", (2, ranks() // 2), mesh_dim_names=("data", "tensor"))
    model = small_model().npu()
    last = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel(), "4": last})
    fully_shard(model, mesh=mesh["data"])
    train(model, "npu", of=[rank() // 2], optimizer=sgd)
    for ours, theirs in zip(model.parameters(), trained_alone(sgd, of=[0, 1]).parameters(), strict=True):
        close(ours.full_tensor(), theirs)


@check
def pipeline() -> None:
    """Two stages on ranks 0 and 1, and on 2 and 3: the loss and gradients of the whole model."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    group, stage = halves[rank() // 2], rank() % 2
    whole, parts = small_model(), small_model()
    part = (parts[:2], parts[2:])[stage].npu()
    losses: list[torch.Tensor] = []
    schedule = Schedule1F1B(
        PipelineStage(part, stage, 2, torch.device("npu", torch.npu.current_device()), group=group),
        n_microbatches=4, loss_fn=lambda out, target: (out - target).square().mean(),
    )  # fmt: skip
    inputs, target = batch_of(1), batch_of(2)
    if stage == 0:
        schedule.step(inputs.npu())
    else:
        schedule.step(target=target.npu(), losses=losses)
    loss = (whole(inputs) - target).square().mean()
    loss.backward()
    if losses:
        close(torch.stack(losses).mean(), loss)
    for ours, theirs in zip(part.parameters(), (whole[:2], whole[2:])[stage].parameters(), strict=True):
        close(ours.grad, theirs.grad)


def main() -> None:
    chosen = sys.argv[1:] or list(CHECKS)
    torch.npu.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("hccl", timeout=timedelta(seconds=60))
    for name in chosen:
        try:
            CHECKS[name]()
        except Exception:
            print(f"FAILED {name} on rank {rank()}\n{traceback.format_exc()}", flush=True)
            os._exit(1)  # the others get an error too
        if rank() == 0:
            print(f"ok {name}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
