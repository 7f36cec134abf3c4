"""Walk a base and its parents once, tensor by tensor, and say what merging them would meet."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from heterosis.checkpoints import Adapter, Checkpoint, Layout, TensorSource
from heterosis.checkpoints.adapter_config import ADAPTER_CONFIG
from heterosis.checkpoints.layout import NAMED_GROUPS, storage_order
from heterosis.errors import CheckpointError
from heterosis.inspection.advice import advise
from heterosis.inspection.differences import comparable, differences
from heterosis.inspection.geometry import (
    CrowdMoments,
    Moments,
    PairMoments,
    measure,
    measure_crowd,
    measure_pair,
    octaves,
)
from heterosis.inspection.records import Crowd, Pair, Region, Size, Survey

GROUPS = {name: NAMED_GROUPS[name] for name in ("embeddings", "head", "attention", "mlp", "norms")} | {"other": ".*"}
ALL = "all"

# Entries measured at a time: what a dozen passes over them read stays in the processor's cache.
CHUNK = 1 << 16

Progress = Callable[[int, int], None]


class _Spot(NamedTuple):
    """Where a region lies, so that sorting puts regions in the order of a forward pass."""

    stage: int
    layer: int
    group: int


_OVERALL = _Spot(-1, -1, -1)


@dataclass
class _Tally:
    """Sums of one region while the walk goes on."""

    sizes: dict[str, Moments] = field(default_factory=lambda: defaultdict(Moments))
    pairs: dict[tuple[str, str], PairMoments] = field(default_factory=lambda: defaultdict(PairMoments))
    crowd: CrowdMoments = field(default_factory=CrowdMoments)

    def add(self, other: _Tally) -> None:
        """Take up the sums over other entries."""
        for parent, moments in other.sizes.items():
            self.sizes[parent] += moments
        for pair, shared in other.pairs.items():
            self.pairs[pair] += shared
        self.crowd += other.crowd


def inspect_models(
    base: Path, parents: Mapping[str, Path], progress: Progress | None = None, *, allow_pickle: bool = False
) -> Survey:
    """Open the models (a parent may be a LoRA adapter on the base), survey them and close them.

    Raises CheckpointError for a folder that holds neither, and whatever `survey_models` raises.
    """
    with ExitStack() as opened:
        origin = Checkpoint(base, "base", mapped=False, allow_pickle=allow_pickle)
        opened.callback(origin.close)
        members: dict[str, TensorSource] = {}
        for name, folder in parents.items():
            if (folder / ADAPTER_CONFIG).is_file():
                members[name] = Adapter(folder, name, origin, mapped=False, allow_pickle=allow_pickle)
            else:
                members[name] = Checkpoint(folder, name, mapped=False, allow_pickle=allow_pickle)
            opened.callback(members[name].close)
        return survey_models(origin, members, progress)


def survey_models(base: TensorSource, parents: Mapping[str, TensorSource], progress: Progress | None = None) -> Survey:
    """Measure what the base and each parent have in common. `progress` hears (entries done, entries in all).

    One tensor of each member is held at a time. Raises CheckpointError where there is no parent, or on NaN and Inf.
    """
    if not parents:
        raise CheckpointError("parents: none given. Name at least one fine-tune of the base.")
    common = {name: comparable(base, parent) for name, parent in parents.items()}
    layout = Layout(base.specs, GROUPS)
    tallies: dict[_Spot, _Tally] = defaultdict(_Tally)
    done, every = 0, sum(spec.numel for spec in base.specs.values())
    for name in storage_order(base.specs):
        members = {parent: model for parent, model in parents.items() if name in common[parent]}
        if members:
            tallies[_spot(layout, name)].add(_measure_tensor(name, base, members))
        done += base.specs[name].numel
        if progress is not None:
            progress(done, every)
    overall, layers = _Tally(), defaultdict[int, _Tally](_Tally)
    for spot in sorted(tallies):
        overall.add(tallies[spot])
        if spot.layer >= 0:
            layers[spot.layer].add(tallies[spot])
    unlike = differences(base, parents)
    whole = _region(None, ALL, overall, parents)
    return Survey(
        base=str(base.folder),
        parents={name: str(parent.folder) for name, parent in parents.items()},
        differences=unlike,
        overall=whole,
        layers=[_region(layer, ALL, tally, parents) for layer, tally in layers.items()],
        regions=[
            _region(spot.layer if spot.layer >= 0 else None, list(GROUPS)[spot.group], tallies[spot], parents)
            for spot in sorted(tallies)
        ],
        histograms={name: octaves(found.buckets) for name, found in overall.sizes.items() if found.buckets is not None},
        advice=advise(list(parents), unlike, whole),
    )


def _spot(layout: Layout, name: str) -> _Spot:
    place = layout.places[name]
    stage = 1 if place.layer is not None else 0 if place.at_input else 2
    return _Spot(stage, -1 if place.layer is None else place.layer, list(GROUPS).index(place.group))


def _measure_tensor(name: str, base: TensorSource, members: Mapping[str, TensorSource]) -> _Tally:
    tally = _Tally()
    for origin, deltas in _chunks(name, base, members):
        for parent, delta in deltas.items():
            found = measure(delta, origin)
            if not math.isfinite(found.mass):
                culprit = parent if math.isfinite(found.origin) else "base"
                raise CheckpointError(f"{culprit}: {name} holds NaN or Inf. Use a sound checkpoint of this model.")
            tally.sizes[parent] += found
        for first, second in combinations(deltas, 2):
            tally.pairs[first, second] += measure_pair(deltas[first], deltas[second])
        if len(deltas) > 1:
            tally.crowd += measure_crowd(list(deltas.values()))
    return tally


def _chunks(
    name: str, base: TensorSource, members: Mapping[str, TensorSource]
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The base and each task vector in float32, piece by piece."""
    trunk = base.tensor(name).reshape(-1)
    tensors = {parent: model.tensor(name).reshape(-1) for parent, model in members.items()}
    for start in range(0, trunk.numel(), CHUNK):
        origin = trunk[start : start + CHUNK].float()
        deltas = {parent: tensor[start : start + CHUNK].float() - origin for parent, tensor in tensors.items()}
        yield origin, deltas


def _region(layer: int | None, group: str, tally: _Tally, order: Iterable[str]) -> Region:
    sizes = {parent: _size(tally.sizes[parent]) for parent in order if parent in tally.sizes}
    pairs = [
        Pair(*names, found.cosine, found.conflict, found.both, found.identical)
        for names in combinations(sizes, 2)
        if (found := tally.pairs.get(names)) is not None
    ]
    crowd = Crowd(tally.crowd.conflict, tally.crowd.loss) if tally.crowd.entries else None
    return Region(layer, group, sizes, pairs, crowd)


def _size(moments: Moments) -> Size:
    return Size(
        entries=moments.entries,
        mean=moments.mean,
        rms=moments.rms,
        largest=moments.largest,
        p99=moments.quantile(0.99),
        relative=moments.relative,
        beyond_safe=moments.beyond_safe,
        beyond_large=moments.beyond_large,
        zeros=moments.zeros,
        effective_density=moments.effective_density,
    )
