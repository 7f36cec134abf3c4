"""Whole studies through the command, in the ways that a study file can ask for, on the transformers engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from conftest import Command

# transformers and lm-eval warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

SPACE = {
    "method": "dare_linear",
    "depth": "uniform",
    "groups": {"all": ".*"},
    "weight": {"low": 0.0, "high": 1.5, "initial": 0.6},
    "drop": {"low": 0.0, "high": 0.6, "initial": 0.1, "shared": True},
}


def write_study(folder: Path, family: Path, **changes: Any) -> Path:
    """Two tasks and three parents of the bundled family, a dozen items."""
    study: dict[str, Any] = {
        "name": "small",
        "base": str(family / "base"),
        "parents": {name: str(family / name) for name in ("sort", "add", "rare")},
        "space": SPACE,
        "tasks": [str(family / "tasks" / f"{task}.yaml") for task in ("demo_add", "demo_rare")],
        "splits": {"search": 16, "selection": 12, "test": 12},
        "budget": {"candidates": 8},
        "finalists": 2,
        "engine": {"kind": "transformers", "options": {"max_model_len": 64}},
        "racing": {"minimum": 8},
        "tracking": "none",
        "output": str(folder / "runs"),
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study | changes), encoding="utf-8")
    return path


def run(heterosis: Command, folder: Path, family: Path, **changes: Any) -> dict[str, Any]:
    """The result of a study that ends well."""
    code, out, said = heterosis("run", write_study(folder, family, **changes), "--format", "json", "--quiet")
    assert code == 0, said
    found: dict[str, Any] = json.loads(out)
    return found


def trials(folder: Path, name: str = "small") -> list[optuna.trial.FrozenTrial]:
    url = f"sqlite:///{folder / 'runs' / name.partition('/')[0] / 'record.db'}"
    return optuna.load_study(study_name=name, storage=url).trials


def test_a_study_races_claims_and_says_how_lucky_its_masks_are(
    heterosis: Command, tmp_path: Path, demo_family: Path
) -> None:
    found = run(heterosis, tmp_path, demo_family)
    searched = trials(tmp_path)[7:]
    assert len(searched) == 8
    assert {trial.user_attrs["race"]["place"] for trial in searched} <= {"in", "out", "open"}
    for trial in searched:
        assert list(trial.intermediate_values)[-1] == trial.user_attrs["items"]
    assert len(trials(tmp_path, "small/rungs")) == sum(len(trial.intermediate_values) for trial in searched)
    assert found["task_claims"].keys() == {"demo_add", "demo_rare"}
    assert found["smallest_difference"]["objective"] > 0.0
    masked = [spread for spread in found["mask_seeds"].values() if len(spread["values"]) == 3]
    assert masked
    assert found["contamination"] is not None
    for row in (row for row in found["table"] if "search" in row):
        code, out, said = heterosis("show", tmp_path / "runs" / "small", row["label"], "--format", "json")
        assert code == 0, said
        shown = json.loads(out)["splits"]["search"]
        assert shown["items"] == shown["of"] == 32
        assert shown["objective"] == row["search"]["objective"]


def test_stages_go_from_coarse_to_fine_and_a_second_study_starts_warm(
    heterosis: Command, tmp_path: Path, demo_family: Path
) -> None:
    stages = [{"depth": "uniform"}, {"depth": {"knots": 2}}]
    run(heterosis, tmp_path, demo_family, stages=stages, mask_seeds=1, budget={"candidates": 14})
    genes = [set(trial.params) for trial in trials(tmp_path)[7:]]
    coarse, fine = genes[0], genes[-1]
    assert len(coarse) < len(fine)
    assert genes.index(fine) >= 7
    warm = write_study(tmp_path, demo_family, name="warm", warm_start=str(tmp_path / "runs" / "small"))
    code, out, said = heterosis("run", warm, "--format", "json")
    assert code == 0, said
    assert (tmp_path / "runs" / "warm" / "warm_start.json").is_file()
    assert json.loads(out)["study"] == "warm"


def test_a_pareto_study_keeps_its_constraint_in_view_and_certifies_its_front(
    heterosis: Command, tmp_path: Path, demo_family: Path
) -> None:
    found = run(
        heterosis,
        tmp_path,
        demo_family,
        objective="pareto",
        optimizer={"name": "nsga2", "population": 4},
        constraints=[{"task": "demo_add", "against": "rare", "margin": 0.5}],
        mask_seeds=1,
        racing=True,
    )
    assert {len(trial.values) for trial in trials(tmp_path)} == {2}
    tested = {row["label"] for row in found["table"] if "test" in row}
    assert set(found["front"]) <= tested
    assert found["hypervolume"] >= 0.0
    (bound,) = found["constraints"]
    assert bound["task"] == "demo_add"
    assert bound["met"] == (bound["score"] >= bound["limit"])


def test_anchors_are_asked_after_the_warm_up(heterosis: Command, tmp_path: Path, demo_family: Path) -> None:
    found = run(heterosis, tmp_path, demo_family, anchors={"count": 6, "warmup": 9}, mask_seeds=1, racing=True)
    items = [trial.user_attrs["items"] for trial in trials(tmp_path)]
    assert items == [32] * 9 + [12] * 6
    assert {about["count"] for about in found["anchors"].values()} == {6}


def test_a_stopped_study_says_how_to_go_on_and_ends_as_one_never_stopped(
    heterosis: Command, tmp_path: Path, demo_family: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    expected = run(heterosis, whole, demo_family, mask_seeds=1)
    command = [sys.executable, "-m", "heterosis", "run", str(write_study(cut, demo_family, mask_seeds=1))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "search: rare" in line:  # the third baseline is recorded
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 143
    assert "The same command goes on from here" in rest
    assert 3 <= len(trials(cut)) < 7 + 8
    found = run(heterosis, cut, demo_family, mask_seeds=1)
    clock = {"time", "command", "winner_folder"}
    assert {k: v for k, v in found.items() if k not in clock} == {k: v for k, v in expected.items() if k not in clock}
