"""Commands that merge and look at models by hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heterosis.cli.app import Form, Output, app, errors, output, plain, print_json, quieten_libraries

if TYPE_CHECKING:
    import torch

    from heterosis.mergekit import Opened

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe.yaml, or a mergekit YAML file.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read pickle checkpoints too, tensors alone (weights_only).")
]


@app.command()
def merge(
    recipe: RecipePath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist.")],
    allow_pickle: AllowPickle = False,
    shard_size: Annotated[float, typer.Option(help="Largest file of weights, in GB.", min=0.000001, max=1e6)] = 5.0,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …")] = "cpu",
) -> None:
    """Build one merge from a recipe, as a complete Hugging Face folder."""
    quieten_libraries()
    from heterosis.builder import Builder
    from heterosis.errors import RecipeError
    from heterosis.export import export

    if os.path.lexists(out):
        raise RecipeError(f"{out} exists already. Give a new folder, or remove it.")
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise RecipeError(f"{out}: its parent is no folder that can be written to. Make it first.")
    at = _device(device)
    with _naming(recipe):
        opened = _open(recipe, allow_pickle)
        builder = Builder(opened.family, at, relative_to=recipe.resolve().parent, once=True)
        digest = export(builder, opened.recipe, out, shard_bytes=int(shard_size * 1e9))
    typer.echo(f"{out}  weights {digest}")


@app.command()
def convert(
    recipe: RecipePath,
    out: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="File to write; standard output else.")] = None,
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Write the nearest mergekit file, differences named, where none is equal.")
    ] = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Turn a recipe into mergekit YAML, or mergekit YAML into a recipe."""
    quieten_libraries()
    from heterosis.errors import RecipeError
    from heterosis.files import write_text
    from heterosis.mergekit import is_mergekit, to_mergekit
    from heterosis.recipe import read_yaml
    from heterosis.wiring import wire

    if out is not None and out.exists():
        raise RecipeError(f"{out} exists already. Give a new file, or remove it.")
    with _naming(recipe):
        opened = _open(recipe, allow_pickle)
        names = list(wire(opened.recipe.stack, opened.family.members).inputs)
        found = None if is_mergekit(read_yaml(recipe)) else to_mergekit(opened.recipe, names)
    if found is None:
        text = opened.recipe.to_yaml()
    else:
        if found.differences and not nearest:
            raise RecipeError(
                f"{recipe}: mergekit cannot express this merge: {'; '.join(found.differences)}. "
                "--nearest writes the nearest."
            )
        text = found.to_yaml()
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What is wrong with a recipe is said of its file."""
    from heterosis.errors import RecipeError

    try:
        yield
    except RecipeError as error:
        named = str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
        raise RecipeError(named) from error


def _device(name: str) -> torch.device:
    import torch

    from heterosis.errors import RecipeError

    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only cpu and cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"--device {name}: cannot compute there ({reason}). Use cpu, or a device that is.") from None
    return device


def _open(path: Path, allow_pickle: bool) -> Opened:
    """A recipe of either kind with its models; what plays no part in it is said on standard error."""
    from heterosis.mergekit import Opened, is_mergekit, open_mergekit, parse
    from heterosis.recipe import Recipe, read_yaml
    from heterosis.sources import located, open_sources, pinned

    content, beside = read_yaml(path), path.resolve().parent
    if not is_mergekit(content):
        recipe = located(Recipe.parse(content, str(path)), beside)
        family = open_sources(recipe, beside, mapped=False, allow_pickle=allow_pickle)
        return Opened(pinned(recipe, family), family, ())
    opened = open_mergekit(parse(content, str(path)), beside, mapped=False, allow_pickle=allow_pickle)
    for note in opened.notes:
        errors().print(f"[yellow]note:[/yellow] {plain(note)}", soft_wrap=True)
    return opened


@app.command()
def inspect(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The base model: a folder, or a hub id (owner/name@rev).")
    ],
    parents: Annotated[list[str], typer.Argument(metavar="PARENT…", help="Its fine-tunes, or LoRA adapters on it.")],
    html: Annotated[Path | None, typer.Option(help="Also write plots and tables to this HTML file.")] = None,
    form: Form = Output.TABLE,
    allow_pickle: AllowPickle = False,
) -> None:
    """Is merging sensible here? Task vectors by depth and group: size, direction, conflicts, sparsity."""
    quieten_libraries()
    from heterosis.errors import CheckpointError
    from heterosis.inspection import inspect_models, render, write_page

    if html is not None and not html.absolute().parent.is_dir():
        raise CheckpointError(f"{html}: its parent is no folder. Make it first.")
    survey = inspect_models(_folder(base), _named(parents), allow_pickle=allow_pickle)
    if html is not None:
        write_page(survey, html)
    if form is Output.JSON:
        print_json(survey.to_dict())
    else:
        render(survey, output())


def _folder(model: str) -> Path:
    from heterosis.checkpoints import ModelRef, resolve

    name, _, revision = model.partition("@")
    return resolve(ModelRef(name, revision) if revision and not Path(model).exists() else ModelRef(model))


def _named(models: list[str]) -> dict[str, Path]:
    """Folders by the models' own names, numbered where that is ambiguous."""
    names = [Path(model.partition("@")[0]).absolute().name for model in models]
    return {
        name if names.count(name) == 1 else f"{name}-{i + 1}": _folder(model)
        for i, (name, model) in enumerate(zip(names, models, strict=True))
    }
