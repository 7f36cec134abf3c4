"""Nested settings as MLflow takes them: flat names and bounded texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from heterosis.recipe import Recipe

PARAM_LENGTH = 500


def flat(content: Any, path: str = "") -> dict[str, str]:
    """Nested JSON as MLflow params: path joined by dots -> bounded text."""
    if isinstance(content, Mapping | list | tuple):
        pairs = content.items() if isinstance(content, Mapping) else enumerate(content)
        parts = [flat(value, f"{path}.{key}" if path else str(key)) for key, value in pairs]
        return {name: text for part in parts for name, text in part.items()}
    text = str(content)
    bounded = text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - 1] + "…"
    return {} if content is None else {mlflow_name(path): bounded}


def numbers_of(recipe: Recipe) -> dict[str, str]:
    """The numbers of a merge that no search moved, named as genes are: PARENT.WHAT.GROUP, and the layer of many."""
    content = recipe.model_dump(mode="json", exclude_defaults=True).get("parameters", {})
    return flat(
        {
            f"{parent}.{what}.{group}": value
            for parent, by_group in content.items()
            for group, numbers in by_group.items()
            for what, value in {"weight": 1.0, **numbers}.items()
        }
    )


def mlflow_name(text: str) -> str:
    """A text as MLflow takes it for a param or metric."""
    return re.sub(r"[^\w.\- ]", "_", text)[:200]
