"""What a person reads when a study has ended: scores, claims, and what they are worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show_result(result: Mapping[str, Any], console: Console) -> None:
    """Tables first, the verdict last, then where everything lies."""
    console.print(result_table(result, narrow=console.width < 110))
    console.print(task_table(result))
    for line in (*_search_lines(result), *_claim_lines(result), *_warnings(result)):
        console.print(escape(line))
    console.print(f"\n[bold]{escape(result['verdict'])}[/bold]\n")
    for path, what in _files(Path(result["winner_folder"]).parent):
        if path.exists():
            console.print(f"  {escape(str(path))}  {escape(what)}", soft_wrap=True, highlight=False)


def result_table(result: Mapping[str, Any], narrow: bool = False) -> Table:
    """Winner, parents, baselines and finalists on every split; `narrow` puts intervals on lines of their own."""
    table = Table(
        title=f"{result['study']}: objective ({result['objective']}) by split, 95 % intervals over items",
        box=box.SIMPLE_HEAD if narrow else box.HEAVY_HEAD,
        pad_edge=not narrow,
    )
    between = "\n" if narrow else " "
    table.add_column("candidate", overflow="fold")
    table.add_column("role", no_wrap=True)
    for split in ("search", "selection", "test"):
        table.add_column(f"{split}{between}({result['items'][split]} items)", justify="right", no_wrap=True)
    for row in result["table"]:
        cells = [
            _cell(row[split], result["items"][split], between) if split in row else ""
            for split in ("search", "selection", "test")
        ]
        table.add_row(row["label"], row["role"], *cells, style="bold" if row["role"] == "winner" else None)
    return table


def _cell(scored: Mapping[str, Any], items: int, between: str) -> str:
    found, known = scored["objective"], scored["items"]
    few = f"{between}on {known}" if known < items else ""
    return f"{found['estimate']:.4f}{between}\\[{found['low']:.4f}, {found['high']:.4f}]{few}"


def task_table(result: Mapping[str, Any]) -> Table:
    """The winner against the parent that is best at each task, on the test split, corrected for several tasks."""
    table = Table(title=f"{result['winner']} against the parent best at each task: test split, p after Holm")
    for column in ("task", "parent", "difference", "p better", "p worse", "", "could show"):
        table.add_column(column, justify="left" if column in ("task", "parent", "") else "right")
    for task, claim in result["task_claims"].items():
        table.add_row(
            escape(task),
            escape(claim["against"]),
            escape(signed(claim)),
            f"{claim['p_better']:.3g}",
            f"{claim['p_worse']:.3g}",
            claim["word"],
            _difference(claim["smallest_difference"]),
        )
    return table


def _search_lines(result: Mapping[str, Any]) -> Iterator[str]:
    spent = result["time"]
    shares = ", ".join(f"{phase} {spent[phase]:.1f} s" for phase in ("merge", "swap", "score", "rest"))
    yield (
        f"{spent['candidates']} candidates, {spent['items']} items in {spent['total']:.1f} s: {shares} "
        f"({spent['rest_share']:.1%} outside merging, swapping and scoring)"
    )
    luck = result["search_optimism"]
    if luck is not None and luck["estimate"] <= 0.0:
        yield f"search split: nothing that the search proposed looked better than {luck['against']}"
    elif luck is not None:
        yield (
            f"search split: {luck['candidate']} looked {luck['estimate']:+.4f} better than {luck['against']}; "
            f"{luck['optimism']:.4f} of that is being the luckiest of {luck['candidates']}"
        )
    for task, about in result["anchors"].items():
        if about["error"] is not None:
            yield f"anchors: {task} on {about['count']} items, error of the estimates ±{about['error']['rms']:.4f}"
    spread = result["mask_seeds"].get(result["winner"])
    if spread is not None and len(spread["values"]) > 1:
        yield (
            f"masks: over {len(spread['values'])} seeds {result['winner']} scores {spread['mean']:.4f} on average, "
            f"from {spread['low']:.4f} to {spread['high']:.4f} (standard deviation {spread['sd']:.4f}), selection split"
        )


def _claim_lines(result: Mapping[str, Any]) -> Iterator[str]:
    if result.get("front"):
        yield (
            f"Pareto front on the selection split, none beaten beyond doubt: {', '.join(result['front'])} "
            f"(hypervolume over the worst parents {result['hypervolume']:.4f})"
        )
    for name, found in result["heterosis"].items():
        against = found["against"] if isinstance(found["against"], str) else "mean of the parents"
        chance = f", p = {found['p']:.3g}" if found.get("p") is not None else ""
        yield f"{name.replace('_', '-')}: {signed(found)} against {against}{chance}, test split"
    yield f"smallest difference that this panel shows four times in five: {_difference(_smallest(result))}"
    for bound in result["constraints"]:
        kept = "kept" if bound["met"] else "NOT kept"
        asked = f"{bound['score']:.4f} where {bound['limit']:.4f} is asked"
        yield f"constraint on {bound['task']}: {kept}, {asked}, test split"


def _warnings(result: Mapping[str, Any]) -> Iterator[str]:
    for warning in result["contamination"] or ():
        yield f"warning: {warning}"
    if len(result["test_openings"]) > 1:
        yield f"warning: the test split was opened {len(result['test_openings'])} times"


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "report.html", "the report: open it in a browser"
    yield folder / "winner", "the winning model, its card and its recipe"
    yield folder / "result.json", "every number above"
    yield folder / "record.db", f"the search: optuna-dashboard sqlite:///{folder / 'record.db'}"
    yield folder / "lineage.db", f"the lineage: mlflow ui --backend-store-uri sqlite:///{folder / 'lineage.db'}"


def signed(found: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    return f"{found['estimate']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def _smallest(result: Mapping[str, Any]) -> float | None:
    found: float | None = result["smallest_difference"]["objective"]
    return found


def _difference(amount: float | None) -> str:
    """A split on which all answered alike shows no difference, of whatever size."""
    return "-" if not amount else f"{amount:.4f}"
