"""From a sweep file to points: which merges, of which parents, scored on which tasks."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from heterosis.errors import StudyError
from heterosis.evaluation.panel import Panel
from heterosis.finals import seed_variants
from heterosis.ledger.record import Proposal
from heterosis.merge import METHODS, Method
from heterosis.recipe import NEUTRAL, Parameters, Recipe
from heterosis.space import WHOLE, blank_with
from heterosis.study import Prepared
from heterosis.sweep.config import SweepConfig, SweepStudy

Value = bool | float | str
# A product of lists grows quickly; nobody means to score so many.
MOST_POINTS = 10_000
BASE, TOGETHER = "base", "together"
OPTIONS = ("rescale", "trim_scope", "election", "divisor")
# Settings without which these methods, pruning and dropping nothing, are task arithmetic.
SUM = ("scale", "normalize")


class Subject(NamedTuple):
    """What is merged with the base at a point: one parent, or all together."""

    name: str
    parents: tuple[str, ...]
    tasks: tuple[str, ...]
    """What it is scored on."""


class Curve(NamedTuple):
    """A curve or grid, unfolded."""

    name: str
    axes: dict[str, tuple[Value, ...]]
    """What varies -> its values; the axis with the most values first."""
    fixed: dict[str, Value]

    def places(self) -> Iterator[dict[str, Value]]:
        """Every combination of values, one on each axis."""
        for values in itertools.product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))


class Point(NamedTuple):
    """A place on a curve, for one subject."""

    curve: str
    at: dict[str, Value]
    subject: Subject
    recipes: tuple[Recipe, ...]
    """One for each mask seed; one alone where nothing is dropped at random."""

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.curve}{_words(self.at)} {self.subject.name}"


class Job(NamedTuple):
    """A merge to be scored."""

    label: str
    recipe: Recipe
    tasks: tuple[str, ...]


class Design(NamedTuple):
    """All that a sweep scores."""

    subjects: tuple[Subject, ...]
    curves: tuple[Curve, ...]
    points: tuple[Point, ...]
    references: dict[str, Recipe]
    """`base` and the parents themselves."""
    jobs: tuple[Job, ...]
    """Every different merge once, the references first."""


def design(config: SweepStudy, prepared: Prepared) -> Design:
    """Unfold a sweep file; StudyError for a point that is no merge."""
    sweep, panel, blank = config.sweep, prepared.panel, prepared.blank
    subjects = _subjects(sweep, list(config.parents), panel)
    curves = tuple(_curves(sweep, list(config.parents)))
    count = sum(math.prod(map(len, curve.axes.values())) for curve in curves) * len(subjects)
    if count > MOST_POINTS:
        raise StudyError(f"sweep: {count:,} points are more than {MOST_POINTS:,}. Give fewer values.")
    data = prepared.space.data
    points = []
    for curve, subject in itertools.product(curves, subjects):
        for at in curve.places():
            where = f"sweep.{curve.name}{_words(at)}"
            recipe = _recipe({**curve.fixed, **at}, subject, blank, data, where)
            seeds = sweep.mask_seeds if "seed" not in {**curve.fixed, **at} else 1
            points.append(Point(curve.name, at, subject, _over_seeds(recipe, seeds)))
    used = list(dict.fromkeys(parent for subject in subjects for parent in subject.parents))
    references = {BASE: _plain(blank, used[0], 0.0)} | {parent: _plain(blank, parent, 1.0) for parent in used}
    return Design(subjects, curves, tuple(points), references, _jobs(subjects, references, points))


def _subjects(sweep: SweepConfig, parents: Sequence[str], panel: Panel) -> tuple[Subject, ...]:
    every = tuple(panel.tasks)
    if sweep.parents == "together":
        return (Subject(TOGETHER, tuple(parents), every),)
    if sweep.parents == "each":
        return tuple(Subject(parent, (parent,), every) for parent in parents)
    found = []
    for parent, given in sweep.parents.items():
        if parent not in parents:
            raise StudyError(f"sweep.parents: {parent} is no parent{_nearest(parent, parents)}.")
        wanted = (given,) if isinstance(given, str) else given
        for task in wanted:
            if not any(task in (each.name, each.spec) for each in panel.tasks.values()):
                known = list(panel.tasks)
                raise StudyError(f"sweep.parents.{parent}: {task} is none of the tasks{_nearest(task, known)}.")
        own = tuple(name for name, each in panel.tasks.items() if name in wanted or each.spec in wanted)
        if not own:
            raise StudyError(f"sweep.parents.{parent}: no task. Name at least one.")
        found.append(Subject(parent, (parent,), own))
    if not found:
        raise StudyError("sweep.parents: names nobody. Give parents with their tasks, each, or together.")
    return tuple(found)


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


def _curves(sweep: SweepConfig, parents: Sequence[str]) -> Iterator[Curve]:
    given: dict[str, dict[str, Any]] = {name: curve.flat() for name, curve in sweep.curves.items()}
    places = {name: f"curves.{name}" for name in given}
    if sweep.one_at_a_time is not None:
        alone = sweep.one_at_a_time.flat()
        shared = {key: value for key, value in alone.items() if not isinstance(value, tuple)}
        for key in alone.keys() - shared.keys():
            if key in given:
                raise StudyError(f"sweep.one_at_a_time: {key} is the name of a curve too. Give that another name.")
        varied = {key: value for key, value in alone.items() if key not in shared}
        given |= {key: {**shared, key: value} for key, value in varied.items()}
        places |= dict.fromkeys(varied, "one_at_a_time")
    if sweep.grid is not None:
        if "grid" in given:
            raise StudyError("sweep.curves: grid is what the section of that name is called. Give it another name.")
        given["grid"], places["grid"] = sweep.grid.flat(), "grid"
    for name, content in given.items():
        content = _over(sweep.fixed.flat(), content)
        _check(f"sweep.{places[name]}", content, parents)
        varied = {key: value for key, value in content.items() if isinstance(value, tuple)}
        order = sorted(varied, key=lambda key: (-len(varied[key]), list(varied).index(key)))
        if not varied:
            raise StudyError(f"sweep.{places[name]}: nothing varies. Write a list of values for at least one key.")
        yield Curve(
            name,
            {key: varied[key] for key in order},
            {key: value for key, value in content.items() if key not in varied},
        )


def _over(fixed: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a curve says over what all share; `weight` over `weight.PARENT` and the other way."""
    replaced = {key.partition(".")[0] for key in own if not key.startswith("settings.")}
    return {key: value for key, value in fixed.items() if key.partition(".")[0] not in replaced} | dict(own)


def _check(where: str, content: Mapping[str, Any], parents: Sequence[str]) -> None:
    """StudyError for what no method of the curve reads."""
    if "method" not in content:
        raise StudyError(f"{where}: method: missing. Name one here, or under sweep.fixed.")
    methods = [METHODS[name] for name in _all(content["method"])]
    names = " and ".join(method.name for method in methods)
    for key in content:
        head, _, tail = key.partition(".")
        if head == "settings":
            known = sorted({setting for method in methods for setting in method.settings})
            if tail not in known:
                raise StudyError(f"{where}: {names} has no setting {tail}; known: {', '.join(known) or 'none'}.")
        elif head in NEUTRAL:
            if not any(head in method.reads for method in methods):
                raise StudyError(f"{where}: {names} does not read {head}. Remove it, or choose another method.")
            if tail and tail not in parents:
                raise StudyError(f"{where}.{head}: {tail} is no parent{_nearest(tail, parents)}.")
    for gene in NEUTRAL:
        named = [parent for parent in parents if f"{gene}.{parent}" in content]
        if named and len(named) < len(parents):
            missing = next(parent for parent in parents if parent not in named)
            raise StudyError(f"{where}.{gene}: {missing} has no value. Give one for every parent, or one for all.")


def _all(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _recipe(values: Mapping[str, Value], subject: Subject, blank: Recipe, data: Any, where: str) -> Recipe:
    method = METHODS[str(values["method"])]
    numbers = {parent: _parameters(method, parent, values) for parent in subject.parents}
    settings = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("settings.")}
    settings = {key: value for key, value in settings.items() if key in method.settings}
    if isinstance(data, dict):
        data = {parent: data[parent] for parent in subject.parents}
    content = {
        "method": method.name,
        "parents": tuple(parent for parent in blank.parents if parent.name in subject.parents),
        "groups": WHOLE,
        "settings": {"all": settings} if settings else {},
        "data": data if method.evidence is not None else None,
        "seed": values.get("seed", blank.seed),
        **{key: values[key] for key in OPTIONS if key in values},
    }
    try:
        parameters = {parent: {"all": Parameters(**own)} for parent, own in numbers.items()}
        return canonical(blank_with(blank, **content, parameters=parameters), blank.seed)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("float", "tuple[float, ...]"))
        fault = first["msg"].removeprefix("Value error, ")
        raise StudyError(f"{where}: {f'{place}: ' if place else ''}{fault}.") from None


def _parameters(method: Method, parent: str, values: Mapping[str, Value]) -> dict[str, float]:
    found = {
        gene: float(values.get(f"{gene}.{parent}", values.get(gene, neutral)))
        for gene, neutral in NEUTRAL.items()
        if gene in method.reads
    }
    if found.get("epsilon"):
        found["epsilon"] = max(0.0, min(found["epsilon"], found["drop"], 0.999 - found["drop"]))
    return found


def canonical(recipe: Recipe, seed: int) -> Recipe:
    """The recipe without what plays no part in it, so that equal merges are scored once.

    A merge that drops nothing has no masks; one that also prunes nothing is, for the methods that sum, plain task
    arithmetic.
    """
    numbers = [each for by_group in recipe.parameters.values() for each in by_group.values()]
    method = METHODS[recipe.method]
    changes: dict[str, Any] = {}
    if all(each.drop == 0.0 for each in numbers):
        changes["seed"] = seed
        if isinstance(recipe.rescale, str):  # a number is a factor at every drop rate, 0 among them
            changes["rescale"] = "inverse_keep"
    if method.combine != "ties":
        if all(each.density == 1.0 and each.gamma == 0.0 for each in numbers):
            changes["trim_scope"] = "tensor"
        changes |= {"election": "weighted", "divisor": "count"}
    neutral = [each.model_copy(update={"weight": 1.0}) == Parameters() for each in numbers]
    if method.combine == "sum" and "beta" not in method.settings and all(neutral):
        kept = {name: value for name, value in recipe.settings.get("all", {}).items() if name in SUM}
        kept = {name: value for name, value in kept.items() if value != method.settings[name]}
        changes |= {"method": "task_arithmetic", "settings": {"all": kept} if kept else {}}
    return blank_with(recipe, **changes)


def _over_seeds(recipe: Recipe, count: int) -> tuple[Recipe, ...]:
    """The merge under so many seeds of its random masks, its own first."""
    variants = seed_variants(Proposal("", 1, recipe), count)
    return (recipe, *(variant.recipe for variant in variants))


def _plain(blank: Recipe, parent: str, weight: float) -> Recipe:
    """A parent itself (weight 1), or the base (weight 0)."""
    parents = tuple(source for source in blank.parents if source.name == parent)
    return blank_with(blank, parents=parents, parameters={parent: {"all": Parameters(weight=weight)}})


def _jobs(subjects: Sequence[Subject], references: Mapping[str, Recipe], points: Sequence[Point]) -> tuple[Job, ...]:
    """Every merge once, with all the tasks that anyone wants of it."""
    wanted: dict[str, tuple[str, Recipe, dict[str, None]]] = {}

    def want(label: str, recipe: Recipe, tasks: Sequence[str]) -> None:
        wanted.setdefault(recipe.digest, (label, recipe, {}))[2].update(dict.fromkeys(tasks))

    for label, recipe in references.items():
        for subject in subjects:
            if label == BASE or label in subject.parents:
                want(label, recipe, subject.tasks)
    for point in points:
        for number, recipe in enumerate(point.recipes):
            seed = f" mask {number + 1}" if len(point.recipes) > 1 else ""
            want(f"{point.label}{seed}", recipe, point.subject.tasks)
    return tuple(Job(label, recipe, tuple(tasks)) for label, recipe, tasks in wanted.values())


def _words(at: Mapping[str, Value]) -> str:
    return "".join(f" {key}={value:g}" if isinstance(value, float) else f" {key}={value}" for key, value in at.items())
