"""The verdict, and what a reader must know beside it, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from heterosis.finals import ERROR
from heterosis.inspection.records import Advice, Level
from heterosis.inspection.wording import listed, printable
from heterosis.ledger.redact import masked
from heterosis.report.view import View
from heterosis.summary import signed


class Verdict(NamedTuple):
    """The result in a word and in a sentence."""

    level: Level
    word: str
    sentence: str


def verdict(view: View) -> Verdict:
    """What a study has shown; a study under way has shown nothing yet."""
    result = view.result
    if result is None:
        return Verdict("note", "no verdict yet", f"The study is under way: {_progress(view)}. Scores so far are below.")
    sentence = _sentence(str(result["verdict"]))
    if not _shown(result["heterosis"]["best_parent"]):
        return Verdict("warn", "no improvement shown", sentence)
    if result["winner"] == result["best_baseline"]:
        return Verdict("caution", "a baseline won", sentence)
    if not _shown(result["heterosis"]["best_baseline"]):
        return Verdict("caution", "better than every parent, not shown better than baselines", sentence)
    return Verdict("good", "improvement shown", sentence)


def _shown(claim: Mapping[str, Any]) -> bool:
    return bool(claim["low"] > 0.0 and claim["p"] <= ERROR)


def _sentence(text: str) -> str:
    start = text[0].upper() if text.startswith("no improvement") else text[0]
    return f"{start}{text[1:]}."


def _progress(view: View) -> str:
    budget, records = view.stored.config.budget, view.stored.records
    if records["test"].candidates:
        return "the test split is being scored"
    if records["selection"].candidates:
        return "the search is over, and the selection split is being scored"
    count = len(view.seen)
    if budget.candidates is not None:
        return f"{count} of {budget.candidates} candidates are scored"
    spent = view.seen[-1].spent if view.seen else sum(c.items for c in view.baselines)
    of = f" of {budget.items:,}" if budget.items is not None else ""
    return f"{count} candidates are scored, with {spent:,}{of} items"


def notices(view: View) -> list[Advice]:
    """What matters beside the verdict, the weightiest first."""
    found = [*_about_test(view), *_about_claims(view), *_about_scores(view), *_about_luck(view)]
    order: list[Level] = ["warn", "caution", "note", "good"]
    return sorted(found, key=lambda each: order.index(each.level))


def _about_test(view: View) -> Iterator[Advice]:
    """How often the test split was opened, and whether the result is that of the record."""
    openings = view.stored.records["test"].noted("openings") or []
    result = view.result
    if len(openings) > 1:
        over = 1 if result is None else result["simultaneous_over"]
        hold = f" Its intervals and p-values hold for the {over} proposals it has scored, at once." if over > 1 else ""
        yield Advice(
            "warn",
            f"The test split was opened {len(openings)} times. A result that was looked at and then searched on is "
            f"weaker than one that was not.{hold}",
        )
    elif openings and result is not None:
        count = len(openings[0]["candidates"])
        yield Advice("good", f"The test split was opened once, for {count} models, after the winner had been chosen.")
    elif openings:
        yield Advice("caution", "The test split has been opened, but the study has not ended. Run it again to finish.")
    if result is not None:
        known, now = result["time"]["candidates"], len(view.stored.records["search"].candidates)
        if now > known:
            yield Advice(
                "warn",
                f"The search has gone on since: the verdict is from {known} merges, the plots show {now}. Run the "
                "study to its end for a new one.",
            )


def _about_claims(view: View) -> Iterator[Advice]:
    result = view.result
    if result is None:
        return
    for bound in result["constraints"]:
        task, score, limit = printable(bound["task"]), bound["score"], bound["limit"]
        if bound["met"]:
            yield Advice("good", f"Constraint on {task} kept: {score:.4f} where {limit:.4f} is asked (test split).")
        else:
            yield Advice("warn", f"Constraint on {task} NOT kept: {score:.4f} where {limit:.4f} is asked (test split).")
    if result["winner"] in view.stored.config.parents:
        yield Advice(
            "warn",
            f"The winner is a parent itself: no merge scored higher than {result['winner']} on the selection split, so "
            "there is nothing to gain from merging here that this study could find.",
        )
    worse = {task: claim for task, claim in result["task_claims"].items() if claim["word"] == "worse"}
    if worse:
        said = [f"{printable(task)} ({signed(claim)} against {claim['against']})" for task, claim in worse.items()]
        yield Advice(
            "caution",
            f"Worse than the parent that is best at it, task by task: {listed(said)}. The objective weighs all tasks; "
            "whoever needs one of these alone is better served by its parent.",
        )
    smallest = result["smallest_difference"]["objective"]
    if smallest:
        yield Advice(
            "note",
            f"The test split shows a true difference of {smallest:.4f} in the objective four times in five; smaller "
            "ones would mostly go unseen.",
        )
    if result.get("front"):
        yield Advice(
            "note",
            f"Pareto study: on the selection split nobody beats {listed(list(result['front']))} beyond doubt "
            f"(hypervolume over the worst parents {result['hypervolume']:.4f}).",
        )


def _about_scores(view: View) -> Iterator[Advice]:
    """What the scores of the search are worth."""
    record = view.stored.records["search"]
    for warning in record.noted("contamination") or ():
        yield Advice("warn", f"Contamination: {printable(masked(str(warning)))}")
    for task, about in (record.noted("anchors") or {}).items():
        error = about.get("error")
        said = "their error could not be measured" if error is None else f"error ±{error['rms']:.4f} (root mean square)"
        count = len(about["items"])
        yield Advice("caution", f"{printable(task)}: search scores are estimates from {count} anchor items; {said}.")
    partial = [seen for seen in view.scored if seen.known < view.total]
    if partial:
        yield Advice(
            "note",
            f"{len(partial)} of {len(view.scored)} candidates answered a part of the {view.total} search items. Their "
            "scores are estimates, marked ≈ in tables and hollow in plots, and hold more luck.",
        )
    if view.failed:
        first = view.failed[0]
        yield Advice(
            "caution",
            f"{len(view.failed)} of {len(record.candidates)} merges could not be scored; the first, {first.label}: "
            f"{printable(masked(first.error or 'no reason recorded'))}",
        )


def _about_luck(view: View) -> Iterator[Advice]:
    result = view.result
    if result is None:
        yield Advice(
            "caution", "All scores of the search split are selection-biased: the best so far is also the luckiest."
        )
        return
    luck = result["search_optimism"]
    if luck is not None and luck["estimate"] <= 0.0:
        luck = None
    if luck is not None:
        yield Advice(
            "note",
            f"On the search split {luck['candidate']} looked {luck['estimate']:+.4f} better than {luck['against']}; "
            f"{luck['optimism']:.4f} of that is the luck of being the best of {luck['candidates']}.",
        )
    spread = result["mask_seeds"].get(result["winner"])
    if spread is not None:
        yield Advice(
            "note",
            f"Over {len(spread['values'])} seeds of its random masks {result['winner']} scores {spread['mean']:.4f} on "
            f"average, from {spread['low']:.4f} to {spread['high']:.4f} (selection split).",
        )
