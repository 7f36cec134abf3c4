"""Merges as the records of all splits have them together: what the lineage has a run for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from heterosis.evaluation.panel import SPLITS, SplitName
from heterosis.ledger.record import Candidate, Record

Records = Mapping[SplitName, Record]
LATER = "later"
Key = tuple[str, str]  # label and recipe digest: what a merge is known by in every split


class Merge(NamedTuple):
    """One merge as the records have it."""

    by_split: dict[str, Candidate]
    """Search first; a merge that was not searched (the optimizer's mean) begins with selection."""
    origin: str
    first: Candidate
    begin: float
    """Seconds of scoring that were spent before it."""
    best: float | None
    """Best objective on the search split, up to and including this merge."""
    later: Candidate | None
    """What it is on the search split with the items that it answered after its race, if it did."""

    @property
    def parts(self) -> frozenset[str]:
        """What there is to tell of it: its splits, and `later`."""
        return frozenset(self.by_split) | (frozenset() if self.later is None else {LATER})

    def tags(self) -> dict[str, str]:
        first, searched = self.first, self.origin == "search"
        return {
            "heterosis.candidate": str(first.number) if searched else f"{self.origin}/{first.number}",
            "heterosis.generation": str(first.generation),
            "heterosis.origin": "baseline" if first.is_baseline else self.origin,
            "heterosis.recipe_digest": first.recipe_digest,
            "heterosis.weights_digest": first.weights_digest or "",
        }


def merges_of(records: Records) -> dict[Key, Merge]:
    """What the records hold, in the order in which it was scored."""
    found: dict[Key, dict[str, Candidate]] = {}
    for split in SPLITS:
        for candidate in records[split].candidates if split in records else ():
            found.setdefault((candidate.label, candidate.recipe_digest), {})[split] = candidate
    merges, later = {}, records["search"].later if "search" in records else {}
    seconds, best = 0.0, None
    for key, by_split in found.items():
        origin, first = next(iter(by_split.items()))
        raced = first.race is not None and first.is_partial  # its value is an estimate from a few items
        if origin == "search" and first.value is not None and not raced:
            best = first.value if best is None else max(best, first.value)
        merges[key] = Merge(
            by_split, origin, first, seconds, best, later.get(first.label) if origin == "search" else None
        )
        seconds += first.seconds["total"]
    return merges
