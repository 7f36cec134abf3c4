"""Merges built again from their lineage alone, compared before and after."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import PARENTS, Command, FamilyFolder
from safetensors.torch import load_file, save_file
from small_study import Finished

from heterosis.checkpoints import Checkpoint
from heterosis.errors import CanaryError, CheckpointError, RecipeError, RecordError, StudyError
from heterosis.ledger.lineage import Lineage, StudyFacts
from heterosis.ledger.record import sqlite_url
from heterosis.recipe import Recipe
from heterosis.reproduce import reproduce

# MLflow's own queries use a loader option that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def weights(folder: Path) -> str:
    model = Checkpoint(folder)
    try:
        return model.digest
    finally:
        model.close()


def test_a_model_folder_proves_itself(finished: Finished, heterosis: Command, tmp_path: Path) -> None:
    winner, digest = finished.folder / "winner", finished.result["weights_digest"]
    for source in (winner, winner / "recipe.yaml"):
        out = tmp_path / f"from-{source.name}"
        code, told, warned = heterosis("reproduce", source, out)
        assert (code, warned) == (0, "")
        assert told == f"{out}  winner: 4 sources match; weights {digest} match\n"
        assert (out / "model.safetensors").read_bytes() == (winner / "model.safetensors").read_bytes()


def test_a_candidate_of_a_study_is_rebuilt_with_its_card(finished: Finished, tmp_path: Path) -> None:
    candidate = finished.record().proposed[0]
    made = reproduce(f"{finished.study}:{candidate.label}", tmp_path / "out")
    assert (made.weights_digest, made.compared) == (candidate.weights_digest, True)
    assert weights(tmp_path / "out") == candidate.weights_digest
    assert f"# tiny-{candidate.label}" in (tmp_path / "out" / "README.md").read_text()


def test_a_bare_recipe_says_that_there_was_nothing_to_compare_with(
    finished: Finished, heterosis: Command, tmp_path: Path
) -> None:
    shutil.copy(finished.folder / "winner" / "recipe.yaml", tmp_path / "bare.yaml")
    code, told, _ = heterosis("reproduce", tmp_path / "bare.yaml", tmp_path / "out")
    assert code == 0
    assert "4 sources match" in told
    assert "(nothing recorded to compare with)" in told


def test_another_model_in_place_of_a_source_is_named_before_anything_is_merged(
    finished: Finished, tiny_family: FamilyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heterosis.builder.Builder.tensors", None)
    with pytest.raises(
        RecipeError, match=r"a at .*/b is \w{12}, not \w{12}: not the weights that were merged"
    ) as caught:
        reproduce(str(finished.folder / "winner"), tmp_path / "out", models={"a": str(tiny_family() / "b")})
    assert "Nothing was written." in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_other_weights_in_the_folder_are_found_out(finished: Finished, heterosis: Command, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "winner", tmp_path / "changed")
    tensors = load_file(tmp_path / "changed" / "model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1.0
    save_file(tensors, tmp_path / "changed" / "model.safetensors", {"format": "pt"})
    code, told, warned = heterosis("reproduce", tmp_path / "changed", tmp_path / "out")
    assert (code, told) == (CanaryError.exit_code, "")
    assert "are not those that were scored" in warned
    assert not (tmp_path / "out").exists()


def test_a_source_that_moved_is_given_by_name(
    finished: Finished, tiny_family: FamilyFolder, heterosis: Command, tmp_path: Path
) -> None:
    from heterosis.publishing.sources import shareable

    text = shareable(Recipe.load(finished.folder / "winner" / "recipe.yaml")).to_yaml()
    (tmp_path / "shared.yaml").write_text(text)  # as it goes to the hub: without the folders of this machine
    code, _, warned = heterosis("reproduce", tmp_path / "shared.yaml", tmp_path / "out")
    assert code == 2
    assert "no such folder" in warned
    moved = [part for name in ("base", *PARENTS) for part in ("--model", f"{name}={tiny_family() / name}")]
    code, told, _ = heterosis("reproduce", tmp_path / "shared.yaml", tmp_path / "out", *moved)
    assert code == 0
    assert finished.result["weights_digest"] in told


@pytest.fixture(scope="module")
def tracked(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A lineage of one candidate, in a folder that has moved since; run ids by name."""
    from mlflow import MlflowClient

    made = tmp_path_factory.mktemp("lineage") / "made"
    made.mkdir()
    search, candidate = finished.record(), finished.record().proposed[0]
    panel = {"splits": {split: {"choice": []} for split in ("search", "selection", "test")}}
    facts = StudyFacts("tiny", {}, {}, candidate.recipe.base, candidate.recipe.parents, panel, "d" * 64)

    class One:
        candidates, later = (candidate,), {}

    records: Any = {"search": One()}
    assert search.candidates
    Lineage(sqlite_url(made / "lineage.db"), facts).sync(records)
    moved = made.rename(made.parent / "moved")
    client = MlflowClient(sqlite_url(moved / "lineage.db"), sqlite_url(moved / "lineage.db"))
    number = client.get_experiment_by_name("tiny").experiment_id
    return moved, {run.info.run_name: run.info.run_id for run in client.search_runs([number])}


def test_a_run_of_the_lineage_is_enough(
    finished: Finished, tracked: tuple[Path, dict[str, str]], heterosis: Command, tmp_path: Path
) -> None:
    folder, runs = tracked
    candidate = finished.record().proposed[0]
    uri = sqlite_url(folder / "lineage.db")
    code, told, _ = heterosis("reproduce", runs[candidate.label], tmp_path / "out", "--tracking", uri)
    assert code == 0
    assert f"4 sources match; weights {candidate.weights_digest} match" in told
    assert weights(tmp_path / "out") == candidate.weights_digest
    for name in ("record.db", "panel.json"):
        shutil.copy(finished.folder / name, folder)
    resolved = (finished.folder / "resolved.yaml").read_text()
    (folder / "resolved.yaml").write_text(resolved.replace("tracking: none", "tracking: null"))
    made = reproduce(runs[candidate.label], tmp_path / "again", tracking=str(folder))
    assert made.weights_digest == candidate.weights_digest


def test_runs_that_are_no_merges_are_told_apart(tracked: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, runs = tracked
    uri = sqlite_url(folder / "lineage.db")
    with pytest.raises(RecordError, match="is not the run of a merge"):
        reproduce(runs["tiny"], tmp_path / "out", tracking=uri)
    with pytest.raises(RecordError, match=r"no run 0{32} at"):
        reproduce("0" * 32, tmp_path / "out", tracking=uri)
    with pytest.raises(RecordError, match="lineage: no file"):
        reproduce("0" * 32, tmp_path / "out", tracking=sqlite_url(tmp_path / "none.db"))
    with pytest.raises(StudyError, match="Give --tracking"):
        reproduce("0" * 32, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_was_changed_in_the_lineage_is_refused(
    finished: Finished, tracked: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder = shutil.copytree(tracked[0], tmp_path / "copy")
    run = tracked[1][finished.record().proposed[0].label]
    recipe = folder / "lineage_artifacts" / run / "artifacts" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: ", "seed: 1"))
    with pytest.raises(RecordError, match="is not the recipe that was scored"):
        reproduce(run, tmp_path / "out", tracking=sqlite_url(folder / "lineage.db"))


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("nowhere", StudyError, "no such file, model folder, run or study"),
        ("base", CheckpointError, "holds no recipe.yaml"),
        ("run", CheckpointError, r"For one of a study's merges give .*:LABEL"),
        ("run:c99", StudyError, "no candidate 'c99'"),
    ],
)
def test_what_is_none_of_these_says_what_to_give(
    finished: Finished, tiny_family: FamilyFolder, tmp_path: Path, source: str, error: type[Exception], said: str
) -> None:
    place = {"base": str(tiny_family() / "base"), "run": str(finished.folder)}
    name, colon, label = source.partition(":")
    with pytest.raises(error, match=said):
        reproduce(place.get(name, name) + colon + label, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="exists already"):
        reproduce(str(finished.folder / "winner"), tmp_path)


def test_sources_of_other_names_are_refused(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--model d: winner has no such source; it has base, a, b, c"):
        reproduce(str(finished.folder / "winner"), tmp_path / "out", models={"d": "x"})
