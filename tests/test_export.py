"""Exports: complete Hugging Face folders, proven to hold the merge."""

from __future__ import annotations

import errno
import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import PARENTS, Command, FamilyFolder, MakeRecipe, OpenFamily
from safetensors.torch import load_file
from small_study import Finished

from heterosis.builder import Builder
from heterosis.checkpoints import Checkpoint, open_family
from heterosis.errors import CanaryError, CheckpointError, StudyError
from heterosis.export import export, export_candidate
from heterosis.merge import Kernel
from heterosis.recipe import Recipe

NUMBERS = {name: {"weight": 0.6, "density": 0.5, "drop": 0.3} for name in PARENTS}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_loads_with_the_logits_of_the_merge(
    open_tiny: OpenFamily, recipe_for: MakeRecipe, tmp_path: Path, dtype: str, tied: bool
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    family = open_tiny(tied=tied)
    builder = Builder(family)
    recipe = recipe_for(family, "dare_ties", NUMBERS, dtype=dtype)
    export(builder, recipe, tmp_path / "out")
    loaded, notes = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(notes.values())
    assert loaded.dtype == getattr(torch, dtype)
    by_hand = AutoModelForCausalLM.from_pretrained(family.base.folder, dtype=loaded.dtype)
    with torch.no_grad():
        for name, tensor in builder.tensors(recipe):
            by_hand.get_parameter(name).copy_(tensor)
    row = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.inference_mode():
        assert torch.equal(loaded(row).logits, by_hand(row).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("w3 w4") == [3, 4]


def test_a_folder_holds_all_that_a_model_needs(open_tiny: OpenFamily, recipe_for: MakeRecipe, tmp_path: Path) -> None:
    family = open_tiny()
    recipe = recipe_for(family, "dare_ties", NUMBERS, dtype="bfloat16")
    export(Builder(family), recipe, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    of_base = {path.name for path in family.base.folder.iterdir()}
    assert names == of_base | {"README.md", "recipe.yaml", "mergekit_config.yml"}
    assert Recipe.load(tmp_path / "out" / "recipe.yaml") == recipe
    assert yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())["merge_method"] == "dare_ties"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "torch_dtype" not in config
    assert {**config, "dtype": ""} == {**family.base.config, "dtype": ""}


def test_the_digest_is_that_of_what_lies_on_disk(open_tiny: OpenFamily, recipe_for: MakeRecipe, tmp_path: Path) -> None:
    family = open_tiny()
    recipe = recipe_for(family, "dare_ties", NUMBERS)
    digest = export(Builder(family), recipe, tmp_path / "out")
    written = Checkpoint(tmp_path / "out")
    assert written.digest == digest
    written.close()
    assert export(Builder(family), recipe, tmp_path / "again", expected_digest=digest) == digest


def test_a_parents_recipe_exports_that_parent(open_tiny: OpenFamily, recipe_for: MakeRecipe, tmp_path: Path) -> None:
    family = open_tiny("bfloat16")
    alone = {name: {"weight": float(name == "c")} for name in PARENTS}
    recipe = recipe_for(family, "task_arithmetic", alone, dtype="bfloat16")
    assert export(Builder(family), recipe, tmp_path / "out") == family.parents["c"].digest


def test_weights_that_are_not_those_that_were_scored_leave_nothing_behind(
    open_tiny: OpenFamily, recipe_for: MakeRecipe, tmp_path: Path
) -> None:
    family = open_tiny()
    recipe = recipe_for(family, "dare_ties", NUMBERS)
    with pytest.raises(CanaryError, match="are not those that were scored") as caught:
        export(Builder(family), recipe, tmp_path / "out", expected_digest="0" * 64)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_whole_or_kept_whole(
    open_tiny: OpenFamily, recipe_for: MakeRecipe, tmp_path: Path
) -> None:
    family = open_tiny()
    builder, folder = Builder(family), tmp_path / "out"
    first = export(builder, recipe_for(family, "dare_ties", NUMBERS), folder, shard_bytes=10_000)
    (folder / "stray").write_text("")
    other = recipe_for(family, "task_arithmetic", NUMBERS)
    with pytest.raises(CanaryError):
        export(builder, other, folder, expected_digest=first)
    kept = Checkpoint(folder)
    assert kept.digest == first
    kept.close()
    second = export(builder, other, folder)
    assert second != first
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (folder / "stray").exists()
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]


def test_shards_have_an_index_and_the_same_weights(
    open_tiny: OpenFamily, recipe_for: MakeRecipe, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    family = open_tiny()
    recipe = recipe_for(family, "dare_ties", NUMBERS)
    whole = export(Builder(family), recipe, tmp_path / "whole")
    assert export(Builder(family), recipe, tmp_path / "shards", shard_bytes=20_000) == whole
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(family.names)
    files = {path.name for path in (tmp_path / "shards").glob("*.safetensors")}
    assert files == set(index["weight_map"].values())
    assert len(files) > 1
    expected, loaded = weights_of(tmp_path / "whole"), AutoModelForCausalLM.from_pretrained(tmp_path / "shards")
    assert all(torch.equal(loaded.get_parameter(name), tensor) for name, tensor in expected.items())


def test_a_full_disk_is_one_line_that_names_the_folder_and_leaves_nothing(
    open_tiny: OpenFamily, recipe_for: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = open_tiny()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"out: cannot be written \(No space left on device\)\. Make room"):
        export(Builder(family), recipe_for(family, "dare_ties", NUMBERS), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_while_one_result_is_written_only_the_next_is_held(
    open_tiny: OpenFamily, recipe_for: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, held, most = open_tiny(), [], 0
    merge = Kernel.merge

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal held, most
        tensor = merge(*arguments)
        held = [each for each in held if each() is not None] + [weakref.ref(tensor)]
        most = max(most, len(held))
        return tensor

    monkeypatch.setattr(Kernel, "merge", counted)
    export(Builder(family, compiled=False), recipe_for(family, "dare_ties", NUMBERS), tmp_path / "out")
    assert most <= 2


# A study's merges.


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_winner_is_exported_again_as_the_run_wrote_it(finished: Finished, tmp_path: Path) -> None:
    exported = export_candidate(finished.folder, "best", tmp_path / "out")
    assert (exported.label, exported.role) == (finished.result["winner"], "winner")
    assert exported.weights_digest == finished.result["weights_digest"]
    assert bytes_of(tmp_path / "out") == bytes_of(finished.folder / "winner")
    assert any(name.startswith("lm_eval/results_") for name in exported.leaderboard_files)


def test_any_candidate_is_exported_and_said_to_be_biased(
    finished: Finished, heterosis: Command, tmp_path: Path
) -> None:
    selected = {candidate.label for candidate in finished.record("tiny/selection").candidates}
    searched = next(c for c in finished.record().proposed if c.label not in selected)
    out = tmp_path / "out"
    code, told, warned = heterosis("export", finished.folder, out, "--candidate", searched.label)
    assert code == 0
    assert "biased upwards by selection" in told
    assert f"{out}  {searched.label}, weights {searched.weights_digest}, as they were scored" in told
    assert "no scores on the test split" in warned
    assert "biased upwards by selection" in (out / "README.md").read_text()
    assert not (out / "lm_eval").exists()
    assert "model-index" not in (out / "README.md").read_text()


def test_a_parent_that_has_moved_is_taken_from_where_it_is_now(
    finished: Finished, heterosis: Command, tiny_family: FamilyFolder, tmp_path: Path
) -> None:
    shutil.copytree(tiny_family() / "a", tmp_path / "moved")
    model = ("--model", f"a={tmp_path / 'moved'}")
    code, told, _ = heterosis("export", finished.folder, tmp_path / "out", *model)
    assert code == 0
    assert finished.result["weights_digest"] in told
    assert Recipe.load(tmp_path / "out" / "recipe.yaml").parents[0].model == str(tmp_path / "moved")
    code, told, warned = heterosis("export", finished.folder, tmp_path / "other", "--model", f"a={tiny_family() / 'b'}")
    assert (code, told) == (2, "")
    assert "not the weights that were merged" in warned


def test_the_best_of_an_unfinished_study_is_the_best_yet(finished: Finished, tmp_path: Path) -> None:
    for name in ("record.db", "panel.json", "resolved.yaml"):
        shutil.copy(finished.folder / name, tmp_path)
    exported = export_candidate(tmp_path, "best", tmp_path / "out")
    selection = finished.record("tiny/selection").candidates
    own = {c.label: c.value for c in selection if "~" not in c.label and c.value is not None}
    assert own[exported.label] == max(own.values())
    assert "The study was not finished" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(StudyError, match="not finished, so it has no winner"):
        export_candidate(tmp_path, "winner", tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--candidate", "c99"), "no candidate 'c99' in its record; near: c9"),
        (("--dry-run",), "Give --push OWNER/NAME too"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_writes_nothing(
    finished: Finished, heterosis: Command, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, told, warned = heterosis("export", finished.folder, tmp_path / "out", *arguments)
    assert (code, told) == (2, "")
    assert said in warned
    assert warned.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_exported_folder_loads_as_it_is(finished: Finished, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    export_candidate(finished.study, "winner", tmp_path / "out")
    _, notes = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(notes.values())


def test_texts_of_licences_go_along(tiny_family: FamilyFolder, recipe_for: MakeRecipe, tmp_path: Path) -> None:
    shutil.copytree(tiny_family(), tmp_path / "family")
    for name in ("base", *PARENTS):
        (tmp_path / "family" / name / "LICENSE").write_text("MIT License")
        (tmp_path / "family" / name / "NOTICE").write_text(f"by {name}")
    family = open_family(tmp_path / "family" / "base", {name: tmp_path / "family" / name for name in PARENTS})
    export(Builder(family), recipe_for(family, "ties", NUMBERS), tmp_path / "out")
    found = {path.name: path.read_text() for kind in ("LICENSE*", "NOTICE*") for path in (tmp_path / "out").glob(kind)}
    assert found == {"LICENSE": "MIT License", **{f"NOTICE.{name}": f"by {name}" for name in ("base", *PARENTS)}}
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()
    family.close()
