"""The models and texts that a recipe names: where they lie, and whether they are the ones it was made with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heterosis.checkpoints import Family, ModelRef, open_family, resolve
from heterosis.errors import RecipeError
from heterosis.recipe import DataSource, Recipe, Source


def open_sources(recipe: Recipe, relative_to: Path | None = None, **options: Any) -> Family:
    """Open the base and parents that a recipe names. Options are those of `open_family`."""

    def folder(source: Source) -> Path:
        return resolve(ModelRef(source.model, source.revision), relative_to)

    parents = {source.name: folder(source) for source in recipe.parents}
    adapters = {
        source.name: resolve(ModelRef(source.adapter, source.adapter_revision), relative_to)
        for source in recipe.parents
        if source.adapter is not None
    }
    return open_family(
        folder(recipe.base),
        parents,
        adapters=adapters,
        vocabulary="error" if recipe.vocabulary is None else recipe.vocabulary.source,
        stacked=recipe.stack is not None,
        **options,
    )


def located(recipe: Recipe, relative_to: Path) -> Recipe:
    """The same recipe with full paths where it names folders by relative ones, and its texts pinned by content."""

    def source(given: Source) -> Source:
        changes: dict[str, Any] = {"model": _full(given.model, relative_to)}
        if given.adapter is not None:
            changes["adapter"] = _full(given.adapter, relative_to)
        return given.model_copy(update=changes)

    def data(given: DataSource) -> DataSource:
        path = data_file(given, relative_to).resolve()
        return given.model_copy(update={"path": str(path), "digest": hashlib.sha256(path.read_bytes()).hexdigest()})

    changes: dict[str, Any] = {"base": source(recipe.base), "parents": tuple(map(source, recipe.parents))}
    if isinstance(recipe.data, dict):
        changes["data"] = {name: data(each) for name, each in recipe.data.items()}
    elif recipe.data is not None:
        changes["data"] = data(recipe.data)
    return recipe.model_copy(update=changes)


def pinned(recipe: Recipe, family: Family) -> Recipe:
    """The same recipe with the digests of the weights at hand, where it names none."""
    changes: dict[str, Any] = {
        "base": recipe.base if recipe.base.digest else recipe.base.model_copy(update={"digest": family.base.digest}),
        "parents": tuple(
            source if source.digest else source.model_copy(update={"digest": family.parents[source.name].digest})
            for source in recipe.parents
        ),
    }
    return recipe.model_copy(update=changes)


def moved(recipe: Recipe, places: Mapping[str, str], name: str) -> Recipe:
    """The recipe with some sources looked for elsewhere; their digests stay what they were.

    `places`: name of a source -> a folder, or a hub id with its revision behind an @. `name`: the merge's.
    """
    known = [recipe.base.name, *(source.name for source in recipe.parents)]
    if unknown := sorted(set(places) - set(known)):
        raise RecipeError(f"--model {unknown[0]}: {name} has no such source; it has {', '.join(known)}.")

    def source(given: Source) -> Source:
        if given.name not in places:
            return given
        where, _, revision = places[given.name].partition("@")
        local = Path(places[given.name]).is_dir()
        changes: dict[str, Any] = {
            "model": str(Path(places[given.name]).resolve()) if local else where,
            "revision": None if local else revision or None,
        }
        return given.model_copy(update=changes)

    return recipe.model_copy(update={"base": source(recipe.base), "parents": tuple(map(source, recipe.parents))})


def compare_sources(recipe: Recipe, family: Family) -> tuple[str, ...]:
    """Compare the models at hand with those that the recipe names; returns those it names no digest for.

    RecipeError names every model that is another.
    """
    at_hand = {recipe.base.name: family.base.digest}
    at_hand |= {source.name: family.parents[source.name].digest for source in recipe.parents}
    wrong, unpinned = [], []
    for source in (recipe.base, *recipe.parents):
        if not source.digest:
            unpinned.append(source.name)
        elif source.digest != at_hand[source.name]:
            wrong.append(f"{source.name} at {source.model} is {at_hand[source.name][:12]}, not {source.digest[:12]}")
    if wrong:
        raise RecipeError(
            f"{'; '.join(wrong)}: not the weights that were merged. Give them with --model NAME=FOLDER. "
            "Nothing was written."
        )
    return tuple(unpinned)


def data_file(data: DataSource, relative_to: Path | None) -> Path:
    """Where texts lie; RecipeError where they are not, or are others than the recipe was made with."""
    path = (relative_to or Path()) / data.path
    if not path.is_file():
        raise RecipeError(f"data.path: no file {path}. Name a .txt or .jsonl file.")
    if data.digest is not None and hashlib.sha256(path.read_bytes()).hexdigest() != data.digest:
        raise RecipeError(f"data: {path} is not the file that the recipe was made with. Give that one.")
    return path


def _full(model: str, relative_to: Path) -> str:
    """The full path of a folder; a hub id as it is."""
    return str((relative_to / model).resolve()) if (relative_to / model).is_dir() else model
