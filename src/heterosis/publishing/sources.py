"""The models of a recipe as others may read of them: hub ids, and local folders without their paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heterosis.recipe import Recipe, Source


def hub_id(source: Source) -> str | None:
    """The hub id of a source; None for a local folder."""
    return None if _is_local(source.model) else source.model


def shown(source: Source) -> str:
    """A source's model, by `name_of`."""
    return name_of(source.model)


def name_of(model: str) -> str:
    """A hub id as it is; of a local folder only its name: its path says nothing about the model."""
    return (Path(model).name or model) if _is_local(model) else model


def shareable(recipe: Recipe) -> Recipe:
    """The same recipe with only the names of local folders and files. Digests still say which they are."""

    def source(given: Source) -> Source:
        adapter = None if given.adapter is None else name_of(given.adapter)
        return given.model_copy(update={"model": name_of(given.model), "adapter": adapter})

    changes: dict[str, Any] = {"base": source(recipe.base), "parents": tuple(map(source, recipe.parents))}
    if isinstance(recipe.data, dict):
        changes["data"] = {
            name: each.model_copy(update={"path": Path(each.path).name}) for name, each in recipe.data.items()
        }
    elif recipe.data is not None:
        changes["data"] = recipe.data.model_copy(update={"path": Path(recipe.data.path).name})
    return recipe.model_copy(update=changes)


def _is_local(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") != 1 or Path(model).exists()
