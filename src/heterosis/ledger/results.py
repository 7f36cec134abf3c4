"""What of a study's result the lineage shows beside the study's run: numbers as metrics, files as artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heterosis.ledger.params import mlflow_name


def numbers_told(result: Mapping[str, Any]) -> dict[str, float]:
    """Claims with their bounds, and the winner's scores on the splits that decided."""
    found = {
        f"heterosis/{against}/{bound}": float(claim[bound])
        for against, claim in result["heterosis"].items()
        for bound in ("estimate", "low", "high")
    }
    for row in result.get("table", ()):
        for split in ("selection", "test"):
            if row["label"] == result["winner"] and split in row:
                scores = {"objective": row[split]["objective"], **row[split]["tasks"]}
                found |= {f"{split}/{mlflow_name(task)}": float(each["estimate"]) for task, each in scores.items()}
    return found


def papers_of(result: Mapping[str, Any]) -> dict[str, Path]:
    """Files of a finished study's folder that are worth reading beside its run, by the artifact's name."""
    if not result.get("winner_folder"):
        return {}
    winner = Path(result["winner_folder"])
    found = {name: winner.parent / name for name in ("report.html", "result.json")}
    found |= {f"winner/{name}": winner / name for name in ("README.md", "recipe.yaml")}
    return {name: path for name, path in found.items() if path.is_file()}
