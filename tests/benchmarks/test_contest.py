"""The contest's logic: which cells, whose turn, what is kept, how it is shown. Nothing here takes time."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from benchmarks.contest import rounds
from benchmarks.contest.cells import SETS, WORKLOADS, Cell, all_cells, choose, groups
from benchmarks.contest.goals import verdicts
from benchmarks.contest.peers import PEERS, Peer
from benchmarks.contest.process import Process, Refused
from benchmarks.contest.report import entry, inserted
from benchmarks.contest.rounds import Contest, OutOfTime
from benchmarks.contest.served import parse_events, percentile
from benchmarks.contest.store import Score, Store, best_peer

from gallium.checkpoints.opening import open_checkpoint
from gallium.checkpoints.resolve import default_model_path
from gallium.models.config import read_spec

LIMITS = {"at": "00:00", "read": 20e9, "peak": {"bf16": 2e11, "int8": 4e11, "int4": 8e11}}


def test_keys_are_unique_and_choose_cells() -> None:
    keys = [cell.key for cell in all_cells()]
    assert len(keys) == len(set(keys))
    assert [c.key for c in choose(["W1/int4/decode/16@2048"])] == ["W1/int4/decode/16@2048"]
    assert {c.kind for c in choose(["W3/*/prefill/*"])} == {"prefill"}
    assert len(choose(["all"])) == len(keys)
    assert set(choose(SETS["telling"])) == set(choose(["telling"]))
    with pytest.raises(ValueError, match="no cell is called 'W9'"):
        choose(["W9"])


def test_no_cell_asks_for_more_than_the_default_model_holds() -> None:
    keys = {cell.key for cell in choose(["all"])}
    assert {"W1/int4/prefill/8192", "W2/int4/prefill/2048", "W2/int4/decode/1@2048"} <= keys
    assert not keys & {"W2/int4/prefill/8192", "W2/int4/decode/1@8192"}
    assert read_spec(open_checkpoint(default_model_path()).config).max_positions == WORKLOADS["W2"].positions


def test_groups_say_what_room_their_cells_need() -> None:
    (group,) = groups(choose(["W1/int4/prefill/2048", "W1/int4/decode/8@128"]))
    assert (group.longest, group.widest) == (2048 + 128, 8)


def test_a_kv_cache_of_8_bits_is_loaded_for_itself() -> None:
    found = groups(choose(["W1/int4/decode/1@2048", "W1/int4/decode/1@2048/kv8", "W1/int4/decode/16@2048/kv8"]))
    assert [(group.kv, group.widest, group.spare) for group in found] == [(16, 1, 0), (8, 16, 0)]


def test_a_long_context_has_a_model_of_its_own() -> None:
    cells = choose(["W2-32k/*"])
    assert {(cell.kind, cell.size) for cell in cells} == {("decode", 32768)}
    positions = WORKLOADS["W2-32k"].positions
    assert positions is not None and max(group.longest for group in groups(cells)) <= positions


def test_a_store_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "contest.json")
    store.put("W1/int4/start", {"gallium": Score([2.0, 1.0, 4.0], facts={"peak_bytes": 5}), "vllm": Score(reason="no")})
    again = Store(store.path)
    assert again.cells == store.cells
    score = again.cells["W1/int4/start"]["gallium"]
    assert (score.median, score.spread) == (2.0, 1.5)
    assert not again.missing("W1/int4/start", ["gallium", "vllm"])
    assert again.missing("W1/int4/start", ["gallium", "llama.cpp"])


def test_the_best_peer_is_never_gallium_nor_one_without_figures() -> None:
    scores = {"gallium": Score([9.0]), "vllm": Score(reason="no"), "llama.cpp": Score([3.0]), "openvino": Score([2.0])}
    assert best_peer(scores) == ("llama.cpp", 3.0)
    assert best_peer(scores, least=True) == ("openvino", 2.0)
    assert best_peer({"gallium": Score([9.0])}) is None


@pytest.mark.parametrize(("part", "wanted"), [(0.5, 2.0), (0.95, 4.0), (0.25, 1.0), (0.0, 1.0)])
def test_percentiles_are_values_that_occurred(part: float, wanted: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], part) == wanted


def test_events_end_with_done() -> None:
    lines = [b": ping\n", b"\n", b'data: {"a": 1}\n', b"data: [DONE]\n", b'data: {"a": 2}\n']
    assert list(parse_events(iter(lines))) == [{"a": 1}]


class Scripted:
    """Stands for a driver process: figures by name, and the order of questions."""

    log: ClassVar[list[tuple[str, str]]] = []
    asked: ClassVar[list[tuple[str, int]]] = []  # kind, tokens

    def __init__(self, python: Path, driver: str, log: Path) -> None:
        self.name = driver

    def load(self, plan: dict[str, object], limit: float) -> dict[str, object]:
        if self.name == "broken":
            raise Refused("ended by SIGSEGV")
        return {"seconds": 1.0, "version": self.name, "weight_bytes": 1e9, "kv_bytes": 0}

    alive = True

    def ask(self, kind: str, limit: float = 0, **asked: int) -> float:
        if self.name == "frail":
            self.alive = False
            raise Refused("no answer within 5 s")
        self.log.append((self.name, kind))
        self.asked.append((kind, asked["tokens"]))
        return 10.0 * len(self.log)

    def peak_memory(self) -> int:
        return 2_000_000_000

    def close(self) -> None:
        pass


def scripted(name: str) -> Peer:
    return Peer(name, name, lambda workload, precision, root: root, {"int4": "int4"})


@pytest.fixture
def contest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Contest:
    monkeypatch.setattr(rounds, "Process", Scripted)
    monkeypatch.setattr(Scripted, "log", [])
    monkeypatch.setattr(Scripted, "asked", [])
    speeds = iter(range(1, 100))
    monkeypatch.setattr(rounds, "measure_limits", lambda threads: LIMITS | {"read": 1e9 * next(speeds)})
    store = Store(tmp_path / "contest.json")
    return Contest([scripted("gallium"), scripted("rival"), scripted("broken")], store, threads=2, rounds=2, budget=60)


def test_contenders_take_turns_and_a_broken_one_is_a_reason(contest: Contest) -> None:
    (group,) = groups(choose(["W1/int4/prefill/128"]))
    contest.run(group)
    assert [name for name, _ in Scripted.log] == ["gallium", "rival"] * 3
    scores = contest.store.cells["W1/int4/prefill/128"]
    assert scores["gallium"].rounds == [30.0, 50.0]  # the first turn warmed up
    assert scores["broken"].reason == "ended by SIGSEGV"
    assert scores["rival"].facts["peak_bytes"] == 2_000_000_000


def test_decoding_one_sequence_has_the_limits_around_each_round(contest: Contest) -> None:
    (group,) = groups(choose(["W1/int4/decode/1@128", "W1/int4/decode/4@128"]))
    contest.run(group)
    one, four = (contest.store.cells[f"W1/int4/decode/{batch}@128"]["gallium"] for batch in (1, 4))
    assert [around["read"] / 1e9 for around in one.limits] == [6, 10]  # the later of 5 and 6, of 9 and 10
    assert four.rounds and not four.limits


def test_who_keeps_another_kv_cache_says_so(contest: Contest) -> None:
    contest.peers[1] = replace(contest.peers[1], kv=(16,))
    contest.run(*groups(choose(["W1/int4/decode/1@2048/kv8"])))
    assert "in 16 bits only" in contest.store.cells["W1/int4/decode/1@2048/kv8"]["rival"].reason


def test_a_long_prompt_is_warmed_up_for_by_a_part(contest: Contest) -> None:
    contest.peers[:] = contest.peers[:1]
    contest.run(*groups(choose(["W1/int4/prefill/2048"])))
    assert [tokens for _, tokens in Scripted.asked] == [512, 2048, 2048]


def test_one_that_dies_leaves_the_contest_with_its_reason(contest: Contest) -> None:
    contest.peers.append(scripted("frail"))
    (group,) = groups(choose(["W1/int4/prefill/128", "W1/int4/prefill/512"]))
    contest.run(group)
    reasons = [scores["frail"].reason for scores in contest.store.cells.values()]
    assert reasons == ["no answer within 5 s", "no answer within 5 s, in W1/int4/prefill/128"]


def test_finished_cells_are_not_measured_again(contest: Contest) -> None:
    (group,) = groups(choose(["W1/int4/prefill/*"]))
    contest.run(group)
    asked = len(Scripted.log)
    contest.run(group)
    assert len(Scripted.log) == asked


def test_a_spent_budget_keeps_what_is_finished(contest: Contest) -> None:
    (group,) = groups(choose(["W1/int4/prefill/128"]))
    contest._end = 0.0
    with pytest.raises(OutOfTime):
        contest.run(group)
    assert contest.store.cells == {}


def test_a_process_answers_and_its_death_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake.py").write_text(
        textwrap.dedent("""
        import json, os, signal, sys
        for line in sys.stdin:
            asked = json.loads(line)
            if asked["do"] == "decode":
                os.kill(os.getpid(), signal.SIGABRT)
            reply = {"value": asked["tokens"] * 2} if asked["tokens"] < 9 else {"error": "too long"}
            print(json.dumps(reply), flush=True)
    """)
    )
    monkeypatch.setattr("benchmarks.contest.process.DRIVERS", tmp_path)
    process = Process(Path(sys.executable), "fake.py", tmp_path / "log")
    try:
        assert process.ask("prefill", tokens=4) == 8
        assert process.peak_memory() > 1 << 20
        with pytest.raises(Refused, match="too long"):
            process.ask("prefill", tokens=10)
        with pytest.raises(Refused, match="SIGABRT"):
            process.ask("decode", tokens=1)
    finally:
        process.close()


def test_the_report_has_ratios_goals_and_reasons(tmp_path: Path) -> None:
    store = Store(tmp_path / "contest.json")
    store.machine = {"date": "2026-01-02 03:04 UTC", "commit": "abc", "cores": 2, "chip": "a chip"}
    store.limits = [LIMITS, LIMITS]
    facts = {"weight_bytes": 900_000_000, "kv_bytes": 0, "peak_bytes": 1_000_000_000}
    one = Cell("W1", "int4", "decode", 1, 128).key
    around = [{"read": 25e9, "peak": LIMITS["peak"]}, {"read": 20e9, "peak": LIMITS["peak"]}]
    ours = Score([24.0, 24.0], facts=facts, limits=around)
    store.put(one, {"gallium": ours, "llama.cpp": Score([12.0]), "vllm": Score(reason="no int4")})
    store.put(Cell("W1", "int4", "start").key, {"gallium": Score([1.0], facts=facts), "llama.cpp": Score([2.0])})
    store.quality = {
        f"{name} int4": {
            "kl_mean": kl, "interval": [kl - 0.01, kl + 0.01], "kl_p95": 1.0, "same": 0.9, "tokens": 7, "draws": 3,
            "called": "Q4",
        }
        for name, kl in (("gallium", 0.1), ("llama.cpp", 0.2))
    }  # fmt: skip
    store.quality["gallium int4"]["ratio_interval"] = [0.4, 0.6]
    text = entry(store, "a command")
    assert f"| {one} | 24.0 | 12.0 | 2.00 |" in text
    assert "vllm: no int4 (1 cells" in text
    assert "read 20.0 GB/s" in text
    assert "7 tokens" in text and "drawn 3 times" in text and "| gallium Q4 | 0.10000 (0.09000 to 0.11000) |" in text
    assert "gallium int4 / Q4, the same pieces: 0.500 (0.400 to 0.600)." in text
    found = {v.what: v for v in verdicts(store, LIMITS)}
    assert found["W1 int4 decode 1@128"].ratio == pytest.approx(24 * 773e6 * (1 / 25e9 + 1 / 20e9) / 2 / 0.85, rel=0.2)
    assert found["W1 int4 decode 1@128"].met
    assert found["KL of int4 on text"].ratio == pytest.approx(2)
    assert not found["W1 int4 start to first token"].met
    assert found["W1/int4/start: peak memory"].met


def test_a_long_context_is_compared_at_equal_memory(tmp_path: Path) -> None:
    store = Store(tmp_path / "contest.json")
    for size, rate, read in ((128, 30.0, 40e9), (8192, 20.0, 20e9)):
        score = Score([rate, rate], facts={"weight_bytes": 900_000_000}, limits=[LIMITS | {"read": read}] * 2)
        store.put(Cell("W1", "int4", "decode", 1, size).key, {"gallium": score})
    (found,) = (v for v in verdicts(store, LIMITS) if "1@8192" in v.what)
    assert found.reached == "1.33 x"  # 20 tokens of 20 GB beside 30 of 40


def test_the_report_names_servers_causes_and_plots(tmp_path: Path) -> None:
    store = Store(tmp_path / "contest.json")
    store.limits = [LIMITS]
    times = {f"{what}_{part}": 0.25 for what in ("ttft", "tpot") for part in ("p50", "p95")}
    served = Cell("W1", "int4", "served", 1, 16).key
    store.put(served, {
        "gallium": Score([9.0], facts=times | {"server": "gallium serve"}),
        "llama.cpp": Score([9.0], facts=times | {"server": "llama-server, 16 slots"}),
    })  # fmt: skip
    text = entry(store, "a command", {"* served, *": "one core"}, ["plots/w1-int4-batch.png"])
    assert f"| {served} | llama-server, 16 slots | 9.0 | 0.25 / 0.25 | 0.250 / 0.250 |" in text
    assert "| missed: one core |" in text
    assert "| W1 int4 p95 TTFT, 16 streams | below that peer's | 0.25 s, 0.25 s | 1.00 | met |" in text
    assert "![w1-int4-batch](plots/w1-int4-batch.png)" in text
    assert "missed: cause not known" in entry(store, "a command")


def test_an_entry_goes_on_top_and_replaces_its_namesake() -> None:
    old = "# Results\n\nNewest first.\n\n## a\n\none\n\n## b\n\ntwo\n"
    once = inserted(old, "## c\n\nthree\n")
    assert once == "# Results\n\nNewest first.\n\n## c\n\nthree\n\n## a\n\none\n\n## b\n\ntwo\n"
    assert inserted(once, "## c\n\nfour\n") == once.replace("three", "four")


def test_every_peer_has_its_driver() -> None:
    drivers = Path(rounds.__file__).parent / "drivers"
    assert all((drivers / peer.driver).is_file() for peer in PEERS.values())
