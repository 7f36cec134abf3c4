"""The main job through the command line, with real vLLM, lm-eval, Optuna and MLflow, on the bundled family."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [
    pytest.mark.usefixtures("needs_vllm"),
    # MLflow, transformers and lm-eval warn of their own deprecations.
    pytest.mark.filterwarnings("ignore"),
]

CANDIDATES = 12


def write_study(folder: Path, family: Path, **changes: Any) -> Path:
    """The demo's study, cut short."""
    study = yaml.safe_load((family.parent / "demo.yaml").read_text())
    study["base"] = str(family.parent / study["base"])
    study["parents"] = {name: str(family.parent / path) for name, path in study["parents"].items()}
    study["tasks"] = [str(family.parent / task) for task in study["tasks"]]
    study |= {"splits": {"search": 40, "selection": 40, "test": 100}, "budget": {"candidates": CANDIDATES}} | changes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def heterosis(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "heterosis", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, demo_family: Path) -> Path:
    """Working directory of a finished study."""
    folder = tmp_path_factory.mktemp("demo")
    done = heterosis(folder, "run", str(write_study(folder, demo_family)))
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs" / "demo" / "result.json").read_text())
    return found


def candidates(folder: Path, split: str = "") -> list[dict[str, Any]]:
    """What Optuna itself reads from the record, without what depends on the clock."""
    import optuna

    study = optuna.load_study(study_name=f"demo{split}", storage=f"sqlite:///{folder / 'runs' / 'demo' / 'record.db'}")
    return [
        {"value": t.value, "params": t.params, **{k: v for k, v in t.user_attrs.items() if k != "seconds"}}
        for t in study.trials
    ]


def test_the_terminal_names_winner_heterosis_and_files(finished: Path) -> None:
    shown = (finished / "stdout").read_text()
    assert result(finished)["verdict"] in " ".join(shown.split())
    assert re.search(r"best-parent: [+-]0\.\d{4} \[", shown)
    assert "runs/demo/winner" in shown
    progress = (finished / "stderr").read_text()
    assert "generation 1, candidate 1: best so far" in progress
    assert "Triton" not in progress


def test_the_record_holds_every_candidate_with_its_outcomes(finished: Path) -> None:
    found = candidates(finished)
    assert len(found) == 7 + CANDIDATES
    assert [c["label"] for c in found[:3]] == ["sort", "add", "rare"]
    for candidate in found:
        outcomes = json.loads(candidate["outcomes"])
        assert {task: len(table["values"]) for task, table in outcomes.items()} == dict.fromkeys(
            ("demo_sort", "demo_add", "demo_rare"), 40
        )


def test_the_splits_share_no_item(finished: Path) -> None:
    splits = json.loads((finished / "runs" / "demo" / "panel.json").read_text())["splits"]
    keys = {split: {key for items in tasks.values() for _, key, _ in items} for split, tasks in splits.items()}
    assert not keys["search"] & keys["selection"]
    assert not keys["test"] & (keys["search"] | keys["selection"])


def test_the_winner_loads_in_transformers_with_the_weights_that_were_scored(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from heterosis.checkpoints import Checkpoint

    folder = finished / "runs" / "demo" / "winner"
    found = result(finished)
    scored = next(c for c in candidates(finished, "/test") if c["label"] == found["winner"])
    assert Checkpoint(folder).digest == scored["weights_digest"] == found["weights_digest"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("add 21+30=", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
    for name in ("config.json", "generation_config.json", "README.md", "recipe.yaml", "mergekit_config.yml"):
        assert (folder / name).is_file()


def test_heterosis_merge_rebuilds_the_winner_from_its_recipe(finished: Path) -> None:
    done = heterosis(finished, "merge", "runs/demo/winner/recipe.yaml", "rebuilt")
    assert done.returncode == 0, done.stderr
    assert result(finished)["weights_digest"] in done.stdout


def test_the_panel_scores_as_lm_eval_does(demo_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own evaluation of the exported winner, on the items of the test split.

    In float32: where bf16 leaves two tokens nearly equal, vLLM's kernels and transformers' may prefer another.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(demo_family / "tasks")  # where lm-eval looks for the data files
    options = yaml.safe_load((demo_family.parent / "demo.yaml").read_text())["engine"]["options"]
    small = {"budget": {"candidates": 1}, "finalists": 1, "mask_seeds": 1, "tracking": "none"}
    engine = {"kind": "vllm", "options": options | {"dtype": "float32"}}
    done = heterosis(tmp_path, "run", str(write_study(tmp_path, demo_family, engine=engine, **small)))
    assert done.returncode == 0, done.stderr
    found = result(tmp_path)
    model = HFLM(pretrained=str(tmp_path / "runs" / "demo" / "winner"), dtype="float32", batch_size=16, device="cpu")
    splits = json.loads((tmp_path / "runs" / "demo" / "panel.json").read_text())["splits"]["test"]
    reported = simple_evaluate(
        model=model,
        tasks=[str(demo_family / "tasks" / f"{task}.yaml") for task in splits],
        samples={task: [doc_id for doc_id, _, _ in items] for task, items in splits.items()},
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=False,
    )
    row = next(row for row in found["table"] if row["label"] == found["winner"])
    for task, about in found["tasks"].items():
        ours = row["test"]["tasks"][task]["estimate"]
        assert ours == pytest.approx(reported["results"][task][f"{about['metric']},none"], abs=1e-9), task


def test_mlflow_shows_study_candidates_inputs_and_winner(finished: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{finished / 'runs' / 'demo' / 'lineage.db'}"
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    searched = [run for run in children if run.data.tags["heterosis.candidate"].isdigit()]
    assert len(searched) == 7 + CANDIDATES
    assert {"search/objective", "search/demo_sort"} <= set(searched[-1].data.metrics)
    champion = client.get_model_version_by_alias("demo", "champion")
    assert result(finished)["weights_digest"] in champion.tags.values()


def test_running_again_changes_nothing_and_starts_no_engine(finished: Path) -> None:
    before, known = result(finished), candidates(finished)
    done = heterosis(finished, "run", str(finished / "study.yaml"))
    assert done.returncode == 0, done.stderr
    assert "starting vllm" not in done.stderr
    assert candidates(finished) == known
    assert result(finished) == before


def test_the_same_study_and_seed_give_the_same_bits(finished: Path, demo_family: Path, tmp_path: Path) -> None:
    done = heterosis(tmp_path, "run", str(write_study(tmp_path, demo_family, tracking="none")), "--quiet")
    assert done.returncode == 0, done.stderr
    for split in ("", "/selection", "/test"):
        assert candidates(tmp_path, split) == candidates(finished, split)
    assert result(tmp_path)["weights_digest"] == result(finished)["weights_digest"]


def test_an_option_that_vllm_does_not_have_is_refused_once(demo_family: Path, tmp_path: Path) -> None:
    engine = {"kind": "vllm", "options": {"max_modl_len": 64}}
    done = heterosis(tmp_path, "run", str(write_study(tmp_path, demo_family, engine=engine, tracking="none")))
    assert done.returncode == 2
    assert "error: engine.options: vLLM has no max_modl_len; did you mean max_model_len?" in done.stderr
    assert "Starting another engine" not in done.stderr


def test_a_changed_study_is_refused_with_the_difference(finished: Path, demo_family: Path) -> None:
    write_study(finished / "changed", demo_family, seed=2, output=str(finished / "runs"))
    done = heterosis(finished, "run", "changed/study.yaml")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "record was made with" in done.stderr
