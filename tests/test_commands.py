"""docs/commands.md against the program."""

from __future__ import annotations

import re
from pathlib import Path

from heterosis import errors
from heterosis.cli import app

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")


def test_every_command_has_an_example() -> None:
    blocks = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    shown = set(re.findall(r"^heterosis ([a-z]+)", blocks, re.MULTILINE))
    assert shown == {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }


def test_every_exit_code_is_explained() -> None:
    explained = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", PAGE, re.MULTILINE) for code in row.split(", ")}
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HeterosisError)
    ]
    codes = {kind.exit_code for kind in kinds}
    assert explained == {0, 130, 143} | codes
