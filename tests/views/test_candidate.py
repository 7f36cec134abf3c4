"""One candidate, as `heterosis show` has it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Command
from small_study import PARENTS, Finished
from stopped_study import printed, stopped

from heterosis.errors import StudyError
from heterosis.recipe import Recipe
from heterosis.search import Budget
from heterosis.stored import open_stored
from heterosis.views import Tracker, show
from heterosis.views.candidate import profiles
from heterosis.views.tables import bars, show_candidate, standing


def test_scores_are_those_of_the_result(finished: Finished) -> None:
    rows = {row["label"]: row for row in finished.result["table"]}
    winner = show(finished.folder, "winner")
    assert winner.label == finished.result["winner"]
    for split in ("selection", "test"):
        row = rows[winner.label][split]
        assert winner.splits[split].objective == row["objective"]
        assert winner.splits[split].tasks == row["tasks"]
        assert winner.splits[split].items == winner.splits[split].of
    assert winner.weights_digest == finished.result["weights_digest"]


def test_a_part_is_as_good_as_a_label(finished: Finished) -> None:
    assert show(finished.folder, "baseline").label == finished.result["best_baseline"]
    assert show(finished.folder, "parent").label in PARENTS
    assert show(finished.folder, "best").label == finished.result["winner"]
    roles = {name: show(finished.folder, name).role for name in (*PARENTS, "average", "best")}
    assert {roles[name] for name in PARENTS} <= {"parent", "winner, a parent"}
    assert roles["average"] in ("baseline", "winner, a baseline")
    assert f"winner, a {'parent' if finished.result['winner'] in PARENTS else 'baseline'}" in roles.values()


def test_an_unknown_name_is_answered_with_the_nearest(finished: Finished) -> None:
    with pytest.raises(StudyError, match=r"no candidate avrage; did you mean average\?"):
        show(finished.folder, "avrage")
    with pytest.raises(StudyError, match=r"no candidate zzz; it has a, b, c, .*winner"):
        show(finished.folder, "zzz")


def test_a_study_under_way_has_no_winner_yet(finished: Finished, tmp_path: Path) -> None:
    folder = stopped(finished, tmp_path / "run", 4)
    with pytest.raises(StudyError, match="no winner yet"):
        show(folder, "winner")
    assert show(folder, "best").label in ("c1", "c2", "c3", "c4")
    with pytest.raises(StudyError, match="the winner, or the best so far is not known yet"):
        show(stopped(finished, tmp_path / "none", 0), "best")


def test_a_failed_candidate_is_shown_with_its_reason(finished: Finished, tmp_path: Path) -> None:
    found = show(stopped(finished, tmp_path / "run", 4, failing="c3"), "c3")
    assert found.splits["search"].objective is None
    text = printed(show_candidate, found)
    assert "search split: the engine [died]" in text
    assert "never merged" in text


def test_an_estimate_is_said_to_be_one(finished: Finished, tmp_path: Path) -> None:
    found = show(stopped(finished, tmp_path / "run", 3, partial="c2"), "c2")
    scored = found.splits["search"]
    assert scored.items < scored.of
    text = printed(show_candidate, found)
    assert f"{scored.items} of {scored.of}, estimated" in text
    assert f"1 rung, {scored.items} of {scored.of} items, surely not among the better half" in " ".join(text.split())
    assert max(map(len, text.partition("next:")[0].splitlines())) <= 80


def test_profiles_hold_the_recipes_own_numbers(finished: Finished) -> None:
    with open_stored(finished.folder) as study:
        candidate, space = study.records["search"].proposed[0], study.config.resolved_space
        found = profiles(candidate.recipe, space)
    for profile in found:
        numbers = getattr(candidate.recipe.parameters[profile.owner][profile.group], profile.quantity)
        assert profile.values == (numbers if isinstance(numbers, tuple) else (numbers,))
        assert profile.low <= min(profile.values) <= max(profile.values) <= profile.high
    assert {(p.owner, p.quantity) for p in found} == {(n, q) for n in PARENTS for q in ("weight", "density", "drop")}


def test_bars_rise_with_their_values_and_stay_on_the_scale() -> None:
    assert bars([0.0, 0.5, 1.0], 0.0, 1.0) == "▁▅█"
    assert bars([-5.0, 5.0], 0.0, 1.0) == "▁█"
    assert bars([0.3], 0.3, 0.3) == "▁"
    assert len(bars(range(80), 0.0, 80.0)) == 32


def test_the_printed_recipe_is_the_candidates(finished: Finished, heterosis: Command, tmp_path: Path) -> None:
    code, out, err = heterosis("show", finished.folder, "winner", "--recipe")
    assert (code, err) == (0, "")
    (tmp_path / "recipe.yaml").write_text(out)
    assert Recipe.load(tmp_path / "recipe.yaml").digest == finished.result["recipe_digest"]
    assert out == (finished.folder / "winner" / "recipe.yaml").read_text()


def test_programs_get_everything_as_json(finished: Finished, heterosis: Command) -> None:
    code, out, _ = heterosis("show", finished.folder, "winner", "--format", "json")
    content = json.loads(out)
    assert code == 0
    assert content["label"] == finished.result["winner"]
    assert Recipe.parse(content["recipe"], "json").digest == finished.result["recipe_digest"]


def test_an_estimate_from_anchors_shows_its_own_error(finished: Finished, tmp_path: Path) -> None:
    with open_stored(stopped(finished, tmp_path / "run", 1, partial="c1")) as study:
        baselines = study.records["search"].baselines
        estimated = replace(study.candidates()["c1"]["search"], race={"place": "anchors", "error": 0.0321})
        tracker = Tracker(study.items["search"], study.objective, PARENTS, Budget(9, None, None), 0)
        found = tracker.progress([*baselines, estimated]).best
    assert found is not None
    assert (found.low, found.high, found.error) == (None, None, 0.0321)
    assert "± 0.0321 (estimated from anchors) (c1, " in standing(found, 100)
