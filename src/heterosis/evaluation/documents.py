"""A task's documents: the texts that they hold, and which of them belong together."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Characters from which on a text that documents share is a passage that they ask about, and not a phrase.
PASSAGE = 80
# A text that more of a task's documents hold, in number and in share, is its instruction or a label.
FEW, SHARE = 10, 0.05


def digest(content: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def strings(document: Any) -> Iterator[tuple[str, str]]:
    """Every string in plain data, in its order, each with the keys that lead there; places in lists do not count."""
    pending = [("", document)]
    while pending:
        place, content = pending.pop()
        if isinstance(content, str):
            yield place, content
        elif isinstance(content, Mapping):
            pending += [(f"{place}/{key}", inner) for key, inner in reversed(list(content.items()))]
        elif isinstance(content, list | tuple):
            pending += [(place, inner) for inner in reversed(content)]


def own_texts(documents: Sequence[Any]) -> list[list[str]]:
    """For each document its distinct strings, without those that many documents hold under the same key.

    A string held by more than 10 documents that are more than 5 % of all is a label or an instruction; it says nothing
    about the document that holds it. A document of which nothing else would be left keeps all.
    """
    held = [list(dict.fromkeys(strings(document))) for document in documents]
    holders = Counter(one for own in held for one in own)
    most = max(FEW, SHARE * len(documents))
    found = []
    for own in held:
        kept = [text for place, text in own if holders[place, text] <= most]
        found.append(list(dict.fromkeys(kept or [text for _, text in own])))
    return found


def shared_passages(texts: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """For each document the names of its passages: documents with a name in common ask about the same one.

    `texts`: of each document, as from `own_texts`.
    """
    flat = [[" ".join(text.split()) for text in own] for own in texts]
    return [tuple(f"text {digest(text)}" for text in own if len(text) >= PASSAGE) for own in flat]


def shared_values(name: str, documents: Sequence[Any], field: str) -> list[tuple[str, ...]]:
    """For each document of task `name` a name for the value of its field, none where it has none.

    KeyError when no document has the field, with the fields that they have.
    """
    values = [document.get(field) if isinstance(document, Mapping) else None for document in documents]
    if all(value is None for value in values):
        raise KeyError(*sorted({str(key) for each in documents if isinstance(each, Mapping) for key in each}))
    return [() if value is None else (f"value {digest([name, field, value])}",) for value in values]
