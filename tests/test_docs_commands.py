"""Every command that the documentation shows: it parses, and what can run here is run."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from conftest import Command
from typer.core import TyperGroup

from heterosis import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "family" / "README.md"]
# A word in capitals stands for something of the reader's own.
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]{2,}\b|…|\bBASE\b|\bOUT\b|\bA B\b")


class Shown(NamedTuple):
    """One command on a page."""

    page: str
    line: int
    words: tuple[str, ...]
    into: str | None
    """File that its output is sent to."""

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def shown() -> Iterator[Shown]:
    """Commands in the shell blocks of all pages, continued lines joined, comments cut off."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.finditer(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text[: block.start(1)].count("\n") + 1
            for number, said in enumerate(block[1].replace("\\\n", "  ").splitlines(), line):
                words = shlex.split(said.removeprefix("$ "), comments=True)
                if words[:1] == ["heterosis"]:
                    cut = next((at for at, word in enumerate(words) if word in ("|", ">", "2>", "&&", "&", ";")), None)
                    into = words[cut + 1] if cut is not None and words[cut] == ">" else None
                    yield Shown(str(page.relative_to(ROOT)), number, tuple(words[1:cut]), into)


ALL = list(shown())


def test_there_are_commands_to_look_at() -> None:
    assert len(ALL) > 30
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    undocumented = set(group.commands) - {command.words[0] for command in ALL if command.words}
    assert not undocumented


@pytest.mark.parametrize("command", ALL, ids=lambda command: f"{command.page}:{command.line}")
def test_every_command_and_option_exists(command: Shown) -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    name, *rest = command.words or ("--help",)
    if name.startswith("-"):
        assert name in {option for parameter in group.params for option in parameter.opts} | {"--help", "-h"}
        return
    assert name in group.commands, f"{command.text}: no such command"
    known = {
        option for parameter in group.commands[name].params for option in parameter.opts + parameter.secondary_opts
    }
    for word in rest:
        if word.startswith("-") and len(word) > 1:
            assert word.partition("=")[0] in known | {"--help", "-h"}, f"{command.text}: no option {word}"


# What is shown but not run here, by the words that it contains, and why.
NOT_RUN = {
    "japanese-math-7b": "needs the hub and a GPU",
    "--push": "needs the hub; tests/publishing has a stand-in",
    "--install-completion": "changes the shell's files",
    "--show-completion": "asks which shell called it; tests/test_completion.py",
    "doctor": "starts engines; tests/test_doctor.py runs it",
    "some-org": "needs the hub",
    "sqlite": "a server",
    "http": "needs a server",
    "sweep": "takes minutes; tests/sweep runs it",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's examples, the demo study small and through transformers, and a run of it."""
    from heterosis.run import run
    from heterosis.watch import Watcher

    root = tmp_path_factory.mktemp("checkout")
    for name in ("examples", "docs", "search_spaces"):
        shutil.copytree(ROOT / name, root / name)
    path = root / "examples" / "demo.yaml"
    study = yaml.safe_load(path.read_text(encoding="utf-8"))
    study |= {"budget": {"candidates": 9}, "splits": {"search": 20, "selection": 16, "test": 24}, "finalists": 2}
    study["engine"] = {"kind": "transformers", "options": {"device": "cpu"}}
    study["optimizer"] = {"population": 3}
    study["tasks"] = study["tasks"][-1:]  # multiple choice, which needs no generation
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    # The files that pages call study.yaml, merge.yml and recipe.yaml are the reader's own.
    mine = {"base", "parents", "tasks"}
    own = {key: _from_root(value) if key in mine else value for key, value in study.items()}
    own |= {"name": "mine", "budget": {"candidates": 3}}
    (root / "study.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    merge = (root / "docs" / "example-merge.yml").read_text(encoding="utf-8").replace("../examples", "examples")
    (root / "merge.yml").write_text(merge, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        with Watcher(quiet=True) as watcher:
            run(Path("examples/demo.yaml"), watcher)
    return root


def _from_root(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_root(inner) for key, inner in value.items()}
    return [_from_root(inner) for inner in value] if isinstance(value, list) else f"examples/{value}"


def runnable(command: Shown) -> bool:
    return not PLACEHOLDER.search(command.text) and not any(said in command.text for said in NOT_RUN)


def pages() -> list[str]:
    return list(dict.fromkeys(command.page for command in ALL if runnable(command)))


@pytest.mark.filterwarnings("ignore")  # MLflow's own
@pytest.mark.parametrize("page", pages())
def test_a_pages_commands_run_one_after_the_other(
    workspace: Path, tmp_path: Path, heterosis: Command, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(workspace, root)
    monkeypatch.chdir(root)
    ran = []
    for command in (each for each in ALL if each.page == page and runnable(each)):
        code, out, errors = heterosis(*command.words)
        assert code == 0, f"{page}, line {command.line}: heterosis {command.text}: {errors}"
        if command.into is not None:
            (root / command.into).write_text(out, encoding="utf-8")
        ran.append(command.text)
    assert ran
