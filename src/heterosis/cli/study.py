"""Commands that work on a study file."""

from __future__ import annotations

from typing import Any

import typer

from heterosis.cli.app import (
    Form,
    Output,
    Quiet,
    StudyPath,
    UnsafeCode,
    app,
    errors_on_own_handle,
    output,
    plain,
    print_json,
    quieten_libraries,
)


@app.command()
def run(study: StudyPath, form: Form = Output.TABLE, quiet: Quiet = False, unsafe_code: UnsafeCode = False) -> None:
    """Run a study, or go on with one that was interrupted."""
    quieten_libraries()
    from heterosis.run import run as run_study
    from heterosis.watch import Watcher

    with errors_on_own_handle() as console, Watcher(console, quiet) as watcher:
        result = run_study(study, watcher, unsafe_code)
    if form is Output.JSON:
        print_json(result)
    else:
        from heterosis.summary import show_result

        show_result(result, output())


@app.command()
def sync(study: StudyPath) -> None:
    """Bring the MLflow lineage up to date with the record, as after a server that was down."""
    quieten_libraries()
    from heterosis.run import sync as sync_study

    typer.echo(f"{sync_study(study)} merges added to the lineage")


@app.command()
def check(study: StudyPath, form: Form = Output.TABLE, unsafe_code: UnsafeCode = False) -> None:
    """Check everything about a study that can be checked without scoring, and say what it will cost."""
    quieten_libraries()
    from heterosis.check import check as check_study

    facts = check_study(study, unsafe_code)
    if form is Output.JSON:
        print_json(facts)
        return
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(f"[bold]{name.replace('_', ' ')}[/bold]", plain(_words(value)))
    output().print(table)


@app.command()
def schema() -> None:
    """Print the JSON schema of study files."""
    from heterosis.config import Study

    print_json(Study.model_json_schema())


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_words(inner)}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
