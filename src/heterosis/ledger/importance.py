"""Which genes matter: Optuna's PED-ANOVA over the candidates of a search (Watanabe, Bansal & Hutter 2023)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

# What is told apart from the rest: the best quarter.
BEST = 0.25
# How often scores are dealt out anew to see what importance chance gives, and up to how many genes times candidates.
SHUFFLES = 20
AFFORDABLE = 20_000


class Importance(NamedTuple):
    """How much each gene tells the best quarter of the candidates from all of them."""

    shares: dict[str, float]
    """Gene name -> share of the whole, largest first."""
    chance: float | None
    """The largest share that any gene got in `SHUFFLES` trials of dealing the scores to candidates at random; None
    where that would take too long."""


def importance(
    genes: Sequence[Mapping[str, float]], values: Sequence[float], ranges: Mapping[str, tuple[float, float]], seed: int
) -> Importance:
    """Importance of the genes of candidates with these values. All have the same genes, and higher is better."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, BaseDistribution] = {name: FloatDistribution(*ranges[name]) for name in genes[0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, and "for low values": hence the signs
        study = optuna.create_study()
        for params, value in zip(genes, values, strict=True):
            study.add_trial(optuna.create_trial(params=dict(params), distributions=distributions, value=-value))
        evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST)

        def shares(scores: Sequence[float]) -> dict[str, float]:
            return get_param_importances(study, evaluator=evaluator, target=lambda trial: -scores[trial.number])

        found = shares(values)
        rng = np.random.default_rng([seed, 0x1AA])
        dealt = [shares(rng.permutation(values).tolist()) for _ in range(SHUFFLES)] if _affordable(genes) else []
    ordered = dict(sorted(found.items(), key=lambda each: (-each[1], each[0])))
    return Importance(ordered, max((max(each.values()) for each in dealt), default=None))


def _affordable(genes: Sequence[Mapping[str, float]]) -> bool:
    return len(genes) * len(genes[0]) <= AFFORDABLE
