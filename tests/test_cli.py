"""The command line, from its help to a whole study that is killed and goes on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import PARENTS, Command, FamilyFolder
from small_study import BASELINES, CANDIDATES, Finished, write_study
from sweep.sweeps import write_sweep

from heterosis import __version__
from heterosis.evaluation.transformers_engine import TransformersEngine


@pytest.fixture(autouse=True)
def _no_study_changes_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets variables that quieten libraries; they end with the test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def fresh(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "heterosis", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# Help, version, schema, and what is said of mistakes.


def test_help_loads_no_library_but_those_of_the_terminal() -> None:
    """So it answers at once: torch alone takes seconds to import."""
    command = [sys.executable, "-X", "importtime", "-m", "heterosis", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "run" in answer.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in answer.stderr.splitlines()}
    assert {"typer", "rich"} <= imported
    needed = {requirement_name(each) for each in importlib.metadata.requires("heterosis") or ()}
    assert {"torch", "optuna", "mlflow", "vllm"} <= needed
    assert imported & (needed | {"numpy", "yaml", "sklearn", "sqlalchemy"}) <= {"typer", "rich"}


def requirement_name(requirement: str) -> str:
    """Name of the package to import."""
    return re.split(r"[^A-Za-z0-9_.-]", requirement)[0].replace("-", "_").lower()


def test_the_version_is_printed(heterosis: Command) -> None:
    assert heterosis("--version") == (0, f"heterosis {__version__}\n", "")


def test_the_schema_is_a_json_schema_of_study_files(heterosis: Command) -> None:
    from jsonschema import Draft202012Validator

    code, out, _ = heterosis("schema")
    assert code == 0
    schema = json.loads(out)
    Draft202012Validator.check_schema(schema)
    judge = Draft202012Validator(schema)
    study = {"name": "x", "base": "b", "parents": {"a": "m"}, "tasks": ["t.yaml", {"task": "arc_easy"}]}
    for change in ({}, {"base": {"model": "b"}}, {"space": {"depth": {"knots": 3}}}, {"method": "ties"}):
        assert judge.is_valid(study | change), change
    for change in ({"objectve": "mean"}, {"base": {"modle": "b"}}, {"seed": -1}, {"tasks": []}, {"base": 3}):
        assert not judge.is_valid(study | change), change


WRONG = "name: x\nbase: b\nparents: {a: m}\ntasks: [t.yaml]\nbugdet: {}\n"


def test_a_wrong_study_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(WRONG)
    answer = fresh("check", path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == f"error: {path}: bugdet: unknown key; did you mean budget?\n"


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_run_of_a_wrong_study_ends_with_that_line(heterosis: Command, tmp_path: Path, quiet: list[str]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(WRONG)
    code, out, errors = heterosis("run", path, *quiet)
    assert (code, out) == (2, "")
    *stages, last = errors.splitlines()
    assert last == f"error: {path}: bugdet: unknown key; did you mean budget?"
    assert stages == [] or (not quiet and stages == ["0:00 reading models and tasks"])


@pytest.mark.parametrize("arguments", [("run",), ("walk",), ("run", __file__, "b"), ("merge", "r.yaml")])
def test_wrong_arguments_are_exit_code_2_without_a_traceback(heterosis: Command, arguments: tuple[str, ...]) -> None:
    code, out, errors = heterosis(*arguments)
    assert (code, out) == (2, "")
    assert "Usage" in errors
    assert "Traceback" not in errors


def test_a_missing_study_says_so(heterosis: Command, tmp_path: Path) -> None:
    code, out, errors = heterosis("check", tmp_path / "none.yaml")
    assert (code, out, errors) == (2, "", f"error: {tmp_path / 'none.yaml'}: no such file.\n")


@pytest.mark.parametrize("flag", ["--confirm-run-unsafe-code", "--confirm_run_unsafe_code"])
def test_benchmarks_of_generated_code_need_a_flag(
    heterosis: Command, tiny_family: FamilyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    import datasets

    def no_hub(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no hub here")

    monkeypatch.setattr(datasets, "load_dataset", no_hub)
    (tmp_path / "sweep").mkdir()
    study = write_study(tmp_path, tiny_family(), tasks=["humaneval"])
    sweep = write_sweep(tmp_path / "sweep", tiny_family(), tasks=["humaneval"])
    for command in (("check", study), ("sweep", sweep), ("sweep", sweep, "--plan")):
        code, _, errors = heterosis(*command, flag)
        assert (code, "no hub here" in errors) == (2, True), command
    answer = fresh("run", study)
    assert (answer.returncode, answer.stdout) == (2, "")
    refusal = "error: humaneval: it runs code that the models write. Give --confirm-run-unsafe-code"
    assert answer.stderr.splitlines()[-1].startswith(refusal)


def test_brackets_in_a_message_are_no_markup(heterosis: Command, tmp_path: Path) -> None:
    code, _, errors = heterosis("run", tmp_path / "[bold]none[/red].yaml")
    assert code == 2
    assert "[bold]none[/red].yaml: no such file" in errors


# A whole study.


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[TransformersEngine]:
    """Every engine that is started."""
    started: list[TransformersEngine] = []
    begin = TransformersEngine.__init__

    def noting(self: TransformersEngine, *arguments: Any) -> None:
        started.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(TransformersEngine, "__init__", noting)
    return started


def same_everywhere(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without what names a folder, a duration or an interruption."""
    ours = {"time", "command", "winner_folder", "test_openings", "verdict"}
    return {key: value for key, value in result.items() if key not in ours}


def candidates(study: Finished) -> dict[str, list[dict[str, Any]]]:
    """All that is recorded of every candidate but its duration, bit for bit."""

    def plain(candidate: Any) -> dict[str, Any]:
        tables = {task: (t.values.tobytes(), t.weights.tobytes()) for task, t in candidate.outcomes.items()}
        return {**vars(candidate), "outcomes": tables, "seconds": None}

    names = ("tiny", "tiny/selection", "tiny/test")
    return {name: [plain(candidate) for candidate in study.record(name).candidates] for name in names}


def test_a_run_ends_with_a_result_and_a_winner_that_loads(finished: Finished) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = finished.result
    assert [c.label for c in finished.record().proposed] == [f"c{i}" for i in range(1, CANDIDATES + 1)]
    assert set(result["heterosis"]) == {"best_parent", "mid_parent", "best_baseline"}
    assert result["items"] == {"search": 10, "selection": 7, "test": 7}
    assert result["winner"] in {row["label"] for row in result["table"]}
    assert [row["role"] for row in result["table"]].count("winner") == 1
    assert len(result["test_openings"]) == 1
    _, notes = AutoModelForCausalLM.from_pretrained(finished.folder / "winner", output_loading_info=True)
    assert not any(notes.values())
    assert AutoTokenizer.from_pretrained(finished.folder / "winner").eos_token == "</s>"
    written = {path.name for path in finished.folder.iterdir()}
    files = {"panel.json", "record.db", "report.html", "resolved.yaml", "result.json"}
    assert written == files | {"lock", "samples", "winner"}


def test_the_winner_holds_the_weights_that_were_scored(finished: Finished) -> None:
    from heterosis.checkpoints import Checkpoint

    winner = Checkpoint(finished.folder / "winner")
    tested = {c.label: c.weights_digest for c in finished.record("tiny/test").candidates}
    assert winner.digest == tested[finished.result["winner"]] == finished.result["weights_digest"]
    winner.close()


def test_only_parents_best_baseline_and_winner_saw_the_test_split(finished: Finished) -> None:
    result = finished.result
    tested = [c.label for c in finished.record("tiny/test").candidates]
    assert sorted(tested) == sorted({*PARENTS, result["best_baseline"], result["winner"]})
    assert {row["label"] for row in result["table"] if "test" in row} == set(tested)


def test_a_finished_study_is_shown_again_without_an_engine(
    finished: Finished, heterosis: Command, engines: list[TransformersEngine]
) -> None:
    files = ("result.json", "resolved.yaml", "panel.json", "winner/model.safetensors", "winner/README.md")
    before = {name: (finished.folder / name).read_bytes() for name in files}
    code, out, errors = heterosis("run", finished.study, "--format", "json", "--quiet")
    assert (code, errors) == (0, "")
    assert json.loads(out) == finished.result
    assert {name: (finished.folder / name).read_bytes() for name in files} == before
    assert engines == []


def test_the_result_is_printed_with_its_verdict_and_its_files(finished: Finished, heterosis: Command) -> None:
    code, out, errors = heterosis("run", finished.study)
    result = finished.result
    assert code == 0
    assert result["verdict"] in out.replace("\n", " ")
    assert f"{CANDIDATES + BASELINES} candidates" in out
    assert str(finished.folder / "winner") in out
    assert "lineage.db" not in out
    assert f"{CANDIDATES} candidates are already recorded" in errors
    assert "\x1b" not in out + errors


def test_a_changed_study_is_refused_and_a_larger_budget_is_not(
    finished: Finished, heterosis: Command, tiny_family: FamilyFolder, tmp_path: Path
) -> None:
    shutil.copytree(finished.study.parent, tmp_path / "copy")
    output = {"output": str(tmp_path / "copy" / "runs")}
    study = write_study(tmp_path / "copy", tiny_family(), **output, seed=4)
    code, _, errors = heterosis("run", study)
    assert code == 2
    assert "Change it back to resume, or give the study another name" in errors
    study = write_study(tmp_path / "copy", tiny_family(), **output, budget={"candidates": CANDIDATES + 2})
    code, out, _ = heterosis("run", study, "--format", "json", "--quiet")
    assert code == 0
    assert json.loads(out)["time"]["candidates"] == CANDIDATES + 2 + BASELINES


# The process dies when the engine is asked for the nth time: between a swap and its record.
KILLED = """
import os, signal, sys
from heterosis import cli
from heterosis.evaluation.transformers_engine import TransformersEngine

left, answer = int(sys.argv.pop()), TransformersEngine.likelihoods

def dying(self, requests):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(self, requests)

TransformersEngine.likelihoods = dying
cli.main()
"""


def test_a_killed_study_goes_on_and_ends_as_one_never_killed(
    finished: Finished, inputs: Callable[..., Path], heterosis: Command, engines: list[TransformersEngine]
) -> None:
    study = inputs()
    last = BASELINES + 6
    command = [sys.executable, "-c", KILLED, "run", str(study), "--quiet", str(last)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = Finished(study)
    assert BASELINES <= len(resumed.record().candidates) < last  # a race is written down when it is over
    assert not (resumed.folder / "result.json").exists()
    code, out, _ = heterosis("run", study, "--format", "json", "--quiet")
    assert code == 0
    assert len(engines) == 1
    assert candidates(resumed) == candidates(finished)
    assert same_everywhere(json.loads(out)) == same_everywhere(finished.result)
    for key in ("verdict", "test_openings"):
        assert json.loads(out)[key] == finished.result[key]


def stages(finished: Finished) -> Iterator[int]:
    """How often the engine is asked up to the middle of the search, of the selection and of the test."""
    before = 0
    for name in ("tiny", "tiny/selection", "tiny/test"):
        asked = len(finished.record(name).candidates)
        yield before + asked // 2
        before += asked


def test_a_study_that_fails_in_any_stage_goes_on(
    finished: Finished, inputs: Callable[..., Path], heterosis: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = TransformersEngine.likelihoods
    for last in stages(finished):
        asked = 0

        def failing(self: TransformersEngine, requests: Any, last: int = last) -> Any:
            nonlocal asked
            asked += 1
            if asked == last:
                raise MemoryError("the device is full")
            return answer(self, requests)

        study = inputs()
        monkeypatch.setattr(TransformersEngine, "likelihoods", failing)
        code, _, said = heterosis("run", study, "--quiet")
        assert code == 3
        assert "not enough memory (the device is full). Nothing was lost." in said
        monkeypatch.setattr(TransformersEngine, "likelihoods", answer)
        code, out, _ = heterosis("run", study, "--format", "json", "--quiet")
        assert code == 0
        assert candidates(Finished(study)) == candidates(finished)
        assert same_everywhere(json.loads(out)) == same_everywhere(finished.result)


# The other commands.


def test_check_prints_facts_for_people_and_for_programs(
    inputs: Callable[..., Path], heterosis: Command, engines: list[TransformersEngine]
) -> None:
    study = inputs()
    code, out, errors = heterosis("check", study, "--format", "json")
    facts = json.loads(out)
    assert (code, errors) == (0, "")
    code, out, _ = heterosis("check", study)
    assert code == 0
    assert facts["method"] in out
    assert "per candidate: 10 items" in out
    assert engines == []
    assert not (study.parent / "runs").exists()


def test_merge_builds_the_winner_again_from_its_recipe(finished: Finished, heterosis: Command, tmp_path: Path) -> None:
    recipe = finished.folder / "winner" / "recipe.yaml"
    code, out, errors = heterosis("merge", recipe, tmp_path / "again")
    assert (code, errors) == (0, "")
    assert out == f"{tmp_path / 'again'}  weights {finished.result['weights_digest']}\n"
    made = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert made == (finished.folder / "winner" / "model.safetensors").read_bytes()


def test_merge_never_overwrites(finished: Finished, heterosis: Command, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    code, out, errors = heterosis("merge", finished.folder / "winner" / "recipe.yaml", tmp_path / "there")
    assert (code, out) == (2, "")
    assert errors == f"error: {tmp_path / 'there'} exists already. Give a new folder, or remove it.\n"
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("command", ["run none", "check none", "show none c1", "report none", "export none out"])
def test_a_study_that_is_not_there_is_told_before_libraries_are_loaded(command: str, tmp_path: Path) -> None:
    script = (
        "import sys; from heterosis.cli.app import main; from heterosis import cli\n"
        f"sys.argv = ['heterosis', *{command.split()!r}]\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, {'torch', 'optuna', 'lm_eval', 'mlflow'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "2 set()\n"
    assert done.stderr.startswith("error: none: no such ")
