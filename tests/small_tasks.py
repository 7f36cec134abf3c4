"""lm-eval tasks over the words of the tiny family, written to a folder as a user would: jsonl beside yaml."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from heterosis.evaluation.tasks import PanelTask, TaskChoice, load_tasks
from heterosis.evaluation.tokens import Tokenizer

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "target_delimiter": " ",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}


def words(count: int, rng: random.Random) -> str:
    """So many words of the tiny vocabulary, every one a token."""
    return " ".join(f"w{rng.randrange(3, 64)}" for _ in range(count))


def choice_docs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with three answers of one, two and three tokens, the right one at random."""
    rng = random.Random(seed)
    return [
        {"prompt": words(4, rng), "choices": [words(n, rng) for n in (1, 2, 3)], "gold": rng.randrange(3)}
        for _ in range(count)
    ]


Docs = Iterable[Mapping[str, Any]]


def write_task(
    folder: Path, name: str, docs: Docs, config: Mapping[str, Any] = CHOICE, train: Docs | None = None, **changes: Any
) -> str:
    """Write NAME.jsonl and NAME.yaml to `folder`; returns the name of the task file. None removes a key."""
    files = {"test": f"{name}.jsonl"}
    _write_docs(folder / files["test"], docs)
    if train is not None:
        files["train"] = f"{name}_train.jsonl"
        _write_docs(folder / files["train"], train)
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        **config,
        **changes,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return f"{name}.yaml"


def _write_docs(path: Path, docs: Docs) -> None:
    path.write_text("".join(json.dumps(doc) + "\n" for doc in docs))


def load_all(folder: Path, choices: Sequence[TaskChoice | str], model: Path, max_length: int = 64) -> list[PanelTask]:
    """Load task files of `folder` with a model's tokenizer."""
    wanted = [TaskChoice(choice) if isinstance(choice, str) else choice for choice in choices]
    return load_tasks(wanted, Tokenizer(model, max_length), folder)


def load_one(folder: Path, choice: TaskChoice | str, model: Path, max_length: int = 64) -> PanelTask:
    """Load one task file."""
    (task,) = load_all(folder, [choice], model, max_length)
    return task
