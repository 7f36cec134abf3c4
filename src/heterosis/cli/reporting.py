"""The command that writes a study's report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heterosis.cli.app import app, existing_study, quieten_libraries


@app.command()
def report(
    study: Annotated[
        Path,
        typer.Argument(metavar="STUDY", help="The study file, or the folder of its run.", callback=existing_study),
    ],
    out: Annotated[Path | None, typer.Option(help="File to write; report.html in the run's folder else.")] = None,
    inspect: Annotated[
        bool | None,
        typer.Option(
            "--inspect/--no-inspect",
            help="Look at the models' task vectors too; when left out, if they hold 1 GiB at most.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a study's report: one HTML file with verdict, tables and plots, also while the study runs."""
    quieten_libraries()
    from heterosis.report import write_report

    typer.echo(write_report(study, out, inspect))
