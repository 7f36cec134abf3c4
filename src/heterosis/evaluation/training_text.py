"""Training files as a stream of words, and which of a panel's word sequences occur in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from heterosis.errors import TaskError
from heterosis.evaluation.documents import strings

SUFFIXES = (".txt", ".jsonl", ".json")
# Characters of a line that are read at once, and the largest line or file of JSON that is parsed whole.
PIECE, LARGEST = 1 << 20, 1 << 28
# Characters that a few words may have.
SHORT = 200
# Words that are looked up at once.
BATCH = 1 << 16

Hashes = npt.NDArray[np.uint64]


class Text(NamedTuple):
    """A stretch of a training file."""

    words: str
    is_whole: bool
    """Whether it is a line or a text from its beginning to its end."""
    ends: bool
    """Whether what follows is another document. Lines of a .txt file run on, and so do strings of a JSON document."""


class Training:
    """Takes in a training file and remembers which of the wanted sequences' n-grams it has seen."""

    def __init__(self, wanted: Sequence[Sequence[str]], gram: int, shortest: int) -> None:
        """`wanted`: words of each text that is looked for; `gram`: n; texts under `shortest` words only as a whole."""
        self._gram, self._shortest = gram, shortest
        self._vocabulary: dict[str, int] = {}
        # Multilinear hashing: strongly universal, so an accident is as rare as chance (Lemire & Kaser 2014).
        self._factors = np.random.default_rng(0x9A3).integers(1, 2**64, size=gram, dtype=np.uint64)
        self._wanted: list[tuple[int, Hashes] | str] = [self._prepare(words) for words in wanted]
        sizes = sorted({each[0] for each in self._wanted if isinstance(each, tuple)})
        self._hashes = {
            size: np.unique(np.concatenate([w[1] for w in self._wanted if isinstance(w, tuple) and w[0] == size]))
            for size in sizes
        }
        self._seen = {size: np.zeros(len(own), dtype=np.bool_) for size, own in self._hashes.items()}
        self._whole = {each: False for each in self._wanted if isinstance(each, str)}
        self._pending: list[int] = []

    def _prepare(self, words: Sequence[str]) -> tuple[int, Hashes] | str:
        """A text's n and its n-grams, or the text itself."""
        if len(words) < self._shortest:
            return " ".join(words)
        numbers = [self._vocabulary.setdefault(word, len(self._vocabulary) + 1) for word in words]
        size = min(self._gram, len(words))
        return size, np.unique(self._hash(np.array(numbers, dtype=np.uint64), size))

    def _hash(self, numbers: Hashes, size: int) -> Hashes:
        """Hash of every window of `size` words. numbers [n] -> [n - size + 1]."""
        count = len(numbers) - size + 1
        found = np.zeros(count, dtype=np.uint64)
        for at, factor in enumerate(self._factors[:size]):
            found += numbers[at : at + count] * factor
        return found

    def read(self, words: Sequence[str], whole: bool, ends: bool) -> None:
        """Take in the next words of the file. `whole`, `ends` as in `Text`."""
        if whole and len(words) < self._shortest and (text := " ".join(words)) in self._whole:
            self._whole[text] = True
        # Words that no wanted text has are 0, and so is what parts texts: no window of wanted words holds one.
        self._pending += [self._vocabulary.get(word, 0) for word in words]
        if ends:
            self._pending.append(0)
        if len(self._pending) >= BATCH:
            self._look_up()

    def _look_up(self) -> None:
        numbers = np.array(self._pending, dtype=np.uint64)
        for size, own in self._hashes.items():
            if len(numbers) < size:
                continue
            found = self._hash(numbers, size)[(numbers[: len(numbers) - size + 1] > 0) & (numbers[size - 1 :] > 0)]
            at = np.minimum(np.searchsorted(own, found), len(own) - 1)
            self._seen[size][at[own[at] == found]] = True
        self._pending = self._pending[-(self._gram - 1) :]

    def shares(self) -> list[float]:
        """For each wanted text the part of its n-grams that were seen; 1 or 0 for those looked for as a whole."""
        self._look_up()
        found = []
        for each in self._wanted:
            if isinstance(each, str):
                found.append(float(self._whole[each]))
            else:
                size, own = each
                found.append(float(self._seen[size][np.searchsorted(self._hashes[size], own)].mean()))
        return found


def read_training(path: Path) -> Iterator[Text]:
    """Every text of a .txt, .jsonl or .json file, as a stream. TaskError, naming the file, when it cannot be read."""
    if path.suffix not in SUFFIXES:
        raise TaskError(f"{path}: a training file must be one of {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise TaskError(f"{path}: no such training file. Give a {', '.join(SUFFIXES)} file.")
    try:
        with path.open(encoding="utf-8-sig") as stream:
            if path.suffix == ".txt":
                yield from _plain(stream)
            elif path.suffix == ".jsonl":
                yield from _objects(stream, path)
            else:
                yield from _texts(_parsed(stream.read(LARGEST + 1), str(path)))
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 ({error.reason}). Save it as UTF-8.") from error
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}). Check the file.") from error


def _plain(stream: IO[str]) -> Iterator[Text]:
    """Lines; one that is too long for the memory comes in pieces that end between words."""
    rest, inside = "", False
    while piece := stream.readline(PIECE):
        ended = piece.endswith("\n") or len(piece) < PIECE
        text = rest + piece
        cut = len(text) if ended else text.rfind(" ") + 1 or len(text)
        yield Text(text[:cut], is_whole=ended and not inside, ends=False)
        rest, inside = text[cut:], not ended
    if rest:
        yield Text(rest, is_whole=False, ends=False)


def _objects(stream: IO[str], path: Path) -> Iterator[Text]:
    number = 0
    while line := stream.readline(LARGEST + 1):
        number += 1
        if line.strip():
            yield from _texts(_parsed(line, f"{path}, line {number}"))


def _parsed(text: str, place: str) -> object:
    if len(text) > LARGEST:
        raise TaskError(f"{place}: too large to be parsed whole. Write a .jsonl file with an object per line.")
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{place}: not JSON ({error}). Mend it, or give a .txt file.") from error
    return found


def _texts(content: object) -> Iterator[Text]:
    """The strings of one document, which run on, and short lines of theirs by themselves: items may be one of them."""
    lines: list[str] = []
    for _, text in strings(content):
        yield Text(text, is_whole=True, ends=False)
        if "\n" in text.strip():
            lines += (line for line in text.splitlines() if len(line) <= SHORT)
    yield Text("", is_whole=False, ends=True)
    yield from (Text(line, is_whole=True, ends=True) for line in lines)
