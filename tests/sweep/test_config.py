"""What a sweep file may say, and what is said of one that may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heterosis.errors import HeterosisError, StudyError
from heterosis.sweep import plan
from heterosis.sweep.config import load_sweep
from sweep.sweeps import CURVES, write_sweep

FamilyFolder = Callable[..., Path]


def curve(**content: Any) -> dict[str, Any]:
    return {"curves": {"one": {"method": "dare_linear", **content}}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sweep": None}, "sweep: missing"),
        ({"budget": {"candidates": 5}}, "budget: a sweep does not read it"),
        ({"mask_seeds": 3}, "mask_seeds: in a sweep it stands under sweep"),
        ({"taks": []}, "taks: unknown key; did you mean tasks?"),
        ({"sweep": {"curve": {}}}, "sweep.curve: unknown key; did you mean curves?"),
        ({"sweep": {}}, "nothing varies"),
        ({"sweep": curve(drops=[0.1])}, "sweep.curves.one.drops: unknown key; did you mean drop?"),
        ({"sweep": {"curves": {"one": {"method": "dare_liner"}}}}, "did you mean dare_linear?"),
        ({"sweep": {"curves": {"one": {"method": ["ties", "passthrough"]}}}}, "no method 'passthrough'"),
        ({"sweep": curve(drop=[])}, "drop is an empty list"),
        ({"sweep": curve(drop=[0.1, 0.2, 0.1])}, "drop lists 0.1 twice"),
        ({"sweep": curve(drop=["much"])}, "sweep.curves.one.drop"),
        ({"sweep": {"fixed": {"drop": [0.1]}, **curve(weight=[1])}}, "fixed.drop is a list"),
        ({"sweep": {"curves": {"\x1b[31m": {"method": "ties", "density": [1]}}}}, "cannot name a curve"),
        ({"sweep": {**curve(drop=[0.1]), "similarity": {"sample": 3}}}, "did you mean samples?"),
        ({"sweep": {**curve(drop=[0.1]), "parents": "all"}}, "sweep.parents"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    tmp_path: Path, tiny_family: FamilyFolder, changes: dict[str, Any], said: str
) -> None:
    path = write_sweep(tmp_path, tiny_family(), **changes)
    if changes == {"sweep": None}:
        path.write_text(path.read_text().partition("sweep:")[0])
    with pytest.raises(StudyError) as caught:
        load_sweep(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (curve(drop=[0.5, 1.0]), "sweep.one drop=1: drop: must be below 1"),
        (curve(density=[0.5]), "sweep.curves.one: dare_linear does not read density"),
        (curve(drop=0.5), "sweep.curves.one: nothing varies"),
        ({"curves": {"one": {"drop": [0.1]}}}, "sweep.curves.one: method: missing"),
        (curve(settings={"normalise": [True]}), "has no setting normalise; known: normalize, scale"),
        (curve(weight={"a": [1.0], "b": 1.0}), "sweep.curves.one.weight: c has no value"),
        (curve(weight={"a": [1.0], "z": 1.0}), "z is no parent; known: a, b, c"),
        ({**curve(drop=[0.1]), "parents": {"z": "choice"}}, "sweep.parents: z is no parent"),
        ({**curve(drop=[0.1]), "parents": {"a": "choise"}}, "choise is none of the tasks; did you mean choice"),
        ({**curve(drop=[0.1]), "similarity": {"texts": "none.txt"}}, "no file none.txt"),
        ({"grid": {"method": "ties", "weight": list(range(200)), "density": [i / 60 for i in range(60)]}}, "36,000"),
        (
            {"fixed": {"method": "model_stock"}, "one_at_a_time": {"drop": [0.1]}},
            "model_stock takes at least 2 parents",
        ),
        ({"curves": {"one": {"method": "linear", "weight": [0.0]}}}, "sum to 0"),
        ({"curves": {"one": {"method": "fisher", "weight": [1.0, 2.0]}}}, "fisher measures its parents"),
    ],
)
def test_a_point_that_is_no_merge_is_found_before_anything_is_written(
    tmp_path: Path, tiny_family: FamilyFolder, section: dict[str, Any], said: str
) -> None:
    path = write_sweep(tmp_path, tiny_family(), section)
    with pytest.raises(HeterosisError) as caught:
        plan(path)
    assert said in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_plan_says_what_will_be_scored_and_writes_nothing(tmp_path: Path, tiny_family: FamilyFolder) -> None:
    section = {"parents": {"a": "choice", "b": "choice.yaml"}, "curves": CURVES, "mask_seeds": 2, "similarity": {}}
    path = write_sweep(tmp_path, tiny_family(), section)
    found = plan(path)
    assert found["points"] == 2 * 9
    # Of each parent: itself, at two rates two masks of DARE and of DropOnly, and two densities; and the base.
    assert found["to score"] == 2 * (1 + 2 * 2 * 2 + 2) + 1
    assert found["answers"] == found["to score"] * found["items"]["choice"]
    assert found["hidden states"]["merges"] == found["to score"] - 1
    assert not (tmp_path / "runs").exists()


def test_the_example_draws_the_papers_three_curves() -> None:
    found = load_sweep(Path(__file__).resolve().parents[2] / "examples" / "sweep.yaml")
    assert set(found.sweep.curves) == set(CURVES)
    assert found.sweep.parents == {"sort": "demo_sort", "add": "demo_add", "rare": "demo_rare"}
