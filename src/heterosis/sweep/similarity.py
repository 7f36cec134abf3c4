"""How alike the hidden states of every merge are to those of the fine-tunes that it was made from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from heterosis.builder import Builder
from heterosis.errors import StudyError
from heterosis.evaluation.embeddings import MOST_BYTES, Embedder, cosines
from heterosis.evaluation.engine import Continuation, Generation, Tokens
from heterosis.evaluation.panel import Outcomes, TaskOutcomes
from heterosis.evaluation.tasks import Item
from heterosis.evaluation.tokens import Tokenizer
from heterosis.evidence.texts import read_texts
from heterosis.ledger.record import Candidate, Measurement, Proposal, Record
from heterosis.recipe import Recipe
from heterosis.study import Prepared
from heterosis.sweep.config import SimilarityConfig
from heterosis.sweep.points import Design, Subject

Texts = list[Tokens]


class Comparing(NamedTuple):
    """A merge to compare with its originals."""

    label: str
    recipe: Recipe
    subject: Subject


def key(original: str, layer: int) -> str:
    """Under what a record has the cosines to an original behind a layer; layer 0 is the embeddings."""
    return f"{original}/{layer}"


def texts_of(prepared: Prepared, about: SimilarityConfig, subjects: Sequence[Subject]) -> dict[str, Texts]:
    """The texts of each subject as tokens: those of the file, or the prompts of its own tasks."""
    if about.texts is not None:
        path = prepared.path.resolve().parent / about.texts
        tokenizer = Tokenizer(prepared.family.base.folder, about.max_length)
        rows = [tuple(tokenizer.tok_encode(text)) for text in read_texts(path, about.samples, about.field)]
        return dict.fromkeys([subject.name for subject in subjects], _distinct(rows, about.max_length))
    items = prepared.panel.splits["search"].items
    return {
        subject.name: [
            row
            for task in subject.tasks
            for row in _distinct([_prompt(item) for item in items[task]], about.max_length)[: about.samples]
        ]
        for subject in subjects
    }


def _distinct(rows: Sequence[Tokens], longest: int) -> Texts:
    return [row for row in dict.fromkeys(row[:longest] for row in rows) if row]


def _prompt(item: Item) -> Tokens:
    """What an item asks: the prompt, or the text itself where it is the text's likelihood that is asked."""
    request = item.requests[0]
    if isinstance(request, Generation):
        return request.prompt
    if isinstance(request, Continuation):
        return request.context
    first = request.windows[0]
    return first.context + first.target


def record_names(name: str, texts: Mapping[str, Texts]) -> dict[str, str]:
    """Name of each subject's record: other texts, another record."""
    return {
        subject: f"{name}/similarity/{hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]}"
        for subject, rows in texts.items()
    }


def open_records(storage: Any, name: str, texts: Mapping[str, Texts]) -> dict[str, Record]:
    """A record for each subject; those with the same texts share one."""
    names = record_names(name, texts)
    records = {each: Record(storage, each, objectives=["cosine"]) for each in dict.fromkeys(names.values())}
    return {subject: records[each] for subject, each in names.items()}


def pending(design: Design, recorded: Mapping[str, Sequence[Candidate]]) -> list[Comparing]:
    """Every merge once that is not recorded for its subject yet, subject by subject."""
    found: dict[str, Comparing] = {}
    for subject in design.subjects:
        known = {each.recipe_digest for each in recorded[subject.name] if each.value is not None}
        for point in (point for point in design.points if point.subject == subject):
            for recipe in point.recipes:
                if recipe.digest not in known:
                    found.setdefault(recipe.digest, Comparing(point.label, recipe, subject))
    return list(found.values())


def compare(
    prepared: Prepared,
    design: Design,
    texts: Mapping[str, Texts],
    records: Mapping[str, Record],
    before_each: Callable[[int, int], None],
) -> None:
    """Measure and record what is not recorded yet. `before_each`: told how many are done, of how many."""
    left = pending(design, {subject: record.candidates for subject, record in records.items()})
    if not left:
        return
    device = prepared.config.engine.options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    builder = Builder(prepared.family, device)
    embedder = Embedder(prepared.family.base.folder, prepared.family.names, device)
    _check_memory(embedder, texts, left)
    holds: tuple[Subject, dict[str, list[Tensor]]] | None = None
    for done, comparing in enumerate(left):
        before_each(done, len(left))
        if holds is None or holds[0] != comparing.subject:
            holds = (comparing.subject, _originals(design, comparing.subject, texts, builder, embedder))
        started = time.perf_counter()
        embedder.become(builder.tensors(comparing.recipe))
        merged = time.perf_counter()
        outcomes = _outcomes(embedder.states(texts[comparing.subject.name]), holds[1])
        ended = time.perf_counter()
        seconds = {"merge": merged - started, "swap": 0.0, "score": ended - merged, "total": ended - started}
        scores = {name: table.mean() for name, table in outcomes.items()}
        last = [scores[key(original, embedder.layers - 1)] for original in holds[1]]
        count = len(texts[comparing.subject.name])
        fitness = None if not np.isfinite(last).all() else sum(last) / len(last)
        error = None if fitness is not None else "its hidden states are not finite"
        found = (scores, outcomes) if error is None else ({}, {})
        measured = Measurement(*found, None, seconds, count, error)
        records[comparing.subject.name].add(Proposal(comparing.label, 1, comparing.recipe), measured, fitness)


def _originals(
    design: Design, subject: Subject, texts: Mapping[str, Texts], builder: Builder, embedder: Embedder
) -> dict[str, list[Tensor]]:
    """Hidden states of the fine-tunes themselves, on the subject's texts."""
    found = {}
    for parent in subject.parents:
        embedder.become(builder.tensors(design.references[parent]))
        found[parent] = embedder.states(texts[subject.name])
    return found


def _outcomes(states: Sequence[Tensor], originals: Mapping[str, Sequence[Tensor]]) -> Outcomes:
    """Cosines by original and layer, a value for each text, which weighs as much as it has tokens."""
    weights = np.array([each.shape[1] for each in states], dtype=np.float64)
    found: Outcomes = {}
    for original, theirs in originals.items():
        table = np.array([cosines(own, other) for own, other in zip(states, theirs, strict=True)])  # [texts, layers]
        for layer in range(table.shape[1]):
            found[key(original, layer)] = TaskOutcomes(table[:, layer], weights)
    return found


def _check_memory(embedder: Embedder, texts: Mapping[str, Texts], left: Sequence[Comparing]) -> None:
    for subject in dict.fromkeys(comparing.subject for comparing in left):
        tokens = sum(map(len, texts[subject.name])) * (len(subject.parents) + 1)
        if embedder.bytes_for(tokens) > MOST_BYTES:
            raise StudyError(
                f"sweep.similarity: hidden states of {len(texts[subject.name])} texts would take "
                f"{embedder.bytes_for(tokens) / 2**30:.1f} GiB. Lower samples or max_length."
            )


def check_texts(prepared: Prepared, about: SimilarityConfig, subjects: Sequence[Subject]) -> dict[str, Texts]:
    """The texts; StudyError for a file that cannot be read or too few texts."""
    if about.texts is not None and not Path(prepared.path.resolve().parent / about.texts).is_file():
        raise StudyError(f"sweep.similarity.texts: no file {about.texts} beside the sweep file.")
    texts = texts_of(prepared, about, subjects)
    for name, rows in texts.items():
        if len(rows) < 2:
            raise StudyError(f"sweep.similarity: {name} has {len(rows)} text. Give at least two.")
    return texts


def described(texts: Mapping[str, Texts]) -> dict[str, Any]:
    """How many texts and tokens each subject is compared on."""
    return {name: {"texts": len(rows), "tokens": sum(map(len, rows))} for name, rows in texts.items()}
