"""Means along great circles: of two points (slerp, nuslerp) and of many (multislerp, Karcher).

mergekit is the definition of nuslerp and multislerp. In half precision the steps round where mergekit 0.1.5 rounds,
because published merges were computed so. In float32 and float64 angles and coefficients are float64, and lengths and
inner products are summed in an order that does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heterosis.errors import RecipeError
from heterosis.merge.consensus import total

# torch splits a sum of 32,768 entries or more among its threads, and so its rounding depends on their number.
BLOCK = 2**14
# Entries and rows that are widened to float64 at a time.
CHUNK, ROWS = 2**20, 2**6
# 1 - cos² at and below which two directions are one line: what float32 can tell apart.
COLINEAR = 1e-7
HALF = (torch.float16, torch.bfloat16)


def slerp(a: Tensor, b: Tensor, t: float, threshold: float = 0.9995) -> Tensor:
    """From a (t = 0) to b (t = 1) along the great circle. a, b: one shape; result: that shape and dtype.

    (sin((1 - t)θ) a + sin(tθ) b) / sin θ, θ the angle between a and b as vectors of all their entries: Shoemake (1985),
    section 3.3, applied to the points themselves, so the length moves from |a| to |b|. Computed in float32 at least.
    Straight (1 - t) a + t b where |cos θ| > threshold, which includes antipodal points. A zero vector is at a right
    angle to everything. t may lie outside [0, 1]. Both endpoints are exact.
    """
    arithmetic = torch.float32 if a.dtype in HALF else a.dtype
    x, y = a.reshape(1, -1).to(arithmetic), b.reshape(1, -1).to(arithmetic)
    cosine = _cosine(x, y, smallest=1e-8)
    straight = cosine.abs() > threshold
    angle = torch.acos(torch.where(straight, 0.0, cosine))
    of_a = torch.where(straight, 1.0 - t, torch.sin((1.0 - t) * angle) / torch.sin(angle))
    of_b = torch.where(straight, t, torch.sin(t * angle) / torch.sin(angle))
    return (of_a.to(arithmetic) * x + of_b.to(arithmetic) * y).reshape(a.shape).to(a.dtype)


def nuslerp(
    a: Tensor, b: Tensor, t: float, origin: Tensor | None = None, row_wise: bool = False, flatten: bool = True
) -> Tensor:
    """From a to b by angle, straight only where they are colinear. a, b, origin: one shape; result: that shape.

    As in mergekit, nuslerp: slerp's formula without its threshold, around `origin` where one is given (which makes it
    an interpolation of task vectors). With `flatten` the tensor is one vector. Without, every row along the last
    dimension is one; with `row_wise` too, every column along the first. A zero vector has cos θ = 0.
    """
    if origin is not None:
        return origin + nuslerp(a - origin, b - origin, t, row_wise=row_wise, flatten=flatten)
    if a.numel() == 0:
        return a.clone()
    across = row_wise and not flatten
    turned = a.transpose(0, -1) if across else a
    length = a.numel() if flatten or a.dim() == 0 else turned.shape[-1]
    x = turned.reshape(-1, length)
    y = (b.transpose(0, -1) if across else b).reshape(-1, length)
    cosine = _cosine(x, y, smallest=1e-7)
    colinear = 1.0 - cosine.square() <= COLINEAR
    angle = torch.acos(torch.where(colinear, 0.0, cosine))
    of_a, of_b, sine = (torch.sin(part).to(a.dtype) for part in ((1.0 - t) * angle, t * angle, angle))
    result = torch.where(colinear, (1.0 - t) * x + t * y, (of_a * x + of_b * y) / sine).reshape(turned.shape)
    return result.transpose(0, -1) if across else result


def multislerp(
    points: Sequence[Tensor],
    weights: Sequence[float],
    origin: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """Barycentre of k points on a hypersphere around `origin`. k tensors of one shape -> that shape.

    As in mergekit, multislerp (Goddard 2025): m, the normalised Σ w_k u_k of the directions u_k; the weighted tangents
    at m, Σ w_k (u_k - ⟨u_k, m⟩ m); the exponential map of those at m; the length Σ w_k |x_k|. With one set of weights
    in both places the tangents cancel but for rounding, so the direction is m. `normalize` divides the weights by
    their sum. One point is returned as it is. Two whose directions cancel give Σ w_k x_k; more raise RecipeError, as
    do weights that sum to 0 and are to be normalised. Where all points are zero so is the result.
    """
    if len(points) == 1:
        return points[0]
    if origin is not None:
        return origin + multislerp([point - origin for point in points], weights, normalize=normalize, eps=eps)
    shape, dtype = points[0].shape, points[0].dtype
    vectors = [point.reshape(1, -1) for point in points]
    shares = torch.tensor(weights, dtype=dtype, device=points[0].device)
    if normalize:
        if shares.sum() == 0.0:
            raise RecipeError(
                "multislerp: the weights of the parents sum to 0. Change a weight, or set normalize: false."
            )
        shares = shares / shares.sum()
    lengths = [norm(vector).to(dtype) for vector in vectors]
    units = [vector / _or_one(length + eps) for vector, length in zip(vectors, lengths, strict=True)]
    mean = _sum([unit * share for unit, share in zip(units, shares, strict=True)])
    size = norm(mean).to(dtype)
    # What is left of directions that cancel in float32 is their rounding, which is more than mergekit's eps.
    rounding = 0.0 if dtype in HALF else 2.0 * torch.finfo(dtype).eps * shares.abs().sum().item()
    if size.item() < max(eps, rounding):
        if len(points) > 2 and any(length.item() > eps for length in lengths):
            raise RecipeError("multislerp: the weighted directions of the parents cancel out. Change a weight.")
        return _sum([vector * share for vector, share in zip(vectors, shares, strict=True)]).reshape(shape)
    mean = mean / size
    tangents = [unit - inner(unit, mean, products=_products(dtype)).to(dtype) * mean for unit in units]
    tangent = _sum([each * share for each, share in zip(tangents, shares, strict=True)])
    turn = norm(tangent).to(dtype) + eps
    moved = mean * torch.cos(turn) + tangent * (torch.sin(turn) / _or_one(turn))
    return (moved * _sum([length * share for length, share in zip(lengths, shares, strict=True)])).reshape(shape)


def karcher(
    points: Sequence[Tensor], weights: Sequence[float] | None = None, iterations: int = 10, tolerance: float = 1e-5
) -> Tensor:
    """Riemannian centre of mass of the directions, at the weighted mean length. k tensors of one shape -> that shape.

    Karcher (1977): the m for which Σ w_k log_m(u_k) = 0, by repeated steps along that sum; Σ w_k = 1 (RecipeError where
    they sum to 0), equal where not given. Starts at the normalised weighted mean, or at the first direction where that
    vanishes; stops when a step is shorter than `tolerance`. Points not longer than `tolerance` have no direction and
    count for the length alone, as in mergekit; a point opposite to m has no one log and is left out of that step.
    """
    if len(points) == 1:
        return points[0]
    given = [1.0] * len(points) if weights is None else list(weights)
    lengths = torch.cat([norm(point.reshape(1, -1)) for point in points]).reshape(-1).cpu()
    directed = [k for k, length in enumerate(lengths.tolist()) if length > tolerance]
    if not directed:
        return torch.zeros_like(points[0])
    if sum(given) == 0.0 or sum(given[k] for k in directed) == 0.0:
        raise RecipeError("karcher: the weights of the parents sum to 0. Change a weight.")
    scale = torch.tensor(given, dtype=torch.float64) @ lengths / sum(given)
    chosen = [points[k] for k in directed]
    shares = [given[k] / sum(given[k] for k in directed) for k in directed]
    if points[0].dtype in HALF:
        mean = _karcher_by_steps(chosen, shares, lengths[directed], iterations, tolerance)
        return (scale.float() * mean).to(mean.dtype)
    return _karcher_by_products(chosen, shares, lengths[directed], scale, iterations, tolerance)


def _karcher_by_products(
    points: Sequence[Tensor], shares: Sequence[float], lengths: Tensor, scale: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """The mean never leaves the span of the points, so only its k coefficients move: one pass to see, one to build."""
    rows = [point.reshape(1, -1) for point in points]
    gram = torch.eye(len(rows), dtype=torch.float64)
    for i, a in enumerate(rows):
        for j, b in enumerate(rows[:i]):
            gram[i, j] = gram[j, i] = inner(a, b).item() / (lengths[i] * lengths[j])

    def size(coefficients: Tensor) -> Tensor:
        return (coefficients @ gram @ coefficients).clamp(min=0.0).sqrt()

    alphas = torch.tensor(shares, dtype=torch.float64)
    mean = alphas / size(alphas) if size(alphas) >= tolerance else torch.eye(len(rows), dtype=torch.float64)[0]
    for _ in range(iterations):
        cosines = (gram @ mean).clamp(-1.0, 1.0)
        angles = torch.acos(cosines)
        curved = (angles >= tolerance) & (angles <= torch.pi - tolerance)
        pulls = torch.where(curved, alphas * angles / torch.sin(angles), 0.0)
        tangent = pulls - (pulls @ cosines) * mean
        step = size(tangent)
        if step < tolerance:
            break
        mean = torch.cos(step) * mean + torch.sin(step) * tangent / step
        mean = mean / size(mean)
    factors = (scale * mean / lengths).tolist()
    return total([factor * point for factor, point in zip(factors, points, strict=True)])


def _karcher_by_steps(
    points: Sequence[Tensor], shares: Sequence[float], lengths: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """The same on the vectors themselves, rounding each to half precision as often as mergekit does."""
    dtype, device = points[0].dtype, points[0].device
    units = [(p / length.to(device, torch.float32)).to(dtype) for p, length in zip(points, lengths, strict=True)]
    mean = total([share * unit for share, unit in zip(shares, units, strict=True)])
    mean = _to_unit(mean) if _length(mean) >= tolerance else units[0]
    for _ in range(iterations):
        tangent = torch.zeros_like(mean)
        for share, unit in zip(shares, units, strict=True):
            cosine = _half_inner(mean, unit).clamp(-1.0, 1.0)
            angle = torch.acos(cosine)
            if tolerance <= angle.item() <= torch.pi - tolerance:
                tangent = tangent + share * (angle / torch.sin(angle)) * (unit - cosine * mean)
        step = _length(tangent)
        if step < tolerance:
            break
        mean = (torch.cos(step) * mean + torch.sin(step) * (tangent / step)).to(dtype)
        mean = _to_unit(mean)
    return mean


def _length(x: Tensor) -> Tensor:
    return norm(x.reshape(1, -1)).reshape(()).float()


def _to_unit(x: Tensor) -> Tensor:
    return (x / _length(x)).to(x.dtype)


def _half_inner(a: Tensor, b: Tensor) -> Tensor:
    return inner(a.reshape(1, -1), b.reshape(1, -1)).reshape(()).to(a.dtype)


def norm(rows: Tensor) -> Tensor:
    """Euclidean length of every row. [r, n] -> [r, 1] float64."""
    if rows.dtype in HALF:
        # With the float32 rounding of torch's own norm, which mergekit calls; no thread count changes this one.
        lengths: Tensor = torch.linalg.vector_norm(rows.to(torch.float32), dim=1, keepdim=True)
        return lengths.to(torch.float64)
    return inner(rows, rows).sqrt()


def inner(a: Tensor, b: Tensor, products: torch.dtype = torch.float64) -> Tensor:
    """Inner products of the rows of two matrices. [r, n], [r, n] -> [r, 1] float64.

    Products are formed in `products` and summed in float64 in blocks that no thread count divides otherwise.
    """
    count, columns = a.shape
    if count > ROWS:
        pairs = zip(torch.split(a, ROWS), torch.split(b, ROWS), strict=True)
        return torch.cat([inner(x, y, products) for x, y in pairs])
    result = torch.zeros(count, 1, dtype=torch.float64, device=a.device)
    width = max(BLOCK, CHUNK // max(count, 1) // BLOCK * BLOCK)
    for first in range(0, columns, width):
        part = slice(first, first + width)
        terms = (a[:, part].to(products) * b[:, part].to(products)).to(torch.float64)
        whole = terms.shape[1] // BLOCK * BLOCK
        result += terms[:, :whole].reshape(count, -1, BLOCK).sum(dim=-1).sum(dim=-1, keepdim=True)
        result += terms[:, whole:].sum(dim=-1, keepdim=True)
    return result


def _cosine(x: Tensor, y: Tensor, smallest: float) -> Tensor:
    """Cosine of the angle between rows, [r, n] x 2 -> [r, 1]; a row shorter than `smallest` is not stretched.

    float64; in half precision of that dtype, taken from directions that were rounded to it.
    """
    lengths = [norm(rows) for rows in (x, y)]
    if x.dtype in HALF:
        units = [rows / length.to(x.dtype).clamp(min=smallest) for rows, length in zip((x, y), lengths, strict=True)]
        return inner(units[0], units[1], products=x.dtype).to(x.dtype).clamp(-1.0, 1.0)
    return (inner(x, y) / (lengths[0].clamp(min=smallest) * lengths[1].clamp(min=smallest))).clamp(-1.0, 1.0)


def _or_one(divisor: Tensor) -> Tensor:
    """A length of zero, or one that float16 rounds to zero, divides by 1."""
    return torch.where(divisor == 0.0, 1.0, divisor)


def _products(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in HALF else torch.float64


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Sum in the given order, rounded once: in half precision the partial sums are float32."""
    dtype = tensors[0].dtype
    return total([tensor.float() for tensor in tensors]).to(dtype) if dtype in HALF else total(tensors)
