"""What a study may not change once it has a record: compared value by value, and the first difference named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from heterosis.errors import RecordError


def check_same(name: str, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """RecordError names the first value in which two identities, as plain JSON, differ. `name`: the record's."""
    # The panel follows from tasks, splits and seed: it is named only where none of these differs.
    for key in sorted(recorded.keys() | now.keys(), key=lambda key: (key == "panel", key)):
        found = _difference(key, recorded.get(key), now.get(key))
        if found is not None:
            place, before, after = found
            raise RecordError(
                f"{name}: {place} is {_brief(after)} now, but the record was made with {_brief(before)}. "
                "Change it back to resume, or give the study another name."
            )


def _difference(place: str, before: Any, now: Any) -> tuple[str, Any, Any] | None:
    """Where two JSON values differ first, and what stands there in each."""
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(f"{place}.{key}", before.get(key), now.get(key)) for key in (*before, *(now.keys() - before.keys()))]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(f"{place}[{at}]", *pair) for at, pair in enumerate(zip(before, now, strict=True))]
    else:
        return place, before, now
    inner = (_difference(*pair) for pair in pairs)
    return next((found for found in inner if found is not None), (place, before, now))


def _brief(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 160 else text[:157] + "…"
