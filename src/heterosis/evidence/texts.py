"""The texts that evidence is measured on, from a file of examples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from heterosis.errors import TaskError

SUFFIXES = (".txt", ".jsonl")


def read_texts(path: Path, limit: int | None = None, field: str = "text") -> list[str]:
    """The first `limit` examples of a file (None: all), in its order.

    `.txt`: blank lines part the examples; in a file without blank lines every line is one. `.jsonl`: one object per
    line, whose `field` is the example. TaskError for anything else, a file without examples, or a damaged line among
    those that are read.
    """
    if path.suffix not in SUFFIXES:
        raise TaskError(f"{path}: the data must be a {' or '.join(SUFFIXES)} file.")
    if not path.is_file():
        raise TaskError(f"{path}: no such file. Give a {' or '.join(SUFFIXES)} file of texts.")
    try:
        with path.open(encoding="utf-8-sig") as lines:
            examples = _paragraphs(lines.read()) if path.suffix == ".txt" else _fields(lines, path, field)
            texts = list(islice(examples, limit))
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 at byte {error.start}. Save it as UTF-8.") from error
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}). Check the file.") from error
    if not texts:
        raise TaskError(f"{path}: holds no text. Give at least one example.")
    return texts


def _paragraphs(content: str) -> Iterator[str]:
    blocks = [block.strip("\n") for block in re.split(r"\n[^\S\n]*(?:\n[^\S\n]*)+", content.strip())]
    if len(blocks) == 1:
        blocks = blocks[0].split("\n")
    yield from (block for block in blocks if block.strip())


def _fields(lines: IO[str], path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{path}, line {number}: not JSON ({error}). Write one object per line.") from error
        text = row.get(field) if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise TaskError(f"{path}, line {number}: no text under {field!r}. Give a text there, or drop the line.")
        yield text
