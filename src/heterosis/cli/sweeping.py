"""The command that draws curves over what a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heterosis.cli.app import (
    Form,
    Output,
    Quiet,
    UnsafeCode,
    app,
    errors_on_own_handle,
    existing_file,
    output,
    plain,
    print_json,
    quieten_libraries,
)


@app.command()
def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="SWEEP", help="A study file with a `sweep` section.", callback=existing_file)
    ],
    plan: Annotated[bool, typer.Option("--plan", help="Check the file, say what it will score, and stop.")] = False,
    form: Form = Output.TABLE,
    quiet: Quiet = False,
    unsafe_code: UnsafeCode = False,
) -> None:
    """Draw curves and grids over merge parameters, or go on with a sweep that was interrupted."""
    quieten_libraries()
    from heterosis.sweep import plan as plan_sweep
    from heterosis.sweep import show
    from heterosis.sweep import sweep as run_sweep
    from heterosis.watch import Watcher

    if plan:
        facts = plan_sweep(file, unsafe_code)
        if form is Output.JSON:
            print_json(facts)
        else:
            for name, value in facts.items():
                output().print(f"[bold]{name}[/bold]  {plain(_words(value))}", soft_wrap=True)
        return
    with errors_on_own_handle() as console, Watcher(console, quiet) as watcher:
        report = run_sweep(file, watcher, unsafe_code)
    if form is Output.JSON:
        print_json(report)
    else:
        show(report, output())


def _words(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(inner)}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
