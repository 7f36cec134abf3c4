"""mergekit configurations read as recipes: what mergekit itself wrote for them, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from heterosis.builder import Builder
from heterosis.checkpoints import content_digest, tensor_digest
from heterosis.errors import RecipeError
from heterosis.mergekit import Opened, open_mergekit, parse, to_mergekit

from .configurations import CONFIGURATIONS, ROUNDED, models, part, task_vectors
from .exact_family import write_family

# Made once by mergekit 0.1.5 from the same files: digests of the weights, or a few of them where sums may round apart.
WRITTEN = json.loads((Path(__file__).parent / "written_by_mergekit_0.1.5.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    write_family(folder)
    return folder


def opened(root: Path, content: dict[str, Any]) -> Opened:
    return open_mergekit(parse(content, "merge.yml"), root)


def merged(root: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    found = opened(root, content)
    tensors = dict(Builder(found.family, compiled=False).tensors(found.recipe))
    found.family.close()
    return tensors


def digest(root: Path, content: dict[str, Any]) -> str:
    found = opened(root, content)
    builder = Builder(found.family, compiled=False)
    plan = builder.plan(found.recipe)
    return content_digest(builder.specs(plan), {name: tensor_digest(t) for name, t in builder.tensors(plan)})


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_gives_what_mergekit_wrote_bit_for_bit(root: Path, name: str) -> None:
    assert digest(root, CONFIGURATIONS[name]) == WRITTEN[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_a_configuration_gives_what_mergekit_wrote_to_rounding(root: Path, name: str) -> None:
    tensors = merged(root, ROUNDED[name])
    for tensor, numbers in WRITTEN[name].items():
        found = tensors[tensor].double().reshape(-1)[[5, -7]].tolist()
        assert found == pytest.approx(numbers, rel=1e-5, abs=1e-6), tensor


@pytest.mark.parametrize("name", [*CONFIGURATIONS, *ROUNDED])
def test_a_configuration_survives_the_way_there_and_back(root: Path, name: str) -> None:
    content = {**CONFIGURATIONS, **ROUNDED}[name]
    found = opened(root, content)
    again = to_mergekit(found.recipe, list(Builder(found.family).plan(found.recipe).wiring.inputs))
    assert again.differences == []
    assert digest(root, yaml.safe_load(again.to_yaml())) == digest(root, content)


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear", "della", "della_linear", "breadcrumbs", "ties"])
def test_a_density_may_rise_to_one_along_depth(root: Path, method: str) -> None:
    def tensors(*densities: float) -> dict[str, Tensor]:
        options = {"weight": 0.5, "density": list(densities)}
        parts = [{"model": name, "parameters": options} for name in ("a", "b")]
        return merged(root, {"merge_method": method, "base_model": "base", "models": parts, "dtype": "float32"})

    rising, whole = tensors(0.5, 1.0), tensors(1.0, 1.0)
    last = max(int(name.split(".")[2]) for name in rising if "layers" in name)
    for name in rising:
        if f"layers.{last}." in name:
            assert torch.equal(rising[name], whole[name]), name
    assert any(not torch.equal(rising[name], whole[name]) for name in rising if "layers.0." in name)


def test_lora_and_revision_are_parts_of_a_models_name() -> None:
    config = parse({"merge_method": "linear", "models": models("o/m@v1+o/adapter@v2", weight=1)}, "x")
    assert config.models is not None
    reference = config.models[0].model
    assert tuple(reference) == ("o/m", "v1", "o/adapter", "v2")
    assert str(reference) == "o/m@v1+o/adapter@v2"


def test_what_a_method_does_not_read_is_noted(root: Path) -> None:
    content = task_vectors("task_arithmetic", "ab", weight=0.5, top={"int8_mask": True}, sharpness=0.3)
    assert opened(root, content).notes == (
        "parameters.sharpness: task_arithmetic does not read it, in mergekit neither; it changes nothing",
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such method": (task_vectors("alchemy", "a"), "merge_method 'alchemy' is unknown; one of linear"),
    "no models": ({"merge_method": "linear", "models": []}, "exactly one of models, slices and modules"),
    "a key that is nearly one": (task_vectors("ties", "a", weight=1) | {"dtpye": "float32"}, "did you mean dtype?"),
    "models and slices": (
        {"merge_method": "linear", "models": models("a", weight=1), "slices": [part(("a", 0, 1, {}))]},
        "exactly one of models, slices and modules",
    ),
    "no base": ({"merge_method": "ties", "models": models("a", weight=1)}, "ties needs a base_model"),
    "only the base": (task_vectors("ties", ""), "exactly one of"),
    "no weight": (task_vectors("ties", "ab", density=0.5), "parameters.weight: missing for model.embed_tokens.weight"),
    "a word for a number": (task_vectors("ties", "a", weight="heavy"), "parameters.weight: 'heavy' is no number"),
    "a filter without value": (
        task_vectors("ties", "a", weight=[{"filter": "mlp"}]),
        "parameters.weight: {'filter': 'mlp'} must be a mapping of filter and value",
    ),
    "a density of nothing": (task_vectors("dare_ties", "a", weight=1, density=0), "keeps nothing"),
    "a window beyond the end": (task_vectors("della", "a", weight=1, density=0.95), "leaves [0, 1)"),
    "slices of unequal length": (
        {"merge_method": "linear", "slices": [part(("a", 0, 2, {"weight": 1}), ("b", 0, 3, {"weight": 1}))]},
        "same number of layers",
    ),
    "an empty range": ({"merge_method": "passthrough", "slices": [part(("a", 2, 2, {}))]}, "no range of layers"),
    "layers that do not exist": (
        {"merge_method": "passthrough", "slices": [part(("a", 2, 9, {}))]},
        "a has 4 layers, so there is no layer_range [2, 9]",
    ),
    "a slice of twins": (
        {"merge_method": "linear", "slices": [part(("a", 0, 2, {"weight": 1}), ("a", 1, 3, {"weight": 1}))]},
        "appears twice in one slice",
    ),
    "residual_weight": (
        {"merge_method": "passthrough", "slices": [part(("a", 0, 2, {}), residual_weight=0.1)]},
        "residual_weight has no counterpart",
    ),
    "an exotic dtype": (task_vectors("ties", "a", weight=1) | {"dtype": "float8"}, "dtype: 'float8' is not supported"),
    "two tokenizer keys": (
        task_vectors("ties", "a", weight=1) | {"tokenizer_source": "base", "tokenizer": {"source": "base"}},
        "exclude each other",
    ),
    "too many models": (task_vectors("nearswap", "ab", top={"t": 0.1}), "nearswap takes 1 parents, not 2"),
    "a switch that flickers": (
        task_vectors("ties", "ab", weight=1.0, top={"normalize": [True, False]}),
        "parameters.normalize: must be one true or false",
    ),
    "a tokenizer of nobody": (task_vectors("ties", "a", weight=1) | {"tokenizer_source": 5}, "tokenizer source: 5"),
    "a token of nobody": (
        task_vectors("ties", "a", weight=1) | {"tokenizer": {"source": "base", "tokens": {"x": {"source": [3]}}}},
        "tokens: [3]",
    ),
    "a named chat template": (task_vectors("ties", "a", weight=1) | {"chat_template": "chatml"}, "is no template"),
    "a weight of nothing": (task_vectors("ties", "a", weight=float("nan")), "parameters.weight: nan is not finite"),
    "a range without end": (
        {"merge_method": "passthrough", "slices": [part(("a", 0, 2_000_000_000, {}))]},
        "a has 4 layers",
    ),
    "two sources for one layer": (
        {"merge_method": "passthrough", "slices": [part(("a", 0, 2, {}), ("b", 0, 2, {}))]},
        "passthrough takes one parent for each layer",
    ),
    "a search without end": (
        {"merge_method": "karcher", "models": models("a", "b"), "parameters": {"max_iter": 1e12}},
        "max_iter must lie between 1 and 10,000",
    ),
    "a name of two adapters": (task_vectors("ties", ["a+b+c"], weight=1), "names no model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused_in_one_line(root: Path, name: str) -> None:
    content, message = REFUSED[name]
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        Builder(opened(root, content).family).plan(opened(root, content).recipe)
    assert "\n" not in str(caught.value)


def test_a_model_that_needs_another_configuration_is_noted(root: Path, tmp_path: Path) -> None:
    """mergekit merges it without a word."""
    for name in ("base", "a"):
        shutil.copytree(root / name, tmp_path / name)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    (note,) = opened(tmp_path, task_vectors("ties", "a", weight=1)).notes
    assert note.startswith("a: config.json has num_attention_heads 4, the merge will have 2")


def test_keys_of_ones_own_are_noted_and_numbers_may_stand_for_switches(root: Path) -> None:
    content = task_vectors("ties", weight=0.5, density=0.5, top={"normalize": 0}) | {"anchors": {"x": 1}}
    found = opened(root, content)
    assert found.notes == ("anchors: no key of mergekit's; it changes nothing",)
    assert found.recipe.divisor == "none"


def test_a_base_may_be_named_by_the_slices_alone(root: Path) -> None:
    sources = (("base", 0, 4, {}), ("a", 0, 4, {"weight": 0.5}))
    content = {"merge_method": "task_arithmetic", "slices": [part(*sources, base_model="base")]}
    assert digest(root, content) == digest(root, task_vectors("task_arithmetic", "a", weight=0.5))


def test_stacks_have_as_many_layers_as_their_slices(root: Path) -> None:
    tensors = merged(root, CONFIGURATIONS["stack"])
    layers = {int(found.group(1)) for name in tensors if (found := re.search(r"layers\.(\d+)\.", name))}
    assert layers == set(range(6))


def test_bfloat16_models_are_merged_in_bfloat16(root: Path, tmp_path: Path) -> None:
    write_family(tmp_path, torch.bfloat16)
    found = opened(tmp_path, CONFIGURATIONS["ties"])
    assert (found.recipe.arithmetic, found.recipe.dtype) == ("bfloat16", "bfloat16")
