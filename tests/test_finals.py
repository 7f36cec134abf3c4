"""The end of a study: finalists, the choice, and claims with intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

from heterosis.config import SpaceConfig
from heterosis.errors import CandidateError
from heterosis.evaluation.panel import TaskOutcomes
from heterosis.finals import (
    Choice,
    Evidence,
    choose,
    claims,
    finalists,
    score_all,
    seed_spread,
    seed_variants,
    verdict,
)
from heterosis.ledger import Proposal, Record
from heterosis.ledger.record import Measurement
from heterosis.recipe import Recipe, Source
from heterosis.recipe.parts import Parameters
from heterosis.search import Found
from heterosis.space import WHOLE, Space, baselines, blank_with
from heterosis.standings import standings
from heterosis.statistics import Objective
from heterosis.statistics.objective import TaskShare

PARENTS = ("x", "y")
BLANK = Recipe(
    method="task_arithmetic",
    base=Source(name="base", model="b", digest="0"),
    parents=tuple(Source(name=name, model=name, digest=name) for name in PARENTS),
    groups=WHOLE,
    parameters={},
)
SPACE = Space(
    SpaceConfig.model_validate({"method": "task_arithmetic", "depth": "uniform"}),
    BLANK,
    ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"],
)
BASELINES = baselines(BLANK)
OBJECTIVE = Objective("mean", {"t": TaskShare(1.0, True)})
ITEMS = 200
SPLIT: Any = SimpleNamespace(
    items={"t": range(ITEMS)},
    tasks={"t": SimpleNamespace(score=lambda mean: mean)},
    clusters={"t": np.arange(ITEMS)},
)

Values = float | Sequence[float] | None


def proposal(label: str) -> Proposal:
    if label in BASELINES:
        return Proposal(label, 0, BASELINES[label])
    genome = (int(label[1:]) / 100, 0.5)
    return Proposal(label, 1, SPACE.recipe(genome), genome, SPACE.values(genome))


def measured(values: Values) -> Measurement:
    seconds = dict.fromkeys(("merge", "swap", "score", "total"), 0.0)
    if values is None:
        return Measurement({}, {}, None, seconds, 0, "logits are NaN.")
    table = TaskOutcomes(np.broadcast_to(np.asarray(values, dtype=float), ITEMS).copy(), np.ones(ITEMS))
    return Measurement({"t": table.mean()}, {"t": table}, "w", seconds, ITEMS)


def record_of(scores: Mapping[str, Values], name: str = "study") -> Record:
    record = Record(optuna.storages.InMemoryStorage(), name, SPACE.genes)
    for label, values in scores.items():
        found = measured(values)
        record.add(proposal(label), found, None if found.error else found.scores["t"])
    return record


def evidence(scores: Mapping[str, Values]) -> Evidence:
    return evidence_of(record_of(scores))


def evidence_of(record: Record) -> Evidence:
    return Evidence(record.candidates, SPLIT, OBJECTIVE, seed=0)


def coin(chance: float, seed: int) -> list[float]:
    return (np.random.default_rng(seed).random(ITEMS) < chance).astype(float).tolist()


class Fixed:
    """A scorer that gives every recipe the same score, and counts."""

    def __init__(self, values: Values = 0.5) -> None:
        self.recipes: list[Recipe] = []
        self.values = values

    def measure(self, recipe: Recipe) -> Measurement:
        self.recipes.append(recipe)
        return measured(self.values)


SEARCHED = {**dict.fromkeys(BASELINES, 0.3), "c1": 0.5, "c2": 0.9, "c3": None, "c4": 0.7, "c5": 0.9, "c6": 0.1}


def ended(count: int, mean: tuple[float, ...] | None = None, scores: Mapping[str, Values] = SEARCHED) -> list[Proposal]:
    record = record_of(scores)
    proposed = [candidate for candidate in record.proposed if candidate.fitness is not None]
    return finalists(record, Found(SPACE, mean), standings(proposed, SPLIT, OBJECTIVE)[:count])


def test_finalists_are_all_baselines_and_the_best_proposals_ties_to_the_earlier() -> None:
    found = ended(3)
    assert [p.label for p in found] == [*BASELINES, "c2", "c5", "c4"]
    assert found[-1] == proposal("c4")


def test_the_optimizers_mean_is_a_finalist_of_its_own_generation() -> None:
    mean = (0.25, 0.75)
    found = ended(1, mean)[-1]
    assert found.label == f"mean-{SPACE.recipe(mean).digest[:6]}"
    assert (found.generation, found.genome, found.recipe) == (2, mean, SPACE.recipe(mean))
    other = ended(1, (0.25, 0.5))[-1]
    assert other.label != found.label


def test_a_baseline_that_failed_is_no_finalist() -> None:
    labels = [p.label for p in ended(1, scores={**SEARCHED, "average": None})]
    assert "average" not in labels
    assert "x" in labels


def test_only_what_the_record_lacks_is_scored() -> None:
    record, scorer = record_of({"x": 0.4}), Fixed()
    wanted = [proposal(label) for label in ("x", "y", "c1")]
    score_all(wanted, scorer, OBJECTIVE, record, required=BASELINES)
    assert scorer.recipes == [wanted[1].recipe, wanted[2].recipe]
    assert [(c.label, c.value) for c in record.candidates] == [("x", 0.4), ("y", 0.5), ("c1", 0.5)]
    score_all(wanted, scorer, OBJECTIVE, record, required=BASELINES)
    assert len(scorer.recipes) == 2


def test_a_finalist_that_fails_is_recorded_without_a_value() -> None:
    record = record_of({})
    score_all([proposal("c1")], Fixed(None), OBJECTIVE, record, required=BASELINES)
    assert [(c.label, c.value, c.error) for c in record.candidates] == [("c1", None, "logits are NaN.")]


def test_what_cannot_be_missed_is_not_recorded_as_failed_so_that_a_rerun_tries_again() -> None:
    record = record_of({})
    with pytest.raises(CandidateError, match=r"study: x could not be scored \(logits are NaN\.\)\. Run again"):
        score_all([proposal("x")], Fixed(None), OBJECTIVE, record, required=BASELINES)
    assert record.candidates == ()
    score_all([proposal("x")], Fixed(0.5), OBJECTIVE, record, required=BASELINES)
    assert [c.value for c in record.candidates] == [0.5]


@pytest.mark.parametrize(
    ("scores", "choice"),
    [
        ({"x": 0.4, "y": 0.5, "average": 0.6, "c1": 0.7, "c2": 0.65}, ("c1", "average")),
        ({"x": 0.4, "y": 0.5, "average": 0.7, "c1": 0.7}, ("average", "average")),
        ({"x": 0.7, "y": 0.7, "average": 0.7, "c1": 0.7}, ("x", "x")),
        ({"x": 0.4, "y": 0.5, "average": 0.2, "c1": None, "c2": 0.55}, ("c2", "y")),
    ],
)
def test_the_best_of_each_kind_wins_and_a_tie_goes_to_the_baseline(
    scores: Mapping[str, Values], choice: tuple[str, str]
) -> None:
    assert tuple(choose(record_of(scores), among=scores)) == choice


def test_finalists_of_a_shorter_search_are_not_chosen() -> None:
    selected = record_of({"x": 0.4, "y": 0.5, "c1": 0.9, "c2": 0.6})
    assert choose(selected, among={"x", "y", "c2"}).winner == "c2"


def test_a_row_holds_the_score_inside_its_interval() -> None:
    row = evidence({"x": coin(0.4, 1), "c1": coin(0.8, 2)}).row("c1")
    assert row["objective"] == row["tasks"]["t"]
    assert row["objective"]["low"] < row["objective"]["estimate"] < row["objective"]["high"]
    assert row["objective"]["estimate"] == pytest.approx(np.mean(coin(0.8, 2)))


def test_differences_are_paired_by_item() -> None:
    base = coin(0.5, 1)
    shifted = [value + 0.125 for value in base]
    found = evidence({"x": base, "c1": shifted}).difference("c1", ["x"])
    assert tuple(found) == pytest.approx((0.125, 0.125, 0.125))
    unpaired = evidence({"x": base, "c1": coin(0.5, 2)}).difference("c1", ["x"])
    assert unpaired.high - unpaired.low > 0.1


def test_a_candidate_does_not_differ_from_itself() -> None:
    assert tuple(evidence({"x": coin(0.5, 1)}).difference("x", ["x"])) == (0.0, 0.0, 0.0)


def test_the_difference_from_several_is_from_their_mean() -> None:
    found = evidence({"x": 0.25, "y": 0.5, "c1": 0.75}).difference("c1", PARENTS)
    assert found.estimate == pytest.approx(0.75 - 0.375)


def test_a_failed_candidate_gives_no_evidence() -> None:
    found = evidence({"x": coin(0.5, 1), "c1": None, "c2": coin(0.6, 2)})
    assert found.row("c2")["objective"]["estimate"] == pytest.approx(np.mean(coin(0.6, 2)))
    with pytest.raises(KeyError):
        found.row("c1")


def test_the_same_seed_gives_the_same_intervals() -> None:
    scores = {"x": coin(0.5, 1), "c1": coin(0.6, 2)}
    assert evidence(scores).difference("c1", ["x"]) == evidence(scores).difference("c1", ["x"])


def claimed(scores: Mapping[str, Values], openings: int = 1) -> dict[str, Any]:
    record = record_of(scores)
    choice = choose(record, among=scores)
    return claims(Evidence(record.candidates, SPLIT, OBJECTIVE, 0), choice, PARENTS, openings)


def test_claims_are_against_parent_mean_of_parents_and_baseline() -> None:
    found = claimed({"x": 0.25, "y": 0.5, "average": 0.625, "c1": 0.875})["heterosis"]
    assert {name: (claim["against"], claim["estimate"]) for name, claim in found.items()} == {
        "best_parent": ("y", 0.375),
        "mid_parent": (["x", "y"], 0.5),
        "best_baseline": ("average", 0.25),
    }


CLEAR = {"x": coin(0.2, 1), "y": coin(0.3, 2)}


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (
            {**CLEAR, "average": coin(0.4, 3), "c1": coin(0.9, 4)},
            r"^c1 beats every parent and the best baseline: best-parent heterosis \+.* against y, \+.* against average",
        ),
        (
            {**CLEAR, "average": coin(0.80, 3), "c1": coin(0.84, 8)},
            r"^c1 beats every parent \(best-parent .*\); no improvement shown over baselines \(.* against average",
        ),
        (
            {**CLEAR, "average": coin(0.9, 3), "c1": coin(0.4, 4)},
            r"^average, a baseline, is the best found and beats every parent: best-parent",
        ),
        (
            {**CLEAR, "c1": coin(0.34, 5)},
            r"^no improvement shown: c1 has best-parent heterosis .* against y on the test split; differences from 0",
        ),
        ({**CLEAR, "c1": coin(0.1, 5)}, r"^no improvement shown: y has best-parent heterosis \+0\.0000"),
    ],
)
def test_the_verdict_says_no_more_than_the_evidence(scores: Mapping[str, Values], words: str) -> None:
    found = claimed(scores)
    assert re.search(words, found["verdict"]), found["verdict"]
    best = found["heterosis"]["best_parent"]
    assert f"{best['estimate']:+.4f} [{best['low']:+.4f}, {best['high']:+.4f}]" in found["verdict"]


def test_the_best_parent_of_a_claim_is_the_best_on_the_split_itself() -> None:
    tested = record_of({"x": 0.75, "y": 0.5, "c1": 0.625})
    found = claims(Evidence(tested.candidates, SPLIT, OBJECTIVE, 0), Choice("c1", "y"), PARENTS)
    assert found["heterosis"]["best_parent"]["against"] == "x"
    assert found["heterosis"]["best_parent"]["estimate"] == -0.125
    assert found["against_each_parent"]["y"]["estimate"] == 0.125
    assert found["verdict"].startswith("no improvement shown: c1 has best-parent heterosis -0.1250")


def test_best_parent_heterosis_takes_the_lowest_bounds_and_the_largest_p_value() -> None:
    record = record_of({"x": coin(0.5, 1), "y": coin(0.52, 2), "c1": coin(0.6, 3)})
    found = evidence_of(record)
    each = [found.difference("c1", [parent]) for parent in PARENTS]
    p_values = [found.p_values("c1", parent)[0] for parent in PARENTS]
    claim = claims(found, Choice("c1", "y"), PARENTS)["heterosis"]["best_parent"]
    assert claim["estimate"] == min(interval.estimate for interval in each)
    assert claim["low"] == min(interval.low for interval in each)
    assert claim["high"] == pytest.approx(min(interval.high for interval in each), abs=0.01)
    assert claim["p"] == max(p_values)


def test_a_test_split_that_was_opened_again_is_said_so() -> None:
    assert "opened" not in claimed(CLEAR)["verdict"]
    assert "on the test split, which was opened 2 times" in claimed(CLEAR, openings=2)["verdict"]


def test_after_other_winners_were_tested_the_claim_holds_for_all_of_them() -> None:
    scores = {"x": coin(0.5, 1), "y": coin(0.5, 2), "c1": coin(0.63, 5)}
    choice = Choice("c1", "y")
    once = claims(evidence(scores), choice, PARENTS)
    others = {f"c{n}": coin(0.5, 10 + n) for n in range(2, 12)}
    again = claims(evidence({**scores, **others}), choice, PARENTS, openings=11)
    assert (once["simultaneous_over"], again["simultaneous_over"]) == (1, 11)
    narrow, wide = once["heterosis"]["best_parent"], again["heterosis"]["best_parent"]
    assert wide["estimate"] == narrow["estimate"]
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]
    assert wide["p"] > narrow["p"]


@pytest.mark.parametrize(
    ("low", "p", "shown"), [(-0.01, 0.01, False), (0.0, 0.01, False), (1e-6, 0.05, True), (1e-6, 0.06, False)]
)
def test_an_improvement_needs_an_interval_above_zero_and_a_test_that_rejects(low: float, p: float, shown: bool) -> None:
    claim = {"estimate": 0.1, "low": low, "high": 0.2, "against": "y", "p": p}
    sure = {"estimate": 0.1, "low": 0.05, "high": 0.2, "against": "y", "p": 0.001}
    over_parent = verdict(Choice("c1", "average"), {"best_parent": claim, "best_baseline": sure})
    assert over_parent.startswith("no improvement shown") != shown
    over_baseline = verdict(Choice("c1", "average"), {"best_parent": sure, "best_baseline": claim})
    assert ("no improvement shown over baselines" in over_baseline) != shown


def test_the_panel_says_what_it_could_have_resolved() -> None:
    scores = {"x": coin(0.5, 1), "y": coin(0.5, 2), "c1": coin(0.5, 3)}
    found = claims(evidence(scores), Choice("c1", "y"), PARENTS)
    best = found["heterosis"]["best_parent"]
    half_width = (best["high"] - best["low"]) / 2
    resolved = found["smallest_difference"]["objective"]
    assert resolved == pytest.approx(half_width * (1.96 + 0.84) / 1.96, rel=0.1)
    assert f"differences from {resolved:.4f} would mostly have been seen" in found["verdict"]
    itself = claims(evidence(scores), Choice("y", "y"), PARENTS)["smallest_difference"]["objective"]
    assert itself == pytest.approx(resolved, rel=0.2)


TWO = Objective("mean", {"up": TaskShare(1.0, True), "down": TaskShare(1.0, False)})


def two_tasks(scores: Mapping[str, tuple[Values, Values]]) -> Evidence:
    """Evidence on a task where higher is better and one where lower is."""
    names = ("up", "down")
    split: Any = SimpleNamespace(
        items={task: range(ITEMS) for task in names},
        tasks={task: SimpleNamespace(score=lambda mean: mean) for task in names},
        clusters={task: np.arange(ITEMS) for task in names},
    )
    record = Record(optuna.storages.InMemoryStorage(), "study", SPACE.genes)
    for label, values in scores.items():
        tables = {task: measured(value).outcomes["t"] for task, value in zip(names, values, strict=True)}
        means = {task: table.mean() for task, table in tables.items()}
        record.add(proposal(label), measured(0.0)._replace(scores=means, outcomes=tables), TWO.number(means))
    return Evidence(record.candidates, split, TWO, seed=0)


def test_each_task_is_judged_against_its_own_best_parent_in_a_word() -> None:
    found = two_tasks({"x": (coin(0.5, 1), coin(0.2, 2)), "y": (coin(0.3, 3), coin(0.5, 4)), "c1": (coin(0.8, 5),) * 2})
    told = claims(found, Choice("c1", "y"), PARENTS)["task_claims"]
    assert {task: (claim["word"], claim["against"]) for task, claim in told.items()} == {
        "up": ("better", "x"),
        "down": ("worse", "x"),
    }
    assert told["down"]["estimate"] == pytest.approx(np.mean(coin(0.2, 2)) - np.mean(coin(0.8, 5)))
    alike = two_tasks({"x": (coin(0.5, 1), 0.5), "y": (0.1, 0.9), "c1": (coin(0.5, 2), 0.5)})
    told = claims(alike, Choice("c1", "y"), PARENTS)["task_claims"]
    assert [claim["word"] for claim in told.values()] == ["not shown"] * 2


def test_scores_where_lower_is_better_keep_their_sign_in_the_table() -> None:
    row = two_tasks({"x": (0.5, coin(0.2, 2))}).row("x")["tasks"]["down"]
    assert row["estimate"] == pytest.approx(np.mean(coin(0.2, 2)))
    assert 0.0 < row["low"] < row["estimate"] < row["high"]


def test_words_are_corrected_for_the_number_of_tasks() -> None:
    found = two_tasks({"x": (coin(0.5, 1), coin(0.5, 2)), "y": (0.0, 1.0), "c1": (coin(0.62, 3), coin(0.5, 4))})
    told = claims(found, Choice("c1", "y"), PARENTS)["task_claims"]["up"]
    assert told["p_better"] == pytest.approx(min(1.0, 2 * told["p"]))


def dare(weight: float = 1.0, drop: Any = 0.5) -> Proposal:
    parameters = {"x": {"all": Parameters(weight=weight, drop=drop)}, "y": {"all": Parameters(weight=1.0)}}
    recipe = blank_with(BLANK, method="dare_ties", parameters=parameters, seed=7)
    return Proposal("c1", 1, recipe, (0.1, 0.5), {})


def test_variants_differ_from_a_finalist_in_their_masks_alone() -> None:
    own = dare()
    variants = seed_variants(own, 3)
    assert [variant.label for variant in variants] == ["c1~1", "c1~2"]
    assert len({own.recipe.seed, *(variant.recipe.seed for variant in variants)}) == 3
    for variant in variants:
        assert variant.recipe.model_copy(update={"seed": 7}) == own.recipe
        assert (variant.genome, variant.generation) == (own.genome, own.generation)
    assert seed_variants(own, 3) == variants
    assert seed_variants(own, 1) == []


@pytest.mark.parametrize(
    ("weight", "drop", "variants"), [(1.0, 0.0, 0), (0.0, 0.5, 0), (1.0, (0.0, 0.0), 0), (1.0, (0.0, 0.1), 1)]
)
def test_only_recipes_that_drop_entries_of_an_active_parent_have_variants(
    weight: float, drop: Any, variants: int
) -> None:
    assert len(seed_variants(dare(weight, drop), 2)) == variants


def test_the_spread_over_mask_seeds_is_told_and_takes_no_part_in_the_choice() -> None:
    record = record_of({"x": 0.4, "y": 0.5, "c1": 0.75, "c2": 0.7})
    for number, value in ((1, 0.5), (2, 1.0)):
        variant = Proposal(f"c1~{number}", 1, proposal("c1").recipe, (0.0, number / 10), proposal("c1").genes)
        record.add(variant, measured(value), value)
    found = seed_spread(record, {"x", "y", "c1", "c2"}, 3)
    assert found == {"c1": {"values": [0.75, 0.5, 1.0], "mean": 0.75, "sd": 0.25, "low": 0.5, "high": 1.0}}
    assert choose(record, {"x", "y", "c1", "c2"}).winner == "c1"
