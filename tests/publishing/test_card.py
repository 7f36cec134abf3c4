"""The model card: what a careful author would write, valid for the hub, and never more than is known."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from conftest import PARENTS, FamilyFolder, MakeRecipe, OpenFamily
from huggingface_hub.repocard_data import model_index_to_eval_results
from small_study import Finished

from heterosis.publishing import About, Findings, Licence, card, findings
from heterosis.recipe import Recipe
from heterosis.stored import open_stored

NUMBERS = {name: {"weight": 0.6, "density": 0.5, "drop": 0.3} for name in PARENTS}
UNKNOWN = {name: Licence("unknown") for name in ("base", *PARENTS)}
MIT = {name: Licence("mit") for name in ("base", *PARENTS)}


def front_matter(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    front: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return front


def with_sources(recipe: Recipe, base: str, *parents: str) -> Recipe:
    models = zip(recipe.parents, parents, strict=True)
    return recipe.model_copy(
        update={
            "base": recipe.base.model_copy(update={"model": base, "revision": "abc"}),
            "parents": tuple(source.model_copy(update={"model": model}) for source, model in models),
        }
    )


@pytest.fixture
def recipe(open_tiny: OpenFamily, recipe_for: MakeRecipe) -> Recipe:
    return recipe_for(open_tiny(), "dare_ties", NUMBERS)


@pytest.fixture(scope="module")
def won(finished: Finished) -> Findings:
    with open_stored(finished.folder) as study:
        return findings(study, "winner")


@pytest.fixture(scope="module")
def searched(finished: Finished) -> Findings:
    """Someone whom only the search has scored."""
    with open_stored(finished.folder) as study:
        label = next(name for name, by in study.candidates().items() if set(by) == {"search"} and name.startswith("c"))
        return findings(study, label)


def about(found: Findings) -> About:
    return About(found.candidate.recipe, str(found.candidate.weights_digest), UNKNOWN, found)


def test_hub_models_are_linked_for_the_hub(recipe: Recipe) -> None:
    text = card(About(with_sources(recipe, "owner/base", "owner/a", "owner/b", "owner/c"), "d", MIT, None))
    front = front_matter(text)
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "text-generation")
    assert front["base_model"] == ["owner/base", "owner/a", "owner/b", "owner/c"]
    assert front["base_model_relation"] == "merge"
    assert {"merge", "heterosis"} <= set(front["tags"])
    assert front["license"] == "mit"
    assert "| base | base | [owner/base](https://huggingface.co/owner/base) | abc | mit |" in text


def test_local_models_have_names_and_no_paths(recipe: Recipe, tiny_family: FamilyFolder) -> None:
    text = card(About(recipe, "d", UNKNOWN, None))
    assert "base_model" not in front_matter(text)
    assert front_matter(text)["license"] == "other"
    assert str(tiny_family()) not in text
    assert "| parent | a | a (local) |  | unknown | `" in text


def test_a_merge_by_hand_claims_nothing(recipe: Recipe) -> None:
    text = card(About(recipe, "d", MIT, None))
    assert "## Results" not in text
    assert "model-index" not in text
    assert "Nobody has measured this merge" in text


def test_the_recipe_stands_in_the_card_and_is_one(recipe: Recipe) -> None:
    text = card(About(recipe, "d", MIT, None))
    written = Recipe.parse(yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]), "card")
    assert written.digest == recipe.digest


def test_the_winner_has_its_verdict_intervals_and_history(finished: Finished, won: Findings) -> None:
    text, result = card(about(won)), finished.result
    assert f"Verdict: {result['verdict']}.".replace("[", r"\[") in text
    for label in (*PARENTS, result["best_baseline"]):
        row = next(row for row in result["table"] if row["label"] == label)["test"]["objective"]
        assert f"| {row['estimate']:.4f} [{row['low']:.4f}, {row['high']:.4f}] |" in text
    assert "The test split was opened once, after the choice." in text
    assert "search (10), selection (7), test (7)" in text
    assert f"The search proposed {won.proposed} candidates" in text
    assert str(won.candidate.weights_digest) in text


def test_the_model_index_is_one_that_the_hub_reads(finished: Finished, won: Findings) -> None:
    name, (read,) = model_index_to_eval_results(front_matter(card(about(won)))["model-index"])
    assert name == f"tiny-{won.label}"
    expected = next(row for row in finished.result["table"] if row["role"] == "winner")["test"]["tasks"]["choice"]
    assert (read.metric_type, read.metric_value) == ("acc", round(expected["estimate"], 6))
    assert read.dataset_args == {"items": 7, "num_few_shot": 0}


def test_scores_that_drove_the_search_are_no_results_for_the_hub(searched: Findings) -> None:
    text = card(about(searched))
    assert "biased upwards by selection" in text
    assert "There is no unbiased score of this merge" in text
    assert "model-index" not in front_matter(text)
    assert "items of the search split" in text


def test_a_parent_is_no_discovery(finished: Finished) -> None:
    with open_stored(finished.folder) as study:
        loser = next(parent for parent in PARENTS if parent != finished.result["winner"])
        text = card(about(findings(study, loser)))
    assert "It is a parent of the study, which nothing was searched for" in text


def test_a_parent_that_won_is_said_to_be_no_merge(finished: Finished) -> None:
    with open_stored(finished.folder) as study:
        found = findings(study, "b")
    paper = about(found)
    assert paper.copied is not None
    text = card(paper)
    assert "This is no merge: its weights are those of **b**, unchanged" in text
    assert "is a merge" not in text
    front = front_matter(text)
    assert front["tags"] == ["heterosis"]
    assert "base_model_relation" not in front
    changed = paper._replace(recipe=with_sources(paper.recipe, "owner/base", "owner/a", "owner/b", "owner/c"))
    assert front_matter(card(changed))["base_model"] == ["owner/b"]
    local = paper._replace(recipe=with_sources(paper.recipe, "owner/base", "owner/a", "/models/b", "owner/c"))
    assert "base_model" not in front_matter(card(local))


def test_the_same_evidence_gives_the_same_bytes(finished: Finished, won: Findings) -> None:
    with open_stored(finished.folder) as study:
        assert card(about(findings(study, won.label))) == card(about(won))


def test_problems_of_licences_stand_there(won: Findings) -> None:
    text = card(about(won)._replace(licences={**MIT, "a": Licence("cc-by-nc-4.0")}))
    assert front_matter(text)["license_name"] == "cc-by-nc-4.0-and-mit"
    assert "cc-by-nc-4.0 (a) allows no commercial use" in text


def test_names_stay_text(recipe: Recipe) -> None:
    nasty = recipe.model_copy(
        update={"parents": (recipe.parents[0].model_copy(update={"name": "<b>|`x"}), *recipe.parents[1:])}
    )
    nasty = nasty.model_copy(update={"parameters": {}})
    text = card(About(nasty, "d", {**MIT, "<b>|`x": Licence("<script>")}, None))
    outside = text.split("```yaml")[0] + text.split("</details>")[1]
    assert "<b>" not in outside
    assert "<script>" not in outside.split("---\n", 2)[2]
    row = next(line for line in outside.splitlines() if line.startswith("| parent | &lt;b"))
    assert row.replace(r"\|", "").count("|") == 7
