"""Warm starts: begin a search where an earlier study's best candidates lie (Nomura et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from heterosis.config import read_yaml
from heterosis.errors import RecipeError, StudyError
from heterosis.ledger.record import Candidate
from heterosis.merge.methods import METHODS
from heterosis.profiles import Profiles
from heterosis.recipe import Depthwise, Parameters, Recipe, Source
from heterosis.space import Genome, Space, fill
from heterosis.stored import RESOLVED, open_record

# α of Nomura et al. 2021: how far around each good point the search looks, as a fraction of a gene's range.
NEIGHBOURHOOD = 0.1
FEWEST = 3
# Digits of a start. The last bits of a least-squares fit differ between machines, and a study may move to another.
DIGITS = 9


class WarmStart(NamedTuple):
    """Where a search begins."""

    mean: Genome
    spread: Genome
    """Standard deviation of each gene, in units of the space's sigma: what pycma calls CMA_stds, and multiplies by the
    step size. Another step size than the space's scales the warm start with it."""
    starts: list[Genome]
    """The points that it comes from, best first, each once."""


def warm_start(folder: Path, top: float, space: Space, record: str | None = None) -> WarmStart:
    """The promising region of an earlier study, in `space`: a Gaussian fitted to the best `top` of its candidates.

    Warm Starting CMA-ES (Nomura et al. 2021): the promising distribution is a mixture of Gaussians of deviation α
    around the best points; the Gaussian nearest to it has their mean and the covariance α² I + their covariance, of
    which the diagonal is kept. At least three points are taken. Baselines are none of them: they are no draws from a
    space, and every study scores its own. Genes that the earlier study does not tell of keep the space's initial value
    and sigma.

    `record` is the URL of a record with the user and password that the earlier study's files leave out, used if it is
    the same record. Nothing is written to it. StudyError says what is missing.
    """
    best = best_candidates(_candidates(folder, record), top)
    if not best:
        raise StudyError(f"warm_start.run: {folder} holds no scored candidates. Run it further, or give another study.")
    points = [_point(candidate.recipe, space, folder) for candidate in best]
    columns = [[unit for unit in column if unit is not None] for column in zip(*points, strict=True)]
    if not any(columns):
        raise StudyError(f"warm_start.run: {folder} says nothing of this space's genes. Drop warm_start.")
    sigma = space.config.sigma
    mean = fill([float(np.mean(column)) if column else None for column in columns], space.initial)
    spread = [math.hypot(NEIGHBOURHOOD, np.std(column)) / sigma if column else 1.0 for column in columns]
    starts = dict.fromkeys(_rounded(fill(point, space.initial)) for point in points)
    return WarmStart(_rounded(mean), _rounded(spread), list(starts))


def best_candidates(candidates: Sequence[Candidate], top: float) -> list[Candidate]:
    """The best fraction of what was proposed and scored, best first; of equals, those scored on every item."""

    def merit(candidate: Candidate) -> Any:
        assert candidate.fitness is not None
        return candidate.fitness.rank_key, not candidate.is_partial, -candidate.number

    scored = [c for c in candidates if not c.is_baseline and c.fitness is not None]
    return sorted(scored, key=merit, reverse=True)[: max(FEWEST, round(top * len(scored)))]


def _rounded(numbers: Sequence[float]) -> Genome:
    return tuple(round(float(number), DIGITS) for number in numbers)


def _point(recipe: Recipe, space: Space, folder: Path) -> list[float | None]:
    """A recipe's place in the space; None for genes that it does not tell of."""
    theirs = same_parents(space.parents, recipe.parents)
    if not theirs:
        names = ", ".join(parent.name for parent in recipe.parents)
        raise StudyError(f"warm_start.run: {folder} merged {names}, none of this study's parents. Drop warm_start.")
    try:
        return space.nearest(recipe_profiles(recipe, theirs))
    except RecipeError as error:
        raise StudyError(f"warm_start.run: {folder} merged models of another shape ({error})") from error


def same_parents(ours: Sequence[Source], theirs: Sequence[Source]) -> dict[str, str]:
    """Our parent -> theirs: the one with the same weights, else one of the same name that is nobody's by weights."""
    by_digest = {parent.digest: parent.name for parent in theirs if parent.digest}
    found = {parent.name: by_digest[parent.digest] for parent in ours if parent.digest in by_digest}
    free = {parent.name for parent in theirs} - set(found.values())
    return found | {p.name: p.name for p in ours if p.name not in found and p.name in free}


def recipe_profiles(recipe: Recipe, parents: Mapping[str, str]) -> Profiles:
    """The numbers that a recipe's method reads, under other names of its parents (new name -> name in the recipe)."""
    method = METHODS[recipe.method]
    values: dict[tuple[str, str], Mapping[str, Depthwise]] = {}
    for new, old in parents.items():
        given = {group: recipe.parameters.get(old, {}).get(group, Parameters()) for group in recipe.groups}
        for gene in sorted(method.reads):
            profile = {group: getattr(parameters, gene) for group, parameters in given.items()}
            # A method in front of which no drop rate was written tells nothing of drop rates, though it takes them.
            if gene in method.genes or any(np.any(value) for value in profile.values()):
                values[new, gene] = profile
    for setting, default in method.settings.items():
        values["all", setting] = {
            group: recipe.settings.get(group, {}).get(setting, default) for group in recipe.groups
        }
    return Profiles(recipe.groups, values)


def _candidates(folder: Path, record: str | None) -> Sequence[Candidate]:
    """All candidates of the study in a run folder."""
    try:
        if not folder.is_dir():
            raise StudyError(f"no folder {folder}. Give the folder of a study that ran (runs/NAME).")
        if not (folder / RESOLVED).is_file():
            raise StudyError(f"{folder} has no {RESOLVED}, so it is no study's folder.")
        name = str(read_yaml(folder / RESOLVED).get("name"))
        with open_record(folder, {"search": name}, record) as found:
            return found["search"].candidates
    except StudyError as error:
        raise StudyError(f"warm_start.run: {error}") from error
