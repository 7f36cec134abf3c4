"""The search space in a study file: which numbers may move, how they run along depth, and within which ranges."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Every method of `heterosis.merge` that a search can move; passthrough only stacks layers.
METHOD_NAMES = Literal[
    "linear",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "model_stock",
    "nearswap",
    "task_arithmetic",
    "magnitude",
    "ties",
    "dare_linear",
    "dare_ties",
    "della_linear",
    "della",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
    "lines",
    "tsv",
    "iso_c",
    "arcee_fusion",
    "ram",
    "ramplus_tl",
    "fisher",
    "regmean",
]


class Config(BaseModel):
    """Base of every part of a study file: frozen, unknown keys refused, no NaN or Inf."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Gene(Config):
    """Range of one kind of gene."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    initial: float | None = None
    """Where the search starts; the middle when left out."""
    shared: bool = False
    """One value for all parents."""
    depth: Depth | None = None
    """Depth profile of this gene alone; the space's when left out."""

    @model_validator(mode="after")
    def _ordered(self) -> Gene:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}; to fix a gene write a number")
        if self.initial is not None and not self.low <= self.initial <= self.high:
            raise ValueError(f"initial {self.initial:g} must lie between low {self.low:g} and high {self.high:g}")
        return self


class Knots(Config):
    """Values at evenly spaced layers, interpolated between them."""

    knots: Annotated[int, Field(ge=2)]
    """Number of knots."""


class Blocks(Config):
    """Equal stretches of layers with one value each."""

    blocks: Annotated[int, Field(ge=1)]
    """Number of stretches."""


Depth = Literal["uniform", "per_layer"] | Knots | Blocks
Gene.model_rebuild()


class SpaceConfig(Config):
    """What the search may vary: genes for each parent, depth position and tensor group."""

    method: METHOD_NAMES = "dare_ties"
    """How candidates are merged."""
    depth: Depth = Knots(knots=4)
    """Profile of genes over the layers: uniform, knots, blocks or per_layer."""
    groups: dict[str, str | None] | None = None
    """Partition of the tensors: name -> regular expression, or null for a named group (embeddings, head, attention,
    mlp, norms, body). The first match decides. Left out: one group if depth is uniform, else embeddings, head, body."""
    weight: Gene | float = Gene(low=0.0, high=1.5, initial=0.5)
    """λ, the factor on a parent's task vector. A number fixes it."""
    density: Gene | float = Gene(low=0.1, high=1.0, initial=0.7)
    """d, the fraction of entries kept by magnitude (ties, dare_ties, magnitude, breadcrumbs). A number fixes it."""
    drop: Gene | float = Gene(low=0.0, high=0.9, initial=0.2)
    """p, DARE's drop rate. Searched by dare_linear, dare_ties, della and della_linear, and by any other method in
    front of which it is written. A number fixes it."""
    gamma: Gene | float = 0.01
    """Fraction of the largest entries left out (breadcrumbs)."""
    epsilon: Gene | float = 0.1
    """Half the window of drop rates over ranks (della); narrowed where p ± epsilon would leave [0, 1)."""
    settings: dict[str, Gene | float | bool] = {}
    """The method's own settings (scale, t, select_topk, alpha, …): fixed, or a range to search, shared by all
    parents."""
    sigma: Annotated[float, Field(gt=0, le=1)] = 1 / 6
    """First step size of CMA-ES, as a fraction of each gene's range."""
    trim_scope: Literal["tensor", "model"] = "tensor"
    """Take the kept fraction per tensor, or over a parent's whole task vector."""
    election: Literal["weighted", "unweighted", "frequency"] = "weighted"
    """Which votes elect a sign (TIES): λ_k δ_k, δ_k, or the signs alone."""
    divisor: Literal["count", "weight", "none"] = "count"
    """What TIES divides the sum of agreeing updates by: their count, their |λ|, or nothing."""
    rescale: Literal["inverse_keep", "none"] | float = "inverse_keep"
    """Factor on what DARE leaves: 1/(1-p), none (DropOnly), or a number (DAREx)."""

    @model_validator(mode="after")
    def _in_range(self) -> SpaceConfig:
        for name in ("density", "drop", "gamma", "epsilon"):
            gene = getattr(self, name)
            ends = (gene.low, gene.high) if isinstance(gene, Gene) else (gene, gene)
            if ends[0] < 0.0 or ends[1] > 1.0 or (name == "drop" and ends[1] >= 1.0):
                raise ValueError(f"{name} must lie in [0, 1] (drop below 1), not {ends[0]:g} to {ends[1]:g}")
        return self
