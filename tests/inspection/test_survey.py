"""A family walked once: the numbers are those of its tensors, and nothing that differs stops the walk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from heterosis.checkpoints import Checkpoint
from heterosis.errors import CheckpointError
from heterosis.inspection import Survey, inspect_models, survey_models

FamilyFolder = Callable[..., Path]
OpenFamily = Callable[..., Any]


def inspected(folder: Path, *names: str) -> Survey:
    return inspect_models(folder / "base", {name: folder / name for name in names})


@pytest.fixture
def edited(tiny_family: FamilyFolder, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a parent, changed: its tensors by a function, its configuration by keys."""

    def copy(change: Callable[[dict[str, Tensor]], Any], source: str = "a", **config: Any) -> Path:
        folder = tmp_path / f"edited{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny_family() / source, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(said | config))
        return folder

    return copy


def nothing(_: dict[str, Tensor]) -> None:
    """Leaves the tensors as they are."""


def test_the_whole_models_numbers_are_those_of_its_tensors(open_tiny: OpenFamily) -> None:
    family = open_tiny()
    found = survey_models(family.base, family.parents)
    deltas = {
        name: torch.cat([(parent.tensor(n) - family.base.tensor(n)).flatten().double() for n in family.names])
        for name, parent in family.parents.items()
    }
    base = torch.cat([family.base.tensor(n).flatten().double() for n in family.names])
    for name, delta in deltas.items():
        size = found.overall.sizes[name]
        assert size.entries == delta.numel()
        assert size.mean == pytest.approx(float(delta.abs().mean()), rel=1e-10)
        assert size.relative == pytest.approx(float(delta.norm() / base.norm()), rel=1e-10)
        assert size.largest == float(delta.abs().max())
        assert size.beyond_large == int((delta.abs() > 0.01).sum())
    for pair in found.overall.pairs:
        a, b = deltas[pair.first], deltas[pair.second]
        assert pair.cosine == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-10)
        assert pair.conflict == pytest.approx(float(((a * b) < 0).sum() / ((a != 0) & (b != 0)).sum()))


def test_regions_and_layers_add_up_to_the_whole(tiny_family: FamilyFolder) -> None:
    found = inspected(tiny_family(), "a", "b")
    for name, size in found.overall.sizes.items():
        assert sum(region.sizes[name].entries for region in found.regions) == size.entries
        assert sum(region.sizes[name].beyond_safe for region in found.regions) == size.beyond_safe
        assert sum(count for _, _, count in found.histograms[name]) == size.entries
    inside = [region for region in found.regions if region.layer is not None]
    assert [layer.layer for layer in found.layers] == [0, 1, 2]
    for layer in found.layers:
        parts = [region.sizes["a"].entries for region in inside if region.layer == layer.layer]
        assert sum(parts) == layer.sizes["a"].entries


def test_regions_come_in_the_order_of_a_forward_pass(tiny_family: FamilyFolder) -> None:
    places = [(region.layer, region.group) for region in inspected(tiny_family(), "a").regions]
    layers = [(layer, group) for layer in range(3) for group in ("attention", "mlp", "norms")]
    assert places == [(None, "embeddings"), *layers, (None, "head")]


def test_the_order_of_the_parents_changes_no_number(tiny_family: FamilyFolder) -> None:
    one, other = inspected(tiny_family(), "a", "b", "c"), inspected(tiny_family(), "c", "b", "a")
    assert list(other.overall.sizes) == ["c", "b", "a"]
    for region, again in zip(one.regions, other.regions, strict=True):
        assert dict(region.sizes) == dict(again.sizes)
        pairs = {frozenset((pair.first, pair.second)): (pair.cosine, pair.conflict) for pair in again.pairs}
        assert {frozenset((pair.first, pair.second)): (pair.cosine, pair.conflict) for pair in region.pairs} == pairs
        assert region.crowd is not None
        assert again.crowd is not None
        assert region.crowd.conflict == again.crowd.conflict
        assert region.crowd.loss == pytest.approx(again.crowd.loss, rel=1e-9)


def test_sharding_changes_no_number(tiny_family: FamilyFolder) -> None:
    whole, sharded = (inspected(tiny_family(sharded=sharded), "a", "b") for sharded in (False, True))
    assert whole.overall == sharded.overall
    assert whole.regions == sharded.regions


def test_the_size_of_the_pieces_changes_no_number(tiny_family: FamilyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = inspected(tiny_family(), "a", "b")
    monkeypatch.setattr("heterosis.inspection.survey.CHUNK", 100)
    pieces = inspected(tiny_family(), "a", "b")
    assert pieces.histograms == whole.histograms
    assert pieces.overall.sizes["a"].mean == pytest.approx(whole.overall.sizes["a"].mean, rel=1e-12)
    assert pieces.overall.pairs[0].cosine == pytest.approx(whole.overall.pairs[0].cosine, abs=1e-12)


def test_a_survey_survives_json(tiny_family: FamilyFolder) -> None:
    found = inspected(tiny_family(), "a", "b").to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["overall"]["sizes"]["a"]["verdict"] == "warn"
    assert found["overall"]["pairs"][0]["first"] == "a"


def test_progress_ends_with_every_entry_of_the_base(tiny_family: FamilyFolder) -> None:
    heard: list[tuple[int, int]] = []
    folder = tiny_family()
    inspect_models(folder / "base", {"a": folder / "a"}, progress=lambda done, every: heard.append((done, every)))
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1]


def test_models_of_one_family_do_not_differ(open_tiny: OpenFamily) -> None:
    family = open_tiny()
    assert list(survey_models(family.base, family.parents).differences) == []


def kinds(found: Survey) -> Mapping[str, str]:
    return {one.name: one.kind for one in found.differences}


def test_what_does_not_fit_is_listed_and_the_rest_is_measured(
    tiny_family: FamilyFolder, edited: Callable[..., Path]
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = torch.zeros(70, 32)
        tensors["model.norm.weight"] = tensors["model.norm.weight"].half()
        tensors["adapter.weight"] = torch.zeros(2)
        del tensors["lm_head.weight"]

    folder = tiny_family()
    parents = {"a": folder / "a", "odd": edited(change, num_key_value_heads=4, rope_theta=5.0, rope_parameters=None)}
    found = inspect_models(folder / "base", parents)
    assert kinds(found) == {
        "num_key_value_heads": "config",
        "rope_theta": "config",
        "lm_head.weight": "missing",
        "adapter.weight": "extra",
        "model.embed_tokens.weight": "shape",
        "model.norm.weight": "dtype",
    }
    assert {one.parent for one in found.differences} == {"odd"}
    left_out = 2 * 64 * 32
    assert found.overall.sizes["odd"].entries == found.overall.sizes["a"].entries - left_out
    shared = {region.group: set(region.sizes) for region in found.regions if region.layer is None}
    assert shared == {"embeddings": {"a"}, "head": {"a", "odd"}}
    assert found.verdict == "warn"


def test_another_tokenizer_is_listed_with_the_first_token_that_moved(
    tiny_family: FamilyFolder, edited: Callable[..., Path]
) -> None:
    odd = edited(nothing)
    file = odd / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    words["w5"], words["w6"], words["new"] = 6, 5, 64
    file.write_text(json.dumps(content))
    found = inspect_models(tiny_family() / "base", {"odd": odd})
    moved, added = found.differences
    assert (moved.kind, moved.name, moved.base, moved.theirs) == ("tokens moved", "2, first 'w5'", "5", "6")
    assert (added.kind, added.theirs, added.harmless) == ("tokens added", "64", True)


def test_another_dtype_is_no_obstacle(tiny_family: FamilyFolder) -> None:
    folder = tiny_family()
    found = inspect_models(folder / "base", {"a": folder / "a", "half": tiny_family("float16") / "a"})
    assert all(one.harmless for one in found.differences)
    assert found.overall.pairs[0].cosine == pytest.approx(1.0, abs=1e-3)
    assert any("another dtype" in line.text for line in found.advice)


def test_a_lora_adapter_moves_what_it_targets_and_nothing_else(tiny_family: FamilyFolder, tmp_path: Path) -> None:
    module = "base_model.model.model.layers.1.self_attn.q_proj"
    low = {f"{module}.lora_A.weight": torch.full((2, 32), 0.1), f"{module}.lora_B.weight": torch.full((32, 2), 0.05)}
    save_file(low, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    found = inspect_models(tiny_family() / "base", {"lora": tmp_path})
    assert not found.differences
    moved = {(region.layer, region.group) for region in found.regions if region.sizes["lora"].mean > 0}
    assert moved == {(1, "attention")}
    assert found.overall.sizes["lora"].largest == pytest.approx(2 * 2 * 0.1 * 0.05, rel=1e-4)


def test_a_model_of_other_make_shares_nothing_and_is_told_so(tiny_family: FamilyFolder, tmp_path: Path) -> None:
    folder = tiny_family()
    shutil.copytree(folder / "a", tmp_path / "alien")
    save_file({"other.weight": torch.ones(3)}, tmp_path / "alien" / "model.safetensors")
    found = inspect_models(folder / "base", {"alien": tmp_path / "alien"})
    assert not found.overall.sizes
    assert any("not a fine-tune of this base" in line.text for line in found.advice)
    assert json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("culprit", ["base", "odd"])
def test_weights_that_are_not_finite_name_the_model_and_the_tensor(
    tiny_family: FamilyFolder, edited: Callable[..., Path], value: float, culprit: str
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value

    sick, sound = edited(change), tiny_family() / "b"
    base, parent = (sick, sound) if culprit == "base" else (sound, sick)
    with pytest.raises(CheckpointError, match=rf"^{culprit}: model\.layers\.1\.mlp\.up_proj\.weight holds NaN or Inf"):
        inspect_models(base, {"odd": parent})


def test_no_parent_is_refused(tiny_family: FamilyFolder) -> None:
    with pytest.raises(CheckpointError, match="Name at least one fine-tune"):
        inspect_models(tiny_family() / "base", {})


def test_a_folder_that_is_no_model_is_named(tiny_family: FamilyFolder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^lost: no config\.json"):
        inspect_models(tiny_family() / "base", {"lost": tmp_path})


def test_real_fine_tunes_are_surveyed(real_families: Path) -> None:
    found = inspected(real_families / "stories260k", "shakespeare", "gsm8k")
    assert not found.differences
    assert len(found.layers) == 5
    size = found.overall.sizes["gsm8k"]
    assert size.beyond_large / size.entries == pytest.approx(0.484, abs=0.001)
    assert size.verdict == "warn"


def test_checkpoints_stay_open_for_whoever_opened_them(tiny_family: FamilyFolder) -> None:
    folder = tiny_family()
    base, parent = Checkpoint(folder / "base"), Checkpoint(folder / "a")
    survey_models(base, {"a": parent})
    assert base.tensor("model.norm.weight").numel() == 32
    base.close()
    parent.close()
