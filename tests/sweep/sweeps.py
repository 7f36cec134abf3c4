"""A whole sweep over the tiny family, scored by the transformers engine in a few seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_study import PARENTS
from small_tasks import choice_docs, write_task

from heterosis.sweep import sweep
from heterosis.watch import Watcher

RATES = [0.0, 0.5, 0.9]
CURVES = {
    "DARE": {"method": "dare_linear", "drop": RATES},
    "DropOnly": {"method": "dare_linear", "drop": RATES, "rescale": "none"},
    "magnitude": {"method": "magnitude", "density": [1.0, 0.5, 0.1]},
}


def write_sweep(folder: Path, family: Path, sweep: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A sweep file with its tasks; `sweep` replaces its section, `changes` other keys (None removes)."""
    write_task(folder, "choice", choice_docs(40))
    write_task(folder, "other", choice_docs(20, seed=1))
    content = {
        "name": "small",
        "base": str(family / "base"),
        "parents": {name: str(family / name) for name in PARENTS},
        "tasks": ["choice.yaml"],
        "engine": {"kind": "transformers", "options": {"device": "cpu"}},
        "tracking": "none",
        "output": str(folder / "runs"),
        "seed": 3,
        "sweep": sweep if sweep is not None else {"parents": {"a": "choice"}, "curves": CURVES, "mask_seeds": 2},
    }
    path = folder / "sweep.yaml"
    kept = {key: value for key, value in (content | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False))
    return path


def run(path: Path, watcher: Watcher | None = None, *, drawn: bool = False) -> dict[str, Any]:
    """Run a sweep; what it wrote to sweep.json. Pictures take longer than the rest, so they are drawn on request."""
    with pytest.MonkeyPatch.context() as patch, watcher or Watcher(quiet=True) as quiet:
        if not drawn:
            patch.setattr("heterosis.sweep.run.write_views", lambda report, folder: None)
        sweep(path, quiet)
    found: dict[str, Any] = json.loads((path.parent / "runs" / "small" / "sweep.json").read_text())
    return found


def written(path: Path) -> dict[str, bytes]:
    """The bytes of what a sweep wrote, but for its record."""
    folder = path.parent / "runs" / "small"
    files = [file for file in folder.rglob("*") if file.suffix in (".json", ".csv", ".html", ".svg", ".png")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(files)}
