"""A merge as a complete Hugging Face folder, proven to hold the weights that were scored."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from heterosis.builder import Builder
from heterosis.checkpoints import Checkpoint, write_checkpoint
from heterosis.checkpoints.writer import SHARD_BYTES
from heterosis.errors import CanaryError
from heterosis.files import new_folder, write_json, write_text
from heterosis.mergekit import to_mergekit
from heterosis.recipe import Recipe, Source

# What a folder needs beside its weights, taken from the base as it is.
COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
)


def export(
    builder: Builder,
    recipe: Recipe,
    folder: Path,
    *,
    expected_digest: str | None = None,
    results: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Write the merge to `folder` and return its content digest.

    The written files are read back; if their digest is not `expected_digest` nothing is left behind.
    """
    with new_folder(folder) as work:
        write_checkpoint(work, builder.specs(recipe), builder.tensors(recipe), shard_bytes)
        _write_companions(builder.family.base, recipe, work)
        write_text(work / "recipe.yaml", recipe.to_yaml())
        write_text(work / "mergekit_config.yml", to_mergekit(recipe, builder.family.names).to_yaml())
        write_text(work / "README.md", card(recipe, results))
        written = Checkpoint(work, folder.name)
        digest = written.digest
        written.close()
        if expected_digest is not None and digest != expected_digest:
            raise CanaryError(
                f"{folder}: the exported weights ({digest[:12]}) are not those that were scored "
                f"({expected_digest[:12]}). Nothing was written."
            )
    return digest


def _write_companions(base: Checkpoint, recipe: Recipe, work: Path) -> None:
    config = dict(base.config)
    config.pop("torch_dtype", None)
    write_json(work / "config.json", config | {"dtype": recipe.dtype})
    for pattern in COMPANIONS:
        for path in sorted(base.folder.glob(pattern)):
            if path.is_file():
                shutil.copy2(path, work / path.name)
    for path in work.iterdir():
        path.chmod(0o644)


def card(recipe: Recipe, results: Mapping[str, Any] | None) -> str:
    """The model card."""
    hub = [_hub_id(source) for source in (recipe.base, *recipe.parents)]
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "mergekit", "heterosis"]}
    if all(hub):
        front |= {"base_model": hub, "base_model_relation": "merge"}
    rows = [
        f"| {source.name} | {_shown(source)} | `{source.digest[:16]}` |" for source in (recipe.base, *recipe.parents)
    ]
    intro = (
        f"Merged without training by **{recipe.method}** from fine-tunes of one base; every parameter is in "
        "[recipe.yaml](recipe.yaml), which together with the sources reproduces these weights bit for bit."
    )
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---\n",
        "# A merge found by Heterosis\n",
        intro + "\n",
        "| | source | weights |\n|---|---|---|\n" + "\n".join(rows) + "\n",
    ]
    if results is not None:
        parts.append(_results_section(results))
    return "\n".join(parts)


def _results_section(results: Mapping[str, Any]) -> str:
    tasks = list(results["tasks"])
    head = "| | objective | " + " | ".join(tasks) + " |\n|---|---|" + "---|" * len(tasks) + "\n"
    lines = []
    for row in results["table"]:
        found = row.get("test")
        if found is not None:
            cells = [_cell(found["objective"]), *(_cell(found["tasks"][task]) for task in tasks)]
            lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    items = results["items"]["test"]
    return (
        f"## Results\n\n{results['verdict'][0].upper()}{results['verdict'][1:]}.\n\n"
        f"Scores on {items} held-out items that neither the search nor the choice of the winner saw, with 95 % "
        "bootstrap intervals over items:\n\n" + head + "\n".join(lines) + "\n"
    )


def _cell(found: Mapping[str, float]) -> str:
    return f"{found['estimate']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def _hub_id(source: Source) -> str | None:
    local = source.model.startswith((".", "/", "~")) or source.model.count("/") != 1 or Path(source.model).exists()
    return None if local else source.model


def _shown(source: Source) -> str:
    """A hub id with its revision; of a local folder only its name: its path says nothing about the model."""
    hub = _hub_id(source)
    if hub is None:
        return Path(source.model).name
    return hub if source.revision is None else f"{hub}@{source.revision}"
