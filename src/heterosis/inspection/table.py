"""A survey on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from heterosis.inspection.geometry import LARGE, SAFE
from heterosis.inspection.records import Level, Region, Size, Survey
from heterosis.inspection.wording import (
    HEADLINES,
    MARKS,
    SIGNS,
    difference,
    percent,
    printable,
    ratio,
    small,
    span,
)

STYLES: dict[Level, str] = {"good": "green", "note": "cyan", "caution": "yellow", "warn": "bold red"}
SHOWN = 5
WIDEST = 12
SHARED = ("cosine", "conflict", "lost")
LEGEND = (
    f"!  more than 1% of the entries beyond {SAFE}     !!  beyond {LARGE}\n"
    "conflict: of the entries that two or more parents change, those where signs differ\n"
    "lost: share of the task vectors' mass that a sign election (TIES) discards"
)


def render(survey: Survey, console: Console) -> None:
    """Print a survey: what differs, the whole model, each depth and group, and advice last, where the eye rests."""
    if survey.differences:
        console.print(_differences(survey), "")
    parents = list(survey.overall.sizes)
    for some in _batched(parents, max(1, (console.width - 28) // (WIDEST + 2))):
        console.print(_overall(survey, some), "")
    if survey.overall.pairs:
        console.print(_pairs(survey), "")
    for some in _batched(parents, max(1, (console.width - 46) // (WIDEST + 2))):
        console.print(_regions(survey, some), "")
    console.print(Text(LEGEND, style="dim"))
    console.print()
    console.print(Text(HEADLINES[survey.verdict], style=STYLES[survey.verdict]))
    advice = Table.grid(padding=(0, 2))
    for line in survey.advice:
        advice.add_row(Text(MARKS[line.level], style=STYLES[line.level]), Text(line.text))
    console.print(advice)


def _batched(names: Sequence[str], size: int) -> list[Sequence[str]]:
    """As many parents side by side as fit the terminal."""
    return [names[start : start + size] for start in range(0, len(names), size)]


def _differences(survey: Survey) -> Table:
    table = Table(title=Text("Differences from the base", style="bold"), title_justify="left", box=None, pad_edge=False)
    table.add_column(Text("parent", style="dim"), max_width=24, overflow="fold")
    table.add_column(Text("difference", style="dim"), overflow="fold")
    for (parent, _), group in groupby(survey.differences, key=lambda found: (found.parent, found.kind)):
        found = list(group)
        for one in found[:SHOWN]:
            table.add_row(_name(parent), Text(difference(one), style="" if one.harmless else "yellow"))
        if len(found) > SHOWN:
            table.add_row(_name(parent), Text(f"and {len(found) - SHOWN} more of this kind", style="dim"))
    return table


def _overall(survey: Survey, parents: Sequence[str]) -> Table:
    sizes = [survey.overall.sizes[name] for name in parents]
    table = _table("Task vectors, whole model", ["", *map(_folded, parents)])
    rows: list[tuple[str, Callable[[Size], str]]] = [
        ("mean |δ|", lambda size: small(size.mean)),
        ("RMS of δ", lambda size: small(size.rms)),
        ("99% of |δ| within", lambda size: small(size.p99)),
        ("largest |δ|", lambda size: small(size.largest)),
        ("||δ|| / ||θ₀||", lambda size: percent(size.relative)),
        (f"entries beyond {SAFE}", lambda size: percent(size.beyond_safe / size.entries)),
        (f"entries beyond {LARGE}", lambda size: percent(size.beyond_large / size.entries)),
        ("entries equal to the base's", lambda size: percent(size.zeros / size.entries)),
        ("effective density", lambda size: percent(size.effective_density)),
    ]
    for head, show in rows:
        table.add_row(head, *map(show, sizes))
    table.add_row("DARE's range", *(Text(MARKS[size.verdict], style=STYLES[size.verdict]) for size in sizes))
    return table


def _pairs(survey: Survey) -> Table:
    table = _table("Pairs, whole model", ["parents", "cosine", "sign conflict"])
    for pair in survey.overall.pairs:
        names = Text(f"{printable(pair.first)}, {printable(pair.second)}", overflow="fold")
        table.add_row(names, ratio(pair.cosine), percent(pair.conflict))
    if survey.overall.crowd is not None and len(survey.parents) > 2:
        table.add_row(Text("all of them"), "", percent(survey.overall.crowd.conflict))
    return table


def _regions(survey: Survey, parents: Sequence[str]) -> Table:
    heads = ["layer", "group", *map(_folded, parents)]
    together = bool(survey.overall.pairs) and parents[0] == next(iter(survey.parents))
    table = _table("Mean |δ| by depth and group", [*heads, *SHARED] if together else heads, left=2)
    shown: int | None = None
    for region in survey.regions:
        layer = "" if region.layer in (None, shown) else str(region.layer)
        shown = region.layer
        cells = [_cell(region.sizes.get(parent)) for parent in parents]
        table.add_row(layer, region.group, *cells, *(_together(region) if together else ()))
    return table


def _cell(size: Size | None) -> Text:
    if size is None:
        return Text("-", style="dim")
    return Text(small(size.mean) + SIGNS[size.verdict], style=STYLES[size.verdict])


def _together(region: Region) -> tuple[str, str, str]:
    crowd = region.crowd
    return span(region), percent(crowd.conflict if crowd else None), percent(crowd.loss if crowd else None)


def _name(name: str) -> Text:
    return Text(printable(name), overflow="fold")


def _table(title: str, heads: Sequence[str], left: int = 1) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(Text(head, style="dim"), justify="left" if i < left else "right", no_wrap=True)
    return table


def _folded(name: str) -> str:
    """A name as the head of a narrow column."""
    text = printable(name)
    return "\n".join(text[start : start + WIDEST] for start in range(0, len(text), WIDEST))
