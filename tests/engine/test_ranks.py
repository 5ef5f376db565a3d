"""An engine over rank processes that only pretend: the protocol, losses, restarts, and the end of everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.engine.fake_rank import BLOCK_SIZE, DIES, FAILS, HANGS
from tests.engine.fakes import EOS, HEAD_ROWS, VOCAB, Answer, ByteText, answer, pretend_engine

from gallium.engine import rank_runner
from gallium.engine.async_engine import Engine, EngineLimits
from gallium.engine.rank_runner import RankRunner
from gallium.errors import EngineDead, GalliumError, OutOfMemory, RankLost
from gallium.settings import EngineSettings
from gallium.types import SamplingParams

FAKE = (sys.executable, "-m", "tests.engine.fake_rank")
ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0  # a guard, no expectation
SILENCE_S = 5.0  # longer than a pretend rank takes to start
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, ignore_eos=True)
PROMPTS = ("Tell me about gallium.", "Tell me about germanium.", "abc", "What is it?")


def ranked(folder: Path, patience_s: float = PATIENCE_S, **ranks: int) -> RankRunner:
    return RankRunner(folder, "fake", EngineSettings(**ranks), command=FAKE, patience_s=patience_s)  # type: ignore[arg-type]


Start = Callable[..., tuple[Engine, RankRunner]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts engines over pretend ranks; no process may be left when they are shut down."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started: list[Engine] = []

    def make(patience_s: float = PATIENCE_S, **ranks: int) -> tuple[Engine, RankRunner]:
        runner = ranked(tmp_path, patience_s, **ranks)
        assert [rank.free_bytes for rank in runner.load()] == [64_000 + rank for rank in range(len(pids(tmp_path)))]
        runner.make_caches(64, BLOCK_SIZE)
        limits = EngineLimits(
            num_blocks=64, block_size=BLOCK_SIZE, max_context=200, max_batch=8, max_step_tokens=24, prefix_cache=True,
            vocab_size=VOCAB, head_rows=HEAD_ROWS, lanes=EngineSettings(**ranks).groups,  # type: ignore[arg-type]
        )  # fmt: skip
        engine = Engine(runner, limits, eos_ids=(EOS,), detokenizer=lambda params: ByteText())
        engine.start()
        started.append(engine)
        return engine, runner

    yield make
    for engine in started:
        engine.shutdown()
    assert children() == []


def children() -> list[psutil.Process]:
    """Pretend ranks of this process, zombies included."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE or "tests.engine.fake_rank" in child.cmdline():
                found.append(child)
    return found


def log_of(folder: Path, rank: int) -> list[str]:
    return (folder / f"rank-{rank}.log").read_text().splitlines()


def pids(folder: Path) -> list[int]:
    """Of the ranks that run now."""
    logs = sorted(folder.glob("rank-*.log"))
    return [int([line for line in log_of(folder, r) if line.startswith("pid")][-1][4:]) for r in range(len(logs))]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def expected(prompts: tuple[str, ...] = PROMPTS) -> list[list[int]]:
    """What one pretend model in this process answers."""
    engine, _ = pretend_engine()
    engine.start()
    try:
        return [answer(engine, p, temperature=0, max_tokens=12, ignore_eos=True).tokens() for p in prompts]
    finally:
        engine.shutdown()


# -- work --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [{"tp": 2}, {"dp": 2}, {"tp": 2, "ep": 4}])
def test_ranks_answer_like_one_process(start: Start, ranks: dict[str, int], tmp_path: Path) -> None:
    engine, _ = start(**ranks)
    answers = [Answer(engine, prompt, GREEDY) for prompt in PROMPTS]
    assert [a.wait().tokens() for a in answers] == expected()
    rows = engine.logits(list(b"abc"))
    assert rows.shape == (3, HEAD_ROWS)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.restarts) == (0, 0, 0)
    assert stats.total_blocks == stats.free_blocks == 64 * EngineSettings(**ranks).groups  # type: ignore[arg-type]
    groups = [log_of(tmp_path, rank) for rank in range(len(pids(tmp_path)))]
    assert all("blocks 64" in group for group in groups)
    busy = [[line for line in group if line.startswith("step")] for group in groups]
    assert all(busy)


@pytest.mark.parametrize(("ranks", "idle"), [({"dp": 2}, False), ({"ep": 2}, True)])
def test_a_lane_without_work_takes_part_where_experts_are_exchanged(
    start: Start, ranks: dict[str, int], idle: bool, tmp_path: Path
) -> None:
    engine, _ = start(**ranks)
    answer(engine, "abc", temperature=0, max_tokens=5, ignore_eos=True)
    steps = engine.stats().steps
    engine.shutdown()
    lines = [[line for line in log_of(tmp_path, rank) if line[:4] in ("step", "idle")] for rank in (0, 1)]
    assert len(lines[0]) == steps and not any(line == "idle" for line in lines[0])
    assert lines[1] == ["idle"] * (steps if idle else 0)


def test_progress_is_that_of_the_slowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runner, seen = ranked(tmp_path, dp=2), []
    runner.load(lambda done, total: seen.append((done, total)))
    runner.close()
    assert seen[-1] == (3, 3) and seen == sorted(set(seen))


# -- losses ------------------------------------------------------------------------------------------


def test_a_killed_rank_ends_all_requests_and_the_engine_restarts(start: Start, tmp_path: Path) -> None:
    engine, _ = start(tp=2, dp=2)
    assert answer(engine, PROMPTS[0], temperature=0, max_tokens=12, ignore_eos=True).tokens() == expected()[0]
    again = answer(engine, PROMPTS[0], temperature=0, max_tokens=2, ignore_eos=True)
    assert again.deltas[0].cached_tokens > 0
    answers = [Answer(engine, prompt, ENDLESS) for prompt in PROMPTS]
    for open_one in answers:
        open_one.next()
    before = engine.stats()
    os.kill(pids(tmp_path)[2], signal.SIGKILL)
    for open_one in answers:
        with pytest.raises(EngineDead, match=r"rank 2 ended with signal 9 \(SIGKILL\)"):
            open_one.wait()
    later = Answer(engine, PROMPTS[0], GREEDY).wait()  # waits for the restart
    assert later.tokens() == expected()[0]
    assert later.deltas[0].cached_tokens == 0  # what the ranks knew is gone
    after = engine.stats()
    assert (engine.status, engine.failure, after.restarts) == ("ok", None, 1)
    assert after.generated_tokens >= before.generated_tokens + 12
    assert after.prefix_hit_tokens >= before.prefix_hit_tokens
    assert after.free_blocks == after.total_blocks
    assert len(children()) == 4


def test_a_loss_is_noticed_while_nothing_runs(start: Start, tmp_path: Path) -> None:
    engine, _ = start(dp=2)
    os.kill(pids(tmp_path)[1], signal.SIGTERM)
    eventually(lambda: engine.stats().restarts == 1)
    assert answer(engine, "abc", temperature=0, max_tokens=3, ignore_eos=True).tokens() == expected()[2][:3]


def test_the_one_that_died_is_named_and_not_those_that_missed_it(start: Start) -> None:
    engine, _ = start(tp=2)
    with pytest.raises(RankLost, match="rank 1 ended with signal 9"):
        answer(engine, [DIES, 1, FAILS, 0])
    assert answer(engine, "abc", temperature=0, max_tokens=12, ignore_eos=True).tokens() == expected()[2]


def test_a_step_that_fails_is_told_with_its_text(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    engine, _ = start(tp=2)
    with pytest.raises(RankLost, match=r"rank 1 failed with RuntimeError: the device caught fire\. It restarts"):
        answer(engine, [FAILS, 1])
    assert "the trace" in caplog.text
    assert answer(engine, "abc", max_tokens=1).deltas


def test_a_rank_that_does_not_answer_is_lost(start: Start) -> None:
    engine, runner = start(tp=2)
    runner._started()._patience_s = 1.0  # of these processes: their start may take longer on a busy machine
    with pytest.raises(RankLost, match="rank 0 did not answer for 1 s"):
        answer(engine, [HANGS, 0])
    assert answer(engine, "abc", max_tokens=1).deltas


def test_whoever_fails_again_and_again_is_left(start: Start) -> None:
    engine, _ = start(tp=1, dp=2)
    for _ in range(rank_runner.MOST_RESTARTS):
        with pytest.raises(RankLost):
            answer(engine, [DIES, 0])
        assert answer(engine, "abc", max_tokens=1).deltas
    with pytest.raises(EngineDead):
        answer(engine, [DIES, 0])
    eventually(lambda: engine.status == "dead")
    assert "rank 0 ended with signal 9 (SIGKILL): loss 4 in a row, so" in str(engine.failure)
    with pytest.raises(EngineDead):
        answer(engine, "abc")
    eventually(lambda: children() == [])


def test_rare_losses_are_no_series(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_runner, "STEADY_S", 0.0)
    engine, _ = start(dp=2)
    for _ in range(rank_runner.MOST_RESTARTS + 2):
        with pytest.raises(RankLost):
            answer(engine, [DIES, 0])
    assert answer(engine, "abc", max_tokens=1).deltas


def test_a_restart_that_fails_ends_the_engine(start: Start, tmp_path: Path) -> None:
    engine, _ = start(dp=2)
    (tmp_path / "faults.json").write_text(json.dumps({"1": "refuse"}))
    with pytest.raises(RankLost):
        answer(engine, [DIES, 0])
    waiting = Answer(engine, "abc", ENDLESS)
    with pytest.raises(EngineDead, match="and the restart failed: rank 1: the weights need 2 GiB"):
        waiting.wait()
    assert engine.status == "dead"


def test_a_loss_during_a_restart_is_another_one(start: Start, tmp_path: Path) -> None:
    engine, _ = start(dp=2)
    old = pids(tmp_path)
    (tmp_path / "faults.json").write_text(json.dumps({"1": "hang"}))
    with pytest.raises(RankLost):
        answer(engine, [DIES, 0])
    eventually(lambda: not set(pids(tmp_path)) & set(old))
    (tmp_path / "faults.json").unlink()
    os.kill(pids(tmp_path)[1], signal.SIGKILL)
    assert answer(engine, "abc", temperature=0, max_tokens=12, ignore_eos=True).tokens() == expected()[2]
    assert engine.status == "ok"


def test_requests_wait_for_a_restart_and_can_be_cancelled_meanwhile(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_runner, "MOST_RESTARTS", 1)
    engine, _ = start(patience_s=SILENCE_S, dp=2)
    (tmp_path / "faults.json").write_text(json.dumps({"1": "hang"}))
    with pytest.raises(RankLost):
        answer(engine, [DIES, 0])
    assert engine.status == "restarting" and "signal 9" in str(engine.failure)
    waiting, cancelled = Answer(engine, "abc", ENDLESS), Answer(engine, "abc", ENDLESS)
    cancelled.handle.cancel()
    with pytest.raises(EngineDead, match="did not answer for 5 s: loss 2 in a row"):
        waiting.wait()
    assert cancelled.wait().last().finish_reason == "cancelled"


# -- loading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("refuse", OutOfMemory, "rank 1: the weights need 2 GiB, but 1 GiB are free"),
        ("crash", RankLost, "rank 1 failed with ValueError: a bad driver"),
        ("exit", RankLost, "rank 1 ended with exit code 7"),
        ("hang", RankLost, "rank 1 did not answer for 5 s"),
    ],
)
def test_a_load_that_fails_names_the_rank_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, error: type[GalliumError], words: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "faults.json").write_text(json.dumps({"1": fault}))
    with pytest.raises(error, match=words):
        ranked(tmp_path, SILENCE_S if fault == "hang" else PATIENCE_S, tp=2).load()
    assert children() == []


# -- the end -----------------------------------------------------------------------------------------


def test_shutdown_does_not_wait_for_a_restart(start: Start, tmp_path: Path) -> None:
    engine, _ = start(dp=2)
    (tmp_path / "faults.json").write_text(json.dumps({"0": "hang"}))
    with pytest.raises(RankLost):
        answer(engine, [DIES, 0])
    waiting = Answer(engine, "abc", ENDLESS)
    engine.shutdown()  # else this would take a minute, and fail for another reason
    with pytest.raises(EngineDead, match="it was shut down"):
        waiting.wait()
    assert children() == []


def test_shutdown_does_not_wait_for_a_rank_that_hangs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gallium.engine.loop.PATIENCE_S", 0.1)
    engine, _ = start(tp=2)
    waiting = Answer(engine, [HANGS, 0], ENDLESS)
    eventually(lambda: engine.stats().running == 1)
    engine.shutdown()
    with pytest.raises(EngineDead, match="it was shut down"):
        waiting.wait()


def test_an_engine_that_is_killed_takes_its_ranks_with_it(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from tests.engine.test_ranks import ranked\n"
        f"runner = ranked(Path({str(tmp_path)!r}), tp=2); runner.load(); runner.make_caches(8, 4)\n"
        "print('ready', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        ranks = [psutil.Process(pid) for pid in pids(tmp_path)]
        process.kill()
    assert len(psutil.wait_procs(ranks, PATIENCE_S)[0]) == 2


def test_ctrl_c_reaches_the_engine_only(start: Start, tmp_path: Path) -> None:
    before = set(threading.enumerate())  # engines of other tests may still be there
    engine, _ = start(tp=2)
    mine = os.getpgid(0)
    assert all(os.getpgid(pid) != mine for pid in pids(tmp_path))
    assert len(set(threading.enumerate()) - before) >= 2
    engine.shutdown()
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("gallium")]
