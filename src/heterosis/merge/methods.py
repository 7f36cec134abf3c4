"""The methods, one dict: each with its paper, the parameters that it reads, and the function or stages that it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from heterosis.merge import whole
from heterosis.merge.whole import Inputs

# One value for the whole merge, possibly another per layer and tensor group.
Setting = float | bool
Whole = Callable[[Inputs], Tensor]


class Method(NamedTuple):
    """One way to merge.

    Every method works on parents that were made sparse first: pruned by magnitude as `prunes` says, then dropped at
    random (DARE) where a drop rate is given. `combine` is a stage of the entry-by-entry pass, `mean` of the weights
    themselves, `sum` of the weighted task vectors or `ties` (sign election and disjoint mean), or a function of whole
    tensors.
    """

    name: str
    summary: str
    source: str
    combine: Literal["mean", "sum", "ties"] | Whole
    genes: tuple[str, ...] = ("weight",)
    """Per-parent parameters that a search moves; `drop` is taken by every method whether listed or not."""
    settings: Mapping[str, Setting] = {}
    """Parameters of the merge as a whole, with their defaults."""
    prunes: Literal["nothing", "small", "small_and_large", "by_rank"] = "nothing"
    parents: tuple[int, int | None] = (1, None)
    """Fewest and most parents."""
    uses_base: bool = True
    """Whether the base's weights enter the result when nothing is pruned or dropped."""
    evidence: Literal["fisher", "gram"] | None = None
    """What it must know of each parent beyond its weights."""

    @property
    def entrywise(self) -> bool:
        """Whether the fused pass runs it."""
        return isinstance(self.combine, str) and self.prunes != "by_rank"

    @property
    def wanted_parents(self) -> str:
        """How many parents it takes, in words."""
        fewest, most = self.parents
        return f"{fewest}" if fewest == most else f"at least {fewest}" if most is None else f"{fewest} to {most}"

    @property
    def trims(self) -> bool:
        """Whether magnitudes decide what stays."""
        return self.prunes in ("small", "small_and_large")

    @property
    def drops(self) -> bool:
        """Whether a search moves its drop rate."""
        return "drop" in self.genes

    @property
    def reads(self) -> frozenset[str]:
        """All per-parent parameters that change its result."""
        return frozenset(self.genes) | {"drop"}


SCALE = {"scale": 1.0}
_TABLE: Sequence[Method] = (
    Method(
        "linear",
        "weighted average of the parents, θ = Σ λ_k θ_k / Σ λ_k",
        "Model soups (Wortsman et al. 2022), section 2",
        "mean",
        settings={"normalize": True},
        uses_base=False,
    ),
    Method(
        "slerp",
        "along the great circle from the first point to the second: base and parent (t = λ), or two parents "
        "(t = λ₂ / (λ₁ + λ₂))",
        "Animating rotation with quaternion curves (Shoemake 1985), section 3.3",
        whole.slerp,
        parents=(1, 2),
    ),
    Method(
        "nuslerp",
        "spherical interpolation of two parents, of their weights or (around_base) of their task vectors",
        "mergekit, nuslerp",
        whole.nuslerp,
        settings={"around_base": False, "row_wise": False, "flatten": True},
        parents=(2, 2),
        uses_base=False,
    ),
    Method(
        "multislerp",
        "barycentre on the hypersphere, by the tangent space at the Euclidean mean",
        "mergekit, multislerp (Goddard 2025)",
        whole.multislerp,
        settings={"around_base": False, "normalize": True, "eps": 1e-8},
        uses_base=False,
    ),
    Method(
        "karcher",
        "Riemannian centre of mass on the hypersphere",
        "Riemannian center of mass (Karcher 1977)",
        whole.karcher,
        settings={"max_iter": 10, "tol": 1e-5},
        uses_base=False,
    ),
    Method(
        "model_stock",
        "towards the average as far as the angle between task vectors says",
        "Model Stock (Jang et al. 2024), equations 2 and 5",
        whole.model_stock,
        genes=(),
        settings={"filter_wise": False},
        parents=(2, None),
    ),
    Method(
        "nearswap",
        "moves an entry towards the parent the more the closer the two are",
        "mergekit, nearswap (alchemonaut 2024)",
        whole.nearswap,
        genes=(),
        settings={"t": 0.001},
        parents=(1, 1),
    ),
    Method(
        "task_arithmetic",
        "sum of weighted task vectors, θ = θ₀ + Σ λ_k δ_k",
        "Editing models with task arithmetic (Ilharco et al. 2023), section 2",
        "sum",
        settings={**SCALE, "normalize": False},
    ),
    Method(
        "magnitude",
        "magnitude pruning, then the weighted sum; prune_rescale divides by the density",
        "DARE (Yu et al. 2024), section 4.5 (comparison with magnitude-based pruning)",
        "sum",
        genes=("weight", "density"),
        settings={**SCALE, "normalize": False, "prune_rescale": False},
        prunes="small",
    ),
    Method(
        "ties",
        "trim, elect signs, disjoint mean",
        "TIES-Merging (Yadav et al. 2023), section 3",
        "ties",
        genes=("weight", "density"),
        settings=SCALE,
        prunes="small",
    ),
    Method(
        "dare_linear",
        "drop at random and rescale, then sum",
        "DARE (Yu et al. 2024), equations 1 and 2",
        "sum",
        genes=("weight", "drop"),
        settings={**SCALE, "normalize": False},
    ),
    Method(
        "dare_ties",
        "trim and drop, rescale, elect signs, disjoint mean",
        "DARE (Yu et al. 2024) in front of TIES (Yadav et al. 2023)",
        "ties",
        genes=("weight", "density", "drop"),
        settings=SCALE,
        prunes="small",
    ),
    Method(
        "della_linear",
        "drop small entries more often than large ones, rescale, then sum",
        "DELLA-Merging (Deep et al. 2024), section 3.1",
        "sum",
        genes=("weight", "drop", "epsilon"),
        settings={**SCALE, "normalize": False},
        prunes="by_rank",
    ),
    Method(
        "della",
        "drop small entries more often than large ones, rescale, elect signs, disjoint mean",
        "DELLA-Merging (Deep et al. 2024), section 3",
        "ties",
        genes=("weight", "drop", "epsilon"),
        settings=SCALE,
        prunes="by_rank",
    ),
    Method(
        "breadcrumbs",
        "leave out the smallest and the very largest entries, then sum",
        "Model Breadcrumbs (Davari and Belilovsky 2024), section 3",
        "sum",
        genes=("weight", "density", "gamma"),
        settings={**SCALE, "normalize": False},
        prunes="small_and_large",
    ),
    Method(
        "breadcrumbs_ties",
        "leave out the smallest and the very largest entries, elect signs, disjoint mean",
        "Model Breadcrumbs (Davari and Belilovsky 2024) in front of TIES (Yadav et al. 2023)",
        "ties",
        genes=("weight", "density", "gamma"),
        settings=SCALE,
        prunes="small_and_large",
    ),
    Method(
        "sce",
        "select entries of high variance, weigh parents by the energy left, erase minority signs",
        "FuseChat (Wan et al. 2024), section 3.3",
        whole.sce,
        genes=(),
        settings={"select_topk": 1.0},
    ),
    Method(
        "lines",
        "task arithmetic whose weights grow with depth, λ_k (alpha + beta · l / (L - 1))",
        "LiNeS (Wang et al. 2025), equation 2",
        "sum",
        settings={**SCALE, "normalize": False, "alpha": 0.5, "beta": 0.5},
    ),
    Method(
        "tsv",
        "the strongest singular directions of every task, decorrelated; scale is the factor on their sum",
        "Task Singular Vectors (Gargiulo et al. 2025), algorithm 1",
        whole.tsv,
        settings=SCALE,
    ),
    Method(
        "iso_c",
        "task arithmetic with all singular values set to their mean; scale is the factor on the result",
        "No task left behind (Marczak et al. 2025), section 4",
        whole.iso_c,
        settings=SCALE,
    ),
    Method(
        "arcee_fusion",
        "takes over the parent's entries of outstanding importance",
        "mergekit, arcee_fusion",
        whole.arcee_fusion,
        genes=(),
        parents=(1, 1),
    ),
    Method(
        "ram",
        "sums what only one parent changed, averages what several did",
        "Reinforced agent merging, as in mergekit's ram",
        whole.ram,
        genes=(),
        settings={"epsilon": 1e-5},
    ),
    Method(
        "ramplus_tl",
        "ram, with what only one parent changed made stronger",
        "Reinforced agent merging, as in mergekit's ramplus_tl",
        whole.ramplus_tl,
        genes=(),
        settings={"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
    ),
    Method(
        "passthrough",
        "the one source as it is; for stacks of layer ranges",
        "mergekit, passthrough",
        "mean",
        settings=SCALE,
        parents=(1, None),
        uses_base=False,
    ),
    Method(
        "fisher",
        "average weighted by each parent's diagonal Fisher information",
        "Merging models with Fisher-weighted averaging (Matena and Raffel 2022), equation 3",
        whole.fisher,
        settings={"floor": 1e-6, "normalize_fisher": True},
        uses_base=False,
        evidence="fisher",
    ),
    Method(
        "regmean",
        "the least-squares merge of each linear layer on the parents' own activations",
        "RegMean (Jin et al. 2023), equation 2 and section 4.1",
        whole.regmean,
        settings={"alpha": 0.9},
        uses_base=False,
        evidence="gram",
    ),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _TABLE}


def depth_factor(settings: Mapping[str, Any], depth: int, layers: int) -> float:
    """The factor on all updates at one depth: `scale`, and for LiNeS alpha + beta · l / (L - 1)."""
    factor = float(settings.get("scale", 1.0))
    if "beta" in settings and "alpha" in settings:
        factor *= settings["alpha"] + settings["beta"] * (depth / (layers - 1) if layers > 1 else 0.0)
    return factor
