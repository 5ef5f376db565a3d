"""Downloads from a hub on loopback: what is fetched, what is resumed, and what each failure leaves and says."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints.hub_server import COMMIT, Hub, digest, finish, model_files, parts_of
from tests.checkpoints.small_disk import needs_small_disk, small_disk

from gallium.checkpoints.hub import pull
from gallium.checkpoints.hub_names import HubName, choose_files, hub_name, split_names
from gallium.errors import DownloadError, UsageError

MIB = 1 << 20
CHUNK = 10 * MIB  # what the hub's client writes at a time
CUT = 11 * MIB
BIG = 12 * MIB


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def files(hub: Hub, tmp_path: Path) -> dict[str, bytes]:
    """A model of one weight file, in the repository o/m."""
    hub.repos["o/m"] = model_files(tmp_path / "source", 2 * MIB)
    return hub.repos["o/m"]


@pytest.fixture
def big_files(hub: Hub, tmp_path: Path) -> dict[str, bytes]:
    """The same, of a file that takes two chunks."""
    hub.repos["o/m"] = model_files(tmp_path / "source", BIG)
    return hub.repos["o/m"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def blob(home: Path, data: bytes) -> Path:
    return home / "hub/models--o--m/blobs" / digest(data)


def assert_fetched(folder: Path, files: dict[str, bytes]) -> None:
    """The folder holds these files, whole, and no unfinished download is left in the cache."""
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert parts_of(folder.parents[3]) == []


# -- what is fetched ------------------------------------------------------------------------


def test_a_model_is_what_it_needs_and_no_pickle(hub: Hub, home: Path, files: dict[str, bytes]) -> None:
    hub.repos["o/m"] = {**files, "pytorch_model.bin": b"x", "original/model.safetensors": b"x", "README.md": b"x"}
    done = hub.run(home, "pull", "o/m")
    assert done.path == home / "hub/models--o--m/snapshots" / COMMIT
    assert_fetched(done.path, files)


def test_what_is_there_is_not_fetched_again(hub: Hub, home: Path, files: dict[str, bytes]) -> None:
    hub.run(home, "pull", "o/m")
    before = len(hub.transfers)
    assert hub.run(home, "pull", "o/m").code == 0
    assert len(hub.transfers) == before == 1


def test_a_revision_is_asked_for(hub: Hub, home: Path, files: dict[str, bytes]) -> None:
    assert hub.run(home, "pull", "o/m", "--revision", "v1").code == 0
    assert "/api/models/o/m/revision/v1" in {r.path for r in hub.requests}
    assert "/o/m/resolve/v1/model.safetensors" in {r.path for r in hub.requests}


def test_a_token_goes_to_the_hub_and_not_to_the_host_of_the_files(
    hub: Hub, home: Path, files: dict[str, bytes]
) -> None:
    assert hub.run(home, "pull", "o/m", HF_TOKEN="hf_secret").code == 0
    asked = [r.token for r in hub.requests if not r.path.startswith("/cdn/")]
    assert set(asked) == {"Bearer hf_secret"}
    assert [r.token for r in hub.transfers] == [None]


def test_one_gguf_file_of_a_repository(hub: Hub, home: Path) -> None:
    hub.repos["o/m"] = {"a-Q4_K_M.gguf": b"a" * 2 * MIB, "b.gguf": b"b"}
    path = hub.run(home, "pull", "o/m:a-Q4_K_M.gguf").path
    assert (path.name, path.read_bytes()) == ("a-Q4_K_M.gguf", b"a" * 2 * MIB)
    assert not list(path.parent.glob("b.gguf"))


def test_all_parts_of_a_split_gguf_file_in_a_folder(hub: Hub, home: Path) -> None:
    names = [f"q8/m-0000{i}-of-00002.gguf" for i in (1, 2)]
    hub.repos["o/m"] = {name: name.encode() for name in names}
    path = hub.run(home, "pull", "o/m").path
    assert [p.read_text() for p in sorted(path.parent.iterdir())] == names


# -- interrupted ------------------------------------------------------------------------


def test_a_cut_connection_goes_on_where_it_was_cut(hub: Hub, home: Path, big_files: dict[str, bytes]) -> None:
    hub.faults.cut = [CUT]
    assert_fetched(hub.run(home, "pull", "o/m").path, big_files)
    assert [r.start for r in hub.transfers] == [0, CHUNK]


@pytest.mark.parametrize("no_ranges", [False, True])
def test_a_failed_download_goes_on_in_the_next_run(
    hub: Hub, home: Path, big_files: dict[str, bytes], no_ranges: bool
) -> None:
    hub.faults.cut, hub.faults.status, hub.faults.no_ranges = [CUT], [None, 503], no_ranges
    failed = hub.run(home, "pull", "o/m")
    assert failed.code == 1 and "HTTP 503" in failed.err and "what has arrived is kept" in failed.err
    assert [part.stat().st_size for part in parts_of(home)] == [CHUNK]
    assert not blob(home, big_files["model.safetensors"]).exists()
    assert_fetched(hub.run(home, "pull", "o/m").path, big_files)
    assert [r.start for r in hub.transfers] == [0, CHUNK, CHUNK]


def test_a_part_that_does_not_belong_to_the_file_is_thrown_away(hub: Hub, home: Path, files: dict[str, bytes]) -> None:
    part = blob(home, files["model.safetensors"]).with_suffix(".gallium-part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"of another file")
    failed = hub.run(home, "pull", "o/m")
    assert failed.code == 1 and "arrived damaged and was thrown away" in failed.err
    assert_fetched(hub.run(home, "pull", "o/m").path, files)


def test_a_part_that_is_too_long_is_no_beginning(hub: Hub, home: Path, files: dict[str, bytes]) -> None:
    part = blob(home, files["model.safetensors"]).with_suffix(".gallium-part")
    part.parent.mkdir(parents=True)
    part.write_bytes(files["model.safetensors"] + b"more")
    assert_fetched(hub.run(home, "pull", "o/m").path, files)


def test_two_at_once_fetch_it_once(hub: Hub, home: Path, big_files: dict[str, bytes]) -> None:
    hub.faults.stall = CUT
    processes = [hub.start(home, "pull", "o/m") for _ in range(2)]
    assert hub.faults.stalled.wait(60)
    hub.faults.released.set()
    for process in processes:
        assert_fetched(finish(process).path, big_files)
    assert len(hub.transfers) == 1


# -- offline, and a hub that is down --------------------------------------------------


@pytest.mark.parametrize("named", ["o/m", "o/m:m.gguf"])
def test_offline_uses_the_local_copy_and_asks_nobody(
    hub: Hub, home: Path, files: dict[str, bytes], default_gguf: bytes, named: str
) -> None:
    hub.repos["o/m"] = files if named == "o/m" else {"m.gguf": default_gguf}
    path = hub.run(home, "pull", named).path
    hub.requests.clear()
    assert hub.run(home, "pull", named, HF_HUB_OFFLINE="1").path == path
    assert hub.requests == []


@pytest.fixture
def default_gguf(tmp_path: Path) -> bytes:
    """A GGUF file that opens."""
    from tests.checkpoints.test_gguf_reading import make

    return make(tmp_path / "made.gguf", "llama")[0].read_bytes()


def test_offline_and_not_here(hub: Hub, home: Path, files: dict[str, bytes]) -> None:
    done = hub.run(home, "pull", "o/m", HF_HUB_OFFLINE="1")
    assert done.code == 1 and "HF_HUB_OFFLINE is set. Unset it to download" in done.err
    assert hub.requests == []


def test_a_copy_that_is_not_whole_does_not_count(hub: Hub, home: Path, files: dict[str, bytes]) -> None:
    path = hub.run(home, "pull", "o/m").path
    (path / "model.safetensors").unlink()
    done = hub.run(home, "pull", "o/m", HF_HUB_OFFLINE="1")
    assert done.code == 1 and "not whole" in done.err


@pytest.mark.parametrize("status", [429, None])
def test_a_hub_that_is_down_leaves_the_local_copy(
    hub: Hub, home: Path, files: dict[str, bytes], status: int | None
) -> None:
    path = hub.run(home, "pull", "o/m").path
    hub.api_status = status
    if status is None:
        hub.close()
    done = hub.run(home, "pull", "o/m")
    assert done.path == path and "using the local copy of o/m" in done.err


def test_a_refusal_is_not_hidden_by_the_local_copy(hub: Hub, home: Path, files: dict[str, bytes]) -> None:
    hub.run(home, "pull", "o/m")
    hub.api_status = 403
    assert hub.run(home, "pull", "o/m").code == 1


# -- refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["o/none"], "no such public model. Check the spelling"),
        (["o/m", "--revision", "v9"], "not in this revision. Check --revision"),
        (["o/m:absent.gguf"], "has no file absent.gguf, nor any other GGUF file"),
        (["o/gated"], "sign in with `hf auth login`"),
    ],
)
def test_refusals_say_what_to_do(hub: Hub, home: Path, files: dict[str, bytes], args: list[str], message: str) -> None:
    hub.repos["o/gated"] = files
    hub.gated.add("o/gated")
    done = hub.run(home, "pull", *args)
    assert (done.code, done.out) == (1, "") and message in done.err
    assert "Traceback" not in done.err and parts_of(home) == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_asks_to_come_back(hub: Hub, home: Path, status: int) -> None:
    hub.api_status = status
    done = hub.run(home, "pull", "o/m")
    assert done.code == 1 and f"(HTTP {status}). Try again later" in done.err


def test_a_hub_that_cannot_be_reached(hub: Hub, home: Path) -> None:
    hub.close()
    done = hub.run(home, "pull", "o/m")
    assert done.code == 1 and "the connection failed. Check the network" in done.err


def test_file_names_that_leave_their_folder_are_not_fetched(hub: Hub, home: Path, tmp_path: Path) -> None:
    names = ["../evil", "sub/../../evil", "..\\evil", f"/{tmp_path}/evil", "q/evil\\..\\..\\evil"]
    files = {f"{name}.{suffix}": b"x" * 2 * MIB for name in names for suffix in ("gguf", "safetensors")}
    hub.repos["o/m"] = {"config.json": b"{}", **files}
    done = hub.run(home / "deep/down", "pull", "o/m")
    assert done.code == 1 and "neither safetensors nor GGUF" in done.err
    assert hub.transfers == [] and list(tmp_path.rglob("*evil*")) == []


# -- the disk is full ------------------------------------------------------------------


@needs_small_disk
def test_what_cannot_fit_is_refused_before_it_is_fetched(hub: Hub, home: Path, big_files: dict[str, bytes]) -> None:
    done = hub.run(home, "pull", "o/m", before=small_disk(home, CUT))
    assert done.code == 1 and "the disk is full: 12," in done.err and "Free some space" in done.err
    assert hub.transfers == []


@needs_small_disk
def test_a_disk_that_fills_up_while_it_is_fetched(hub: Hub, home: Path, big_files: dict[str, bytes]) -> None:
    hub.faults.stall = CUT
    process = hub.start(home, "pull", "o/m", before=small_disk(home, 15 * MIB))
    assert hub.faults.stalled.wait(60)
    inside = Path(f"/proc/{psutil.Process(process.pid).children()[0].pid}/root")
    with pytest.raises(OSError, match="No space left"), (inside / home.relative_to("/") / "fill").open("wb") as fill:
        fill.write(bytes(16 * MIB))
    hub.faults.released.set()
    done = finish(process)
    assert done.code == 1 and "the disk is full. Free some space and run the command again" in done.err
    left = [line.rpartition("/")[2] for line in done.err.splitlines() if "/blobs/" in line]
    assert left == [f"{digest(big_files['model.safetensors'])}.gallium-part"]


def test_a_file_that_the_system_does_not_allow(hub: Hub, home: Path, big_files: dict[str, bytes]) -> None:
    done = hub.run(home, "pull", "o/m", before=["prlimit", f"--fsize={CUT}"])
    assert done.code == 1 and "does not allow files that large. Set HF_HOME to another disk" in done.err
    assert not blob(home, big_files["model.safetensors"]).exists()


def test_a_cache_that_cannot_be_made(hub: Hub, home: Path, files: dict[str, bytes]) -> None:
    done = hub.run(Path("/proc/nowhere"), "pull", "o/m")
    assert done.code == 1 and "Error: o/m could not be fetched" in done.err and "HF_HOME" in done.err


# -- choosing, without a hub ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("zai-org/glm-edge-1.5b-chat", ("zai-org/glm-edge-1.5b-chat", None)),
        ("o/m:q4/m-00001-of-00002.gguf", ("o/m", "q4/m-00001-of-00002.gguf")),
        *(
            (text, None)
            for text in ("model", "a/b/c", "../m", "o/..", "o/m:../x.gguf", "o/m:x.bin", "./m", "o/m\n", "")
        ),
    ],
)
def test_hub_names(text: str, found: tuple[str, str | None] | None) -> None:
    assert hub_name(text) == (None if found is None else HubName(*found))


@given(st.text())
def test_no_text_is_a_name_that_leaves_the_cache(text: str) -> None:
    found = hub_name(text)
    assert found is None or (found.repo.count("/") == 1 and ".." not in text and "\\" not in found.repo)


def test_what_is_no_hub_name_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"'model' is not a hub name; one looks like zai-org/"):
        pull("model")


WEIGHTS = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json"]


def test_safetensors_come_before_gguf_and_subfolders_are_left() -> None:
    files = [*WEIGHTS, "m.gguf", "fp16/model.safetensors", "consolidated.safetensors", "model.bin", "README.md"]
    assert choose_files(HubName("o/m", None), files) == WEIGHTS


def test_several_gguf_files_are_listed_as_they_are_to_be_named() -> None:
    files = ["m-Q4_K_M.gguf", "q8/m-00001-of-00002.gguf", "q8/m-00002-of-00002.gguf", "mmproj-m.gguf"]
    with pytest.raises(DownloadError) as caught:
        choose_files(HubName("o/m", None), files)
    assert str(caught.value).splitlines() == [
        "o/m has 2 GGUF files; name one of them:", "  o/m:m-Q4_K_M.gguf", "  o/m:q8/m-00001-of-00002.gguf",
    ]  # fmt: skip
    for part in files[1:3]:
        assert choose_files(HubName("o/m", part), files) == files[1:3]
    with pytest.raises(DownloadError, match=r"no file m\.gguf; it has:\n  o/m:m-Q4"):
        choose_files(HubName("o/m", "m.gguf"), files)


def test_a_repository_of_pickles_is_told_apart_from_an_empty_one() -> None:
    with pytest.raises(DownloadError, match=r"neither safetensors nor GGUF files .pickles"):
        choose_files(HubName("o/m", None), ["config.json", "pytorch_model.bin"])
    with pytest.raises(DownloadError, match="neither safetensors nor GGUF files, so"):
        choose_files(HubName("o/m", None), ["README.md"])


def test_parts_of_a_split_file() -> None:
    assert split_names("q/m-00002-of-00003.gguf") == [f"q/m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert split_names("q/m.gguf") == ["q/m.gguf"]


# -- ModelScope ------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("modelscope") is not None, reason="its client is installed")
def test_modelscope_without_its_client_says_how_to_get_it(hub: Hub, home: Path) -> None:
    done = hub.run(home, "pull", "o/m", "--hub", "modelscope")
    assert done.code == 1 and "pip install 'gallium[modelscope]'" in done.err
