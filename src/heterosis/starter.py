"""A commented study file to begin with: the keys that a user gave, and the ones worth knowing, each explained."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from heterosis.config import BudgetConfig, EngineConfig, Study, TaskConfig, load_study
from heterosis.config.schema import RESERVED_NAME, RESERVED_WORDS
from heterosis.errors import StudyError
from heterosis.files import write_text

WIDTH = 100
HEAD = """# A study for Heterosis: which models to merge, what to search, how to score, when to stop.
# Keys behind a # have their defaults, or are off. `heterosis schema` describes all.
"""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class Answers(NamedTuple):
    """What a new study is about."""

    name: str
    base: str
    parents: Mapping[str, str]
    tasks: tuple[str, ...]
    engine: str = "vllm"
    candidates: int = 100
    space: str = "dare_ties_knots"


def parent_of(text: str) -> tuple[str, str]:
    """A parent as NAME=MODEL, or MODEL, which is then called by its last part."""
    name, separator, model = text.partition("=")
    if not separator:
        model = text
        name = re.sub(r"[^A-Za-z0-9_-]", "-", Path(text.partition("@")[0]).name)
    if not name or not model:
        raise StudyError(f"--parent {text}: write NAME=MODEL, as in math=some-org/math-7b.")
    return name, model


def write_study(path: Path, answers: Answers) -> None:
    """Write the study file, whole and correct or not at all; never over one that is there."""
    refuse_existing(path)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise StudyError(f"{path}: its folder does not exist. Make it first.")
    models = {"base": answers.base} | {f"parent {name}": model for name, model in answers.parents.items()}
    for what, model in models.items():
        check_model(what, model)
    text = study_text(_beside(answers, folder))
    _check(text, path)
    write_text(path, text)


def refuse_existing(path: Path) -> None:
    """StudyError if there is something already."""
    if os.path.lexists(path):
        raise StudyError(f"{path} exists already. Give another name, or remove it.")


def _check(text: str, path: Path) -> None:
    """What is written must be a study: said of the file that it would have been."""
    draft = path.with_name(f".{path.name}.draft")  # beside it: what it names is looked for from there
    try:
        write_text(draft, text)
        load_study(draft)
    except StudyError as error:
        raise StudyError(str(error).replace(str(draft), str(path))) from None
    finally:
        draft.unlink(missing_ok=True)


def check_model(what: str, model: str) -> None:
    """StudyError if it cannot be a model's name."""
    if not Path(model).expanduser().is_dir() and not HUB_ID.fullmatch(model):
        raise StudyError(f"{what}: {model} is no folder here, and no hub id (owner/name or owner/name@revision).")


def check_task(task: str) -> None:
    """StudyError if it is a file that is not there. Names of lm-eval's own are left to `heterosis check`."""
    if task.endswith((".yaml", ".yml")) and not Path(task).expanduser().is_file():
        raise StudyError(f"task: no file {task}. Give a task file, or the name of one of lm-eval's tasks.")


def check_parent(text: str) -> None:
    """StudyError if it is no NAME=MODEL that a study can have."""
    name, model = parent_of(text)
    if RESERVED_NAME.fullmatch(name):
        raise StudyError(f"{name} cannot name a parent: {RESERVED_WORDS} are taken.")
    check_model(f"parent {name}", model)


def _beside(answers: Answers, folder: Path) -> Answers:
    """Local paths as they are found from the study file's folder."""

    def moved(given: str) -> str:
        path = Path(given).expanduser()
        if not path.exists() or path.is_absolute():
            return str(path) if given.startswith("~") else given
        return os.path.relpath(path.absolute(), folder)

    tasks = []
    for task in answers.tasks:
        check_task(task)
        tasks.append(moved(task))
    parents = {name: moved(model) for name, model in answers.parents.items()}
    space = moved(answers.space) if Path(answers.space).is_file() else answers.space
    return answers._replace(base=moved(answers.base), parents=parents, tasks=tuple(tasks), space=space)


def study_text(answers: Answers) -> str:
    """The study file. What explains a key is the schema's own text, so the two cannot say different things."""
    parts = [
        HEAD,
        _key(Study, "name", {"name": answers.name}),
        _key(Study, "base", {"base": _model(answers.base)}),
        _key(Study, "parents", {"parents": {name: _model(model) for name, model in answers.parents.items()}}),
        _key(Study, "space", {"space": answers.space}),
        _key(Study, "tasks", {"tasks": list(answers.tasks)}),
        _off(
            "- {task: gsm8k, limit: 600, weight: 2.0, num_fewshot: 5}",
            f"limit: {_said(TaskConfig, 'limit')} weight: {_said(TaskConfig, 'weight')} num_fewshot: "
            f"{_said(TaskConfig, 'num_fewshot')}",
            "  ",
        ),
        _key(Study, "budget", {"budget": {"candidates": answers.candidates}}),
        _off("hours: 12", _said(BudgetConfig, "hours"), "  "),
        _off("items: 200000", _said(BudgetConfig, "items"), "  "),
        _key(Study, "engine", {"engine": {"kind": answers.engine}}),
        _off("options: {max_model_len: 2048}", _said(EngineConfig, "options"), "  "),
        _off("retries: 2", _said(EngineConfig, "retries"), "  "),
        *_optional(answers),
    ]
    return "\n".join(parts)


def _optional(answers: Answers) -> Iterator[str]:
    first = next(iter(answers.parents))
    task = Path(answers.tasks[0]).stem
    keys = {
        "splits": "{search: 0.4, selection: 0.3, test: 0.3}",
        "objective": "mean",
        "constraints": f"[{{task: {task}, against: {first}, margin: 0.01}}]",
        "optimizer": "{name: cmaes}",
        "racing": "{error: 0.05}",
        "finalists": "5",
        "mask_seeds": "3",
        "training_files": "[corpus.jsonl]",
        "warm_start": "runs/earlier-study",
        "tracking": "none",
        "output": "runs",
        "seed": "0",
    }
    for key, value in keys.items():
        yield _off(f"{key}: {value}", _said(Study, key))


def _model(text: str) -> str | dict[str, str]:
    """A model as the study file has it: a hub id with its revision apart."""
    name, at, revision = text.partition("@")
    return {"model": name, "revision": revision} if at and HUB_ID.fullmatch(text) else text


def _said(kind: type[BaseModel], key: str) -> str:
    """What the schema says of a key."""
    return " ".join((kind.model_fields[key].description or "").split())


def _key(kind: type[BaseModel], name: str, content: Mapping[str, Any]) -> str:
    """A key that is set."""
    value = yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=False, allow_unicode=True, width=WIDTH)
    return _comment(_said(kind, name)) + re.sub(r"^- ", "  - ", value, flags=re.MULTILINE)


def _off(line: str, said: str, indent: str = "") -> str:
    """A key that is not set: explained, and behind a #."""
    return _comment(said, indent) + f"{indent}# {line}\n"


def _comment(text: str, indent: str = "") -> str:
    marker = f"{indent}# "
    return "".join(f"{line}\n" for line in textwrap.wrap(text, WIDTH, initial_indent=marker, subsequent_indent=marker))
