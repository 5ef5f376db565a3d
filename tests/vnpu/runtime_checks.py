"""A program on two virtual devices of half a GiB each: runs its checks of the runtime and says which passed."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.queues import Queue

import torch
import torch_npu  # noqa: F401
from torch.utils.data import DataLoader, TensorDataset

Check = Callable[[], None]
CHECKS: dict[str, Check] = {}
MIB = 1 << 20


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def child(results: Queue[float]) -> None:
    results.put((torch.ones(3).npu() * 2).sum().item())


def result_of_child(method: str) -> float:
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=child, args=(results,))
    process.start()
    found: float = results.get(timeout=60)
    process.join(30)
    assert process.exitcode == 0
    return found


@check
def fork_before_first_use() -> None:
    """First of all: torch_npu itself refuses a fork of a process that has used the NPU."""
    assert not torch.npu.is_initialized()
    assert result_of_child("fork") == 6


@check
def memory_is_counted() -> None:
    torch.npu.empty_cache()
    total = torch.npu.get_device_properties(0).total_memory
    before, told = torch.npu.mem_get_info()
    assert total == told == 512 * MIB
    x = torch.empty(64 * MIB, dtype=torch.uint8, device="npu")
    assert 64 * MIB <= torch.npu.memory_allocated() < 65 * MIB
    assert 64 * MIB <= before - torch.npu.mem_get_info()[0] <= 84 * MIB  # in segments of 2 or 20 MiB
    assert torch.npu.memory_allocated(1) == 0
    del x
    assert torch.npu.memory_allocated() == 0
    assert torch.npu.memory_reserved() >= 64 * MIB  # kept for the next one
    torch.npu.empty_cache()
    assert torch.npu.memory_reserved() == 0
    assert torch.npu.mem_get_info()[0] == before
    assert torch.npu.max_memory_allocated() >= 64 * MIB


@check
def out_of_memory() -> None:
    kept = []
    try:
        while len(kept) < 64:
            kept.append(torch.zeros(16 * MIB, dtype=torch.uint8, device="npu"))
    except torch.OutOfMemoryError as error:
        assert "512.00 MiB total capacity" in str(error), error
    assert 24 <= len(kept) <= 31
    other = torch.zeros(16 * MIB, dtype=torch.uint8, device="npu:1")  # its memory is its own
    assert other.sum().item() == 0
    kept.clear()
    assert torch.ones(200 * MIB, dtype=torch.uint8, device="npu").sum().item() == 200 * MIB  # a larger piece than any


@check
def expandable_segments() -> None:
    x = torch.ones(4 * MIB, device="npu")
    wanted = "expandable" in os.environ.get("PYTORCH_NPU_ALLOC_CONF", "")
    found = {segment["is_expandable"] for segment in torch.npu.memory_snapshot() if segment["device"] == 0}
    assert found == {wanted}, found
    parts = [torch.full((3 * MIB,), float(i), device="npu") for i in range(8)]  # grows segment by segment
    assert [part.sum().item() / (3 * MIB) for part in parts] == list(range(8))
    across = torch.cat([x[:10], *(part[-10:] for part in parts)])
    assert across.sum().item() == 10 + sum(10 * i for i in range(8))


@check
def threads_on_two_devices() -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            torch.npu.set_device(number % 2)
            stream = torch.npu.Stream()
            with torch.npu.stream(stream):
                x = torch.full((32, 32), float(number + 1), device="npu", requires_grad=True)
                for _ in range(60):
                    y = (x @ x).sum()
                    y.backward()
                    assert x.grad is not None and x.grad[0, 0].item() == 64.0 * (number + 1)
                    x.grad = None
                    torch.npu.synchronize()
                    assert x.nonzero().shape == (1024, 2)
            assert x.device.index == number % 2 and y.item() == 32**3 * (number + 1) ** 2
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads), failures


@check
def copies_between_devices() -> None:
    x = torch.arange(6.0, device="npu:0")
    y = x.to("npu:1")
    assert y.device.index == 1 and y.add_(1).cpu().tolist() == [1, 2, 3, 4, 5, 6] and x[0].item() == 0
    try:
        torch.zeros(3, device="npu:2")
    except RuntimeError as error:
        assert "device" in str(error), error
    else:
        raise AssertionError("there is no third device")


@check
def dataloader_with_pinned_memory() -> None:
    data = TensorDataset(torch.arange(64.0))
    total = torch.zeros((), device="npu")
    for (batch,) in DataLoader(data, batch_size=8, num_workers=2, pin_memory=True):
        assert batch.is_pinned()
        total += batch.npu(non_blocking=True).sum()
    assert total.item() == 63 * 32


@check
def order_is_kept() -> None:
    """Operators with results of unknown shape, copies and in-place work, one after the other."""
    x = torch.zeros(8, device="npu")
    for i in range(50):
        x[i % 8] += 1
        assert x.nonzero().numel() == min(i + 1, 8)
    assert x.cpu().tolist() == [7, 7] + [6] * 6


@check
def fork_after_use_is_refused() -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def use() -> None:
        try:
            torch.ones(2).npu()
        except RuntimeError as error:
            results.put(str(error))

    process = context.Process(target=use)
    process.start()
    assert "Cannot re-initialize NPU in forked subprocess" in results.get(timeout=60)
    process.join(30)


@check
def spawn() -> None:
    assert result_of_child("spawn") == 6


def main() -> None:
    for name in sys.argv[1:] or CHECKS:
        try:
            CHECKS[name]()
            print(f"ok {name}", flush=True)
        except Exception:
            print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)


if __name__ == "__main__":
    main()
