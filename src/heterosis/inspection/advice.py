"""From numbers to plain sentences: what a person who is about to merge these models should know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from heterosis.inspection.differences import Difference
from heterosis.inspection.geometry import LARGE, SAFE, unrelated_loss
from heterosis.inspection.records import Advice, Pair, Region, Size, Verdict
from heterosis.inspection.wording import listed, percent, printable, ratio

# Two models that have nothing in common are sqrt(2) of their size apart; a fine-tune moves by a few percent.
WRONG_BASE = 0.5
# Cosines between fine-tunes of unrelated tasks lie near zero (Ilharco et al. 2023, figure 5).
ALIKE, RELATED, OPPOSED = 0.9, 0.3, -0.2
# Election loss above that of unrelated task vectors by more than this is worth a word.
NOTABLE_LOSS = 0.03
SPARSE = 0.5

_ORDER = ("warn", "caution", "note", "good")


def advise(parents: Sequence[str], unlike: Sequence[Difference], overall: Region) -> list[Advice]:
    """Advice on the whole model, the weightiest first."""
    found = chain(
        _on_differences(parents, unlike),
        *(_on_size(parent, overall.sizes.get(parent)) for parent in parents),
        _on_range(overall),
        _on_pairs(overall),
        _on_crowd(overall),
    )
    return sorted(found, key=lambda line: _ORDER.index(line.level))


def _on_differences(parents: Sequence[str], unlike: Sequence[Difference]) -> Iterator[Advice]:
    for parent in parents:
        own = [found for found in unlike if found.parent == parent]
        blocking = [found for found in own if not found.harmless]
        name = printable(parent)
        if blocking:
            kinds = ", ".join(dict.fromkeys(found.kind for found in blocking))
            yield Advice(
                "warn",
                f"{name}: does not fit the base ({len(blocking)} differences: {kinds}). It cannot take part as it is; "
                "the numbers cover only the tensors that it shares with the base.",
            )
        elif any(found.kind == "dtype" for found in own):
            yield Advice(
                "note", f"{name}: stored in another dtype than the base. Merging works in float32, so it fits."
            )


def _on_size(parent: str, size: Size | None) -> Iterator[Advice]:
    name = printable(parent)
    if size is None:
        yield Advice("warn", f"{name}: shares no tensor with the base. It is not a fine-tune of this base.")
        return
    if size.zeros == size.entries:
        yield Advice("caution", f"{name}: equals the base. It adds nothing to a merge; drop it.")
        return
    if size.relative is not None and size.relative >= WRONG_BASE:
        yield Advice(
            "warn",
            f"{name}: its task vector is {ratio(size.relative)} times as large as the base itself. Is this the base "
            "that it was fine-tuned from?",
        )
    equal = size.zeros / size.entries
    if equal >= SPARSE:
        yield Advice(
            "note", f"{name}: {percent(equal)} of its entries equal the base's, so its task vector is sparse already."
        )


def _on_range(overall: Region) -> Iterator[Advice]:
    """One sentence for all the parents that fall under one verdict."""
    named: dict[Verdict, list[str]] = {"warn": [], "caution": [], "good": []}
    for parent, size in overall.sizes.items():
        if size.zeros < size.entries:
            beyond = size.beyond_large if size.verdict == "warn" else size.beyond_safe
            named[size.verdict].append(f"{percent(beyond / size.entries)} of {printable(parent)}")
    if named["warn"]:
        yield Advice(
            "warn",
            f"Entries that moved by more than {LARGE}, where drop-and-rescale (DARE) is likely to hurt: "
            f"{listed(named['warn'])}. Drop rates above 0.5 add more noise than there is task vector: use low "
            "ones, or TIES without dropping.",
        )
    if named["caution"]:
        yield Advice(
            "caution",
            f"Entries that moved by more than {SAFE}, up to where DARE is known to work at high drop rates: "
            f"{listed(named['caution'])}. Keep drop rates to about 0.5, or let the search find them.",
        )
    if named["good"]:
        yield Advice(
            "good",
            f"Entries that moved by more than {SAFE}, up to where DARE is known to work at high drop rates: only "
            f"{listed(named['good'])}. Drop rates of 0.9 are worth trying.",
        )


def _on_pairs(overall: Region) -> Iterator[Advice]:
    plain = []
    for pair in overall.pairs:
        line = _on_pair(pair)
        if line is not None:
            yield line
        elif pair.cosine is not None:
            plain.append(pair)
    cosines = sorted({ratio(pair.cosine) for pair in plain}, key=float)
    if cosines:
        span = cosines[0] if len(cosines) == 1 else f"{cosines[0]} to {cosines[-1]}"
        which = (
            f"{printable(plain[0].first)} and {printable(plain[0].second)}" if len(plain) == 1 else "All other pairs"
        )
        if len(plain) == len(overall.pairs) > 1:
            which = "All pairs"
        yield Advice(
            "good", f"{which} point in largely unrelated directions (cosine {span}): each has something of its own."
        )


def _on_pair(pair: Pair) -> Advice | None:
    if pair.cosine is None:
        return None
    names = f"{printable(pair.first)} and {printable(pair.second)}"
    if pair.identical:
        return Advice("caution", f"{names} are the same model. One of them is enough.")
    if pair.cosine >= ALIKE:
        return Advice("caution", f"{names} point the same way (cosine {ratio(pair.cosine)}): little to gain from both.")
    if pair.cosine <= OPPOSED:
        return Advice(
            "caution",
            f"{names} pull against each other (cosine {ratio(pair.cosine)}): what a merge gains on one task it is "
            "likely to lose on the other.",
        )
    if pair.cosine >= RELATED:
        return Advice("note", f"{names} share part of what they learned (cosine {ratio(pair.cosine)}).")
    return None


def _on_crowd(overall: Region) -> Iterator[Advice]:
    moved = [size for size in overall.sizes.values() if size.zeros < size.entries]
    if overall.crowd is None or overall.crowd.loss is None or len(moved) < 2:
        return
    usual = unrelated_loss(len(moved))
    text = (
        f"A sign election (TIES) would discard {percent(overall.crowd.loss)} of the task vectors' mass; among "
        f"{len(moved)} unrelated ones of equal size it would be {percent(usual)}."
    )
    yield Advice("caution" if overall.crowd.loss > usual + NOTABLE_LOSS else "note", text)
