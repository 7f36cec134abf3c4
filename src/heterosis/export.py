"""A merge as a complete Hugging Face folder, proven to hold the weights that were scored."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from heterosis.builder import Builder, Plan
from heterosis.checkpoints import Checkpoint, TensorSource, write_checkpoint
from heterosis.checkpoints.writer import SHARD_BYTES
from heterosis.errors import CanaryError, CheckpointError, RecipeError
from heterosis.files import new_folder, write_json, write_text
from heterosis.mergekit import to_mergekit
from heterosis.publishing import (
    About,
    Findings,
    Licence,
    assess,
    card,
    findings,
    read_licence,
    write_leaderboard_files,
)
from heterosis.publishing.prose import standing
from heterosis.publishing.push import check_push
from heterosis.recipe import Recipe
from heterosis.sources import compare_sources, moved, open_sources
from heterosis.stored import open_stored

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


class Exported(NamedTuple):
    """A study's merge in a folder."""

    folder: Path
    label: str
    role: str
    standing: str
    """What evidence there is for it, in a sentence."""
    weights_digest: str
    licences: list[str]
    """Why it should not be published without reading on."""
    leaderboard_files: list[str]


def export(
    builder: Builder,
    recipe: Recipe,
    folder: Path,
    *,
    expected_digest: str | None = None,
    about: Findings | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Write the merge to `folder` and return its content digest.

    The written files are read back; if their digest is not `expected_digest` nothing is left behind. `about`: what a
    study knows of the merge, for its card and for leaderboards.
    """
    plan = builder.plan(recipe)
    try:
        with new_folder(folder) as work:
            write_checkpoint(work, builder.specs(plan), _ahead(builder.tensors(plan)), shard_bytes)
            _write_companions(builder.family.base, plan, work)
            digest = _proven(builder, recipe, work, folder, expected_digest)
            _write_papers(plan, work, digest, about)
            return digest
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise CheckpointError(
            f"{folder}: cannot be written ({reason}). Make room, or give a folder on another disk. Nothing was written."
        ) from error


def _write_papers(plan: Plan, work: Path, digest: str, about: Findings | None) -> None:
    """All that a reader wants to know: recipe, card, the licences' own texts, files for leaderboards."""
    recipe = plan.recipe
    write_text(work / "recipe.yaml", recipe.to_yaml())
    _write_mergekit(recipe, list(plan.wiring.inputs), work)
    licences = {source.name: read_licence(plan.members[source.name].folder) for source in recipe.parents}
    licences = {recipe.base.name: read_licence(plan.members["base"].folder), **licences}
    _copy_texts(licences, work)
    paper = About(recipe, digest, licences, about)
    write_text(work / "README.md", card(paper))
    if about is not None:
        write_leaderboard_files(work, about, paper.name)


def _copy_texts(licences: Mapping[str, Licence], work: Path) -> None:
    """Licences ask that their text goes along: once where all models have the same, else under each model's name."""
    texts = [(name, path) for name, licence in licences.items() for path in licence.texts]
    for file in sorted({path.name for _, path in texts}):
        own = [(name, path) for name, path in texts if path.name == file]
        shared = len({path.read_bytes() for _, path in own}) == 1
        for name, path in own[:1] if shared else own:
            owner = re.sub(r"[^\w.-]", "_", name)
            shutil.copyfile(path, work / (file if shared else f"{file}.{owner}"))


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


def export_candidate(
    study: Path,
    label: str,
    out: Path,
    *,
    models: Mapping[str, str] | None = None,
    push: str | None = None,
    accepted: bool = False,
    dry: bool = False,
) -> Exported:
    """Write one of a study's merges to a new folder, with all that the study knows of it.

    `models`: name of a source -> where it lies, if it has moved. `push`: the repository it is meant for, which is
    looked at before anything is written; `accepted`, `dry`: as in `check_push`.
    """
    check_new(out)
    with open_stored(study) as stored:
        about = findings(stored, label)
    recipe = moved(about.candidate.recipe, models or {}, about.label)
    family = open_sources(recipe, mapped=False)
    folders = {recipe.base.name: family.base.folder, **{name: each.folder for name, each in family.parents.items()}}
    licences = {name: read_licence(folder) for name, folder in folders.items()}
    if push is not None:
        check_push(push, licences, accepted, dry)
    compare_sources(recipe, family)
    digest = export(
        Builder(family, once=True), recipe, out, expected_digest=about.candidate.weights_digest, about=about
    )
    files = sorted(str(path.relative_to(out)) for kind in ("lm_eval/*", ".eval_results/*") for path in out.glob(kind))
    return Exported(out, about.label, about.role, standing(about), digest, assess(licences).problems, files)


def check_new(out: Path) -> None:
    """Refuse a folder that exists, or whose parent cannot be written to."""
    if os.path.lexists(out):
        raise RecipeError(f"{out} exists already. Give a new folder, or remove it.")
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise RecipeError(f"{out}: its parent is no folder that can be written to. Make it first.")
