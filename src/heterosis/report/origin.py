"""All that it takes to do a study again, as its files and its record have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from heterosis import __version__
from heterosis.inspection.wording import printable
from heterosis.ledger.record import Candidate
from heterosis.ledger.redact import masked
from heterosis.recipe import Source
from heterosis.report.view import View
from heterosis.stored import RESOLVED

# Facts that are written as code.
CODES = ("command", "panel", "recipe", "weights of the winner")


class Origin(NamedTuple):
    """One model that went into the merges."""

    name: str
    where: str
    digest: str


def winning(view: View) -> Candidate | None:
    """The winner, as the test split scored it."""
    tested = view.stored.records["test"].candidates
    return next((candidate for candidate in tested if candidate.label == view.winner), None)


def origin(view: View) -> dict[str, Any]:
    """Command, versions, digests, seeds, and the files that say the rest."""
    winner = winning(view)
    candidates = view.stored.records["search"].candidates
    recipe = candidates[0].recipe if candidates else None
    resolved = (view.stored.folder / RESOLVED).read_text(encoding="utf-8")
    return {
        "facts": [(name, printable(masked(str(value)))) for name, value in _facts(view)],
        "codes": CODES,
        "sources": [_source(each) for each in (recipe.base, *recipe.parents)] if recipe is not None else [],
        "recipe_yaml": None if winner is None else _text(winner.recipe.to_yaml()),
        "resolved": _text(resolved),
        "version": __version__,
    }


def _facts(view: View) -> Iterator[tuple[str, Any]]:
    result, config = view.result, view.stored.config
    record = view.stored.records["search"]
    yield "command", result["command"] if result is not None else f"heterosis run STUDY ({config.name})"
    yield "seed", config.seed
    yield "optimizer", config.optimizer.name
    engine = record.noted("engine")
    if engine is not None:
        options = json.dumps(engine.get("options", {}), sort_keys=True)
        yield "engine", f"{engine.get('engine', '')} {engine.get('version', '')}, {options}"
    if result is not None:
        yield "Python", result["python"]
    yield "items", ", ".join(f"{split} {items.size:,}" for split, items in view.stored.items.items())
    yield "panel", view.stored.panel_digest
    if result is not None:
        yield "recipe", result["recipe_digest"]
        yield "weights of the winner", result["weights_digest"]
        for number, opening in enumerate(result["test_openings"], start=1):
            yield (
                f"test opened ({number})",
                f"for {', '.join(opening['candidates'])}, after {opening['searched']} candidates",
            )


def _source(source: Source) -> Origin:
    where = source.model if source.revision is None else f"{source.model}@{source.revision}"
    return Origin(printable(source.name), printable(masked(where)), source.digest)


def _text(text: str) -> str:
    """The lines of a file, with passwords left out and control characters written as escapes."""
    return "\n".join(printable(line) for line in masked(text).split("\n"))
