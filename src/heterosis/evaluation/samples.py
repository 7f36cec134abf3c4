"""What was asked and answered, item by item, as lm-eval's `--log_samples` writes it, kept in a study's folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heterosis.errors import StudyError
from heterosis.files import write_text

Sample = dict[str, Any]
FOLDER = "samples"


def as_sample(
    doc_id: int,
    doc: Any,
    target: Any,
    asked: Sequence[Sequence[Any]],
    answered: tuple[Sequence[Any], Sequence[Any]],
    judged: tuple[str, Mapping[str, Any]],
) -> Sample:
    """One item with lm-eval's keys, values and hashes, as plain JSON.

    `asked`: arguments of each request; `answered`: of each request the responses, and what the filter left of them;
    `judged`: the filter's name and the metrics.
    """
    from lm_eval.utils import handle_non_serializable, hash_string, sanitize_list

    (responses, filtered), (filter_name, metrics) = answered, judged
    document = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    sample = {
        "doc_id": doc_id,
        "doc": doc,
        "target": str(target),
        "arguments": {
            f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(arguments)}
            for i, arguments in enumerate(asked)
        },
        "resps": sanitize_list(list(responses)),
        "filtered_resps": sanitize_list(list(filtered)),
        "filter": filter_name,
        "metrics": list(metrics),
        "doc_hash": hash_string(document),
        "prompt_hash": hash_string(asked[0][0]),
        "target_hash": hash_string(str(target)),
        **metrics,
    }
    plain: Sample = json.loads(json.dumps(sample, default=handle_non_serializable, ensure_ascii=False))
    return plain


def task_hash(samples: Sequence[Sample]) -> str:
    """What lm-eval calls a task's hash: of its documents, prompts and targets."""
    from lm_eval.utils import hash_string

    return str(hash_string("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)))


def write_samples(folder: Path, recipe_digest: str, samples: Mapping[str, Sequence[Sample]]) -> None:
    """Keep what a merge answered, by task, in a study's folder."""
    for task, own in samples.items():
        path = _path(folder, recipe_digest, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, jsonl(own))


def read_samples(folder: Path, recipe_digest: str, task: str) -> list[Sample] | None:
    """What a merge answered; None where nothing was kept."""
    path = _path(folder, recipe_digest, task)
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: cannot be read ({error}). Remove it, and these answers are left out.") from error


def jsonl(samples: Sequence[Sample]) -> str:
    """A line each."""
    return "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)


def file_name(task: str) -> str:
    """The task's name as part of a file's."""
    return re.sub(r"[^\w.-]", "_", task)


def _path(folder: Path, recipe_digest: str, task: str) -> Path:
    return folder / FOLDER / recipe_digest[:16] / f"{file_name(task)}.jsonl"
