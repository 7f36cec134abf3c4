"""Genes, genomes and the recipes they stand for."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from heterosis.checkpoints.layout import Layout
from heterosis.config import Blocks, Gene, Knots, SpaceConfig, space_folders
from heterosis.errors import StudyError
from heterosis.profiles import coarser, fitted, over_layers
from heterosis.recipe import Recipe, Source
from heterosis.space import WHOLE, GeneSlot, Space, at_depth, baselines, default_population, transfer

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


UNITS = st.floats(0.0, 1.0)
ENDS = st.floats(-2.0, 2.0)
GROUPS = {"embeddings": None, "head": None, "body": None}
DEPTHS = ["uniform", {"knots": 2}, {"knots": 4}, {"knots": 6}, {"blocks": 2}, {"blocks": 3}, {"blocks": 5}, "per_layer"]
depths = pytest.mark.parametrize("depth", DEPTHS)


def points(found: Space, count: int = 5) -> list[tuple[float, ...]]:
    draws = np.random.default_rng(len(found.genes)).uniform(0.0, 1.0, (count, len(found.genes)))
    return [tuple(map(float, draw)) for draw in draws]


def numbers(recipe: Recipe) -> list[float]:
    """All numbers of a recipe over DARE and TIES, layer by layer."""
    terms = recipe.terms(Layout(NAMES, recipe.groups))
    return [float(number) for by_parent in terms.values() for term in by_parent.values() for number in term]


@given(ENDS, ENDS, UNITS)
def test_a_number_comes_back_bit_for_bit_from_its_place_in_the_range(one: float, other: float, unit: float) -> None:
    low, high = sorted((one, other))
    if high - low < 1e-3:
        high = low + 1.0
    gene = GeneSlot("x.weight.all", low, high, low)
    value = gene.value(unit)
    assert gene.value(gene.unit(value)) == value


def test_a_number_outside_the_range_takes_its_nearer_end() -> None:
    gene = GeneSlot("x.weight.all", -0.5, 1.5, 0.5)
    assert (gene.unit(-7.0), gene.unit(7.0)) == (0.0, 1.0)


@pytest.mark.parametrize("count", range(1, LAYERS + 1))
def test_a_constant_is_fitted_bit_for_bit(count: int) -> None:
    for depth in (Blocks(blocks=count), *([Knots(knots=count)] if count > 1 else [])):
        assert fitted(np.full(LAYERS, 0.1), depth, count) == [0.1] * count


def test_a_fit_is_the_mean_over_the_stretch() -> None:
    profile = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 8.0])
    assert fitted(profile, "uniform", 1) == pytest.approx([3.0])
    assert fitted(profile, Blocks(blocks=2), 2) == pytest.approx([1.0, 5.0])
    assert fitted(profile, Blocks(blocks=3), 3) == pytest.approx([0.5, 2.5, 6.0])


@given(st.lists(st.floats(-1.0, 1.0), min_size=LAYERS, max_size=LAYERS), st.integers(2, 5))
def test_no_other_knots_come_nearer_than_the_fitted_ones(profile: list[float], count: int) -> None:
    def distance(values: list[float]) -> float:
        return float(np.square(np.array(over_layers(values, Knots(knots=count), LAYERS)) - profile).sum())

    best = fitted(np.array(profile), Knots(knots=count), count)
    for at in range(count):
        for step in (-1e-3, 1e-3):
            assert distance(best) <= distance([*best[:at], best[at] + step, *best[at + 1 :]]) + 1e-12


@pytest.mark.parametrize(
    ("one", "other"),
    [("uniform", Knots(knots=2)), (Knots(knots=2), Blocks(blocks=3)), (Blocks(blocks=99), "per_layer")],
)
def test_the_coarser_depth_has_fewer_values(one: Any, other: Any) -> None:
    assert coarser(one, other) == coarser(other, one) == one


def test_of_two_depths_with_equally_many_values_the_first_is_kept() -> None:
    assert coarser(Knots(knots=3), Blocks(blocks=3)) == Knots(knots=3)


@depths
def test_at_another_depth_every_gene_without_its_own_moves(depth: Any) -> None:
    moved = at_depth(SpaceConfig(), SpaceConfig(depth=depth).depth)
    assert moved == SpaceConfig(depth=depth)


def test_a_stage_never_makes_a_gene_finer_than_its_own_depth() -> None:
    config = SpaceConfig.model_validate(
        {
            "method": "lines",
            "weight": {"low": 0.0, "high": 1.0, "depth": {"knots": 3}},
            "drop": {"low": 0.0, "high": 0.5, "depth": "uniform", "shared": True},
            "settings": {"beta": {"low": 0.0, "high": 1.0, "depth": {"blocks": 2}}, "alpha": {"low": 0.0, "high": 1.0}},
        }
    )

    def counts(depth: Any) -> dict[str, int]:
        found = names(Space(at_depth(config, depth), BLANK, NAMES))
        prefixes = ("x.weight", "all.drop", "all.beta", "all.alpha")
        return {prefix: sum(name.startswith(f"{prefix}.body") for name in found) for prefix in prefixes}

    assert counts("per_layer") == {"x.weight": 3, "all.drop": 1, "all.beta": 2, "all.alpha": LAYERS}
    assert counts(Knots(knots=2)) == {"x.weight": 2, "all.drop": 1, "all.beta": 2, "all.alpha": 2}
    uniform = names(Space(at_depth(config, "uniform"), BLANK, NAMES))
    assert uniform == ["x.weight.all", "y.weight.all", "all.drop.all", "all.beta.all", "all.alpha.all"]


def test_a_space_at_another_depth_reads_what_it_read() -> None:
    config = SpaceConfig.model_validate({"method": "task_arithmetic", "weight": {"low": 0.0, "high": 1.0}})
    Space(at_depth(config, "per_layer"), BLANK, NAMES)


def test_every_shipped_space_can_be_searched_in_stages() -> None:
    for path in sorted(space_folders()[0].glob("*.yaml")):
        config = SpaceConfig.model_validate(yaml.safe_load(path.read_text()))
        stages = [
            Space(at_depth(config, depth).model_copy(update={"groups": GROUPS}), BLANK, NAMES)
            for depth in ("uniform", Knots(knots=3), "per_layer")
        ]
        point = stages[0].initial
        for coarse, fine in itertools.pairwise(stages):
            point = transfer(coarse, point, fine)
            assert point == pytest.approx(fine.initial), path.name


@depths
def test_a_point_passed_on_to_its_own_space_gives_the_same_merge(depth: object) -> None:
    found = space(depth=depth, groups=GROUPS)
    for point in points(found):
        assert transfer(found, point, found) == pytest.approx(point)


@depths
def test_uniform_genes_give_the_same_recipe_at_any_depth(depth: object) -> None:
    coarse, fine = space(depth="uniform", groups=GROUPS), space(depth=depth, groups=GROUPS)
    for point in points(coarse, 50):
        assert numbers(fine.recipe(transfer(coarse, point, fine))) == numbers(coarse.recipe(point))


@depths
def test_any_depth_gives_the_same_numbers_per_layer(depth: object) -> None:
    coarse, fine = space(depth=depth, groups=GROUPS), space(depth="per_layer", groups=GROUPS)
    for point in points(coarse):
        assert numbers(fine.recipe(transfer(coarse, point, fine))) == pytest.approx(numbers(coarse.recipe(point)))


def test_from_uniform_over_knots_to_per_layer_the_recipe_stays_the_same() -> None:
    stages = [space(depth=depth, groups=GROUPS) for depth in ("uniform", {"knots": 3}, {"knots": 5}, "per_layer")]
    (point,) = points(stages[0], 1)
    first = numbers(stages[0].recipe(point))
    for coarse, fine in itertools.pairwise(stages):
        point = transfer(coarse, point, fine)
        assert numbers(fine.recipe(point)) == first


@depths
def test_back_from_the_finer_space_is_where_it_came_from(depth: object) -> None:
    coarse, fine = space(depth=depth, groups=GROUPS), space(depth="per_layer", groups=GROUPS)
    for point in points(coarse):
        assert transfer(fine, transfer(coarse, point, fine), coarse) == pytest.approx(point)


def test_from_fine_to_coarse_genes_take_the_mean() -> None:
    fine, coarse = (space(method="task_arithmetic", depth=d, groups=GROUPS) for d in ("per_layer", "uniform"))
    (point,) = points(fine, 1)
    by_name = dict(zip(names(fine), point, strict=True))
    found = dict(zip(names(coarse), transfer(fine, point, coarse), strict=True))
    assert found["x.weight.body"] == pytest.approx(np.mean([by_name[f"x.weight.body.{i}"] for i in range(LAYERS)]))
    assert found["y.weight.head"] == pytest.approx(by_name["y.weight.head"])


def test_one_group_passes_on_to_three_without_changing_the_merge() -> None:
    for depth in ("per_layer", {"knots": 4}, {"blocks": 3}):
        one = space(method="task_arithmetic", depth=depth, groups={"all": ".*"})
        three = space(method="task_arithmetic", depth=depth, groups=GROUPS)
        (point,) = points(one, 1)
        assert numbers(three.recipe(transfer(one, point, three))) == pytest.approx(numbers(one.recipe(point)))


def test_a_shared_gene_takes_the_mean_of_the_parents_and_gives_it_to_each() -> None:
    own = space(method="ties", depth="uniform", weight=1.0)
    shared = space(method="ties", depth="uniform", weight=1.0, density={"low": 0.1, "high": 1.0, "shared": True})
    assert transfer(own, (0.2, 0.6), shared) == pytest.approx((0.4,))
    assert transfer(shared, (0.4,), own) == pytest.approx((0.4, 0.4))


def test_genes_that_the_other_space_lacks_start_where_the_space_does() -> None:
    coarse, fine = space(method="task_arithmetic", depth="uniform"), space(method="ties", depth="uniform")
    found = fine.values(transfer(coarse, (0.2, 0.4), fine))
    assert found == pytest.approx(
        {"x.weight.all": 0.3, "y.weight.all": 0.6, "x.density.all": 0.7, "y.density.all": 0.7}
    )


def test_a_fixed_number_passes_on_to_a_space_that_searches_it() -> None:
    coarse, fine = space(method="ties", depth="uniform", density=0.3), space(method="ties", depth="uniform")
    found = fine.values(transfer(coarse, coarse.initial, fine))
    assert found["x.density.all"] == pytest.approx(0.3)


def test_what_lies_outside_the_range_of_the_other_space_is_clipped() -> None:
    coarse = space(method="task_arithmetic", depth="uniform", weight={"low": -1.0, "high": 3.0})
    fine = space(method="task_arithmetic", depth="uniform", weight={"low": 0.0, "high": 1.0})
    assert transfer(coarse, (0.0, 1.0), fine) == (0.0, 1.0)


def test_settings_pass_on_as_genes_do() -> None:
    content = {"method": "lines", "settings": {"beta": {"low": 0.0, "high": 2.0}, "alpha": 0.25}, "groups": GROUPS}
    coarse, fine = space(**content, depth="uniform"), space(**content, depth={"knots": 3})
    (point,) = points(coarse, 1)
    passed = fine.recipe(transfer(coarse, point, fine))
    beta = coarse.recipe(point).settings["body"]["beta"]
    assert passed.settings["body"]["beta"] == (beta,) * LAYERS


def test_a_window_of_drop_rates_passes_on_as_it_was_asked_for() -> None:
    content = {"method": "della", "groups": GROUPS, "epsilon": {"low": 0.0, "high": 0.4, "depth": "uniform"}}
    found = space(**content, depth={"knots": 3}, drop={"low": 0.0, "high": 0.9})
    for point in points(found):
        assert transfer(found, point, found) == pytest.approx(point)
