"""A sweep on the terminal, and as a table for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from heterosis.sweep.panels import Panel, Report, lost, place_text, score_panels, similarity_panels
from heterosis.sweep.report import spread

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLUMNS = (
    "role", "curve", "subject", "masks", "measure", "task", "original", "layer", "value", "low", "high", "mask_low",
    "mask_high", "difference", "difference_low", "difference_high", "against", "error",
)  # fmt: skip


def show(report: Report, console: Console) -> None:
    """A table for each subject and task: places down, lines across; then the last hidden states."""
    for panels in score_panels(report).values():
        for panel in panels:
            console.print(_score_table(report, panel))
    for panels in similarity_panels(report).values():
        for panel in panels:
            console.print(_table(panel, lambda mark: f"{mark.value:.4f}"))
    console.print(f"[dim]{EXPLAINED}[/dim]", soft_wrap=True)
    failed = [point for point in report["points"] if "error" in point]
    if failed:
        from rich.markup import escape

        console.print(f"[yellow]{len(failed)} points failed:[/yellow] {escape(failed[0]['error'])}", soft_wrap=True)


EXPLAINED = (
    "Scores are means over mask seeds. In brackets the difference from the original, on the same items; * a loss is "
    "shown: its 95 % interval over items, simultaneous over the curve, lies wholly on the worse side."
)


def _score_table(report: Report, panel: Panel) -> Table:
    from rich.markup import escape

    levels = ", ".join(f"{label} {level:.4f}" for label, level in panel.levels.items())

    def cell(mark: Any) -> str:
        difference = mark.row["difference"]["estimate"]
        return f"{mark.value:.4f} ({difference:+.4f}){'*' if lost(report, mark, panel.task) else ' '}"

    table = _table(panel, cell)
    table.title = escape(f"{panel.title}: {panel.note}; {levels}")
    return table


def _table(panel: Panel, cell: Any) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(panel.title), title_justify="left", title_style="bold")
    table.add_column(escape(panel.x), justify="right")
    for line in panel.lines:
        table.add_column(escape(line.label), justify="right")
    for place in panel.places:
        cells = [cell(line.marks[place]) if place in line.marks else "" for line in panel.lines]
        table.add_row(escape(place_text(place)), *cells)
    return table


def to_csv(report: Report) -> str:
    """Tidy: one row for each score and each cosine, what varies in columns of its own."""
    axes = list(dict.fromkeys(axis for curve in report["curves"].values() for axis in curve["axes"]))
    out = io.StringIO()
    writer = csv.DictWriter(out, [*COLUMNS[:3], *axes, *COLUMNS[3:]], restval="", lineterminator="\n")
    writer.writeheader()
    for row in _rows(report):
        writer.writerow(row)
    return out.getvalue()


def _rows(report: Report) -> Iterator[dict[str, Any]]:
    for each in report["references"]:
        name = {"role": each["role"], "subject": each["subject"], "original": each["label"], "measure": "score"}
        yield name | {"task": each["task"], "value": each["score"], "low": each["low"], "high": each["high"]}
    for point in report["points"]:
        name = {"role": "point", "curve": point["curve"], "subject": point["subject"], "masks": point["masks"]}
        name |= point["at"]
        if "error" in point:
            yield name | {"error": point["error"]}
        for task, row in point["tasks"].items():
            apart = {"difference" + ("" if end == "estimate" else f"_{end}"): v for end, v in row["difference"].items()}
            known = _measured("score", row) | {"task": task, "against": row["against"]}
            yield name | known | apart
        for original, layers in (point.get("similarity") or {}).items():
            for layer, row in enumerate(layers):
                yield name | _measured("cosine", row) | {"original": original, "layer": layer}


def _measured(measure: str, row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = spread(row["by_mask"])
    ends = {} if low != low else {"mask_low": low, "mask_high": high}
    return {"measure": measure, "value": row[measure], "low": row["low"], "high": row["high"], **ends}
