"""Task files that users write: plain data, which runs no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from heterosis.errors import TaskError
from heterosis.files import parse_yaml

# Dataset paths that are no data sets but ways to read files; without files they would be looked for on the hub.
FILE_FORMATS = ("json", "csv", "parquet", "text", "arrow")


def read_task_file(path: Path, _including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A user's task file as plain data, with `include` resolved and data files made absolute.

    lm-eval's `!function` runs code beside the file, which a data file must not do.
    """
    path = path.resolve()
    if path in _including:
        raise TaskError(f"{path}: includes itself. Break the circle.")
    try:
        config = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        if isinstance(error, yaml.constructor.ConstructorError) and "'!function'" in str(error.problem):
            line = 1 + (error.problem_mark.line if error.problem_mark else 0)
            raise TaskError(
                f"{path}, line {line}: !function runs code. Only lm-eval's own tasks may; "
                "express it with lm-eval's filters and metrics."
            ) from error
        raise TaskError(f"{path}: not a YAML file ({' '.join(str(error).split())}).") from error
    if not isinstance(config, dict):
        raise TaskError(f"{path}: a task file must hold keys and values, as lm-eval's task guide says.")
    merged: dict[str, Any] = {}
    includes = config.pop("include", [])
    for included in includes if isinstance(includes, list) else [includes]:
        merged |= read_task_file(path.parent / str(included), (*_including, path))
    merged |= config
    if not _including and not isinstance(merged.get("task"), str):
        raise TaskError(f"{path}: no task name. Add `task: NAME`.")
    arguments = merged.get("dataset_kwargs")
    if isinstance(arguments, dict) and arguments.get("trust_remote_code"):
        raise TaskError(f"{path}: dataset_kwargs.trust_remote_code would run its code. Give data files.")
    named = isinstance(arguments, dict) and (arguments.get("data_files") or arguments.get("data_dir"))
    if not _including and merged.get("dataset_path") in FILE_FORMATS and not named:
        raise TaskError(f"{path}: {merged['dataset_path']} without files. Add dataset_kwargs: {{data_files: FILE}}.")
    if isinstance(arguments, dict) and "data_files" in arguments:
        merged["dataset_kwargs"] = arguments | {"data_files": _absolute(arguments["data_files"], path)}
    return merged


def _absolute(files: Any, task_file: Path) -> Any:
    if isinstance(files, dict):
        return {split: _absolute(value, task_file) for split, value in files.items()}
    if isinstance(files, list):
        return [_absolute(value, task_file) for value in files]
    if "://" in str(files):
        return files
    found = task_file.parent / str(files)
    if not found.is_file():
        raise TaskError(f"{task_file}: data file {files} is not in {task_file.parent}.")
    if found.stat().st_size == 0:
        raise TaskError(f"{task_file}: data file {files} is empty.")
    return str(found)


def check_metrics(task_file: Path, metrics: Any) -> None:
    """Refuse what lm-eval would otherwise look for, and run, on the Hugging Face hub."""
    import lm_eval.api.metrics  # noqa: F401  (fills the registry)
    from lm_eval.api.registry import metric_registry

    for entry in metrics if isinstance(metrics, list) else []:
        name = entry.get("metric") if isinstance(entry, dict) else entry
        if not isinstance(entry, dict) or entry.get("hf_evaluate") or name not in metric_registry:
            known = ", ".join(sorted(metric_registry))
            raise TaskError(f"{task_file}: metric_list: {name} is no metric of lm-eval's own. Choose one of {known}.")
