"""Models that are on this machine already."""

from __future__ import annotations

from pathlib import Path

from heterosis.checkpoints.source import ModelRef


def at_hand(ref: ModelRef) -> Path | None:
    """A model's folder, or the hub client's copy of it; None where it would have to be fetched."""
    folder = Path(ref.model)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or ref.model.count("/") != 1:
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(ref.model, revision=ref.revision, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no name that the hub could give
        return None
