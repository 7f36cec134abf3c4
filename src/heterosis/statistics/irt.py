"""Item response theory: how hard each item is and how well it tells candidates apart, from 0/1 outcomes.

The two-parameter logistic model (Birnbaum 1968): P(candidate c solves item i) = sigmoid(a_i · (θ_c − b_i)), with
discrimination a_i > 0, difficulty b_i and ability θ_c. A study has tens of candidates and hundreds of items, so an item
says little about itself and priors carry much of the fit (Bayes modal estimation: Mislevy 1986; Swaminathan & Gifford
1985). Abilities rest on hundreds of items each, so the joint mode is used and nothing is integrated out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from heterosis.statistics.bootstrap import Array

Items = npt.NDArray[np.int64]

LOG_DISCRIMINATION_SPREAD = 0.5
"""log a ~ N(0, this²)."""
INTERCEPT_SPREAD = 2.0
"""Where the spread of intercepts −a·b starts; it is estimated, with the weight of SPREAD_WEIGHT items on this value."""
SPREAD_WEIGHT = 10.0
CENTRE_SPREAD = 3.0
"""The mean intercept ~ N(0, this²): keeps a panel that everyone solves finite."""
ITERATIONS = 200
LARGEST_STEP = 1.0
TOLERANCE = 1e-6


class ItemModel(NamedTuple):
    """A fitted two-parameter logistic model."""

    discrimination: Array
    """a [items], positive"""
    difficulty: Array
    """b [items], on the scale of ability"""
    ability: Array
    """θ [candidates], of those that the model was fitted to"""

    @property
    def intercept(self) -> Array:
        """−a·b [items]: the logit at ability 0."""
        return -self.discrimination * self.difficulty

    def probability(self, ability: float) -> Array:
        """Chance that a candidate of this ability solves each item. [items]"""
        chance: Array = expit(self.discrimination * (ability - self.difficulty))
        return chance

    def to_json(self) -> dict[str, Any]:
        """Plain lists."""
        return {name: values.tolist() for name, values in self._asdict().items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ItemModel:
        """Inverse of `to_json`, bit for bit."""
        return cls(*(np.asarray(content[name], dtype=np.float64) for name in cls._fields))


class _State(NamedTuple):
    """Parameters during the fit; the logit is exp(slope) · ability + intercept."""

    slope: Array
    """log a [items]"""
    intercept: Array
    """−a·b [items]"""
    ability: Array
    """[candidates]"""
    centre: float
    """Mean of the prior of intercepts."""
    spread: float
    """Its standard deviation."""


def is_binary(values: npt.ArrayLike) -> bool:
    """Whether all known values are 0 or 1; NaN is unknown."""
    array = np.asarray(values, dtype=np.float64)
    return bool(np.isin(array[~np.isnan(array)], (0.0, 1.0)).all())


def fit(responses: Array, start: ItemModel | None = None) -> ItemModel:
    """Joint posterior mode of abilities and items. `responses` [candidates, items] of 0, 1 and NaN for unknown.

    θ ~ N(0, 1), log a ~ N(0, 0.5²) and −a·b ~ N(m, s²). m and s are estimated (Laplace approximation of their EM step):
    merges of one family agree on most items, and a fixed s would draw what all of them solve towards an even chance. An
    estimated m also makes the predicted and the observed mean over all items equal. Abilities are centred, for the
    likelihood does not know their origin. `start`, a model of the same items and candidates, only saves iterations.
    """
    known = ~np.isnan(responses)
    outcomes = np.where(known, responses, 0.0)
    state = _cold(outcomes, known) if start is None else _warm(start)
    for _ in range(ITERATIONS):
        before = state
        state = _improve_items(_improve_abilities(state, outcomes, known), outcomes, known)
        if _moved(before, state) < TOLERANCE:
            break
    discrimination = np.exp(state.slope)
    return ItemModel(discrimination, -state.intercept / discrimination, state.ability)


def ability(model: ItemModel, responses: Array, prior: tuple[float, float] = (0.0, 1.0)) -> float:
    """Posterior mode of one candidate's ability. `responses` [items], NaN where unknown; `prior`: mean and spread.

    The log posterior is concave, so Newton's steps, bounded, end at its one mode.
    """
    known = ~np.isnan(responses)
    slopes, hardness, outcomes = model.discrimination[known], model.difficulty[known], responses[known]
    centre, spread = prior
    at = centre
    for _ in range(ITERATIONS):
        chance = expit(slopes * (at - hardness))
        gradient = float((slopes * (outcomes - chance)).sum()) - (at - centre) / spread**2
        curvature = float((np.square(slopes) * chance * (1.0 - chance)).sum()) + 1.0 / spread**2
        step = min(max(gradient / curvature, -LARGEST_STEP), LARGEST_STEP)
        at += step
        if abs(step) < 1e-9:
            break
    return at


def ability_error(model: ItemModel, known: npt.NDArray[np.bool_], at: float, spread: float = 1.0) -> float:
    """Standard error of an ability from the posterior's curvature (Fisher information of the known items and prior)."""
    chance = model.probability(at)[known]
    information = float((np.square(model.discrimination[known]) * chance * (1.0 - chance)).sum())
    return 1.0 / float(np.sqrt(information + 1.0 / spread**2))


def _cold(outcomes: Array, known: npt.NDArray[np.bool_]) -> _State:
    """Start from the smoothed logits of items' and candidates' means, abilities centred."""
    intercept = logit((outcomes.sum(axis=0) + 0.5) / (known.sum(axis=0) + 1.0))
    level = logit((outcomes.sum(axis=1) + 0.5) / (known.sum(axis=1) + 1.0))
    abilities = level - level.mean() if level.size else level
    centre = float(intercept.mean()) if intercept.size else 0.0
    return _State(np.zeros_like(intercept), intercept, abilities, centre, INTERCEPT_SPREAD)


def _warm(model: ItemModel) -> _State:
    """Start from a fitted model."""
    spread = float(np.hypot(model.intercept.std(), 1.0)) if model.intercept.size else INTERCEPT_SPREAD
    centre = float(model.intercept.mean()) if model.intercept.size else 0.0
    return _State(np.log(model.discrimination), model.intercept, model.ability, centre, spread)


def _improve_abilities(state: _State, outcomes: Array, known: npt.NDArray[np.bool_]) -> _State:
    """One bounded Newton step of every ability."""
    slopes = np.exp(state.slope)
    chance = expit(np.multiply.outer(state.ability, slopes) + state.intercept)
    gradient = np.where(known, outcomes - chance, 0.0) @ slopes - state.ability
    curvature = np.where(known, chance * (1.0 - chance), 0.0) @ np.square(slopes) + 1.0
    moved = state.ability + np.clip(gradient / curvature, -LARGEST_STEP, LARGEST_STEP)
    return _fix_scale(state, moved)


def _fix_scale(state: _State, abilities: Array) -> _State:
    """Centre abilities, and take the scale of abilities and slopes that the priors prefer; neither moves a logit.

    Without the centre, different slopes times a far-off mean ability can stand in for different intercepts. Solving for
    the scale at once saves hundreds of iterations, for likelihoods say nothing about it.
    """
    if not abilities.size or not state.slope.size:
        return state._replace(ability=abilities)
    shift = float(abilities.mean())
    centred = abilities - shift
    # the stationary log scale x: exp(2x)·Σθ² = Σ(log a − x) / spread²; x + exp(2x)·ratio is increasing
    ratio = float(np.square(centred).sum()) * LOG_DISCRIMINATION_SPREAD**2 / state.slope.size
    target = float(state.slope.mean())
    scale = 0.0
    for _ in range(ITERATIONS):
        excess = scale + np.exp(2.0 * scale) * ratio - target
        step = float(excess / (1.0 + 2.0 * np.exp(2.0 * scale) * ratio))
        scale -= step
        if abs(step) < 1e-12:
            break
    intercept = state.intercept + np.exp(state.slope) * shift
    return state._replace(ability=centred * np.exp(scale), slope=state.slope - scale, intercept=intercept)


def _improve_items(state: _State, outcomes: Array, known: npt.NDArray[np.bool_]) -> _State:
    """One bounded Fisher scoring step of every item's log a and intercept, then the prior of the intercepts."""
    slopes = np.exp(state.slope)
    at = np.multiply.outer(state.ability, slopes)  # the derivative of the logit by log a
    chance = expit(at + state.intercept)
    left = np.where(known, outcomes - chance, 0.0)
    weight = np.where(known, chance * (1.0 - chance), 0.0)
    by_slope = (left * at).sum(axis=0) - state.slope / LOG_DISCRIMINATION_SPREAD**2
    by_intercept = left.sum(axis=0) - (state.intercept - state.centre) / state.spread**2
    slope_slope = (weight * np.square(at)).sum(axis=0) + 1.0 / LOG_DISCRIMINATION_SPREAD**2
    slope_intercept = (weight * at).sum(axis=0)
    intercept_intercept = weight.sum(axis=0) + 1.0 / state.spread**2
    determinant = slope_slope * intercept_intercept - np.square(slope_intercept)
    step_slope = (intercept_intercept * by_slope - slope_intercept * by_intercept) / determinant
    step_intercept = (slope_slope * by_intercept - slope_intercept * by_slope) / determinant
    slope = state.slope + np.clip(step_slope, -LARGEST_STEP, LARGEST_STEP)
    intercept = state.intercept + np.clip(step_intercept, -LARGEST_STEP, LARGEST_STEP)
    return _prior_of_intercepts(state._replace(slope=slope, intercept=intercept), slope_slope / determinant)


def _prior_of_intercepts(state: _State, variance: Array) -> _State:
    """Mean and spread of the intercepts; `variance` [items] is each intercept's posterior variance."""
    items = state.intercept.size
    centre = float(state.intercept.sum()) / (items + (state.spread / CENTRE_SPREAD) ** 2)
    total = float(np.square(state.intercept - centre).sum() + variance.sum()) + SPREAD_WEIGHT * INTERCEPT_SPREAD**2
    return state._replace(centre=centre, spread=float(np.sqrt(total / (items + SPREAD_WEIGHT))))


def _moved(before: _State, after: _State) -> float:
    """The largest change of a parameter."""
    pairs = ((before.slope, after.slope), (before.intercept, after.intercept), (before.ability, after.ability))
    return max((float(np.abs(new - old).max()) for old, new in pairs if old.size), default=0.0)
