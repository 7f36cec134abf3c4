"""What a study keeps of its tasks' configurations, for those who read its scores without loading lm-eval."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from heterosis.evaluation.task_files import FILE_FORMATS
from heterosis.evaluation.tasks import PanelTask

ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def task_facts(tasks: Mapping[str, PanelTask]) -> dict[str, Any]:
    """lm-eval's version, and of each task its version, shots, number of documents, data set and configuration.

    Paths of this machine are cut to their last name.
    """
    return {"version": version("lm_eval"), "tasks": {name: _facts(task) for name, task in tasks.items()}}


def _facts(task: PanelTask) -> dict[str, Any]:
    config = _plain(task.config())
    config.get("dataset_kwargs", {}).pop("cache_dir", None)
    path = str(task.config().get("dataset_path") or "")
    local = path in FILE_FORMATS or not path or Path(path).exists()
    return {
        "version": task.version,
        "num_fewshot": config.get("num_fewshot") or 0,
        "chat_template": task.chat_template,
        "documents": len(task.items),
        "dataset": None if local else path,
        "dataset_config": None if local else config.get("dataset_name"),
        "split": config.get("test_split") or config.get("validation_split"),
        "config": config,
    }


def _plain(content: Any) -> Any:
    """Plain values, free of folders and of addresses in memory."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, bool | int | float) or content is None:
        return content
    text = ADDRESS.sub("", str(content))
    return Path(text).name if text.startswith(("/", "~")) and "\n" not in text and Path(text).name else text
