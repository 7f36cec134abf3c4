"""Test-split scores as leaderboards take them: lm-eval's result and sample files, and the hub's `.eval_results`.

What a study does not know (when, on which machine) stands there as null; nothing is made up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from heterosis.evaluation.panel import TaskOutcomes
from heterosis.evaluation.samples import file_name, jsonl, task_hash
from heterosis.files import write_json, write_text
from heterosis.publishing.findings import Findings

FEWSHOT_SEED = 1234
TOKENIZER_FACTS = (
    "tokenizer_pad_token",
    "tokenizer_eos_token",
    "tokenizer_bos_token",
    "eot_token_id",
    "max_length",
)


def write_leaderboard_files(folder: Path, found: Findings, name: str) -> list[str]:
    """Write the files, where the test split scored the merge; returns their names. `name`: the model's."""
    if found.outcomes is None:
        return []
    # lm-eval names its files by the time; the weights' digest tells models apart as well, and is always the same.
    mark = (found.candidate.weights_digest or found.candidate.recipe_digest)[:16]
    written = [f"lm_eval/results_{mark}.json"]
    (folder / "lm_eval").mkdir()
    write_json(folder / written[0], results(found, name))
    for task, samples in found.samples.items():
        written.append(f"lm_eval/samples_{file_name(task)}_{mark}.jsonl")
        write_text(folder / written[-1], jsonl(samples))
    for task, entries in hub_entries(found).items():
        (folder / ".eval_results").mkdir(exist_ok=True)
        written.append(f".eval_results/{file_name(task)}.yaml")
        write_text(folder / written[-1], yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=1000))
    return written


def results(found: Findings, name: str) -> dict[str, Any]:
    """What lm-eval's EvaluationTracker writes to results_*.json, with the same keys."""
    assert found.outcomes is not None
    facts = {task: found.about["tasks"].get(task, {}) for task in found.tasks}
    scores = found.table["test"][found.label]["tasks"]
    return {
        "results": {
            task: {
                "name": task,
                "alias": task,
                "sample_len": len(found.outcomes[task].values),
                f"{kept.metric},{kept.filter}": scores[task]["estimate"],
                f"{kept.metric}_stderr,{kept.filter}": _standard_error(kept.kind, found.outcomes[task]),
            }
            for task, kept in found.tasks.items()
        },
        "group_subtasks": {},
        "configs": {task: facts[task].get("config") for task in found.tasks},
        "versions": {task: facts[task].get("version") for task in found.tasks},
        "n-shot": {task: facts[task].get("num_fewshot") for task in found.tasks},
        "higher_is_better": {task: {kept.metric: kept.higher_is_better} for task, kept in found.tasks.items()},
        "n-samples": {
            task: {"original": facts[task].get("documents"), "effective": len(found.outcomes[task].values)}
            for task in found.tasks
        },
        "config": _config(found, name),
        "git_hash": None,
        "date": None,
        "pretty_env_info": None,
        "transformers_version": None,
        "lm_eval_version": found.about["version"],
        "upper_git_hash": None,
        "task_hashes": {task: task_hash(samples) for task, samples in found.samples.items()},
        "model_source": "heterosis",
        "model_name": name,
        "model_name_sanitized": file_name(name),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": any(fact.get("chat_template") for fact in facts.values()) if all(facts) else None,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": None,
        **dict.fromkeys(TOKENIZER_FACTS),
    }


def _config(found: Findings, name: str) -> dict[str, Any]:
    """How it was asked. Keys of lm-eval's that have no meaning here are null; `heterosis` says what only we know."""
    return {
        "model": found.engine,
        "model_args": {"pretrained": name},
        **dict.fromkeys(("model_num_parameters", "model_dtype", "model_revision", "model_sha")),
        "batch_size": None,
        "batch_sizes": [],
        "device": None,
        "use_cache": None,
        "limit": None,
        "bootstrap_iters": 0,
        "gen_kwargs": None,
        "random_seed": found.seed,
        "numpy_seed": None,
        "torch_seed": None,
        "fewshot_seed": FEWSHOT_SEED,
        "heterosis": {
            "study": found.study,
            "candidate": found.label,
            "split": "test",
            "items": found.items["test"],
            "panel_digest": found.panel["digest"],
            "weights_digest": found.candidate.weights_digest,
            "recipe_digest": found.candidate.recipe_digest,
            "intervals": found.table["test"][found.label],
        },
    }


def _standard_error(kind: str, table: TaskOutcomes) -> float | str:
    """As lm-eval has it: of the mean over items; it has none for what is not one."""
    known = table.values[~np.isnan(table.values)]
    if kind not in ("mean", "nanmean") or len(known) < 2:
        return "N/A"
    return float(np.std(known, ddof=1) / math.sqrt(len(known)))


def hub_entries(found: Findings) -> dict[str, list[dict[str, Any]]]:
    """Task -> entries of an `.eval_results/*.yaml` file, for tasks whose items come from a data set on the hub.

    The hub shows them where that data set is registered as a benchmark.
    """
    assert found.outcomes is not None
    scores, entries = found.table["test"][found.label]["tasks"], {}
    for task, kept in found.tasks.items():
        facts: Mapping[str, Any] = found.about["tasks"].get(task, {})
        if not facts.get("dataset"):
            continue
        answered = found.outcomes[task].values
        share = _is_share(kept.kind, answered)
        entries[task] = [
            {
                "dataset": {"id": facts["dataset"], "task_id": facts.get("dataset_config") or "default"},
                "value": round(scores[task]["estimate"] * (100.0 if share else 1.0), 4),
                "notes": f"lm-eval {task}, {kept.metric}{' in percent' if share else ''}, {facts['num_fewshot']}-shot, "
                f"on {len(answered)} held-out of {facts['documents']} items",
            }
        ]
    return entries


def _is_share(kind: str, values: npt.NDArray[np.float64]) -> bool:
    """Whether a score is a share of what could be reached, such as accuracy: the hub's leaderboards rank percents."""
    known = values[~np.isnan(values)]
    return kind in ("mean", "nanmean") and bool(((known >= 0.0) & (known <= 1.0)).all())
