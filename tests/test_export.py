"""Exports: complete Hugging Face folders, proven to hold the merge."""

from __future__ import annotations

import errno
import json
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import PARENTS, FamilyFolder, MakeRecipe, OpenFamily
from safetensors.torch import load_file

from heterosis.builder import Builder
from heterosis.checkpoints import Checkpoint
from heterosis.errors import CanaryError, CheckpointError
from heterosis.export import card, export
from heterosis.merge import Kernel
from heterosis.recipe import Recipe

NUMBERS = {name: {"weight": 0.6, "density": 0.5, "drop": 0.3} for name in PARENTS}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def front_matter(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    front: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return front


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


RESULTS = {
    "tasks": {"sort": {}, "add": {}},
    "items": {"test": 40},
    "verdict": "c7 beats every parent and baseline",
    "table": [
        {
            "label": "c7",
            "test": {
                "objective": {"estimate": 0.75, "low": 0.5, "high": 0.875},
                "tasks": {task: {"estimate": 0.25, "low": 0.125, "high": 0.5} for task in ("sort", "add")},
            },
        },
        {"label": "c9", "selection": {}},
    ],
}


def with_sources(recipe: Recipe, base: str, *parents: str) -> Recipe:
    models = zip(recipe.parents, parents, strict=True)
    return recipe.model_copy(
        update={
            "base": recipe.base.model_copy(update={"model": base}),
            "parents": tuple(source.model_copy(update={"model": model}) for source, model in models),
        }
    )


def test_the_card_names_hub_models_for_the_hub(open_tiny: OpenFamily, recipe_for: MakeRecipe) -> None:
    recipe = recipe_for(open_tiny(), "dare_ties", NUMBERS)
    text = card(with_sources(recipe, "owner/base", "owner/a", "owner/b", "owner/c"), RESULTS)
    front = front_matter(text)
    assert front["library_name"] == "transformers"
    assert front["base_model"] == ["owner/base", "owner/a", "owner/b", "owner/c"]
    assert front["base_model_relation"] == "merge"
    assert {"merge", "heterosis"} <= set(front["tags"])


def test_the_card_of_local_models_tells_no_path(
    open_tiny: OpenFamily, recipe_for: MakeRecipe, tiny_family: FamilyFolder
) -> None:
    text = card(recipe_for(open_tiny(), "dare_ties", NUMBERS), None)
    assert "base_model" not in front_matter(text)
    assert str(tiny_family()) not in text
    assert "| a | a | `" in text
    assert "Results" not in text


def test_the_card_shows_the_test_split_alone(open_tiny: OpenFamily, recipe_for: MakeRecipe) -> None:
    text = card(recipe_for(open_tiny(), "dare_ties", NUMBERS), RESULTS)
    assert "C7 beats every parent and baseline." in text
    assert "Scores on 40 held-out items" in text
    assert "| c7 | 0.7500 [0.5000, 0.8750] | 0.2500 [0.1250, 0.5000] | 0.2500 [0.1250, 0.5000] |" in text
    assert "c9" not in text


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
