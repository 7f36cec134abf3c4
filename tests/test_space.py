"""Genes, genomes and the recipes they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from heterosis.config import Blocks, Gene, Knots, SpaceConfig, space_folders
from heterosis.errors import StudyError
from heterosis.recipe import Recipe, Source
from heterosis.space import WHOLE, Space, baselines, default_population, over_layers

LAYERS = 6
NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}" for i in range(LAYERS) for part in ("self_attn.q_proj.weight", "mlp.up_proj.weight")),
    "model.norm.weight",
    "lm_head.weight",
]
BLANK = Recipe(
    method="task_arithmetic",
    base=Source(name="base", model="b", digest="0"),
    parents=tuple(Source(name=name, model=name, digest=digest) for name, digest in (("x", "1"), ("y", "2"))),
    groups=WHOLE,
    parameters={},
    seed=5,
)


def space(**changes: object) -> Space:
    return Space(SpaceConfig.model_validate(changes), BLANK, NAMES)


def names(found: Space) -> list[str]:
    return [gene.name for gene in found.genes]


def test_a_uniform_space_has_one_gene_of_each_kind_per_parent() -> None:
    assert names(space(depth="uniform")) == [
        "x.weight.all",
        "y.weight.all",
        "x.density.all",
        "y.density.all",
        "x.drop.all",
        "y.drop.all",
    ]


def test_knots_go_to_the_layers_and_one_gene_each_to_embeddings_and_head() -> None:
    found = names(space(method="task_arithmetic", depth={"knots": 3}))
    assert found[:5] == [
        "x.weight.embeddings",
        "x.weight.body.0",
        "x.weight.body.1",
        "x.weight.body.2",
        "x.weight.head",
    ]
    assert len(found) == 10


def test_per_layer_has_a_gene_for_every_layer() -> None:
    assert len(names(space(method="task_arithmetic", depth="per_layer"))) == 2 * (LAYERS + 2)


def test_a_shared_gene_serves_all_parents() -> None:
    found = space(method="ties", depth="uniform", density={"low": 0.1, "high": 1.0, "shared": True})
    assert names(found) == ["x.weight.all", "y.weight.all", "all.density.all"]
    recipe = found.recipe((0.0, 1.0, 0.5))
    assert recipe.parameters["x"]["all"].density == recipe.parameters["y"]["all"].density == pytest.approx(0.55)


def test_a_fixed_gene_is_not_searched() -> None:
    found = space(method="ties", depth="uniform", density=0.3)
    assert len(found.genes) == 2
    assert found.recipe((0.2, 0.4)).parameters["y"]["all"].density == 0.3


def test_a_genome_at_its_ends_gives_the_bounds() -> None:
    found = space(method="task_arithmetic", depth="uniform", weight={"low": -0.5, "high": 1.5})
    recipe = found.recipe((0.0, 1.0))
    assert recipe.parameters["x"]["all"].weight == -0.5
    assert recipe.parameters["y"]["all"].weight == 1.5


def test_the_initial_genome_gives_the_initial_values() -> None:
    found = space(depth="uniform")
    assert list(found.values(found.initial).values()) == pytest.approx([0.5, 0.5, 0.7, 0.7, 0.2, 0.2])


@pytest.mark.parametrize(
    ("depth", "values", "expected"),
    [
        (Knots(knots=2), (0.0, 5.0), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)),
        (Knots(knots=3), (0.0, 5.0, 0.0), (0.0, 2.0, 4.0, 4.0, 2.0, 0.0)),
        (Blocks(blocks=2), (1.0, 2.0), (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)),
        (Blocks(blocks=4), (1.0, 2.0, 3.0, 4.0), (1.0, 1.0, 2.0, 3.0, 3.0, 4.0)),
        ("per_layer", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),
    ],
)
def test_profiles_spread_over_the_layers(depth: object, values: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert over_layers(values, depth, LAYERS) == pytest.approx(expected)  # type: ignore[arg-type]


def test_more_knots_than_layers_are_the_layers() -> None:
    assert len(names(space(method="task_arithmetic", depth={"knots": 40}))) == 2 * (LAYERS + 2)


def test_groups_by_name_and_by_pattern() -> None:
    groups = {"attention": None, "ups": r"up_proj", "rest": ".*"}
    found = names(space(method="task_arithmetic", depth={"blocks": 2}, groups=groups))
    assert [name for name in found if name.startswith("x.")] == [
        "x.weight.rest",
        "x.weight.attention.0",
        "x.weight.attention.1",
        "x.weight.ups.0",
        "x.weight.ups.1",
    ]


def test_a_gene_that_the_method_does_not_read_is_refused() -> None:
    with pytest.raises(StudyError, match="task_arithmetic does not read density"):
        space(method="task_arithmetic", density=0.4)


def test_a_space_with_nothing_free_is_refused() -> None:
    with pytest.raises(StudyError, match="nothing to search"):
        space(method="task_arithmetic", weight=0.4)


def test_an_unknown_named_group_is_refused() -> None:
    with pytest.raises(StudyError, match="attn has no pattern"):
        space(groups={"attn": None, "rest": ".*"})


def test_generation_zero_holds_parents_average_and_task_arithmetic() -> None:
    found = baselines(BLANK)
    assert list(found) == ["x", "y", "average", "task_arithmetic(0.3)", "task_arithmetic(0.5)", "task_arithmetic(1)"]
    assert found["x"].parameters["y"]["all"].weight == 0.0
    assert found["average"].method == "linear"
    assert all(recipe.seed == BLANK.seed for recipe in found.values())


def test_every_shipped_space_makes_recipes() -> None:
    for path in sorted(space_folders()[0].glob("*.yaml")):
        found = Space(SpaceConfig.model_validate(yaml.safe_load(path.read_text())), BLANK, NAMES)
        recipe = found.recipe(found.initial)
        assert recipe.method == found.config.method, path.name
        assert all(0.0 <= unit <= 1.0 for unit in found.initial), path.name


def test_the_default_space_has_few_genes() -> None:
    content = yaml.safe_load((space_folders()[0] / "dare_ties_knots.yaml").read_text())
    assert len(Space(SpaceConfig.model_validate(content), BLANK, NAMES).genes) == 2 * 6 + 6


def test_sakanas_space_starts_at_a_half_with_a_sixth() -> None:
    config = SpaceConfig.model_validate(yaml.safe_load((space_folders()[0] / "sakana_ps.yaml").read_text()))
    assert isinstance(config.weight, Gene)
    assert config.weight.initial == 0.5
    assert config.sigma == pytest.approx(1 / 6)
    assert len(Space(config, BLANK, NAMES).genes) == 2 * 2 * (LAYERS + 2)


def test_population_grows_with_the_logarithm_of_the_genes() -> None:
    assert [default_population(n) for n in (2, 10, 24, 192)] == [6, 10, 13, 19]


MORE_SPACES: dict[str, tuple[dict[str, Any], str]] = {
    "a gene that the method does not read": ({"method": "linear", "density": 0.5}, "linear does not read density"),
    "a setting that it does not have": ({"method": "ties", "settings": {"t": 0.1}}, "ties has no setting t"),
    "more parents than it takes": ({"method": "nearswap", "settings": {"t": {"low": 0, "high": 1}}}, "takes 1 parents"),
}


@pytest.mark.parametrize("name", MORE_SPACES)
def test_what_a_method_cannot_use_is_refused(name: str) -> None:
    content, message = MORE_SPACES[name]
    with pytest.raises(StudyError, match=message):
        Space(SpaceConfig.model_validate(content), BLANK, NAMES)


def test_a_drop_rate_stands_in_front_of_any_method() -> None:
    content = {"method": "linear", "depth": "uniform", "weight": 1.0, "drop": {"low": 0.0, "high": 0.8}}
    space = Space(SpaceConfig.model_validate(content), BLANK, NAMES)
    assert all(".drop." in gene.name for gene in space.genes)
    recipe = space.recipe((1.0,) * len(space.genes))
    assert {p.drop for by_group in recipe.parameters.values() for p in by_group.values()} == {0.8}


def test_settings_are_searched_once_for_all_parents() -> None:
    content = {"method": "lines", "depth": "uniform", "settings": {"beta": {"low": 0.0, "high": 2.0}, "alpha": 0.25}}
    space = Space(SpaceConfig.model_validate(content), BLANK, NAMES)
    assert [gene.name for gene in space.genes if "beta" in gene.name] == ["all.beta.all"]
    recipe = space.recipe((1.0,) * len(space.genes))
    assert recipe.settings == {"all": {"beta": 2.0, "alpha": 0.25}}


def test_a_window_of_drop_rates_never_leaves_its_range() -> None:
    content = {
        "method": "della",
        "depth": "per_layer",
        "drop": {"low": 0.0, "high": 0.95},
        "epsilon": {"low": 0.0, "high": 0.4},
    }
    space = Space(SpaceConfig.model_validate(content), BLANK, NAMES)
    for corner in (0.0, 0.5, 1.0):
        space.recipe(tuple(1.0 if "epsilon" in gene.name else corner for gene in space.genes))
