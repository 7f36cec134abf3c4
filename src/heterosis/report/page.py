"""A study as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from heterosis.drawing import STYLE
from heterosis.errors import StudyError
from heterosis.files import write_text
from heterosis.inspection.wording import MARKS, listed, printable
from heterosis.ledger.redact import masked
from heterosis.report.chapters import about, looked_at, result, searched, winner
from heterosis.report.geometry import Found, surveyed
from heterosis.report.origin import origin
from heterosis.report.style import REPORT_STYLE
from heterosis.report.template import TEMPLATE
from heterosis.report.view import View, arranged
from heterosis.stored import open_stored

REPORT = "report.html"


def write_report(target: Path, out: Path | None = None, inspect: bool | None = None) -> Path:
    """Write the report of a study, given by its file or its folder; returns where it lies.

    `out`: the file, `report.html` in the study's folder when left out. `inspect`: whether to look at the models, which
    None leaves to their size.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise StudyError(f"{out}: its parent is no folder. Make it first.")
    if out is not None and out.is_dir():
        raise StudyError(f"{out} is a folder. Give the file to write.")
    with open_stored(target) as stored:
        view = arranged(stored)
        path = out or stored.folder / REPORT
        write_text(path, page(view, surveyed(view, inspect)))
    return path


def page(view: View, models: Found) -> str:
    """The page as text. Every name is escaped by the template engine, and by the plotting library inside plots."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {
        "printable": printable,
        "listed": lambda names: listed([printable(str(name)) for name in names]),
        "masked": masked,
        "bounds": _bounds,
        "interval": lambda found: f"[{found['low']:.4f}, {found['high']:.4f}]",
        "number": lambda value: "-" if value is None or value == "" else f"{value:.4g}",
        "duration": duration,
    }
    content = {
        "style": Markup(STYLE + REPORT_STYLE),  # noqa: S704 (ours)
        "marks": MARKS,
        **about(view),
        **result(view),
        **winner(view),
        **searched(view),
        **looked_at(models),
        **origin(view),
    }
    return environment.from_string(TEMPLATE).render(content)


def _bounds(found: Mapping[str, float]) -> str:
    return f"[{found['low']:+.4f}, {found['high']:+.4f}]"


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
