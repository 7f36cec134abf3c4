"""A sweep in MLflow: a run for each merge, with its place on the curves as params and the page as an artifact."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from heterosis.ledger.lineage import Lineage, StudyFacts
from heterosis.ledger.mirror import BackgroundMirror
from heterosis.ledger.record import sqlite_url
from heterosis.ledger.redact import masked
from heterosis.study import Prepared
from heterosis.sweep.points import Design
from heterosis.watch import Watcher


def open_lineage(prepared: Prepared, unfolded: Design, identity: dict[str, object]) -> Lineage | None:
    """The lineage of a sweep, unless it is turned off."""
    config = prepared.config
    if config.tracking == "none":
        return None
    facts = StudyFacts(
        config.name,
        identity,
        config.model_dump(mode="json", exclude_unset=True, exclude={"space", "method"}),
        prepared.blank.base,
        prepared.blank.parents,
        prepared.panel.manifest(),
        prepared.panel.digest,
        "sweep",
        places(unfolded),
    )
    return Lineage(config.tracking or sqlite_url(prepared.folder / "lineage.db"), facts)


def places(unfolded: Design) -> dict[str, dict[str, str]]:
    """Recipe digest -> where it stands: curve, parents, and what varies there. Equal merges stand in many places."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, recipe in unfolded.references.items():
        _stand(found, recipe.digest, [("reference", name)])
    for point in unfolded.points:
        for number, recipe in enumerate(point.recipes):
            where = [("curve", point.curve), ("parents", point.subject.name), ("mask", str(number))]
            _stand(found, recipe.digest, [*where, *((axis, str(value)) for axis, value in point.at.items())])
    return {digest: {key: ", ".join(values) for key, values in own.items()} for digest, own in found.items()}


def _stand(found: dict[str, dict[str, list[str]]], digest: str, where: Iterable[tuple[str, str]]) -> None:
    own = found.setdefault(digest, {})
    for key, value in where:
        if value not in own.setdefault(key, []):
            own[key].append(value)


def conclude(lineage: Lineage, mirror: BackgroundMirror, folder: Path, watcher: Watcher) -> None:
    """Mirror what is left, and the files that people read. MLflow's troubles are told, and stop nothing."""
    watcher.stage("writing lineage")
    mirror.finish()
    if mirror.problem is not None:
        return
    try:
        lineage.conclude(_papers(folder))
    except Exception as error:  # MLflow, its database drivers and HTTP raise types of their own
        problem = masked(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        watcher.warn(f"lineage: {problem}. The sweep is complete; the same command catches up.")


def _papers(folder: Path) -> dict[str, Path]:
    names = [
        "sweep.html",
        "sweep.csv",
        "sweep.json",
        *(f"figures/{each.name}" for each in folder.glob("figures/*.png")),
    ]
    return {name: folder / name for name in names if (folder / name).is_file()}
