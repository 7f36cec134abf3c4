"""How a study spends its items, in the study file: racing, anchor items, stages, warm starts, constraints."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from heterosis.config.spaces import Config, Depth


class RacingConfig(Config):
    """Score a generation in rungs, the same items for all, and stop a candidate once its place is clear."""

    rungs: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (
        0.0625,
        0.125,
        0.25,
        0.5,
        1.0,
    )
    """Growing fractions of the search split, the last one 1."""
    error: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Chance, over all looks, that a candidate is stopped though it belongs among those that matter."""
    minimum: Annotated[int, Field(ge=4)] = 16
    """Fewest items in a rung; smaller ones are joined."""
    reliability: Annotated[float, Field(gt=0, le=1)] = 0.5
    """End a generation's race once so much of the spread of its scores is more than noise; 1: only when every place is
    clear, or the items are used up."""

    @field_validator("rungs")
    @classmethod
    def _growing(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if rungs[-1] != 1.0 or any(low >= high for low, high in itertools.pairwise(rungs)):
            raise ValueError("rungs must grow and end in 1, as in [0.125, 0.25, 0.5, 1]")
        return rungs


class AnchorsConfig(Config):
    """Score candidates on chosen items and estimate the rest by item response theory."""

    count: Annotated[int, Field(ge=5)] = 50
    """Anchor items of each task."""
    warmup: Annotated[int, Field(ge=8)] = 40
    """Candidates, baselines included, that are scored on every item first; the item model is fitted to them."""
    estimator: Literal["gp-irt", "p-irt", "mp-irt", "gmp-irt", "weighted"] = "gp-irt"
    """How the score on all items is estimated: tinyBenchmarks' (gp-irt, p-irt), MERGE³'s (mp-irt, gmp-irt), or the
    anchors' weighted mean."""


class StageConfig(Config):
    """One stage of a search from coarse to fine."""

    depth: Depth
    """Depth profile of every searched gene in this stage."""
    share: Annotated[float, Field(gt=0)] = 1.0
    """Part of the budget, relative to the other stages."""


class WarmStartConfig(Config):
    """Start from what an earlier study found."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})

    run: str
    """Folder of the earlier study (runs/NAME), relative to the study file."""
    top: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The best fraction of its candidates to start from (Nomura et al. 2021)."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"run": value} if isinstance(value, str) else value


class ConstraintConfig(Config):
    """What a merge may not lose: `{task: code, against: best_parent, margin: 0.01}`."""

    task: str
    """Name of one of the study's tasks."""
    against: str | None = None
    """best_parent, or the name of a parent."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """How much worse than that it may be, in the task's own unit."""
    at_least: float | None = None
    """A fixed bound instead: the score must be this good (at most this, where lower is better)."""

    @model_validator(mode="after")
    def _one_bound(self) -> ConstraintConfig:
        if (self.against is None) == (self.at_least is None):
            raise ValueError("give against (best_parent or a parent's name) or at_least, one of the two")
        return self
