"""`heterosis check`: what it says of a study, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import FamilyFolder
from small_tasks import choice_docs, write_task

from heterosis import check as check_module
from heterosis.check import check
from heterosis.errors import CheckpointError, StudyError, TaskError


@pytest.fixture
def checked(tiny_family: FamilyFolder, tmp_path: Path) -> Any:
    """Writes a study of the tiny family and checks it."""
    folder = tiny_family()
    write_task(tmp_path, "choice", choice_docs(20))

    def facts(**changes: Any) -> dict[str, Any]:
        content = {
            "name": "tiny",
            "base": str(folder / "base"),
            "parents": {"a": str(folder / "a"), "b": str(folder / "b")},
            "space": {"method": "dare_ties", "depth": "uniform"},
            "tasks": ["choice.yaml"],
            "budget": {"candidates": 30},
            "engine": {"kind": "transformers"},
            "output": str(tmp_path / "runs"),
        }
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content | changes, sort_keys=False))
        return check(tmp_path / "study.yaml")

    return facts


def test_a_check_describes_the_study_and_writes_nothing(checked: Any, tmp_path: Path) -> None:
    facts = checked()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["study"] == "tiny"
    assert set(facts["models"]) == {"base", "a", "b"}
    assert facts["method"] == "dare_ties, merged weights in float32"
    assert facts["space"].startswith("6 genes (a.weight.all … b.drop.all)")
    assert facts["optimizer"] == "cmaes, generations of 9"
    assert facts["tasks"] == {"choice": "acc (none), higher is better, 8 search, 6 selection, 6 test"}
    assert not (tmp_path / "runs").exists()


def test_the_cost_counts_requests_of_candidates_and_baselines(checked: Any) -> None:
    cost = checked()["cost"]
    assert cost["per candidate"].startswith("8 items: 24 likelihoods, 0 generations, at most ")
    per = int(cost["per candidate"].split("at most ")[1].split()[0])
    assert per == 8 * (3 * 4 + 1 + 2 + 3)
    assert cost["search"] == f"30 candidates and 6 baselines, at most {36 * per:.3g} tokens"


def test_a_budget_in_hours_has_no_number_of_candidates(checked: Any) -> None:
    assert "search" not in checked(budget={"hours": 1})["cost"]
    assert checked(budget={"items": 80})["cost"]["search"].startswith("10 candidates")


def test_splits_that_can_show_little_are_warned_of(checked: Any) -> None:
    (warning,) = checked()["warnings"]
    assert warning.startswith("search and selection and test: under 100 items")


def test_a_budget_too_small_for_so_many_genes_is_warned_of(checked: Any) -> None:
    space = {"depth": "per_layer", "groups": {"attention": None, "mlp": None, "norms": None, "body": None}}
    found = checked(space=space, budget={"candidates": 50})["warnings"]
    assert re.match(r"CMA-ES with \d+ genes hardly adapts within 50 candidates", found[0]), found


def test_mixed_dtypes_are_warned_of(checked: Any, tiny_family: FamilyFolder) -> None:
    found = checked(parents={"a": str(tiny_family("bfloat16") / "a")})["warnings"]
    assert any("sources mix dtypes (torch.bfloat16, torch.float32)" in warning for warning in found)


def test_an_engine_that_is_not_installed_is_refused(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StudyError, match=r"vllm is not installed\. pip install .*or set engine\.kind: transformers"):
        checked(engine={"kind": "vllm"})


def test_a_full_disk_is_refused(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(check_module.shutil, "disk_usage", lambda _: Usage(1000))
    with pytest.raises(StudyError, match=r"output: 0\.1 GiB are needed in .*, 0\.0 are free"):
        checked()


def test_errors_are_those_of_a_run(checked: Any, tmp_path: Path, tiny_family: FamilyFolder) -> None:
    with pytest.raises(TaskError, match="no such task file"):
        checked(tasks=["none.yaml"])
    with pytest.raises(CheckpointError, match="no such folder"):
        checked(parents={"a": "./none"})
    shutil.copytree(tiny_family() / "a", tmp_path / "odd")
    (tmp_path / "odd" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"a: model\.safetensors is not a readable safetensors file"):
        checked(parents={"a": "odd"})


@pytest.mark.parametrize("uri", ["http://127.0.0.1:port", "http://[127.0.0.1"])
def test_a_tracking_uri_that_is_none_is_warned_of(checked: Any, uri: str) -> None:
    assert any(each.startswith(f"lineage: {uri} is no address") for each in checked(tracking=uri)["warnings"])


def test_a_tracking_server_that_is_down_is_warned_of(checked: Any) -> None:
    found = checked(tracking="http://me:secret@127.0.0.1:9")["warnings"]
    (warning,) = [each for each in found if each.startswith("lineage: ")]
    assert "no MLflow server answers at http://***@127.0.0.1:9 (Connection refused)" in warning
