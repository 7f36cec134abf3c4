"""The application that commands are added to, and what they share: errors, consoles, options."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heterosis import __version__
from heterosis.cli.completion import studies
from heterosis.errors import HeterosisError, StudyError

if TYPE_CHECKING:
    from rich.console import Console


class Output(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"


app = typer.Typer(
    name="heterosis",
    help="Search how to merge language models, and prove that what was found is better.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def existing_file(path: Path) -> Path:
    """A path that is given and there: told before libraries are loaded, which takes seconds."""
    if path is not None and not path.exists():  # None while a shell completes
        raise StudyError(f"{path}: no such file.")
    return path


def existing_study(path: Path) -> Path:
    """The same of a study's file or a run's folder."""
    if path is not None and not path.exists():
        raise StudyError(f"{path}: no such study file or folder. Give a study file, or a run's folder (runs/NAME).")
    return path


StudyPath = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY",
        help="The study file; `heterosis schema` describes it.",
        autocompletion=studies,
        callback=existing_file,
    ),
]
Form = Annotated[Output, typer.Option("--format", help="How to print the result: for people or for programs.")]
UnsafeCode = Annotated[
    bool,
    typer.Option(
        "--confirm-run-unsafe-code",
        "--confirm_run_unsafe_code",
        help="Allow benchmarks that run code which the models write (humaneval, mbpp); it is shut in.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show only warnings and the result.")]


def main() -> None:
    """Entry point. An error that a user can meet becomes one line and an exit code."""
    try:
        app()
    except HeterosisError as error:
        errors().print(f"[bold red]error:[/bold red] {plain(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        errors().print(f"[bold red]error:[/bold red] {plain(str(error))}", soft_wrap=True)
        sys.exit(2)
    except MemoryError as error:
        reason = f" ({error})" if str(error) else ""
        errors().print(
            f"[bold red]error:[/bold red] not enough memory{plain(reason)}. Nothing was lost.", soft_wrap=True
        )
        sys.exit(3)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"heterosis {__version__}")
        raise typer.Exit


def print_json(content: Any) -> None:
    """A result for programs, on standard output."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def plain(text: str) -> str:
    """Text in which Rich sees no markup."""
    from rich.markup import escape

    return escape(text)


def output() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def errors() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def errors_on_own_handle() -> Iterator[Console]:
    """Standard error on a handle of its own, so that sending an engine's output elsewhere does not take it along."""
    from rich.console import Console

    with os.fdopen(os.dup(2), "w", buffering=1) as handle:
        yield Console(file=handle, highlight=False)


def quieten_libraries() -> None:
    """Progress bars and chatter of the libraries would tear the live view; their warnings still come through."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
