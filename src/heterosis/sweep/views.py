"""The files of a sweep: table, figures and page, all from the report alone."""

from __future__ import annotations

from pathlib import Path

from heterosis.files import new_folder, write_text
from heterosis.sweep.page import page
from heterosis.sweep.panels import Report, layer_panels, score_panels, similarity_panels
from heterosis.sweep.table import to_csv


def write_views(report: Report, folder: Path) -> None:
    """Write sweep.csv, figures/ and sweep.html, each whole or not at all."""
    from heterosis.sweep.figures import sheet

    write_text(folder / "sweep.csv", to_csv(report))
    with new_folder(folder / "figures") as figures:
        for axis, panels in score_panels(report).items():
            sheet(panels, figures / f"score-{_plain(axis)}")
        for axis, panels in similarity_panels(report).items():
            sheet(panels, figures / f"similarity-{_plain(axis)}")
        if layers := layer_panels(report):
            sheet(layers, figures / "layers")
    write_text(folder / "sweep.html", page(report))


def _plain(axis: str) -> str:
    return axis.replace(".", "-")
