"""Methods that look at whole tensors, each bound to the inputs that the kernel prepares for one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heterosis.checkpoints.reader import has_vocabulary
from heterosis.merge import informed, selection, spectral, sphere, stock
from heterosis.merge.consensus import total

# Below this mergekit takes lengths for equal, however small the weights are.
MERGEKIT_EPS = 1e-6


class Measured(NamedTuple):
    """What was measured of one parent's tensor: its diagonal Fisher information, or the Gram matrix of its inputs."""

    tensor: Tensor
    norm: float = 1.0
    """L2 norm of the Fisher information of the whole model."""
    input_first: bool = False
    """Whether the weight is stored as [in, out]."""


class Inputs(NamedTuple):
    """What is known of one tensor: all shapes equal, parents in canonical order.

    updates are the task vectors after pruning and dropping; points are base + update, or the parents as they are
    where nothing was pruned or dropped. evidence holds what was measured of each parent, or nothing for a tensor
    that nothing is known of.
    """

    origin: Tensor
    points: Sequence[Tensor]
    updates: Sequence[Tensor]
    weights: Sequence[float]
    settings: Mapping[str, Any]
    evidence: Sequence[Measured] = ()
    name: str = ""
    """Name of the tensor."""
    as_mergekit: bool = False
    """Whether mergekit's constants hold where they differ from a paper's."""


def slerp(x: Inputs) -> Tensor:
    """One parent: from the base to it, t = λ. Two: from one to the other, t = λ₂ / (λ₁ + λ₂)."""
    if len(x.points) == 1:
        return sphere.slerp(x.origin, x.points[0], x.weights[0])
    return sphere.slerp(x.points[0], x.points[1], _share_of_second(x.weights))


def nuslerp(x: Inputs) -> Tensor:
    """Two parents, t = λ₂ / (λ₁ + λ₂)."""
    return sphere.nuslerp(
        x.points[0],
        x.points[1],
        _share_of_second(x.weights),
        origin=x.origin if x.settings["around_base"] else None,
        row_wise=x.settings["row_wise"],
        flatten=x.settings["flatten"],
    )


def _share_of_second(weights: Sequence[float]) -> float:
    whole = weights[0] + weights[1]
    return 0.5 if abs(whole) < 1e-6 else weights[1] / whole


def multislerp(x: Inputs) -> Tensor:
    """Weighted barycentre of all points."""
    return sphere.multislerp(
        x.points,
        x.weights,
        origin=x.origin if x.settings["around_base"] else None,
        normalize=x.settings["normalize"],
        eps=x.settings["eps"],
    )


def karcher(x: Inputs) -> Tensor:
    """Weighted Karcher mean; λ are shares of the whole."""
    whole = sum(x.weights)
    shares = [weight / whole for weight in x.weights]
    return sphere.karcher(x.points, shares, iterations=int(x.settings["max_iter"]), tolerance=float(x.settings["tol"]))


def model_stock(x: Inputs) -> Tensor:
    """Model Stock over all parents; λ play no part."""
    smallest = MERGEKIT_EPS if x.as_mergekit else 0.0
    return stock.model_stock(x.origin, x.points, filter_wise=x.settings["filter_wise"], eps=smallest)


def nearswap(x: Inputs) -> Tensor:
    """From the base towards the one parent."""
    return stock.nearswap(x.origin, x.points[0], x.settings["t"])


def sce(x: Inputs) -> Tensor:
    """Select, calculate, erase; λ play no part."""
    smallest = MERGEKIT_EPS if x.as_mergekit else 0.0
    return selection.sce(x.origin, x.points, select_topk=x.settings["select_topk"], uniform_below=smallest)


def arcee_fusion(x: Inputs) -> Tensor:
    """The one parent's important entries on the base."""
    return selection.arcee_fusion(x.origin, x.points[0])


def ram(x: Inputs) -> Tensor:
    """λ play no part."""
    return selection.ram(x.origin, x.points, epsilon=x.settings["epsilon"])


def ramplus_tl(x: Inputs) -> Tensor:
    """λ play no part."""
    s = x.settings
    return selection.ram_plus(x.origin, x.points, r=s["r"], alpha=s["alpha"], epsilon=s["epsilon"])


def tsv(x: Inputs) -> Tensor:
    """TSV-Merge of the weighted task vectors; of embeddings and heads, whose rows are tokens, the average."""
    if has_vocabulary(x.name):
        return x.origin + float(x.settings["scale"]) * total(_weighted(x)) / len(x.updates)
    return x.origin + float(x.settings["scale"]) * spectral.tsv_merge(x.updates, x.weights)


def iso_c(x: Inputs) -> Tensor:
    """Iso-C of the weighted task vectors; of embeddings and heads, whose rows are tokens, the average."""
    if has_vocabulary(x.name):
        return x.origin + float(x.settings["scale"]) * total(_weighted(x)) / len(x.updates)
    return x.origin + float(x.settings["scale"]) * spectral.iso_c(_weighted(x))


def _weighted(x: Inputs) -> list[Tensor]:
    return [weight * update for weight, update in zip(x.weights, x.updates, strict=True)]


def fisher(x: Inputs) -> Tensor:
    """Fisher-weighted average; where no Fisher was measured, the weighted average."""
    if not x.evidence:
        return _average(x)
    return informed.fisher_mean(
        x.points,
        [measured.tensor for measured in x.evidence],
        x.weights,
        floor=x.settings["floor"],
        normalize=x.settings["normalize_fisher"],
        norms=[measured.norm for measured in x.evidence],
    )


def regmean(x: Inputs) -> Tensor:
    """RegMean for linear layers; the weighted average for all other tensors, as in the paper."""
    if not x.evidence:
        return _average(x)
    return informed.regmean(
        x.points,
        [measured.tensor for measured in x.evidence],
        x.settings["alpha"],
        x.weights,
        input_first=x.evidence[0].input_first,
    )


def _average(x: Inputs) -> Tensor:
    whole = torch.tensor(sum(x.weights), dtype=x.origin.dtype)
    return total([weight * point for weight, point in zip(x.weights, x.points, strict=True)]) / whole
