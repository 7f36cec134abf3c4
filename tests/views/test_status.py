"""How a study stands."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
from conftest import Command
from small_study import BASELINES, CANDIDATES, Finished
from stopped_study import printed, stopped

from heterosis.errors import StudyError
from heterosis.files import holder, only_process
from heterosis.views import Status, Unreadable, status, statuses
from heterosis.views.tables import plain, show_status, show_statuses


def test_a_complete_study_says_what_its_result_says(finished: Finished) -> None:
    found, result = status(finished.study), finished.result
    assert (found.stage, found.held_by, found.stopped) == ("complete", None, False)
    assert found.winner is not None
    assert (found.winner.label, found.winner.verdict) == (result["winner"], result["verdict"])
    assert found.winner.heterosis == result["heterosis"]
    assert (found.progress.candidates, found.progress.baselines) == (CANDIDATES, BASELINES)
    assert found.progress.items == result["time"]["items"]
    assert found.next == f"heterosis show {finished.folder} winner"


def test_a_stopped_search_says_how_to_go_on(finished: Finished, tmp_path: Path) -> None:
    found = status(stopped(finished, tmp_path / "runs", 5))
    assert (found.stage, found.stopped, found.winner) == ("searching", True, None)
    assert found.progress.left.candidates == CANDIDATES - 5
    assert found.next == "heterosis run STUDY.yaml  (the study file of tiny)"
    text = printed(show_status, found)
    assert "searching: stopped, no process works on it" in text
    assert "selection-biased" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_study_file_is_known_from_the_record(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "result.json").unlink()
    found = status(folder)
    assert found.stage == "test split"
    assert found.next == f"heterosis run {finished.study}"


@pytest.mark.parametrize(("proposals", "stage"), [(0, "baselines"), (1, "searching"), (CANDIDATES, "finalists")])
def test_the_stage_follows_from_the_record(finished: Finished, tmp_path: Path, proposals: int, stage: str) -> None:
    assert status(stopped(finished, tmp_path / "runs", proposals)).stage == stage


def test_a_result_of_a_shorter_search_does_not_stand_for_a_longer_one(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    result = finished.result
    result["time"]["candidates"] -= 2
    (folder / "result.json").write_text(json.dumps(result))
    resolved = (folder / "resolved.yaml").read_text()
    (folder / "resolved.yaml").write_text(resolved.replace(f"candidates: {CANDIDATES}", "candidates: 50"))
    found = status(folder)
    assert (found.stage, found.winner) == ("searching", None)


def test_failures_are_named_with_their_reasons(finished: Finished, tmp_path: Path) -> None:
    found = status(stopped(finished, tmp_path / "runs", 5, failing="c2"))
    assert [(failure.label, failure.error) for failure in found.progress.failures] == [("c2", "the engine [died]")]
    assert "c2: the engine [died]" in printed(show_status, found)


def _hold(folder: Path, ready: object, done: object) -> None:
    with only_process(folder):
        ready.set()  # type: ignore[attr-defined]
        done.wait(20)  # type: ignore[attr-defined]


def test_who_works_on_a_study_is_seen_and_not_disturbed(finished: Finished, tmp_path: Path) -> None:
    folder = stopped(finished, tmp_path / "runs", 3)
    assert holder(folder) is None
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(folder, ready, done))
    process.start()
    try:
        assert ready.wait(20)
        found = status(folder)
        assert found.held_by is not None
        assert found.held_by.startswith(f"process {process.pid} on ")
        assert found.next == f"heterosis show {folder} best"
    finally:
        done.set()
        process.join()
    assert holder(folder) is None  # the file still names it, but it has ended
    with only_process(folder):
        pass


def test_every_study_of_a_folder_has_its_line(finished: Finished, tmp_path: Path) -> None:
    stopped(finished, tmp_path / "half", 4)
    shutil.copytree(finished.folder, tmp_path / "whole")
    (tmp_path / "odd").mkdir()
    shutil.copy(finished.folder / "resolved.yaml", tmp_path / "odd")
    half, odd, whole = statuses(tmp_path)
    assert isinstance(half, Status)
    assert isinstance(odd, Unreadable)
    assert isinstance(whole, Status)
    assert (half.stage, whole.stage) == ("searching", "complete")
    text = printed(show_statuses, [half, odd, whole])
    assert "unreadable: " in text
    assert "has no panel.json: the study has not read its tasks yet" in " ".join(text.split())


def test_without_a_study_it_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="`heterosis init` writes a study file"):
        list(statuses(tmp_path))


def test_the_command_prints_for_people_and_programs(
    finished: Finished, heterosis: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = heterosis("status", finished.folder)
    assert (code, err) == (0, "")
    assert finished.result["verdict"] in out
    code, out, _ = heterosis("status", finished.folder, "--format", "json")
    assert json.loads(out) == json.loads(json.dumps(plain(status(finished.folder))))
    monkeypatch.chdir(finished.study.parent)
    code, out, _ = heterosis("status")
    assert code == 0
    assert "tiny" in out
    assert f"{CANDIDATES}/{CANDIDATES}" in out
    monkeypatch.chdir(finished.folder)
    assert heterosis("status")[0] == 2
