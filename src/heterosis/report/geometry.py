"""The parents' task vectors, surveyed for a report where the models are at hand and small enough."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from heterosis.checkpoints import Adapter, Checkpoint, ModelRef, TensorSource, at_hand
from heterosis.checkpoints.adapter_config import ADAPTER_CONFIG
from heterosis.errors import CheckpointError
from heterosis.inspection import Survey, survey_models
from heterosis.inspection.wording import printable
from heterosis.recipe import Source
from heterosis.report.view import View

# Models of up to so many bytes together are surveyed unless told otherwise: a minute's work.
AT_MOST = 1 << 30


class Found(NamedTuple):
    """A survey, or why there is none."""

    survey: Survey | None
    why: str = ""


def surveyed(view: View, wanted: bool | None) -> Found:
    """Survey the study's models. `wanted`: None asks for it where the models are small enough."""
    if wanted is False:
        return Found(None, "The models were not looked at (--no-inspect).")
    candidates = view.stored.records["search"].candidates
    if not candidates:
        return Found(None, "The models are not known before the first merge is scored.")
    recipe = candidates[0].recipe
    folders: dict[str, Path] = {}
    for source in (recipe.base, *recipe.parents):
        folder = at_hand(ModelRef(source.model, source.revision))
        if folder is None or source.adapter is not None:
            return Found(None, f"{printable(source.name)} is not on this machine, so its task vector is not shown.")
        folders[source.name] = folder
    size = sum(path.stat().st_size for folder in set(folders.values()) for path in folder.glob("*.safetensors"))
    if wanted is None and size > AT_MOST:
        return Found(
            None,
            f"The models hold {size / (1 << 30):.1f} GiB; `heterosis report --inspect` looks at them all the same.",
        )
    try:
        return _survey(recipe.base, recipe.parents, folders)
    except (CheckpointError, OSError) as error:
        return Found(None, f"The models could not be looked at: {error}")


def _survey(base: Source, parents: tuple[Source, ...], folders: dict[str, Path]) -> Found:
    with ExitStack() as opened:
        origin = Checkpoint(folders[base.name], base.name, mapped=False)
        opened.callback(origin.close)
        members: dict[str, TensorSource] = {}
        for source in parents:
            kind = (folders[source.name] / ADAPTER_CONFIG).is_file()
            members[source.name] = (
                Adapter(folders[source.name], source.name, origin, mapped=False)
                if kind
                else Checkpoint(folders[source.name], source.name, mapped=False)
            )
            opened.callback(members[source.name].close)
        for source, member in ((base, origin), *((source, members[source.name]) for source in parents)):
            if source.digest and member.digest != source.digest:
                return Found(None, f"{printable(source.name)} holds other weights than when the study ran.")
        return Found(survey_models(origin, members))
