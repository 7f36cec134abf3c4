"""What the lineage says in words: the descriptions that MLflow shows of runs and registered models, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heterosis.evaluation.panel import SPLITS
from heterosis.ledger.merges import Merge
from heterosis.recipe import Source

LONGEST = 5000


def study_note(name: str, config: Mapping[str, Any], sources: Sequence[Source], panel: Mapping[str, Any]) -> str:
    """The study's run while it runs: what is merged, what is asked."""
    tasks = ", ".join(f"`{task}`" for task in panel["splits"]["search"])
    sizes = ", ".join(f"{split} {sum(map(len, panel['splits'][split].values()))}" for split in SPLITS)
    lines = [
        f"**{_cell(name)}** searches how to merge {_names(sources[1:])}"
        + (f" by `{config['method']}`." if config.get("method") else "."),
        _table_of(sources),
        f"Objective: {config.get('objective', 'mean')} over {tasks}; items: {sizes}.",
        "Each merge is a child run: genes are params, scores are metrics (`search/objective`), its recipe an artifact.",
    ]
    return _bounded(lines)


def sweep_note(name: str, config: Mapping[str, Any], sources: Sequence[Source], panel: Mapping[str, Any]) -> str:
    """A sweep's run: what varies, what is asked."""
    tasks = ", ".join(f"`{task}`, {len(items)} items" for task, items in panel["splits"]["search"].items())
    curves = ", ".join(_cell(curve) for curve in config["sweep"].get("curves") or {})
    lines = [
        f"**{_cell(name)}** shows how merges of {_names(sources[1:])} answer to their parameters"
        + (f": {curves}." if curves else "."),
        _table_of(sources),
        f"Scored on {tasks}.",
        "Each merge is a child run: its place on the curves is params, scores are metrics, its recipe is an artifact.",
        "The artifact sweep.html has the curves with their errors.",
    ]
    return _bounded(lines)


def _names(sources: Sequence[Source]) -> str:
    return ", ".join(_cell(source.name) for source in sources)


def _table_of(sources: Sequence[Source]) -> str:
    """The base and its parents."""
    base, *parents = sources
    rows = ["| | model | weights |", "|---|---|---|"]
    for role, source in (("base", base), *(("parent", parent) for parent in parents)):
        revision = f"@{source.revision}" if source.revision else ""
        rows.append(f"| {role} {_cell(source.name)} | {_cell(source.model + revision)} | `{source.digest[:16]}` |")
    return "\n".join(rows)


def merge_note(merge: Merge, run_id: str, kind: str = "study") -> str:
    """A merge's run: what it is, its scores on every split, and how to build it again."""
    first = merge.first
    parents = _names(first.recipe.parents)
    origin = "a baseline" if first.is_baseline else f"generation {first.generation}"
    origin = "of a sweep" if kind == "sweep" else origin
    lines = [f"**{_cell(first.label)}**, {origin}: `{first.recipe.method}` of {parents}."]
    known = merge.by_split | ({} if merge.later is None else {"search": merge.later})
    scored = {split: candidate for split, candidate in known.items() if candidate.value is not None}
    lines += [f"Failed on {s}: {_cell(c.error)}" for s, c in merge.by_split.items() if c.error is not None]
    if scored:
        tasks = list(next(iter(scored.values())).scores)
        rows = ["| split | objective | " + " | ".join(map(_cell, tasks)) + " |", "|---|---|" + "---|" * len(tasks)]
        for split, candidate in reversed(scored.items()):  # MLflow folds descriptions: what counts most comes first
            scores = " | ".join(f"{candidate.scores[task]:.4f}" for task in tasks)
            part = " (estimate)" if candidate.is_partial else ""
            rows.append(f"| {split}{part} | {candidate.value:.4f} | {scores} |")
        lines.append("\n".join(rows))
    if first.weights_digest:
        lines.append(
            f"Build it again, from its sources, and compare digests:\n\n    heterosis reproduce {run_id} OUT "
            "--tracking URI-OF-THIS-MLFLOW"
        )
    return _bounded(lines)


def result_note(name: str, result: Mapping[str, Any], experiment: str, winner_run: str) -> str:
    """The study's run when it has ended: the verdict, who won, and the scores on the test split."""
    run = f"#/experiments/{experiment}/runs/{winner_run}"
    champion = f"[{_cell(name)}@champion](#/models/{name})"
    lines = [
        f"**{_cell(str(result['verdict']))}.**",
        f"Winner: [{_cell(result['winner'])}]({run}), registered as {champion}.",
    ]
    tested = [row for row in result.get("table", ()) if "test" in row]
    if tested:
        tasks = list(tested[0]["test"]["tasks"])
        rows = [
            "| test split | | objective | " + " | ".join(map(_cell, tasks)) + " |",
            "|---|---|---|" + "---|" * len(tasks),
        ]
        for row in tested:
            found = [row["test"]["objective"], *(row["test"]["tasks"][task] for task in tasks)]
            cells = " | ".join(f"{each['estimate']:.4f} [{each['low']:.4f}, {each['high']:.4f}]" for each in found)
            rows.append(f"| {_cell(row['label'])} | {row['role']} | {cells} |")
        lines.append("\n".join(rows))
    lines.append("Artifacts: the study, its panel and, where they were written, report.html and the winner's card.")
    return _bounded(lines)


def registry_note(name: str) -> str:
    """The registered model of a study."""
    return (
        f"Winners of the study {name}: one version for each merge that won, `champion` being the latest result's. The "
        "weights are not copied here; the source run's recipe.yaml and the digests of its sources give them again."
    )


def _bounded(lines: Sequence[str]) -> str:
    """Paragraphs, as far as MLflow has room for them in a tag."""
    text = "\n\n".join(lines)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", r"\|")
