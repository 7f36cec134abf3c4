"""Commands for a new study and a new machine: init, doctor."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heterosis.cli.app import Form, Output, app, errors, output, plain, print_json, quieten_libraries

if TYPE_CHECKING:
    from heterosis.doctor import Check


class EngineKind(StrEnum):
    """Engines that a study can ask for."""

    VLLM = "vllm"
    TRANSFORMERS = "transformers"


class Engines(StrEnum):
    """Engines that are tried."""

    VLLM = "vllm"
    TRANSFORMERS = "transformers"
    ALL = "all"


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="Study file to write; it must not exist.")] = Path(
        "study.yaml"
    ),
    base: Annotated[str | None, typer.Option(help="The base model: a folder, or a hub id (owner/name@rev).")] = None,
    parent: Annotated[
        list[str] | None, typer.Option(metavar="NAME=MODEL", help="A fine-tune of the base; once for each.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="One of lm-eval's tasks, or a task file; once for each.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study; the file's when left out.")] = None,
    engine: Annotated[EngineKind | None, typer.Option(help="What answers the questions.")] = None,
    candidates: Annotated[int | None, typer.Option(min=1, help="Merges to try.  [default: 100]")] = None,
    space: Annotated[str, typer.Option(help="Search space: a file, or the name of a shipped one.")] = "dare_ties_knots",
) -> None:
    """Write a commented study file, from options or, on a terminal, from a few questions."""
    from heterosis.errors import StudyError
    from heterosis.starter import (
        Answers,
        check_model,
        check_parent,
        check_task,
        parent_of,
        refuse_existing,
        write_study,
    )

    refuse_existing(file)
    missing = [flag for flag, given in (("--base", base), ("--parent", parent), ("--task", task)) if not given]
    asking = bool(missing) and sys.stdin.isatty()
    if missing and not asking:
        raise StudyError(f"init: {', '.join(missing)} missing, and no terminal to ask on. Give them as options.")
    if asking:
        errors().print(f"A new study in [bold]{plain(str(file))}[/bold]; Ctrl-C leaves without writing.")
    name = name or (_asked("Name of the study", file.stem) if asking else file.stem)
    base = base or _asked("Base model (folder or hub id)", check=lambda model: check_model("base", model))
    named = [parent_of(each) for each in (parent or _asked_list("Parent, as NAME=MODEL", check_parent))]
    if len(dict(named)) < len(named):
        raise StudyError("parents: two have the same name. Name them as NAME=MODEL.")
    tasks = tuple(task or _asked_list("Task (one of lm-eval's, or a .yaml file)", check_task))
    kind = engine or (_asked("Engine (vllm, transformers)", "vllm", _engine) if asking else EngineKind.VLLM)
    count = candidates or int(_asked("Merges to try", "100", _count) if asking else 100)
    write_study(file, Answers(name, base, dict(named), tasks, str(kind), count, space))
    at = shlex.quote(str(file))
    typer.echo(f"{file} written. Next:")
    typer.echo(f"  heterosis check {at}   # files, shapes, tasks, memory and cost; nothing expensive")
    typer.echo(f"  heterosis run {at}     # again: resumes")


def _asked(question: str, default: str | None = None, check: Callable[[str], object] | None = None) -> str:
    """An answer that passes its check; what is wrong with another is said, and the question asked again."""
    from heterosis.errors import HeterosisError

    while True:
        answer = str(typer.prompt(question, default=default, err=True, show_default=bool(default))).strip()
        try:
            if check is not None and (answer or default is None):
                check(answer)
            return answer
        except (HeterosisError, ValueError) as error:
            errors().print(f"[yellow]{plain(str(error))}[/yellow]", soft_wrap=True)


def _asked_list(question: str, check: Callable[[str], object]) -> list[str]:
    """Answers until an empty one; at least one."""
    found = [_asked(question, check=check)]
    while more := _asked(f"{question}; empty: no more", "", check):
        found.append(more)
    return found


def _engine(text: str) -> None:
    if text not in list(EngineKind):
        raise ValueError(f"{text} is no engine; one of {', '.join(EngineKind)}")


def _count(text: str) -> None:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text} is no number of merges; give a whole number of at least 1")


@app.command()
def doctor(
    engine: Annotated[Engines, typer.Option(help="Which engines to start on a tiny random model.")] = Engines.ALL,
    no_engine: Annotated[bool, typer.Option("--no-engine", help="Start none, and compile nothing: seconds.")] = False,
    form: Form = Output.TABLE,
) -> None:
    """Is this machine fit for a study? Exit code 1 if something is a problem."""
    quieten_libraries()
    from heterosis.doctor import examine

    kinds = ["transformers", "vllm"] if engine is Engines.ALL else [engine.value]
    found = []
    for check in examine(Path("runs"), [] if no_engine else kinds, engine is not Engines.ALL, _tell):
        found.append(check)
        if form is Output.TABLE:
            _show(check)
    counts = {state: sum(check.state == state for check in found) for state in ("ok", "warning", "problem")}
    if form is Output.JSON:
        print_json({"checks": [check._asdict() for check in found], **counts})
    else:
        output().print(", ".join(f"{state} {count}" for state, count in counts.items()))
    if counts["problem"]:
        raise typer.Exit(1)


def _show(check: Check) -> None:
    colour = {"ok": "green", "warning": "yellow", "problem": "bold red"}[check.state]
    line = f"[{colour}]{check.state:8}[/{colour}] [bold]{plain(check.name)}[/bold]: {plain(check.found)}"
    output().print(line, soft_wrap=True)
    if check.remedy:
        output().print(f"         {plain(check.remedy)}", soft_wrap=True)


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        errors().print(f"[dim]{plain(text)} …[/dim]")
