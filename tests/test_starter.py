"""A study file to begin with."""

from __future__ import annotations

import os
import pty
import re
import sys
from pathlib import Path

import pytest
from conftest import Command, FamilyFolder
from small_tasks import choice_docs, write_task

from heterosis.config import Study, load_study
from heterosis.errors import StudyError
from heterosis.starter import Answers, parent_of, study_text, write_study

ANSWERS = Answers("new", "org/base", {"math": "org/math@3f2c1a9", "code": "org/code"}, ("gsm8k", "mbpp"))


def test_the_file_is_a_study_with_what_was_given(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    write_study(path, ANSWERS)
    study = load_study(path)
    assert (study.name, study.base.model, study.budget.candidates) == ("new", "org/base", 100)
    assert (study.parents["math"].model, study.parents["math"].revision) == ("org/math", "3f2c1a9")
    assert [task.task for task in study.tasks] == ["gsm8k", "mbpp"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new.yaml"]


def test_every_key_is_explained_by_the_schemas_own_words() -> None:
    text = " ".join(study_text(ANSWERS).replace("#", " ").split())
    for key in ("name", "base", "parents", "space", "tasks", "budget", "engine", "splits", "racing", "seed"):
        said = " ".join((Study.model_fields[key].description or "").split())
        assert said in text, key


def test_a_key_behind_a_hash_is_one_that_can_be_switched_on(tmp_path: Path) -> None:
    lines = study_text(ANSWERS).splitlines()
    off = [at for at, line in enumerate(lines) if re.match(r" *# (- \{|[a-z_]+: [^ ])", line) and ". " not in line]
    assert len(off) >= 15
    for at in off:
        path = tmp_path / "study.yaml"
        switched = [line if number != at else line.replace("# ", "", 1) for number, line in enumerate(lines)]
        path.write_text("\n".join(switched))
        load_study(path)


def test_every_key_behind_a_hash_that_has_a_default_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(study_text(ANSWERS))
    plain = load_study(path)
    for key in ("splits", "objective", "optimizer", "racing", "finalists", "mask_seeds", "output", "seed"):
        switched, count = re.subn(rf"^# ({key}: )", r"\1", study_text(ANSWERS), flags=re.MULTILINE)
        assert count == 1
        path.write_text(switched)
        study = load_study(path)
        assert (study.race if key == "racing" else getattr(study, key)) == (
            plain.race if key == "racing" else getattr(plain, key)
        )


def test_local_models_and_tasks_are_found_from_the_files_folder(
    tiny_family: FamilyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = tiny_family()
    write_task(tmp_path, "choice", choice_docs(24))
    (tmp_path / "studies").mkdir()
    (tmp_path / "models").symlink_to(family)
    monkeypatch.chdir(tmp_path)
    answers = Answers("x", "models/base", {"a": "models/a"}, ("choice.yaml",), engine="transformers")
    write_study(Path("studies/x.yaml"), answers)
    study = load_study(Path("studies/x.yaml"))
    assert study.base.model == "../models/base"
    assert study.tasks[0].task == "../choice.yaml"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "nowhere"}, "base: nowhere is no folder here, and no hub id"),
        ({"parents": {"all": "org/x"}}, "'all' cannot name a parent"),
        ({"tasks": ("mine.yaml",)}, "task: no file mine.yaml"),
        ({"space": "dare_tis_knots"}, "did you mean dare_ties_knots"),
        ({"name": "a/b"}, "name: String should match"),
    ],
)
def test_what_no_study_can_have_is_refused_and_nothing_written(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(StudyError, match=re.escape(said)):
        write_study(tmp_path / "new.yaml", ANSWERS._replace(**changes))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    path.write_text("mine")
    with pytest.raises(StudyError, match="exists already"):
        write_study(path, ANSWERS)
    assert path.read_text() == "mine"


def test_a_parent_may_go_by_its_models_name() -> None:
    assert parent_of("math=org/m") == ("math", "org/m")
    assert parent_of("org/math-7b.v2@abc") == ("math-7b-v2", "org/math-7b.v2@abc")
    with pytest.raises(StudyError, match="NAME=MODEL"):
        parent_of("=org/m")


def test_the_command_writes_and_says_what_comes_next(
    heterosis: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--base", "o/b", "--parent", "m=o/m", "--task", "gsm8k", "--candidates", "7", "--engine", "transformers")
    code, out, err = heterosis("init", "my.yaml", *options)
    assert (code, err) == (0, "")
    assert "heterosis check my.yaml" in out
    assert "heterosis run my.yaml" in out
    study = load_study(Path("my.yaml"))
    assert (study.name, study.budget.candidates, study.engine.kind) == ("my", 7, "transformers")


def test_without_a_terminal_what_is_missing_is_named(
    heterosis: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    code, out, err = heterosis("init", "--base", "o/b")
    assert (code, out) == (2, "")
    assert err == "error: init: --parent, --task missing, and no terminal to ask on. Give them as options.\n"


def test_on_a_terminal_it_asks_and_asks_again(tmp_path: Path) -> None:
    answers = ["", "nowhere", "o/b", "base=o/x", "m=o/m", "", "gsm8k", "", "vlm", "transformers", "0", "12"]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-m", "heterosis", "init", "asked.yaml"])
    os.write(terminal, "".join(f"{answer}\n" for answer in answers).encode())
    said = b""
    try:
        while part := os.read(terminal, 4096):
            said += part
    except OSError:  # how the end of a terminal is read on Linux
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said.decode()
    study = load_study(tmp_path / "asked.yaml")
    assert (study.name, study.base.model, list(study.parents)) == ("asked", "o/b", ["m"])
    assert (study.engine.kind, study.budget.candidates) == ("transformers", 12)
    text = said.decode()
    for wrong in ("nowhere is no folder here", "base cannot name a parent", "vlm is no engine", "0 is no number"):
        assert wrong in text
