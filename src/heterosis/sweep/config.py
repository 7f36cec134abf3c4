"""The sweep file: a study file whose `sweep` section says what varies in place of a search space and a budget."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from heterosis.config import Config, SpaceConfig, Study, explain, read_yaml
from heterosis.errors import StudyError
from heterosis.merge import METHODS

# Keys of a study file that a sweep reads.
READ = {
    *("name", "base", "parents", "data", "tasks", "splits", "engine", "dtype"),
    *("record", "tracking", "output", "seed", "sweep"),
}

LONGEST_NAME = 60

Numbers = float | tuple[float, ...] | dict[str, float | tuple[float, ...]]
Rescale = Literal["inverse_keep", "none"] | float
Scope = Literal["tensor", "model"]
Votes = Literal["weighted", "unweighted", "frequency"]
Divisors = Literal["count", "weight", "none"]


class CurveConfig(Config):
    """One curve, or a grid: what is a list varies, all else is fixed. Several lists give their product."""

    method: str | tuple[str, ...] | None = None
    """How parents are merged, as in a recipe."""
    weight: Numbers = 1.0
    """λ. A mapping gives each parent its own value or list; so also below."""
    density: Numbers = 1.0
    """d, the fraction of entries kept by magnitude."""
    drop: Numbers = 0.0
    """p, DARE's drop rate; every method takes it."""
    gamma: Numbers = 0.0
    """Fraction of the largest entries left out (breadcrumbs)."""
    epsilon: Numbers = 0.0
    """Half the window of drop rates over ranks (della); narrowed where p ± epsilon would leave [0, 1)."""
    rescale: Rescale | tuple[Rescale, ...] = "inverse_keep"
    """Factor on what DARE leaves: 1/(1-p), none (DropOnly), or a number (DAREx)."""
    trim_scope: Scope | tuple[Scope, ...] = "tensor"
    """Take the kept fraction per tensor, or over a parent's whole task vector."""
    election: Votes | tuple[Votes, ...] = "weighted"
    """Which votes elect a sign (TIES)."""
    divisor: Divisors | tuple[Divisors, ...] = "count"
    """What TIES divides the sum of agreeing updates by."""
    settings: dict[str, bool | float | tuple[bool | float, ...]] = Field(default={})
    """The method's own settings (scale, normalize, prune_rescale, …)."""
    seed: int | tuple[int, ...] | None = None
    """Seed of the random masks; the study's, and further mask seeds, when left out."""

    @field_validator("method")
    @classmethod
    def _known(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for name in (value,) if isinstance(value, str) else value or ():
            if name not in METHODS or name == "passthrough":
                near = difflib.get_close_matches(name, METHODS, 1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(METHODS)}"
                raise ValueError(f"no method {name!r}; {hint}")
        return value

    @model_validator(mode="after")
    def _lists(self) -> CurveConfig:
        for name, value in self.flat().items():
            if isinstance(value, tuple):
                if not value:
                    raise ValueError(f"{name} is an empty list; give values, or leave it out")
                twice = next((each for i, each in enumerate(value) if each in value[:i]), None)
                if twice is not None:
                    raise ValueError(f"{name} lists {twice} twice; keep one")
        return self

    def flat(self) -> dict[str, Any]:
        """What was written, in the order of the fields: `drop`, `weight.PARENT`, `settings.NAME` -> value or tuple."""
        found: dict[str, Any] = {}
        for name in sorted(self.model_fields_set, key=list(type(self).model_fields).index):
            value = getattr(self, name)
            if isinstance(value, dict):
                found |= {f"{name}.{key}": inner for key, inner in value.items()}
            elif value is not None:
                found[name] = value
        return found


class SimilarityConfig(Config):
    """Cosine similarity between the hidden states of a merge and of the original fine-tune."""

    texts: str | None = None
    """A .txt or .jsonl file, relative to the sweep file; the prompts of the scored items when left out."""
    samples: Annotated[int, Field(ge=2)] = 64
    """Use the first so many texts, or so many prompts of each task."""
    max_length: Annotated[int, Field(ge=2)] = 256
    """Cut texts to so many tokens."""
    field: str = "text"
    """Key of the text in a .jsonl file."""


class SweepConfig(Config):
    """What varies."""

    parents: Literal["each", "together"] | dict[str, str | tuple[str, ...]] = "each"
    """each: every parent alone with the base, as in the DARE paper. together: all in one merge. A mapping of parents
    to tasks: each of these alone, scored on its own tasks."""
    fixed: CurveConfig = CurveConfig()
    """What all curves share unless they say otherwise."""
    curves: dict[str, CurveConfig] = Field(default={})
    """Name -> a curve."""
    one_at_a_time: CurveConfig | None = None
    """Lists, each of which becomes a curve of its own around `fixed`."""
    grid: CurveConfig | None = None
    """Lists whose product is taken, around `fixed`."""
    mask_seeds: Annotated[int, Field(ge=1, le=100)] = 3
    """Seeds of the random masks over which a point that drops at random is repeated."""
    similarity: SimilarityConfig | None = None
    """Also compare hidden states with the original's. `{}` takes the defaults."""

    @field_validator("curves")
    @classmethod
    def _named(cls, curves: dict[str, CurveConfig]) -> dict[str, CurveConfig]:
        for name in curves:
            if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
                raise ValueError(
                    f"{name[:LONGEST_NAME]!r} cannot name a curve: at most {LONGEST_NAME} printable letters"
                )
        return curves

    @model_validator(mode="after")
    def _some(self) -> SweepConfig:
        if not self.curves and self.one_at_a_time is None and self.grid is None:
            raise ValueError("nothing varies; give curves, one_at_a_time or grid")
        varied = [key for key, value in self.fixed.flat().items() if isinstance(value, tuple)]
        if varied:
            raise ValueError(f"fixed.{varied[0]} is a list; lists belong under curves, one_at_a_time or grid")
        return self


class SweepStudy(Study):
    """A study without a search."""

    sweep: SweepConfig
    """What varies."""


def load_sweep(path: Path) -> SweepStudy:
    """Read a sweep file. StudyError says what is wrong in one line."""
    content = read_yaml(path)
    if "sweep" not in content:
        raise StudyError(
            f"{path}: sweep: missing. Say there what varies; without it this is a study, for `heterosis run`."
        )
    if "mask_seeds" in content:
        raise StudyError(f"{path}: mask_seeds: in a sweep it stands under sweep. Move it there.")
    for key in content:
        if key in Study.model_fields and key not in READ:
            raise StudyError(f"{path}: {key}: a sweep does not read it. Remove it; what varies stands under sweep.")
    try:
        study = SweepStudy.model_validate(content)
    except ValidationError as error:
        raise StudyError(f"{path}: {explain(error, SweepStudy)}") from None
    space = SpaceConfig(method=_measuring(study.sweep), depth="uniform")
    return study.model_copy(update={"space": space, "method": space.method})


def _measuring(sweep: SweepConfig) -> Any:
    """A method that reads the texts under `data` if one of the sweep's does: the study is prepared for it."""
    parts = [sweep.fixed, *sweep.curves.values(), sweep.one_at_a_time, sweep.grid]
    given = [part.method for part in parts if part is not None and part.method is not None]
    names = [name for value in given for name in ((value,) if isinstance(value, str) else value)]
    return next((name for name in names if METHODS[name].evidence is not None), "task_arithmetic")
