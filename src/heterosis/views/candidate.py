"""One candidate: its scores on every split, how it raced, what it is made of, and how to build it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from heterosis.config import Gene, SpaceConfig
from heterosis.errors import RecordError
from heterosis.evaluation.panel import SPLITS, SplitName
from heterosis.finals import Evidence
from heterosis.ledger.record import Candidate
from heterosis.recipe import Recipe
from heterosis.stored import Stored, open_stored
from heterosis.views.names import label_of, role_of


class Scored(NamedTuple):
    """What a split says of the candidate."""

    items: int
    """How many items it answered; fewer than the split has: its scores are estimates."""
    of: int
    objective: dict[str, float] | None
    """estimate, low, high; None if it could not be scored."""
    tasks: dict[str, dict[str, float]]
    error: str | None


class Searched(NamedTuple):
    """A gene: its value in the range that was searched."""

    name: str
    value: float
    low: float
    high: float


class Profile(NamedTuple):
    """One number of the merge along depth."""

    owner: str
    """A parent, or `all` for a setting of the method."""
    group: str
    quantity: str
    values: tuple[float, ...]
    """One for each layer, or one for all."""
    low: float
    """Ends of the scale that it is shown on: the searched range, widened to the values."""
    high: float


class Shown(NamedTuple):
    """A candidate as its study has it."""

    study: str
    folder: str
    label: str
    role: str
    generation: int
    objective: str
    splits: dict[SplitName, Scored]
    race: Mapping[str, Any] | None
    method: str
    mask_seed: int
    profiles: tuple[Profile, ...]
    genes: tuple[Searched, ...]
    recipe_digest: str
    weights_digest: str | None
    seconds: Mapping[str, float]
    """Of its scoring in the search, by phase."""
    next: tuple[str, ...]
    """Commands that build it again."""
    recipe: Recipe


def show(target: Path, name: str) -> Shown:
    """A candidate by its label, or by its part: winner, best, baseline, parent."""
    with open_stored(target) as study:
        return shown(study, label_of(study, name))


def shown(study: Stored, label: str) -> Shown:
    """The candidate of a study that is open."""
    found = study.candidates()[label]
    first = next(iter(found.values()))
    space = study.config.resolved_space
    return Shown(
        study=study.config.name,
        folder=str(study.folder),
        label=label,
        role=role_of(study, label),
        generation=first.generation,
        objective=study.config.objective,
        splits={split: _scored(study, split, found[split]) for split in SPLITS if split in found},
        race=first.race,
        method=first.recipe.method,
        mask_seed=first.recipe.seed,
        profiles=tuple(profiles(first.recipe, space)),
        genes=tuple(_genes(first.genes, space)),
        recipe_digest=first.recipe_digest,
        weights_digest=next((c.weights_digest for c in found.values() if c.weights_digest), None),
        seconds=first.seconds,
        next=_commands(study.folder, label),
        recipe=first.recipe,
    )


def _scored(study: Stored, split: SplitName, candidate: Candidate) -> Scored:
    items = study.items[split]
    if candidate.value is None:
        return Scored(0, items.size, None, {}, candidate.error)
    try:
        row = Evidence([candidate], items, study.objective, study.config.seed).row(candidate.label)
    except RecordError:  # a normalised objective has no scale before the parents are scored
        alone = dict.fromkeys(("estimate", "low", "high"), candidate.value)
        return Scored(candidate.known, items.size, alone, {}, None)
    return Scored(candidate.known, items.size, row["objective"], row["tasks"], None)


def _genes(genes: Mapping[str, float], space: SpaceConfig) -> list[Searched]:
    found = []
    for name, value in genes.items():
        low, high = _range(name.split(".")[1], space, value)
        found.append(Searched(name, value, low, high))
    return found


def _range(quantity: str, space: SpaceConfig, *values: float) -> tuple[float, float]:
    """The range that was searched, or 0 to 1, widened to the values."""
    gene = getattr(space, quantity, None) or space.settings.get(quantity)
    low, high = (gene.low, gene.high) if isinstance(gene, Gene) else (0.0, 1.0)
    return min(low, *values), max(high, *values)


# What a parent's numbers are when a recipe leaves them out says nothing of them.
QUANTITIES = {"weight": 1.0, "density": 1.0, "drop": 0.0, "gamma": 0.0, "epsilon": 0.0}


def profiles(recipe: Recipe, space: SpaceConfig) -> list[Profile]:
    """The numbers of a recipe along depth: every parent's weights, and whatever else is not at its neutral value."""
    found = []
    for parent in recipe.parents:
        for group in recipe.groups:
            numbers = recipe.parameters.get(parent.name, {}).get(group)
            for quantity, neutral in QUANTITIES.items():
                values = _values(neutral if numbers is None else getattr(numbers, quantity))
                if quantity == "weight" or any(value != neutral for value in values):
                    found.append(Profile(parent.name, group, quantity, values, *_range(quantity, space, *values)))
    for group, settings in recipe.settings.items():
        for name, value in settings.items():
            values = _values(value)
            found.append(Profile("all", group, name, values, *_range(name, space, *values)))
    return found


def _values(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, tuple) else (float(value),)


def _commands(folder: Path, label: str) -> tuple[str, ...]:
    at, name = shlex.quote(str(folder)), shlex.quote(label)
    file = shlex.quote(f"{label}.yaml")
    return (f"heterosis show {at} {name} --recipe > {file}", f"heterosis merge {file} {shlex.quote(f'{label}-model')}")
