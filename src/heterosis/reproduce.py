"""`heterosis reproduce`: a merge built again from its lineage alone, and proven to be the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from heterosis.builder import Builder
from heterosis.checkpoints import Checkpoint
from heterosis.config import read_yaml
from heterosis.errors import CheckpointError, StudyError
from heterosis.export import check_new, export
from heterosis.ledger.provenance import RUN_ID, provenance
from heterosis.ledger.record import sqlite_url
from heterosis.publishing import Findings, findings
from heterosis.recipe import Recipe
from heterosis.sources import compare_sources, located, moved, open_sources, pinned
from heterosis.stored import RESOLVED, open_stored


class Origin(NamedTuple):
    """Where a merge comes from, as its lineage has it."""

    name: str
    recipe: Recipe
    weights_digest: str | None
    """What the weights must be; None where the lineage does not say."""
    beside: Path
    """Folder that relative paths of the recipe are relative to."""
    about: Findings | None = None


class Reproduction(NamedTuple):
    """What was built, and what of it was compared with the lineage."""

    folder: Path
    name: str
    sources: int
    """Models whose digests were compared with the recipe's."""
    unpinned: tuple[str, ...]
    """Models for which the recipe names no digest."""
    weights_digest: str
    compared: bool
    """Whether the digest of the weights was compared with the lineage's."""


def reproduce(
    source: str, out: Path, *, tracking: str | None = None, models: Mapping[str, str] | None = None
) -> Reproduction:
    """Build again what `source` describes, in a new folder `out`, or raise and write nothing.

    `source`: a recipe.yaml, a model folder that holds one, an MLflow run id, or STUDY:LABEL. `tracking`: where the run
    is: an MLflow URI, or a study's file or folder. `models`: name of a source -> where it lies, if it has moved.
    """
    check_new(out)
    origin = find_origin(source, tracking)
    recipe = moved(origin.recipe, models or {}, origin.name)
    recipe = located(recipe, origin.beside)
    family = open_sources(recipe, origin.beside, mapped=False)
    unpinned = compare_sources(recipe, family)
    recipe = pinned(recipe, family)
    builder = Builder(family, once=True, relative_to=origin.beside)
    digest = export(builder, recipe, out, expected_digest=origin.weights_digest, about=origin.about)
    count = 1 + len(recipe.parents) - len(unpinned)
    return Reproduction(out, origin.name, count, unpinned, digest, origin.weights_digest is not None)


def find_origin(source: str, tracking: str | None = None) -> Origin:
    """Recipe and digest behind what the user names."""
    path = Path(source)
    if path.is_dir():
        return _from_folder(path)
    if path.is_file() and path.name == "recipe.yaml" and (path.parent / "config.json").is_file():
        return _from_folder(path.parent)
    if path.is_file():
        return Origin(source, Recipe.load(path), None, path.resolve().parent)
    if RUN_ID.fullmatch(source):
        if tracking is None:
            raise StudyError(f"{source}: which MLflow? Give --tracking: its URI, or the study's file or folder.")
        found = provenance(source, _tracking_uri(tracking))
        return Origin(f"{found.label} (run {source[:8]})", found.recipe, found.weights_digest, Path.cwd())
    study, colon, label = source.rpartition(":")
    if colon and Path(study).exists():
        with open_stored(Path(study)) as stored:
            about = findings(stored, label)
        merge = about.candidate
        return Origin(f"{about.study}:{about.label}", merge.recipe, merge.weights_digest, Path.cwd(), about)
    raise StudyError(
        f"{source}: no such file, model folder, run or study. Give a recipe.yaml, a folder that holds one, "
        "an MLflow run id, or STUDY:LABEL."
    )


def _from_folder(folder: Path) -> Origin:
    """A model folder proves itself: its recipe must give its own weights."""
    if not (folder / "recipe.yaml").is_file():
        hint = f" For one of a study's merges give {folder}:LABEL." if (folder / RESOLVED).is_file() else ""
        raise CheckpointError(f"{folder}: holds no recipe.yaml, so nothing says how to build it.{hint}")
    model = Checkpoint(folder, mapped=False)
    try:
        digest = model.digest
    finally:
        model.close()
    return Origin(folder.resolve().name, Recipe.load(folder / "recipe.yaml"), digest, folder.resolve())


def _tracking_uri(given: str) -> str:
    """An MLflow URI as it is; of a study's file or folder, the one it writes to."""
    if not Path(given).exists():
        return given
    with open_stored(Path(given)) as stored:
        folder = stored.folder
    uri = read_yaml(folder / RESOLVED).get("tracking")
    if uri == "none":
        raise StudyError(f"{given}: tracking is none, so it has no lineage. Give STUDY:LABEL instead.")
    return str(uri) if uri else sqlite_url(folder / "lineage.db")
