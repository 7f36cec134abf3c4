"""What the lineage knows of one merge: read back from an MLflow run, to build it again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from heterosis.errors import RecordError
from heterosis.files import parse_yaml
from heterosis.ledger.lineage import connect
from heterosis.ledger.redact import masked
from heterosis.recipe import Recipe

RUN_ID = re.compile(r"[0-9a-f]{32}")


class Provenance(NamedTuple):
    """A merge as its run describes it."""

    label: str
    recipe: Recipe
    weights_digest: str | None


def provenance(run_id: str, uri: str) -> Provenance:
    """The recipe and the digest of the weights that a run of a merge keeps. RecordError says what is missing."""
    from mlflow.exceptions import MlflowException

    database = _sqlite_file(uri)
    if database is not None and not database.is_file():
        raise RecordError(f"lineage: no file {database}. Give the study, or a tracking URI that exists.")
    try:
        run = connect(uri).get_run(run_id)
    except MlflowException as error:
        raise RecordError(
            f"lineage: no run {run_id} at {masked(uri)} ({' '.join(str(error).split())[:200]}). "
            "Give the id that MLflow shows for the candidate, and its tracking URI."
        ) from error
    label, digest = run.data.tags.get("heterosis.label"), run.data.tags.get("heterosis.recipe_digest")
    if label is None:
        raise RecordError(
            f"lineage: run {run_id} ({run.info.run_name}) is not the run of a merge. Give the run of a candidate: "
            "a child of the study's run."
        )
    recipe = _recipe(run_id, uri, database)
    if recipe.digest != digest:
        raise RecordError(f"lineage: recipe.yaml of run {run_id} is not the recipe that was scored; it was changed.")
    return Provenance(label, recipe, run.data.tags.get("heterosis.weights_digest") or None)


def _recipe(run_id: str, uri: str, database: Path | None) -> Recipe:
    """The run's recipe artifact; beside the database where the study's folder was moved."""
    from mlflow.artifacts import load_text

    where = f"recipe.yaml of run {run_id}"
    moved = database.parent / "lineage_artifacts" / run_id / "artifacts" / "recipe.yaml" if database else None
    try:
        if moved is not None and moved.is_file():
            text = moved.read_text(encoding="utf-8")
        else:
            location = connect(uri).get_run(run_id).info.artifact_uri
            text = load_text(f"{location}/recipe.yaml")
        return Recipe.parse(parse_yaml(text), where)
    except (OSError, yaml.YAMLError) as error:
        raise RecordError(f"lineage: {where} cannot be read ({' '.join(str(error).split())[:200]}).") from error


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None
