"""The study file: what it accepts, and what it says about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from heterosis.config import Knots, RacingConfig, Study, load_study, space_folders
from heterosis.errors import StudyError

MINIMAL = {
    "name": "small",
    "base": "models/base",
    "parents": {"a": "models/a", "b": {"model": "owner/b", "revision": "main"}},
    "tasks": ["mine.yaml"],
}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | changes))
    return path


def test_a_minimal_study_gets_the_default_space(tmp_path: Path) -> None:
    study = load_study(written(tmp_path))
    assert study.method == "dare_ties"
    assert study.resolved_space.depth == Knots(knots=4)
    assert study.parents["b"].revision == "main"


def test_the_resolved_study_reads_back_as_itself(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, budget={"hours": 2}, seed=4))
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    assert load_study(path) == study


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectve": "mean"}, "objectve: unknown key; did you mean objective?"),
        ({"budget": {"candidate": 3}}, "budget.candidate: unknown key; did you mean candidates?"),
        ({"parents": {"a": {"modle": "x"}}}, "parents.a.modle: unknown key; did you mean model?"),
        ({"tasks": [{"task": "t", "metrik": "acc"}]}, "tasks.0.metrik: unknown key; did you mean metric?"),
        ({"space": {"weight": {"lo": 0, "high": 1}}}, "space.weight.lo: unknown key; did you mean low?"),
        ({"space": {"weight": {"low": 2, "high": 1}}}, "space.weight: low 2 must be below high 1"),
        ({"space": {"drop": 1.0}}, "space: drop must lie in"),
        ({"space": "dare_ties_knot"}, "did you mean dare_ties_knots?"),
        ({"engine": {"kind": "vlm"}}, "engine.kind: Input should be 'vllm' or 'transformers'"),
        ({"engine": {"options": {"trust_remote_code": True}}}, "trust_remote_code would run code"),
        ({"engine": {"options": {"model": "x"}}}, "model is set by the study itself"),
        ({"budget": {}}, "give at least one of candidates, hours, items"),
        ({"name": "a/b"}, "name: String should match"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"parents": {}}, "parents: Dictionary should have at least 1 item"),
        ({"parents": {"base": "x"}}, "'base' cannot name a parent"),
        ({"splits": {"search": float("nan")}}, "splits.search"),
        ({"splits": {"search": 0.9, "selection": 0.5}}, "splits: its fractions sum to 1.7"),
        ({"racing": {"rungs": [0.5, 0.25, 1]}}, "racing.rungs: rungs must grow and end in 1"),
        ({"racing": {"rung": [1]}}, "racing.rung: unknown key; did you mean rungs?"),
        ({"racing": {}, "anchors": {}}, "anchors and racing both choose the items"),
        ({"objective": "pareto"}, "a pareto objective needs optimizer.name nsga2"),
        ({"optimizer": {"name": "nsga3"}}, "nsga3 is for objective: pareto"),
        ({"stages": [{"depth": "uniform"}], "optimizer": {"name": "tpe"}}, "stages start from the optimizer's mean"),
        ({"constraints": [{"task": "t"}]}, "give against (best_parent or a parent's name) or at_least"),
        ({"constraints": [{"task": "t", "against": "z"}]}, "constraints: z is no parent"),
        ({"method": "ties", "space": "dare_ties_uniform"}, "method is ties, its space is for dare_ties"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_place(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(written(tmp_path, **change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n- b", "{", "a: !!python/object/apply:os.system [ls]", "\x00", "a: &a [*a]"])
def test_what_is_not_a_mapping_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(StudyError) as caught:
        load_study(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_key_say_so(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no such file"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "study.yaml").write_text("name: x\n")
    with pytest.raises(StudyError, match="base: missing"):
        load_study(tmp_path / "study.yaml")


def test_method_chooses_the_method_of_a_space_that_names_none(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, method="task_arithmetic", space={"weight": {"low": 0, "high": 1}}))
    assert study.resolved_space.method == "task_arithmetic"


def test_a_study_is_frozen(tmp_path: Path) -> None:
    study = load_study(written(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        study.seed = 3  # type: ignore[misc]


def test_every_field_is_described_in_the_schema() -> None:
    schema = Study.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    fields = {f"{part['title']}.{name}": field for part in parts for name, field in part.get("properties", {}).items()}
    assert [name for name, field in fields.items() if "description" not in field] == []


def test_every_shipped_space_loads(tmp_path: Path) -> None:
    shipped = sorted(path.stem for path in space_folders()[0].glob("*.yaml"))
    assert len(shipped) >= 6
    for name in shipped:
        assert load_study(written(tmp_path, space=name)).space is not None


def test_racing_is_on_unless_turned_off_or_replaced(tmp_path: Path) -> None:
    pareto = {"objective": "pareto", "optimizer": {"name": "nsga2"}}
    assert load_study(written(tmp_path)).race == RacingConfig()
    assert load_study(written(tmp_path, racing={"error": 0.1})).race == RacingConfig(error=0.1)
    for off in ({"racing": False}, {"anchors": {"count": 20}}, pareto):
        assert load_study(written(tmp_path, **off)).race is None
