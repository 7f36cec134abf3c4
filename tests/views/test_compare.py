"""Two candidates against each other, as `heterosis compare` has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from small_study import Finished
from stopped_study import printed, stopped

from heterosis.errors import StudyError
from heterosis.stored import open_stored
from heterosis.views import compare
from heterosis.views.pairs import paired
from heterosis.views.tables import show_comparison


def test_a_difference_on_the_test_split_is_the_claims(finished: Finished) -> None:
    result = finished.result
    for parent, claim in result["against_each_parent"].items():
        if parent != result["winner"]:
            test = compare(finished.folder, result["winner"], parent).splits["test"].objective
            assert test.estimate == pytest.approx(claim["estimate"])
            assert result["simultaneous_over"] == 1
            assert (test.low, test.high, test.p_better) == (claim["low"], claim["high"], claim["p"])


def test_the_other_way_round_is_the_opposite(finished: Finished) -> None:
    one, other = compare(finished.folder, "a", "average"), compare(finished.folder, "average", "a")
    for split in one.splits:
        for ours, theirs in (
            (one.splits[split].objective, other.splits[split].objective),
            *((one.splits[split].tasks[task], other.splits[split].tasks[task]) for task in one.splits[split].tasks),
        ):
            assert ours.estimate == pytest.approx(-theirs.estimate)
            assert (ours.low, ours.high) == pytest.approx((-theirs.high, -theirs.low))
            assert (ours.items_better, ours.items_worse) == (theirs.items_worse, theirs.items_better)
            assert (ours.p_better, ours.p_worse) == pytest.approx((theirs.p_worse, theirs.p_better))
    assert {change.largest for change in one.changes} == {change.largest for change in other.changes}


def test_items_that_differ_account_for_the_difference(finished: Finished) -> None:
    found = compare(finished.folder, "a", "average").splits["search"]
    for difference in found.tasks.values():
        assert difference.items == found.of
        assert difference.estimate == pytest.approx((difference.items_better - difference.items_worse) / found.of)
        assert difference.estimate == pytest.approx(difference.first - difference.second)


def test_a_stopped_candidate_is_compared_on_what_both_answered(finished: Finished, tmp_path: Path) -> None:
    folder = stopped(finished, tmp_path / "run", 3, partial="c2")
    with open_stored(folder) as study:
        partial = study.candidates()["c2"]["search"]
        parent = study.records["search"].baselines[0]
        pair = paired(partial, parent, study.items["search"], study.objective, 0)
        assert pair is not None
        assert pair.items == partial.known
        (task,) = study.items["search"].clusters
        answered = ~np.isnan(partial.outcomes[task].values)
        assert pair.other.scores[task] == pytest.approx(parent.outcomes[task].values[answered].mean())
    found = compare(folder, partial.label, parent.label).splits["search"]
    assert (found.items, found.of) == (pair.items, study.items["search"].size)
    assert found.caveat is not None
    assert found.caveat.startswith("selection-biased")


def test_nothing_shared_is_no_comparison(finished: Finished, tmp_path: Path) -> None:
    with open_stored(stopped(finished, tmp_path / "run", 3, partial="c2")) as study:
        partial = study.candidates()["c2"]["search"]
        other = study.records["search"].baselines[0]
        for task, table in partial.outcomes.items():
            rest = np.where(np.isnan(table.values), other.outcomes[task].values, np.nan)
            other.outcomes[task] = table._replace(values=rest)
        assert paired(partial, other, study.items["search"], study.objective, 0) is None


def test_splits_that_one_has_not_seen_are_named(finished: Finished) -> None:
    with open_stored(finished.folder) as study:
        label = next(name for name, splits in study.candidates().items() if set(splits) == {"search"})
    found = compare(finished.folder, label, "a")
    assert set(found.splits) == {"search"}
    assert found.not_compared["test"] == f"{label} was not scored on it"


def test_a_finer_recipe_is_compared_group_by_group(finished: Finished) -> None:
    found = compare(finished.folder, "a", "task_arithmetic(0.5)")
    assert {(change.owner, change.quantity, change.largest) for change in found.changes} == {
        ("a", "weight", 0.5),
        ("b", "weight", 0.5),
        ("c", "weight", 0.5),
    }


def test_a_candidate_is_not_compared_with_itself(finished: Finished) -> None:
    with pytest.raises(StudyError, match=r"winner and .* are both"):
        compare(finished.folder, "winner", finished.result["winner"])


def test_it_is_read_at_eighty_columns_and_by_programs(finished: Finished, heterosis: Command) -> None:
    with open_stored(finished.folder) as study:
        names = [c.label for c in study.records["search"].proposed[:2]]
    found = compare(finished.folder, *names)
    text = printed(show_comparison, found)
    assert max(len(line) for line in text.splitlines() if not line.startswith(("selection-biased", names[0]))) <= 80
    assert "selection-biased: the search chose" in text
    code, out, err = heterosis("compare", finished.folder, *names, "--format", "json")
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert content["splits"]["search"]["objective"]["estimate"] == found.splits["search"].objective.estimate
    assert heterosis("compare", finished.folder, *names)[0] == 0
