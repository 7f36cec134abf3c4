"""Commands that take a merge out of a study: for use, for others, or to check that it is what it is said to be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heterosis.cli.app import Form, Output, app, errors, existing_study, output, plain, print_json, quieten_libraries

if TYPE_CHECKING:
    from heterosis.publishing.push import Upload


Moved = Annotated[
    list[str] | None, typer.Option(metavar="NAME=PLACE", help="A source that has moved: a folder or a hub id.")
]


def _places(given: list[str] | None) -> dict[str, str]:
    from heterosis.errors import RecipeError

    found = {}
    for each in given or ():
        name, equals, place = each.partition("=")
        if not (name and equals and place):
            raise RecipeError(f"--model {each}: give NAME=PLACE, a source's name and its folder or hub id.")
        found[name] = place
    return found


@app.command()
def export(
    study: Annotated[
        Path,
        typer.Argument(metavar="STUDY", help="A study file, or a study's folder (runs/NAME).", callback=existing_study),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist.")],
    candidate: Annotated[
        str,
        typer.Option(help="A candidate's label; `winner`, or `best`, which of an unfinished study is the best yet."),
    ] = "best",
    model: Moved = None,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Also upload it to the hub, as OWNER/NAME.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    push_samples: Annotated[
        bool, typer.Option("--push-samples", help="Upload the benchmark's items and the merge's answers too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Upload nothing; say what would be.")] = False,
    accept_licences: Annotated[
        bool, typer.Option("--accept-licences", help="I have read the models' licences and may publish the merge.")
    ] = False,
    form: Form = Output.TABLE,
) -> None:
    """Write one of a study's merges as a model folder with card and leaderboard files, proven to be what was scored."""
    quieten_libraries()
    from heterosis.errors import StudyError
    from heterosis.export import export_candidate
    from heterosis.publishing.push import plan_upload
    from heterosis.publishing.push import push as upload

    if push is None and (private or dry_run or push_samples):
        raise StudyError("--private, --push-samples and --dry-run are about an upload. Give --push OWNER/NAME too.")
    places = _places(model)
    exported = export_candidate(study, candidate, out, models=places, push=push, accepted=accept_licences, dry=dry_run)
    told: dict[str, Any] = exported._asdict() | {"folder": str(exported.folder)}
    if push is not None:
        plan = plan_upload(out, push, private, push_samples)
        page = None if dry_run else upload(out, push, private, push_samples)
        told["upload"] = plan._asdict() | {"bytes": plan.bytes, "page": page}
    if form is Output.JSON:
        print_json(told)
        return
    for problem in exported.licences:
        errors().print(f"[yellow]licences:[/yellow] {plain(problem)}", soft_wrap=True)
    if not exported.leaderboard_files:
        errors().print("[yellow]note:[/yellow] no scores on the test split, so no files for leaderboards")
    output().print(plain(exported.standing), soft_wrap=True)
    typer.echo(f"{out}  {exported.label}, weights {exported.weights_digest}, as they were scored")
    if push is not None:
        _show_upload(plan, told["upload"]["page"])


def _show_upload(plan: Upload, page: str | None) -> None:
    kind = "private repository" if plan.private else "public repository"
    if plan.kept:
        typer.echo(
            f"stays here: {', '.join(plan.kept)} (benchmark items in the open end up in training data; "
            "--push-samples sends them)"
        )
    if page is not None:
        typer.echo(f"{page}  {len(plan.files)} files, {plan.bytes / 1e6:.1f} MB, {kind}")
        return
    for name, size in plan.files.items():
        typer.echo(f"  {size:>14,}  {name}")
    typer.echo(
        f"would go to {plan.repo}: {len(plan.files)} files, {plan.bytes / 1e6:.1f} MB, {kind}. Nothing was sent."
    )


@app.command()
def reproduce(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A recipe.yaml, a folder that holds one, an MLflow run id, STUDY:LABEL."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist.")],
    tracking: Annotated[
        str | None, typer.Option(help="Where a run is: an MLflow tracking URI, or a study's file or folder.")
    ] = None,
    model: Moved = None,
    form: Form = Output.TABLE,
) -> None:
    """Build a merge again from its lineage alone; compare the digests of its sources and of its weights."""
    quieten_libraries()
    from heterosis.reproduce import reproduce as build_again

    made = build_again(source, out, tracking=tracking, models=_places(model))
    if form is Output.JSON:
        print_json(made._asdict() | {"folder": str(made.folder)})
        return
    sources = f"{made.sources} sources match"
    if made.unpinned:
        sources += f" ({', '.join(made.unpinned)} not compared: the recipe names no digest)"
    weights = f"weights {made.weights_digest} " + ("match" if made.compared else "(nothing recorded to compare with)")
    typer.echo(f"{out}  {made.name}: {sources}; {weights}")
