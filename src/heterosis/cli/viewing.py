"""Commands that look at studies: how one stands, one candidate, two candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from heterosis.cli.app import Form, Output, app, existing_study, output, print_json, quieten_libraries
from heterosis.cli.completion import candidates, studies

RUNS = Path("runs")
Target = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY",
        help="A study file, or a run's folder (runs/NAME).",
        autocompletion=studies,
        show_default=False,
        callback=existing_study,
    ),
]
CANDIDATE = "A label (c12, a parent's or baseline's name), or its part: winner, best, baseline, parent."


@app.command()
def status(
    study: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STUDY]",
            help="A study file, or a run's folder; every study in runs/ when left out.",
            autocompletion=studies,
        ),
    ] = None,
    form: Form = Output.TABLE,
) -> None:
    """How a study stands: stage, progress, best so far, pace, what is left, failures."""
    quieten_libraries()
    from heterosis.stored import RESOLVED
    from heterosis.views import status as status_of
    from heterosis.views import statuses, tables

    folder = RUNS if study is None else study
    if study is None or (folder.is_dir() and not (folder / RESOLVED).is_file() and any(folder.glob(f"*/{RESOLVED}"))):
        found = list(statuses(folder))
        if form is Output.JSON:
            print_json([tables.plain(each) for each in found])
        else:
            tables.show_statuses(found, output())
        return
    one = status_of(folder)
    if form is Output.JSON:
        print_json(tables.plain(one))
    else:
        tables.show_status(one, output())


@app.command()
def show(
    study: Target,
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help=CANDIDATE, autocompletion=candidates)],
    recipe: Annotated[
        bool, typer.Option("--recipe", help="Print its recipe.yaml only, for `heterosis merge`.")
    ] = False,
    form: Form = Output.TABLE,
) -> None:
    """One candidate of a study: scores, race, recipe along depth, digests, how to build it."""
    quieten_libraries()
    from heterosis.views import show as show_one
    from heterosis.views import tables

    found = show_one(study, candidate)
    if recipe:
        typer.echo(found.recipe.to_yaml(), nl=False)
    elif form is Output.JSON:
        print_json(_json(found))
    else:
        tables.show_candidate(found, output())


def _json(found: Any) -> dict[str, Any]:
    from heterosis.views import tables

    content: dict[str, Any] = tables.plain(found._replace(recipe=None))
    return content | {"recipe": found.recipe.model_dump(mode="json", exclude_defaults=True)}


@app.command()
def compare(
    study: Target,
    first: Annotated[str, typer.Argument(metavar="FIRST", help=CANDIDATE, autocompletion=candidates)],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="Another one, likewise.", autocompletion=candidates)],
    form: Form = Output.TABLE,
) -> None:
    """Two candidates of a study on every split that both were scored on, and how their recipes differ."""
    quieten_libraries()
    from heterosis.views import compare as compare_two
    from heterosis.views import tables

    found = compare_two(study, first, second)
    if form is Output.JSON:
        print_json(tables.plain(found))
    else:
        tables.show_comparison(found, output())
