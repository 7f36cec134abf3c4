"""The methods, one dict. Each is a choice of stages in the pipeline that `kernel.py` runs entry by entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Divisor = Literal["count", "weight", "none"]


class Method(NamedTuple):
    """One way to merge: which genes it reads and which stages it runs.

    Stages: trim by magnitude, drop at random, then combine the updates by `mean` of the weights themselves, by `sum`
    of the weighted task vectors, or by `ties` (sign election and disjoint mean).
    """

    name: str
    summary: str
    source: str
    trims: bool
    drops: bool
    combine: Literal["mean", "sum", "ties"]

    @property
    def genes(self) -> tuple[str, ...]:
        """The parameters that this method reads."""
        return ("weight", *(("density",) if self.trims else ()), *(("drop",) if self.drops else ()))


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "linear",
            "weighted average of the parents, θ = Σ λ_k θ_k / Σ λ_k",
            "Model soups (Wortsman et al. 2022), section 2",
            trims=False,
            drops=False,
            combine="mean",
        ),
        Method(
            "task_arithmetic",
            "sum of weighted task vectors, θ = θ₀ + Σ λ_k δ_k",
            "Editing models with task arithmetic (Ilharco et al. 2023), section 2",
            trims=False,
            drops=False,
            combine="sum",
        ),
        Method(
            "ties",
            "trim, elect signs, disjoint mean",
            "TIES-Merging (Yadav et al. 2023), section 3",
            trims=True,
            drops=False,
            combine="ties",
        ),
        Method(
            "dare_linear",
            "drop at random and rescale, then sum",
            "DARE (Yu et al. 2024), equations 1 and 2",
            trims=False,
            drops=True,
            combine="sum",
        ),
        Method(
            "dare_ties",
            "trim and drop, rescale, elect signs, disjoint mean",
            "DARE (Yu et al. 2024) in front of TIES (Yadav et al. 2023)",
            trims=True,
            drops=True,
            combine="ties",
        ),
    )
}
