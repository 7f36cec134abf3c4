"""A study prepared: what follows from its file, and which families it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PARENTS, FamilyFolder
from small_tasks import choice_docs, write_task

from heterosis.errors import StudyError
from heterosis.study import Prepared, prepare

SPACE = {"method": "dare_ties", "depth": "uniform"}


@pytest.fixture
def study(tiny_family: FamilyFolder, tmp_path: Path) -> Any:
    """Writes a study of the tiny family and prepares it."""
    write_task(tmp_path, "choice", choice_docs(20))

    def prepared(family: str = "float32", **changes: Any) -> Prepared:
        folder = tiny_family(family)
        content = {
            "name": "tiny",
            "base": str(folder / "base"),
            "parents": {name: str(folder / name) for name in PARENTS},
            "space": SPACE,
            "tasks": ["choice.yaml"],
            "engine": {"kind": "transformers", "options": {"device": "cpu"}},
            "output": str(tmp_path / "runs"),
        }
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content | changes, sort_keys=False))
        found = prepare(tmp_path / "study.yaml")
        found.family.close()
        return found

    return prepared


def test_a_study_is_prepared_from_its_file(study: Any, tmp_path: Path) -> None:
    found = study()
    assert found.folder == tmp_path / "runs" / "tiny"
    assert not found.folder.exists()
    assert found.sources.parents.keys() == set(PARENTS)
    assert [gene.name for gene in found.space.genes][:3] == ["a.weight.all", "b.weight.all", "c.weight.all"]
    assert list(found.baselines)[:4] == [*PARENTS, "average"]
    assert {split: found.panel.splits[split].size for split in ("search", "selection", "test")} == {
        "search": 8,
        "selection": 6,
        "test": 6,
    }
    assert found.population == 4 + 6  # 4 + 3 ln 9


@pytest.mark.parametrize(
    ("optimizer", "population"),
    [({"name": "tpe"}, 1), ({"name": "nsga2"}, 10), ({"name": "random", "population": 5}, 5)],
)
def test_the_population_fits_the_optimizer(study: Any, optimizer: dict[str, Any], population: int) -> None:
    assert study(optimizer=optimizer).population == population


def test_the_identity_is_json_and_the_same_every_time(study: Any) -> None:
    one, other = study().identity, study().identity
    assert one == other == json.loads(json.dumps(one))


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"budget": {"candidates": 7}}, set()),
        ({"output": "elsewhere"}, set()),
        ({"tracking": "none"}, set()),
        ({"finalists": 2}, set()),
        ({"seed": 1}, {"seed", "panel"}),
        ({"objective": "worst"}, {"objective"}),
        ({"optimizer": {"name": "tpe"}}, {"optimizer"}),
        ({"splits": {"search": 5}}, {"splits", "panel"}),
        ({"tasks": [{"task": "choice.yaml", "metric": "acc_norm"}]}, {"tasks", "panel"}),
        ({"space": {**SPACE, "drop": 0.1}}, {"space"}),
        ({"dtype": "bfloat16"}, {"dtype"}),
    ],
)
def test_the_identity_changes_with_what_a_study_may_not_change(
    study: Any, change: dict[str, Any], keys: set[str]
) -> None:
    engine = {"kind": "transformers", "options": {"dtype": "float32"}}
    before, after = study(engine=engine).identity, study(engine=engine, **change).identity
    assert {key for key in before if before[key] != after[key]} == keys


def test_the_identity_changes_with_the_weights_of_a_parent(study: Any, tiny_family: FamilyFolder) -> None:
    folder = tiny_family()
    swapped = study(parents={"a": str(folder / "b"), "b": str(folder / "a"), "c": str(folder / "c")})
    plain = study()
    assert {key for key in plain.identity if plain.identity[key] != swapped.identity[key]} == {"parents"}


def test_the_identity_changes_with_an_item(study: Any, tmp_path: Path) -> None:
    before = study().identity
    write_task(tmp_path, "choice", [*choice_docs(19), *choice_docs(1, seed=9)])
    after = study().identity
    assert {key for key in before if before[key] != after[key]} == {"panel"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_merged_in_the_dtype_of_the_base(study: Any, dtype: str) -> None:
    assert study(dtype).blank.dtype == dtype


def test_another_dtype_is_the_users_choice(study: Any) -> None:
    assert study("bfloat16", dtype="float16").blank.dtype == "float16"


def test_the_engine_computes_in_what_its_options_say(study: Any) -> None:
    engine = {"kind": "transformers", "options": {"dtype": "float32"}}
    assert study("bfloat16", engine=engine).engine_dtype == "float32"
    assert study("float32").engine_dtype == "float32"


def test_the_base_as_a_parent_is_refused(study: Any, tiny_family: FamilyFolder) -> None:
    folder = tiny_family()
    with pytest.raises(StudyError, match=r"^parents\.b: its weights are the base's own"):
        study(parents={"a": str(folder / "a"), "b": str(folder / "base")})


def test_two_parents_with_the_same_weights_are_refused_wherever_they_lie(
    study: Any, tiny_family: FamilyFolder, tmp_path: Path
) -> None:
    folder = tiny_family()
    shutil.copytree(folder / "a", tmp_path / "copy")
    with pytest.raises(StudyError, match=r"^parents\.\w+: \w+ has the same weights"):
        study(parents={"a": str(folder / "a"), "twin": str(tmp_path / "copy")})


def test_models_are_found_beside_the_study_file(
    study: Any, tiny_family: FamilyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "a"):
        shutil.copytree(tiny_family() / name, tmp_path / "models" / name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = study(base="models/base", parents={"a": "models/a"})
    assert found.sources.base == (tmp_path / "models" / "base").resolve()


def test_tasks_weigh_in_the_objective_as_the_study_says(study: Any, tmp_path: Path) -> None:
    write_task(tmp_path, "more", choice_docs(20, seed=1))
    found = study(tasks=["choice.yaml", {"task": "more.yaml", "weight": 3.0}])
    assert found.objective.number({"choice": 0.0, "more": 1.0}) == pytest.approx(0.75)
