"""What each of mergekit's methods reads, and what its parameters are in this program's terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from heterosis.errors import RecipeError
from heterosis.mergekit.schema import MergekitConfig
from heterosis.mergekit.settings import Level, value_at

REQUIRED = object()
# What mergekit takes for every task-vector method and what has no influence on the result.
INERT = frozenset({"int8_mask"})


class Shared(NamedTuple):
    """A parameter of the merge as a whole: its name there, its name here, type and default."""

    theirs: str
    ours: str
    kind: type
    default: Any


class Contract(NamedTuple):
    """One of mergekit's methods."""

    name: str
    needs_base: bool = True
    sets_base_apart: bool = True
    """Whether the base is the origin of task vectors rather than one of the models."""
    weight: Any = None
    """Default of the models' weights; REQUIRED, or None where they play no part."""
    thins: str = ""
    """What `density` does: trim, band, drop, rank or nothing."""
    shared: tuple[Shared, ...] = ()
    normalizes: bool | None = None
    """Default of `normalize`, where it belongs to an election."""
    rescales: bool = False
    """Default of `rescale`."""
    widens: bool = False
    """Whether its result is float32 whatever it computes in, unless out_dtype says otherwise."""

    @property
    def knows(self) -> frozenset[str]:
        """Every parameter that the method reads or that changes nothing by design."""
        names = {each.theirs for each in self.shared} | INERT
        names |= {"weight"} if self.weight is not None else set()
        names |= {"t"} if self.name == "slerp" else set()
        names |= {"density", "rescale", "normalize"} if self.generalized else set()
        names |= {"gamma"} if self.thins == "band" else {"epsilon"} if self.thins == "rank" else set()
        return frozenset(names)

    @property
    def generalized(self) -> bool:
        """Whether it is one of mergekit's task-arithmetic family."""
        return any(each.theirs == "lambda" for each in self.shared)

    def rules(self, config: MergekitConfig) -> dict[str, Any]:
        """Keys of the recipe that hold for all tensors."""
        if not self.generalized:
            return {}
        found: dict[str, Any] = {"zero_sign": "positive"}
        if self.normalizes is not None:
            found["divisor"] = "signed_weight" if _constant("normalize", config, self.normalizes) else "none"
        if self.thins:
            found["rescale"] = "l1" if _constant("rescale", config, self.rescales) else "none"
        return found


LAMBDA = Shared("lambda", "scale", float, 1.0)
SUM = (LAMBDA, Shared("normalize", "normalize", bool, False))
CONTRACTS: Mapping[str, Contract] = {
    each.name: each
    for each in (
        Contract(
            "linear",
            needs_base=False,
            sets_base_apart=False,
            weight=REQUIRED,
            shared=(Shared("normalize", "normalize", bool, True),),
        ),
        Contract("slerp"),
        Contract(
            "nuslerp",
            needs_base=False,
            weight=REQUIRED,
            shared=(
                Shared("nuslerp_row_wise", "row_wise", bool, False),
                Shared("nuslerp_flatten", "flatten", bool, True),
            ),
        ),
        Contract(
            "multislerp",
            needs_base=False,
            weight=REQUIRED,
            shared=(Shared("normalize_weights", "normalize", bool, True), Shared("eps", "eps", float, 1e-8)),
        ),
        Contract(
            "karcher",
            needs_base=False,
            sets_base_apart=False,
            shared=(Shared("max_iter", "max_iter", float, 10.0), Shared("tol", "tol", float, 1e-5)),
        ),
        Contract("model_stock", shared=(Shared("filter_wise", "filter_wise", bool, False),)),
        Contract("nearswap", shared=(Shared("t", "t", float, REQUIRED),)),
        Contract("task_arithmetic", weight=REQUIRED, shared=SUM),
        Contract("ties", weight=REQUIRED, thins="trim", shared=(LAMBDA,), normalizes=True),
        Contract("dare_ties", weight=REQUIRED, thins="drop", shared=(LAMBDA,), normalizes=False, rescales=True),
        Contract("dare_linear", weight=REQUIRED, thins="drop", shared=SUM, rescales=True),
        Contract("breadcrumbs", weight=REQUIRED, thins="band", shared=SUM),
        Contract("breadcrumbs_ties", weight=REQUIRED, thins="band", shared=(LAMBDA,), normalizes=False),
        Contract("della", weight=REQUIRED, thins="rank", shared=(LAMBDA,), normalizes=True, rescales=True),
        Contract("della_linear", weight=REQUIRED, thins="rank", shared=SUM, rescales=True),
        Contract("sce", shared=(Shared("select_topk", "select_topk", float, 1.0),)),
        Contract("arcee_fusion", widens=True),
        Contract("ram", shared=(Shared("epsilon", "epsilon", float, 1e-5),)),
        Contract(
            "ramplus_tl",
            widens=True,
            shared=(
                Shared("r", "r", float, 0.1),
                Shared("alpha", "alpha", float, 0.2),
                Shared("epsilon", "epsilon", float, 1e-5),
            ),
        ),
        Contract(
            "passthrough",
            needs_base=False,
            sets_base_apart=False,
            shared=(Shared("scale", "scale", float, 1.0),),
        ),
    )
}


def numbers_at(
    contract: Contract, levels: Sequence[Level], shared_levels: Sequence[Level], names: tuple[str, str], t: float
) -> dict[str, float]:
    """Parameters of one parent at one tensor. names: of its own tensor, and of the merged one."""
    theirs, merged = names
    if contract.name == "slerp":
        return {"weight": _needed("t", shared_levels, merged, t)}
    found = {}
    if contract.weight is REQUIRED:
        found["weight"] = _needed("weight", levels, theirs, t)
    if contract.thins:
        density = value_at("density", levels, theirs, t, float, 1.0)
        found |= _thinned(contract.thins, min(density, 1.0), levels, theirs, t)
    return found


def _thinned(thins: str, density: float, levels: Sequence[Level], name: str, t: float) -> dict[str, float]:
    if density < 0.0 or (density == 0.0 and thins in ("drop", "rank")):
        raise RecipeError(
            f"parameters.density: {density:g} at {name} keeps nothing. Use weight 0 to leave a model out."
        )
    if thins == "trim":
        return {"density": density}
    if density >= 1.0:
        return {}
    if thins == "band":
        return {"density": density, "gamma": value_at("gamma", levels, name, t, float, 0.01)}
    if thins == "drop":
        return {"drop": 1.0 - density}
    return {"drop": 1.0 - density, "epsilon": value_at("epsilon", levels, name, t, float, 0.15)}


def settings_at(contract: Contract, levels: Sequence[Level], name: str, t: float) -> dict[str, Any]:
    """The method's settings at one tensor, those at their default left out."""
    found = {}
    for each in contract.shared:
        value = value_at(each.theirs, levels, name, t, each.kind, each.default)
        if value is REQUIRED:
            raise RecipeError(f"parameters.{each.theirs}: {contract.name} needs it at {name}. Add it.")
        found[each.ours] = value
    return found


def _needed(name: str, levels: Iterable[Level], tensor_name: str, t: float) -> float:
    value = value_at(name, levels, tensor_name, t, float)
    if value is None:
        raise RecipeError(f"parameters.{name}: missing for {tensor_name}. Give it to every model, or to the whole.")
    return float(value)


def _constant(name: str, config: MergekitConfig, default: bool) -> bool:
    levels = [each.parameters for each in config.body.slices or ()] + [config.body.parameters, config.parameters]
    given = [level[name] for level in levels if level and name in level]
    if not given:
        return default
    if any(isinstance(value, list | dict | str) or value not in (0, 1) or value != given[0] for value in given):
        raise RecipeError(f"parameters.{name}: must be one true or false for the whole merge, not {given[0]!r}.")
    return bool(given[0])
