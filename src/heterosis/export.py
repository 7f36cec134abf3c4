"""A merge as a complete Hugging Face folder, proven to hold the weights that were scored."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from heterosis.builder import Builder, Plan
from heterosis.checkpoints import Checkpoint, TensorSource, write_checkpoint
from heterosis.checkpoints.writer import SHARD_BYTES
from heterosis.errors import CanaryError, CheckpointError, RecipeError
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

# Where configurations say how many layers there are.
DEPTH_KEYS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers"}


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
    plan = builder.plan(recipe)
    try:
        with new_folder(folder) as work:
            _write(builder, plan, work, results, shard_bytes)
            return _proven(builder, recipe, work, folder, expected_digest)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise CheckpointError(
            f"{folder}: cannot be written ({reason}). Make room, or give a folder on another disk. Nothing was written."
        ) from error


def _write(builder: Builder, plan: Plan, work: Path, results: Mapping[str, Any] | None, shard_bytes: int) -> None:
    recipe = plan.recipe
    write_checkpoint(work, builder.specs(plan), _ahead(builder.tensors(plan)), shard_bytes)
    _write_companions(builder.family.base, plan, work)
    write_text(work / "recipe.yaml", recipe.to_yaml())
    _write_mergekit(recipe, list(plan.wiring.inputs), work)
    write_text(work / "README.md", card(recipe, results))


def _proven(builder: Builder, recipe: Recipe, work: Path, folder: Path, expected_digest: str | None) -> str:
    """Digest of the files as they are read back; an error where it is not the one expected."""
    written = Checkpoint(work, folder.name, mapped=builder.family.mapped)
    try:
        digest = written.digest
    except CheckpointError as error:
        raise RecipeError(
            f"{folder}: the merge does not fit into {recipe.dtype} ({error}) Lower its weights or its scale. "
            "Nothing was written."
        ) from error
    finally:
        written.close()
    if expected_digest is not None and digest != expected_digest:
        raise CanaryError(
            f"{folder}: the exported weights ({digest[:12]}) are not those that were scored "
            f"({expected_digest[:12]}). Nothing was written."
        )
    return digest


def _ahead(stream: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The same stream, with the next tensor merged while the caller writes this one."""
    with ThreadPoolExecutor(1, "merge-ahead") as worker:
        coming = worker.submit(next, stream, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, stream, None)
            yield item
            del item


def _write_companions(base: TensorSource, plan: Plan, work: Path) -> None:
    for pattern in COMPANIONS:
        for path in sorted(base.folder.glob(pattern)):
            if path.is_file():
                shutil.copy2(path, work / path.name)
    if plan.vocabulary is not None:
        plan.vocabulary.write_tokenizer(work)
    if plan.recipe.chat_template is not None:
        write_text(work / "chat_template.jinja", _chat_template(plan))
    write_json(work / "config.json", _config(base, plan))
    for path in work.iterdir():
        path.chmod(0o644)


def _config(base: TensorSource, plan: Plan) -> dict[str, Any]:
    """The base's configuration with what the merge changes: dtype, number of rows, number and kinds of layers."""
    config = dict(base.config)
    config.pop("torch_dtype", None)
    config["dtype"] = plan.recipe.dtype
    if plan.vocabulary is not None:
        config["vocab_size"] = plan.vocabulary.size
    if plan.recipe.stack is None:
        return config
    donors = list(zip(*(zip(repeat(member), layers) for member, layers in plan.recipe.stack.items()), strict=True))
    chosen = [next((m, at) for m, at in layer if at is not None) for layer in donors]
    for key in DEPTH_KEYS & set(config):
        depth = config[key]
        for name, value in config.items():
            if isinstance(value, list) and len(value) == depth and name.endswith(("layer_types", "_layers")):
                config[name] = [plan.members[member].config[name][at] for member, at in chosen]
        config[key] = len(chosen)
    return config


def _chat_template(plan: Plan) -> str:
    """The template as written, or with `auto` the commonest among the models."""
    wanted = plan.recipe.chat_template
    if wanted is not None and wanted != "auto":
        return wanted
    folders = {member.folder for member in plan.members.values()}
    found = [text for folder in sorted(folders) if (text := _own_template(folder)) is not None]
    if not found:
        raise RecipeError("chat_template: auto, but none of the models has one. Remove it.")
    return Counter(found).most_common(1)[0][0]


def _own_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8").strip()
    try:
        content = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    template = content.get("chat_template") if isinstance(content, dict) else None
    return template.strip() if isinstance(template, str) else None


def _write_mergekit(recipe: Recipe, names: Sequence[str], work: Path) -> None:
    """The same merge in mergekit's terms, where it has any."""
    try:
        text = to_mergekit(recipe, names).to_yaml()
    except RecipeError:
        return
    write_text(work / "mergekit_config.yml", text)


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
