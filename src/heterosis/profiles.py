"""Profiles: how the numbers of a merge run over its layers, and the nearest profile of another depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heterosis.config import Blocks, Depth, Knots
from heterosis.recipe import Depthwise

FloatArray = npt.NDArray[np.float64]


class Profiles(NamedTuple):
    """The numbers of a merge, free of how many of them were searched."""

    groups: Mapping[str, str]
    """Group name -> pattern on tensor names; the first that matches decides."""
    values: Mapping[tuple[str, str], Mapping[str, Depthwise]]
    """(parent, gene), or ("all", setting) -> group -> one number, or one per layer. What is missing is unknown."""


def over_layers(values: Sequence[float], depth: Depth, layers: int) -> tuple[float, ...]:
    """Spread a profile's values over all layers: knots are interpolated, blocks repeated."""
    at = np.arange(layers)
    if isinstance(depth, Knots):
        return tuple(np.interp(at, np.linspace(0, layers - 1, len(values)), values).tolist())
    if isinstance(depth, Blocks):
        return tuple(values[i * len(values) // layers] for i in range(layers))
    return tuple(values)


def coarser(one: Depth, other: Depth) -> Depth:
    """The depth with fewer values; `one` where they have equally many."""
    return one if _resolution(one) <= _resolution(other) else other


def _resolution(depth: Depth) -> float:
    if isinstance(depth, Knots):
        return depth.knots
    if isinstance(depth, Blocks):
        return depth.blocks
    return 1 if depth == "uniform" else math.inf


def stretched(value: Depthwise, layers: int) -> FloatArray:
    """One number per layer, [layers]. A profile over another number of layers is read at the same relative depth."""
    given = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if len(given) == layers:
        return given
    read: FloatArray = np.interp(np.linspace(0, 1, layers), np.linspace(0, 1, len(given)), given)
    return read


def average(rows: FloatArray, weights: Sequence[float] | None = None) -> FloatArray:
    """Weighted mean of `rows` [n, *shape] -> [*shape]; of equal rows it is that row, bit for bit."""
    mean: FloatArray = rows[0] + np.average(rows - rows[0], axis=0, weights=weights)
    return mean


def fitted(profile: FloatArray, depth: Depth, count: int) -> list[float]:
    """The `count` values whose profile of this depth comes nearest to `profile` [layers], by least squares.

    A profile that this depth can express is met exactly: a constant bit for bit, others to rounding. Otherwise uniform
    and blocks take the mean over their stretch of layers, knots the line that best follows it. 1 <= count <= layers.
    """
    layers = len(profile)
    if count == layers:
        return list(map(float, profile))
    if count == 1:
        return [float(average(profile))]
    basis = np.array([over_layers(unit, depth, layers) for unit in np.eye(count).tolist()]).T
    # Each layer's shares sum to 1, so that a constant can be taken off first and is not rounded.
    solution = np.linalg.lstsq(basis, profile - profile[0], rcond=None)[0]
    return list(map(float, profile[0] + solution))
