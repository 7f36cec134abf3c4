"""Where a model comes from: a local folder, or a hub id with a revision."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from heterosis.errors import CheckpointError

# Weights, configuration, tokenizer, and the licence, which may stand in the card alone; never code, never pickles.
HUB_PATTERNS = (
    *("*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja"),
    *("LICEN[CS]E*", "NOTICE*", "USE_POLICY*", "README.md"),
)


class ModelRef(NamedTuple):
    """A model as the user names it."""

    model: str
    revision: str | None = None


def resolve(ref: ModelRef, relative_to: Path | None = None) -> Path:
    """The local folder of a model, fetched from the hub if it is not a path.

    A relative path is looked for beside `relative_to` (the folder of the study file), then in the working directory.
    """
    try:
        written = Path(ref.model).expanduser()
    except RuntimeError:  # ~name of a user who does not exist
        written = Path(ref.model)
    for folder in (written,) if written.is_absolute() else ((relative_to or Path()) / written, written):
        if folder.is_dir():
            if ref.revision is not None:
                raise CheckpointError(f"{ref.model}: a revision is for hub ids, but this is a local folder. Drop it.")
            return folder.resolve()
    if written.is_absolute() or ref.model.startswith((".", "~")) or ref.model.count("/") != 1:
        raise CheckpointError(f"{ref.model}: no such folder. Give a folder with config.json, or a hub id owner/name.")
    return _download(ref)


def is_hub_snapshot(folder: Path) -> bool:
    """Whether a folder is the hub client's copy of one commit, whose hash is then its name."""
    return folder.parent.name == "snapshots" and (folder.parent.parent / "refs").is_dir()


def _download(ref: ModelRef) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(ref.model, revision=ref.revision, allow_patterns=list(HUB_PATTERNS)))
    except Exception as error:  # the hub client raises a dozen types; the user needs the same advice for each
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{ref.model}: neither a local folder nor a model that the hub gives ({reason}). "
            "Check the name and revision, or download it and give the folder."
        ) from error
