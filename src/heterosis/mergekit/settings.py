"""The value of a mergekit parameter at one tensor: filters, gradients over depth, and which level overrides which."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from heterosis.errors import RecipeError

Level = Mapping[str, Any] | None


def value_at(name: str, levels: Iterable[Level], tensor_name: str, t: float, kind: type, default: Any = None) -> Any:
    """The parameter `name` for a tensor at relative depth t in [0, 1]; the first level that has a value decides.

    A list of numbers is a gradient over the depth of a slice; a list of {filter, value} gives the first whose filter is
    part of the tensor's name.
    """
    for level in levels:
        if level and name in level:
            found = _evaluate(name, level[name], tensor_name, t, kind)
            if found is not None:
                return found
    return default


def _evaluate(name: str, setting: Any, tensor_name: str, t: float, kind: type) -> Any:
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return _scalar(name, setting, kind)
    if any(isinstance(entry, Mapping) for entry in setting):
        return _filtered(name, setting, tensor_name, t, kind)
    if not setting:
        return None
    values = [_scalar(name, entry, kind) for entry in setting]
    if kind is bool:
        return values[int(t * (len(values) - 1))]
    position = t * (len(values) - 1)
    left = int(position)
    right = min(len(values) - 1, left + 1)
    return (1.0 - (position - left)) * values[left] + (position - left) * values[right]


def _filtered(name: str, setting: list[Any], tensor_name: str, t: float, kind: type) -> Any:
    for entry in setting:
        if not isinstance(entry, Mapping) or "value" not in entry or set(entry) - {"filter", "value"}:
            raise RecipeError(f"parameters.{name}: {_short(entry)} must be a mapping of filter and value.")
        wanted = entry.get("filter")
        if wanted is None or wanted == "*" or str(wanted) in tensor_name:
            return _evaluate(name, entry["value"], tensor_name, t, kind)
    return None


def _scalar(name: str, value: Any, kind: type) -> Any:
    """A number may be written as text (YAML reads 1e-4 so); a boolean must be one."""
    if kind is bool:
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        raise RecipeError(f"parameters.{name}: {_short(value)} must be true or false.")
    try:
        if isinstance(value, bool) or value is None:
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RecipeError(f"parameters.{name}: {_short(value)} is no number.") from None
    if not math.isfinite(number):
        raise RecipeError(f"parameters.{name}: {number} is not finite.")
    return number


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
