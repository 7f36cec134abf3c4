"""A whole sweep: what it finds, what it does not score twice, and that stopping it changes nothing."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heterosis.errors import HeterosisError, InterruptError
from heterosis.evaluation.transformers_engine import TransformersEngine
from heterosis.ledger import Record
from heterosis.ledger.record import open_storage, sqlite_url
from heterosis.recipe import Recipe
from heterosis.sweep.page import page
from heterosis.sweep.panels import layer_panels, score_panels, similarity_panels
from heterosis.sweep.points import canonical
from heterosis.watch import Watcher
from sweep.sweeps import CURVES, RATES, run, write_sweep, written

# MLflow's own queries use a loader option that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

FamilyFolder = Callable[..., Path]
Command = Callable[..., tuple[int, str, str]]

SECTION = {"parents": {"a": "choice", "b": "choice"}, "curves": CURVES, "mask_seeds": 2, "similarity": {"samples": 8}}


class Stopping(Watcher):
    """Asks to stop when a part of the work begins for the n-th time."""

    def __init__(self, word: str, after: int) -> None:
        super().__init__(quiet=True)
        self._word, self._left = word, after

    def stage(self, text: str) -> None:
        self._left -= text.startswith(self._word)
        if self._left < 0:
            raise InterruptError("stopped", 130)


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of the recipes that an engine became, in their order."""
    seen: list[str] = []
    apply = TransformersEngine.apply

    def noted(self: TransformersEngine, recipe: Recipe) -> Any:
        seen.append(recipe.digest)
        return apply(self, recipe)

    monkeypatch.setattr(TransformersEngine, "apply", noted)
    return seen


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_family: FamilyFolder) -> Path:
    """A finished sweep; its bytes are to stay as they are."""
    path = write_sweep(tmp_path_factory.mktemp("sweep"), tiny_family(), SECTION)
    run(path, drawn=True)
    return path


@pytest.fixture
def report(ran: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ran.parent / "runs" / "small" / "sweep.json").read_text())
    return found


def copy_of(ran: Path, tmp_path: Path) -> Path:
    """The same sweep in a folder of its own."""
    shutil.copytree(ran.parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "sweep.yaml"
    path.write_text(path.read_text().replace(str(ran.parent / "runs"), str(tmp_path / "runs")))
    return path


def test_a_merge_that_drops_nothing_is_the_original(report: dict[str, Any]) -> None:
    starts = [point for point in report["points"] if point["at"] in ({"drop": 0.0}, {"density": 1.0})]
    assert len(starts) == 6
    for point in starts:
        assert point["tasks"]["choice"]["difference"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
        assert point["tasks"]["choice"]["against"] == point["subject"]
        for layer in point["similarity"][point["subject"]]:
            assert layer["cosine"] == pytest.approx(1.0, abs=1e-6)


def test_scores_are_means_over_mask_seeds_of_what_the_record_holds(ran: Path, report: dict[str, Any]) -> None:
    record = Record(open_storage(sqlite_url(ran.parent / "runs" / "small" / "record.db")), "small/sweep")
    for point in report["points"]:
        known = [record.find(digest) for digest in point["recipes"]]
        outcomes = [candidate.outcomes["choice"].values for candidate in known if candidate is not None]
        row = point["tasks"]["choice"]
        assert len(outcomes) == point["masks"] == len(row["by_mask"])
        assert row["by_mask"] == pytest.approx([values.mean() for values in outcomes])
        assert row["score"] == pytest.approx(np.mean(outcomes))
        assert row["low"] <= row["score"] <= row["high"]
        apart = row["difference"]
        parent = next(r for r in report["references"] if r["subject"] == point["subject"] == r["label"])
        assert apart["estimate"] == pytest.approx(row["score"] - parent["score"])
        assert apart["low"] <= apart["estimate"] <= apart["high"]


def test_hidden_states_leave_the_original_as_more_is_dropped(report: dict[str, Any]) -> None:
    for subject in ("a", "b"):
        for name in ("DropOnly", "magnitude"):
            along = [p for p in report["points"] if p["curve"] == name and p["subject"] == subject]
            cosines = [point["similarity"][subject][-1]["cosine"] for point in along]
            assert cosines == sorted(cosines, reverse=True)
            assert cosines[-1] < cosines[0]
            assert len(along[0]["similarity"][subject]) == 1 + 3  # the embeddings, and three layers


def test_nothing_is_scored_twice(ran: Path, tmp_path: Path, applied: list[str]) -> None:
    path = copy_of(ran, tmp_path)
    before = written(path)
    run(path, drawn=True)
    assert applied == []
    after = {name: text.replace(str(tmp_path).encode(), b"") for name, text in written(path).items()}
    assert after == {name: text.replace(str(ran.parent).encode(), b"") for name, text in before.items()}


def test_a_point_that_is_added_is_all_that_is_scored(ran: Path, tmp_path: Path, applied: list[str]) -> None:
    path = copy_of(ran, tmp_path)
    more = {**CURVES, "DARE": {"method": "dare_linear", "drop": [*RATES, 0.99]}}
    write_sweep(tmp_path, Path(), {**SECTION, "curves": more}, **_models(path))
    found = run(path)
    assert len(applied) == len(set(applied)) == 2 * 2  # parents, masks
    assert {p["curve"] for p in found["points"] if set(p["recipes"]) & set(applied)} == {"DARE"}


def _models(path: Path) -> dict[str, Any]:
    import yaml

    content = yaml.safe_load(path.read_text())
    return {key: content[key] for key in ("base", "parents", "output")}


@pytest.mark.parametrize(("word", "after"), [("scoring", 7), ("hidden", 3)])
def test_a_sweep_that_was_stopped_ends_as_if_it_had_not_been(
    ran: Path, tmp_path: Path, tiny_family: FamilyFolder, applied: list[str], word: str, after: int
) -> None:
    path = write_sweep(tmp_path, tiny_family(), SECTION)
    with pytest.raises(InterruptError):
        run(path, Stopping(word, after))
    assert not (tmp_path / "runs" / "small" / "sweep.json").exists()
    run(path)
    assert len(applied) == len(set(applied))
    mine, theirs = written(path)["sweep.json"], written(ran)["sweep.json"]
    assert mine.replace(str(tmp_path).encode(), b"") == theirs.replace(str(ran.parent).encode(), b"")


def test_mlflow_has_a_run_for_each_merge_with_its_place_on_the_curves(
    tmp_path: Path, tiny_family: FamilyFolder
) -> None:
    from mlflow import MlflowClient

    curves = {
        "DARE": {"method": "dare_linear", "drop": [0.0, 0.5]},
        "DropOnly": {"method": "dare_linear", "drop": [0.0, 0.5], "rescale": "none"},
    }
    section = {"parents": {"a": "choice"}, "curves": curves, "mask_seeds": 2}
    path = write_sweep(tmp_path, tiny_family(), section, tracking=None)
    folder = tmp_path / "runs" / "small"
    for _ in range(2):  # the second finds all of it there
        run(path, drawn=True)
        client = MlflowClient(sqlite_url(folder / "lineage.db"))
        experiment = client.get_experiment_by_name("small")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        (whole,) = [each for each in runs if "mlflow.parentRunId" not in each.data.tags]
        assert whole.info.status == "FINISHED"
        assert "answer to their parameters: DARE, DropOnly" in whole.data.tags["mlflow.note.content"]
        assert {file.path for file in client.list_artifacts(whole.info.run_id)} >= {
            "sweep.html",
            "sweep.csv",
            "figures",
        }
        merges = {each.info.run_name: each for each in runs if each is not whole}
        assert set(merges) == {candidate.label for candidate in _record(folder).candidates}
        masked = [each for each in merges.values() if each.data.params.get("drop") == "0.5"]
        assert sorted((each.data.params["curve"], each.data.params["mask"]) for each in masked) == [
            *(("DARE", "0"), ("DARE", "1"), ("DropOnly", "0"), ("DropOnly", "1"))
        ]
        assert merges["a"].data.params | {"method": ""} == {
            "method": "",
            "reference": "a",
            "curve": "DARE, DropOnly",
            "parents": "a",
            "mask": "0",
            "drop": "0.0",
        }
        for candidate in _record(folder).candidates:
            found = merges[candidate.label].data
            assert found.metrics["search/choice"] == candidate.scores["choice"]
            assert found.tags["heterosis.origin"] == "sweep"


def _record(folder: Path) -> Record:
    return Record(open_storage(sqlite_url(folder / "record.db")), "small/sweep")


def test_a_sweep_goes_on_without_mlflow(tmp_path: Path, tiny_family: FamilyFolder) -> None:
    section = {"parents": {"a": "choice"}, "curves": {"λ": {"method": "task_arithmetic", "weight": [0.5, 1.0]}}}
    (tmp_path / "file").touch()
    path = write_sweep(tmp_path, tiny_family(), section, tracking=f"sqlite:///{tmp_path}/file/lineage.db")
    told: list[str] = []
    watcher = Watcher(quiet=True)
    watcher.warn = told.append  # type: ignore[method-assign]
    assert len(run(path, watcher)["points"]) == 2
    assert {each.partition(":")[0] for each in told} == {"lineage"}
    assert told[-1].endswith("The same command catches up, without scoring anything again.")


def test_a_record_of_other_items_is_refused(ran: Path, tmp_path: Path) -> None:
    path = copy_of(ran, tmp_path)
    path.write_text(path.read_text().replace("seed: 3", "seed: 4"))
    with pytest.raises(HeterosisError, match=r"the record was made with"):
        run(path)


def test_a_studys_folder_is_left_alone(tmp_path: Path, tiny_family: FamilyFolder) -> None:
    path = write_sweep(tmp_path, tiny_family(), SECTION)
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "resolved.yaml").write_text("name: small\n")
    with pytest.raises(HeterosisError, match="holds a study"):
        run(path)
    assert [file.name for file in folder.iterdir()] == ["resolved.yaml"]


def test_merges_that_fail_leave_a_gap_and_are_tried_again(tmp_path: Path, tiny_family: FamilyFolder) -> None:
    huge = {"method": "task_arithmetic", "weight": [1.0, 1e60]}
    path = write_sweep(tmp_path, tiny_family(), {"parents": {"a": "choice"}, "curves": {"λ": huge}})
    found = run(path, drawn=True)
    good, bad = found["points"]
    assert good["tasks"]["choice"]["difference"]["estimate"] == 0.0
    assert bad["tasks"] == {}
    assert "error" in bad
    assert "Failed points" in (tmp_path / "runs" / "small" / "sweep.html").read_text()


def test_together_every_parent_is_an_original(tmp_path: Path, tiny_family: FamilyFolder) -> None:
    section = {
        "parents": "together",
        "fixed": {"method": "dare_ties", "weight": 0.6},
        "grid": {"drop": [0.0, 0.5], "density": [0.2, 0.6, 1.0]},
        "mask_seeds": 1,
        "similarity": {"samples": 4},
    }
    found = run(write_sweep(tmp_path, tiny_family(), section, tasks=["choice.yaml", "other.yaml"]))
    assert {r["label"] for r in found["references"]} == {"base", "a", "b", "c"}
    for point in found["points"]:
        assert set(point["tasks"]) == {"choice", "other"}
        assert set(point["similarity"]) == {"a", "b", "c"}
        best = point["tasks"]["choice"]["against"]
        scores = {
            r["label"]: r["score"] for r in found["references"] if r["task"] == "choice" and r["role"] == "parent"
        }
        assert scores[best] == max(scores.values())
    (panel, _) = score_panels(found)["density"]
    assert [line.label for line in panel.lines] == ["grid, drop=0", "grid, drop=0.5"]
    assert panel.places == (0.2, 0.6, 1.0)


def test_density_is_drawn_as_the_drop_rate_beside_curves_over_that(report: dict[str, Any]) -> None:
    panels = score_panels(report)
    assert list(panels) == ["drop"]
    for panel in (*panels["drop"], *similarity_panels(report)["drop"]):
        assert {line.label: list(line.marks) for line in panel.lines} == dict.fromkeys(CURVES, RATES)
    for panel in layer_panels(report):
        assert [line.label for line in panel.lines] == [f"{name} at drop rate 0.9" for name in CURVES]
        assert panel.places == (0, 1, 2, 3)


def test_bands_are_over_items_and_bars_over_masks(report: dict[str, Any]) -> None:
    for panel in score_panels(report)["drop"]:
        for line in panel.lines:
            for place, mark in line.marks.items():
                random = line.label != "magnitude" and place > 0.0
                assert (mark.mask_low == mark.mask_low) == random
                assert not random or mark.mask_low <= mark.value <= mark.mask_high


def test_the_table_for_programs_is_tidy(ran: Path, report: dict[str, Any]) -> None:
    text = (ran.parent / "runs" / "small" / "sweep.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    scores = [row for row in rows if row["role"] == "point" and row["measure"] == "score"]
    assert len(scores) == len(report["points"])
    for row, point in zip(scores, report["points"], strict=True):
        assert float(row["value"]) == point["tasks"]["choice"]["score"]
        assert row["curve"] == point["curve"]
        (axis,) = point["at"]
        assert float(row[axis]) == point["at"][axis]
        assert float(row["difference_low"]) == point["tasks"]["choice"]["difference"]["low"]
    cosines = [row for row in rows if row["measure"] == "cosine"]
    assert len(cosines) == len(report["points"]) * 4
    assert sum(row["role"] in ("base", "parent") for row in rows) == 4


def test_the_page_needs_nothing_and_runs_nothing(ran: Path) -> None:
    text = (ran.parent / "runs" / "small" / "sweep.html").read_text()
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert text.count("<svg") == 3 * 2
    assert not [part for part in text.split('href="')[1:] if not part.startswith("#")]


def test_names_cannot_break_the_page(report: dict[str, Any]) -> None:
    hostile = "<script>alert('x')</script>&\x1b{{ 7 * 7 }}"
    text = json.dumps(report).replace('"DARE"', json.dumps(hostile)).replace('"choice"', json.dumps(hostile))
    drawn = page(json.loads(text))
    assert "<script" not in drawn
    assert "&lt;script" in drawn
    assert "\x1b" not in drawn
    assert "{{ 7 * 7 }}" in drawn


def test_the_command_prints_the_report_or_its_tables(
    ran: Path, tmp_path: Path, heterosis: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_of(ran, tmp_path)
    monkeypatch.setattr("heterosis.sweep.run.write_views", lambda report, folder: None)
    code, out, _ = heterosis("sweep", path, "--quiet", "--format", "json")
    assert code == 0
    assert json.loads(out)["sweep"] == "small"
    code, out, _ = heterosis("sweep", path, "--quiet")
    assert code == 0
    assert "a, choice: acc, higher is better" in out
    assert all(name in out for name in CURVES)
    code, out, _ = heterosis("sweep", path, "--plan")
    assert code == 0
    assert "to score  0" in out


def test_a_recipe_is_canonical_already(tmp_path: Path, ran: Path, report: dict[str, Any]) -> None:
    record = Record(open_storage(sqlite_url(ran.parent / "runs" / "small" / "record.db")), "small/sweep")
    for candidate in record.candidates:
        assert canonical(candidate.recipe, 3) == candidate.recipe
