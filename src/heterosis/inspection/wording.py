"""How places, numbers and names are written, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence

from heterosis.inspection.differences import Difference
from heterosis.inspection.records import Level, Region, Verdict

# A level is never told by colour alone.
MARKS: dict[Level, str] = {"good": "ok", "note": "note", "caution": "caution", "warn": "warning"}
SIGNS: dict[Verdict, str] = {"good": "", "caution": " !", "warn": " !!"}
HEADLINES: dict[Verdict, str] = {
    "good": "Nothing speaks against merging these models.",
    "caution": "These models can be merged, with care.",
    "warn": "Read the warnings before you merge these models.",
}


def printable(text: str) -> str:
    """Text whose control characters, which could steer a terminal or break a page, are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def listed(items: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def short(text: str, most: int = 24) -> str:
    """Printable text, its middle left out where it is long: paths differ at their ends."""
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: most // 2 - 1]}…{shown[-(most // 2) :]}"


def place(region: Region) -> str:
    """Where a region lies."""
    if region.layer is None:
        return "whole model" if region.group == "all" else region.group
    return f"layer {region.layer}" if region.group == "all" else f"layer {region.layer} {region.group}"


def percent(share: float | None) -> str:
    """A share, to two figures; what is not zero is not shown as zero."""
    if share is None:
        return "-"
    if 0.0 < share < 0.001:
        return "<0.1%"
    return f"{100 * share:.0f}%" if share >= 0.1 or share == 0.0 else f"{100 * share:.1f}%"


def small(number: float) -> str:
    """A magnitude, to two figures."""
    return "0" if number == 0.0 else f"{number:.2g}" if 0.0001 <= number < 1000 else f"{number:.1e}"


def ratio(number: float | None) -> str:
    """A ratio or cosine, to two decimals."""
    return "-" if number is None else f"{number:.2f}"


def span(region: Region) -> str:
    """The cosines of a region's pairs, from the smallest to the largest."""
    cosines = [pair.cosine for pair in region.pairs if pair.cosine is not None]
    if not cosines:
        return "-"
    low, high = ratio(min(cosines)), ratio(max(cosines))
    return low if low == high else f"{low}..{high}"


def difference(found: Difference) -> str:
    """One difference in words."""
    name = printable(found.name)
    ours, theirs = (None if side is None else printable(side) for side in (found.base, found.theirs))
    return {
        "missing": f"has no {name} {ours}",
        "extra": f"has {name} {theirs}, which the base lacks",
        "shape": f"{name} is {theirs}, the base has {ours}",
        "dtype": f"{name} is stored as {theirs}, the base as {ours}",
        "config": f"config.json has {name} {theirs}, the base {ours}",
        "tokens moved": f"its tokenizer moves tokens of the base: {name} (id {theirs}, in the base {ours})",
        "tokens added": f"its tokenizer adds tokens: {name} (id {theirs})",
    }[found.kind]
