"""What is looked for on a machine, on made-up machines: each thing that is missing is one line with its cure."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from gallium.backends.ascend import versions
from gallium.backends.ascend.versions import Machine


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The installed packages, as a test wants them."""
    have = {"torch": "2.12.0+cpu", "torch_npu": "2.12.0"}

    def version(name: str) -> str:
        if name not in have:
            raise metadata.PackageNotFoundError(name)
        return have[name]

    monkeypatch.setattr(metadata, "version", version)
    return have


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One with two chips, a driver and CANN 9.1.0 whose settings are sourced."""
    (tmp_path / "dev").mkdir()
    for name in ("davinci0", "davinci1", "davinci_manager"):
        (tmp_path / "dev" / name).touch()
    _write(tmp_path / "usr/local/Ascend/driver/version.info", "Version=25.2.0\nascendhal_version=7.35.23\n")
    home = tmp_path / "usr/local/Ascend/cann"
    _write(home / "aarch64-linux/ascend_toolkit_install.info", "package_name=Ascend-cann-toolkit\nversion=9.1.0\n")
    return Machine(tmp_path, {"ASCEND_OPP_PATH": str(home / "opp")})


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _cann(machine: Machine, version: str) -> None:
    _write(machine.root / "usr/local/Ascend/cann/aarch64-linux/ascend_toolkit_install.info", f"version={version}\n")


def test_a_complete_machine_misses_nothing(machine: Machine, packages: dict[str, str]) -> None:
    assert machine.missing() == []
    assert (machine.chips(), machine.driver()) == (2, "25.2.0")
    cann = machine.cann()
    assert cann is not None and cann.version == "9.1.0"
    assert versions.remark(cann) == "as torch_npu's list says"


def test_hidden_chips_do_not_count(machine: Machine) -> None:
    assert Machine(machine.root, {"ASCEND_RT_VISIBLE_DEVICES": "1"}).chips() == 1


def test_without_a_chip_the_driver_or_virtual_is_named(tmp_path: Path, packages: dict[str, str]) -> None:
    first, second = Machine(tmp_path, {}).missing()
    assert "/dev/davinci0" in first and "--virtual" in first
    assert second == "CANN is not installed: see https://www.hiascend.com/cann/download"


@pytest.mark.parametrize(
    ("have", "line"),
    [
        ({}, 'torch_npu is not installed: pip install "gallium[ascend]"'),
        (
            {"torch_npu": "2.12.0"},
            "torch_npu 2.12.0 needs torch 2.12.0, but torch is not installed: pip install torch==",
        ),
        ({"torch_npu": "2.12.0", "torch": "2.9.0"}, "needs torch 2.12.0, but torch 2.9.0 is installed: pip install"),
        ({"torch_npu": "2.12.0.post7", "torch": "2.9.0"}, "torch_npu 2.12.0.post7 needs torch 2.12.0, but torch 2.9.0"),
    ],
)
def test_packages_that_miss_or_do_not_fit(
    machine: Machine, packages: dict[str, str], have: dict[str, str], line: str
) -> None:
    packages.clear()
    packages.update(have)
    assert [line in found for found in machine.missing()] == [True]


def test_a_python_that_the_wheel_is_not_made_for(
    machine: Machine, packages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.update(torch_npu="2.6.0", torch="2.6.0")
    monkeypatch.setattr(versions.sys, "version_info", type("V", (), {"major": 3, "minor": 13}))
    assert machine.missing() == ["torch_npu 2.6.0 is made for Python 3.11, this is 3.13"]


def test_an_older_cann_is_refused_with_what_would_fit_it(machine: Machine, packages: dict[str, str]) -> None:
    _cann(machine, "8.3.RC1")
    (line,) = machine.missing()
    assert line == (
        "torch_npu 2.12.0 needs CANN 9.1.0, but 8.3.RC1 is installed: update CANN, "
        "or pip install torch==2.8.0 torch_npu==2.8.0"
    )


def test_a_newer_cann_is_taken_and_remarked_on(machine: Machine, packages: dict[str, str]) -> None:
    _cann(machine, "9.2.0")
    assert machine.missing() == []
    cann = machine.cann()
    assert cann is not None and versions.remark(cann) == "newer than the 9.1.0 of torch_npu's list"


def test_a_version_that_the_list_lacks_is_said_to_be_unlisted(machine: Machine, packages: dict[str, str]) -> None:
    packages.update(torch_npu="2.13.0", torch="2.13.0")
    cann = machine.cann()
    assert machine.missing() == []
    assert cann is not None and "not on its makers' list" in versions.remark(cann)


def test_settings_that_are_not_sourced(machine: Machine, packages: dict[str, str]) -> None:
    (machine.root / "usr/local/Ascend/cann/set_env.sh").touch()
    (line,) = Machine(machine.root, {}).missing()
    assert line == f"CANN's environment is not set: run `source {machine.root}/usr/local/Ascend/cann/set_env.sh`"


def test_the_environment_says_where_cann_is(machine: Machine, tmp_path: Path) -> None:
    _write(tmp_path / "mine/version.cfg", "# version: 1.0\nruntime_running_version=[9.0.0.B120:9.0.0]\n")
    cann = Machine(machine.root, {"ASCEND_HOME_PATH": str(tmp_path / "mine")}).cann()
    assert cann is not None and (cann.home, cann.version) == (tmp_path / "mine", "9.0.0")


def test_candidates_come_before_their_release() -> None:
    assert (
        versions._number("8.3.RC1") < versions._number("8.3.RC2") < versions._number("8.3.0") < versions._number("8.5")
    )


def test_every_release_pairs_a_wheel_with_the_torch_of_its_number() -> None:
    for release in versions.releases().values():
        assert release.torch_npu.split(".post")[0] == release.torch
        assert release.cann and release.pythons
