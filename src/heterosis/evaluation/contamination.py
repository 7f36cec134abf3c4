"""Contamination: items that all but repeat one another across splits, and items that stand in training files.

Both compare words: lower case, Unicode form NFKC, without punctuation; in scripts written without spaces every
character is a word. Labels and instructions that many items hold are left out (`PanelTask.texts`).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from heterosis.evaluation.panel import SPLITS, Panel, SplitName
from heterosis.evaluation.training_text import Training, read_training

# Jaccard similarity from which on two items are near duplicates, and the words in what they are compared by
# (Broder 1997, On the resemblance and containment of documents).
ALIKE, SHINGLE = 0.8, 3
# Part of an item's n-grams from which on it stands in a text, and the n. GPT-3 (Brown et al. 2020, appendix C) looked
# for 13 words, PaLM (Chowdhery et al. 2022, section 8) for 8 with a share of 0.7.
PRESENT, GRAM = 0.8, 8
# Items of fewer words are found by a whole line or text alone.
SHORTEST = 5
EXAMPLES = 3

T = TypeVar("T")

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


class Place(NamedTuple):
    """An item of a panel."""

    task: str
    split: SplitName
    doc_id: int


class Count(NamedTuple):
    """How many items of one task in one split are concerned."""

    task: str
    split: SplitName
    items: int
    found: int


class Pair(NamedTuple):
    """Two near duplicates in different splits."""

    one: Place
    other: Place
    similarity: float
    """Jaccard similarity of their word 3-grams."""


class NearDuplicates(NamedTuple):
    """Items that have a near duplicate in another split of the panel."""

    counts: tuple[Count, ...]
    examples: tuple[Pair, ...]
    """A few for each task and split, the most alike first."""

    def warnings(self) -> list[str]:
        """One line for each task and split that has any."""
        shown = {(pair.one.task, pair.one.split): pair for pair in reversed(self.examples)}
        return [self._warning(count, shown[count.task, count.split]) for count in self.counts if count.found]

    def _warning(self, count: Count, pair: Pair) -> str:
        one, other, similarity = pair
        return (
            f"{count.task}: {count.found} of {count.items} {count.split} items have a near duplicate in another split "
            f"(document {one.doc_id} is {similarity:.0%} like {other.task}'s {other.doc_id}, a {other.split} item), "
            "so the splits do not tell independently. Drop the duplicates, or join them with cluster:."
        )


class Occurrence(NamedTuple):
    """An item that stands in a training file."""

    item: Place
    share: float
    """Part of its word 8-grams (fewer words for short items) that occur in the file."""


class FileCounts(NamedTuple):
    """Items of the panel that stand in one training file."""

    file: str
    counts: tuple[Count, ...]
    examples: tuple[Occurrence, ...]
    """A few for each task and split."""


class TrainingOverlap(NamedTuple):
    """Items of the panel that stand in training files."""

    files: tuple[FileCounts, ...]

    def warnings(self) -> list[str]:
        """One line for each file, task and split that has any."""
        found = []
        for file, counts, examples in self.files:
            shown = {(each.item.task, each.item.split): each for each in reversed(examples)}
            for count in (count for count in counts if count.found):
                item, share = shown[count.task, count.split]
                found.append(
                    f"{count.task}: {count.found} of {count.items} {count.split} items stand in {file} (document "
                    f"{item.doc_id}: {share:.0%} of it), so a parent trained on it may know them. Drop these items, or "
                    "claim nothing from this task."
                )
        return found


def words(text: str) -> list[str]:
    """The words by which texts are compared."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _WORD.findall(plain.casefold())


def near_duplicates(panel: Panel) -> NearDuplicates:
    """Which items have a near duplicate in another split, across all tasks.

    Exact, and without comparing all pairs: sets of sizes a and b with a similarity of t or more share one of their
    rarest a − ⌈ta⌉ + 1 and b − ⌈tb⌉ + 1 members, so only these are looked up (Chaudhuri, Ganti & Kaushik 2006;
    Bayardo, Ma & Srikant 2007).
    """
    shingles = {place: _shingles(texts) for place, texts in _texts(panel).items()}
    held = Counter(shingle for own in shingles.values() for shingle in own)
    rank = {shingle: number for number, shingle in enumerate(sorted(held, key=lambda each: (held[each], each)))}
    sets = {place: frozenset(rank[shingle] for shingle in own) for place, own in shingles.items()}
    index: dict[SplitName, dict[int, list[Place]]] = {split: {} for split in SPLITS}
    for place, own in sets.items():
        for shingle in _rarest(own):
            index[place.split].setdefault(shingle, []).append(place)
    pairs = [pair for place in sets if (pair := _first_alike(place, sets, index)) is not None]
    pairs.sort(key=lambda pair: -pair.similarity)
    return NearDuplicates(_counts(panel, [pair.one for pair in pairs]), tuple(_few(pairs, [p.one for p in pairs])))


def found_in(panel: Panel, files: Sequence[Path]) -> TrainingOverlap:
    """Which items stand in training files: .txt, .jsonl (every string of a line's object) or .json.

    An item stands in a file when one of its texts of at least 8 words (its longest ones when all are shorter) does:
    when 0.8 of the text's word 8-grams occur in the file, anywhere. Texts of 5 to 7 words count whole; items of fewer
    words only where a whole line or text of the file says the same. Files are read as a stream; what is kept is of the
    panel's size. TaskError for a file that cannot be read.
    """
    places, wanted = [], []
    for place, texts in _texts(panel).items():
        told = [words(text) for text in texts]
        longest = max(map(len, told), default=0)
        for own in told:
            if longest and len(own) >= min(GRAM, longest):
                places.append(place)
                wanted.append(own)
    return TrainingOverlap(tuple(_found_in(panel, path, places, wanted) for path in files))


def _found_in(panel: Panel, path: Path, places: Sequence[Place], wanted: Sequence[Sequence[str]]) -> FileCounts:
    training = Training(wanted, GRAM, SHORTEST)
    for text in read_training(path):
        training.read(words(text.words), whole=text.is_whole, ends=text.ends)
    shares: dict[Place, float] = {}
    for place, share in zip(places, training.shares(), strict=True):
        if share >= PRESENT:
            shares[place] = max(share, shares.get(place, 0.0))
    found = [Occurrence(place, share) for place, share in shares.items()]
    items = [each.item for each in found]
    return FileCounts(str(path), _counts(panel, items), tuple(_few(found, items)))


def _texts(panel: Panel) -> dict[Place, list[str]]:
    return {
        Place(task, name, item.doc_id): split.tasks[task].texts(item)
        for name, split in panel.splits.items()
        for task, items in split.items.items()
        for item in items
    }


def _shingles(texts: Sequence[str]) -> set[str]:
    """Word 3-grams within each text; a shorter text is one by itself."""
    found = set()
    for own in map(words, texts):
        if own:
            found |= {" ".join(own[at : at + SHINGLE]) for at in range(max(1, len(own) - SHINGLE + 1))}
    return found


def _rarest(own: frozenset[int]) -> list[int]:
    return sorted(own)[: len(own) - math.ceil(ALIKE * len(own) - 1e-9) + 1] if own else []


def _first_alike(
    place: Place, sets: Mapping[Place, frozenset[int]], index: Mapping[SplitName, Mapping[int, Sequence[Place]]]
) -> Pair | None:
    """A near duplicate of an item in another split. The first that is met: templated tasks have thousands."""
    own = sets[place]
    seen = set()
    for other in _candidates(place, own, index):
        if other in seen:
            continue
        seen.add(other)
        shared = len(own & sets[other])
        similarity = shared / (len(own) + len(sets[other]) - shared)
        if similarity >= ALIKE:
            return Pair(place, other, similarity)
    return None


def _candidates(
    place: Place, own: frozenset[int], index: Mapping[SplitName, Mapping[int, Sequence[Place]]]
) -> Iterator[Place]:
    for split in SPLITS:
        if split != place.split:
            for shingle in _rarest(own):
                yield from index[split].get(shingle, ())


def _counts(panel: Panel, found: Sequence[Place]) -> tuple[Count, ...]:
    concerned = Counter((place.task, place.split) for place in found)
    return tuple(
        Count(task, name, len(items), concerned[task, name])
        for name, split in panel.splits.items()
        for task, items in split.items.items()
    )


def _few(found: Sequence[T], places: Sequence[Place]) -> Iterator[T]:
    """The first few of each task and split."""
    shown: Counter[tuple[str, str]] = Counter()
    for each, place in zip(found, places, strict=True):
        shown[place.task, place.split] += 1
        if shown[place.task, place.split] <= EXAMPLES:
            yield each
