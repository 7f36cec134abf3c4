"""What the shell offers for a study and for a candidate: found without loading what a study needs."""

from __future__ import annotations

import json
import re
from contextlib import closing, suppress
from pathlib import Path

import typer

PARTS = ("winner", "best", "baseline", "parent")


def studies(incomplete: str) -> list[str]:
    """Study files and folders that begin so; of runs, those that a study has."""
    at = Path(incomplete)
    folder, begun = (at, "") if incomplete.endswith("/") else (at.parent, at.name)
    found = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if path.name.startswith(begun) and (begun or not path.name.startswith(".")):
                if path.is_dir():
                    found.append(f"{path}" if (path / "resolved.yaml").is_file() else f"{path}/")
                elif path.suffix in (".yaml", ".yml"):
                    found.append(str(path))
    return found


def candidates(context: typer.Context, incomplete: str) -> list[str]:
    """Labels of the study that stands before, and the parts that candidates play."""
    study = context.params.get("study")
    labels: list[str] = []
    if study is not None:
        with suppress(Exception):  # whatever is wrong with a study, pressing Tab is not when to hear of it
            labels = _labels(_folder(Path(study)))
    return [name for name in (*PARTS, *labels) if name.startswith(incomplete)]


def _folder(study: Path) -> Path:
    if study.is_dir():
        return study
    from heterosis.config import load_study

    config = load_study(study)
    return Path(config.output) / config.name


def _labels(folder: Path) -> list[str]:
    """Of a record in the study's folder. A database elsewhere is not asked."""
    import sqlite3

    url = f"{(folder / 'record.db').resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(url, uri=True)) as record:
        rows = record.execute("SELECT DISTINCT value_json FROM trial_user_attributes WHERE key = 'label'").fetchall()
    labels = {str(json.loads(row[0])) for row in rows}
    return sorted(
        labels, key=lambda label: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", label)]
    )
