"""Programs that models wrote, each run in a process of its own with limits, and a stand-in for `code_eval`.

lm-eval's benchmarks of generated code run it through Hugging Face's `code_eval`, with all rights of this process. While
such a benchmark is loaded here, `evaluate.load("code_eval")` gives `CodeEval`, which has the same interface.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from heterosis.errors import TaskError

FLAG = "--confirm-run-unsafe-code"
GUARDED = Path(__file__).with_name("guarded.py")
MACHINES = ("x86_64", "aarch64")


class Limits(NamedTuple):
    """What one program may use."""

    cpu: int = 3
    """Seconds of processor time: how busy the machine is must not decide a score. `code_eval` allows three by the
    clock."""
    wall: float = 60.0
    """Seconds by the clock, for programs that wait."""
    memory: int = 2 << 30
    """Bytes of address space."""
    file: int = 16 << 20
    """Bytes of one file."""


DEFAULT = Limits()


def passes(program: str, limits: Limits = DEFAULT) -> bool:
    """Whether a Python program runs to its end, in a fresh process that can reach nothing.

    TaskError where a process cannot be shut in: then nothing was run.
    """
    token = secrets.token_hex(16)
    asked = {"program": program, "token": token, "cpu": limits.cpu, "memory": limits.memory, "file": limits.file}
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # What a program may leave behind must not stop the next one.
    with tempfile.TemporaryDirectory(prefix="heterosis-", ignore_cleanup_errors=True) as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-B", str(GUARDED)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        said, trouble = b"", b""
        with contextlib.suppress(subprocess.TimeoutExpired):
            said, trouble = child.communicate(json.dumps(asked).encode(), timeout=limits.wall)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return False
    if not said.startswith(b"started\n"):
        last = trouble.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise TaskError(f"generated code cannot be shut in on this machine ({last[0]}), so it was not run.")
    return said == b"started\n" + token.encode()


class CodeEval:
    """What `evaluate.load("code_eval")` gives, with the programs shut in."""

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self._limits = limits

    def compute(
        self,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        **_: Any,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """pass@k over problems, each with its test and one or more programs; and how each program ended.

        The unbiased estimator of Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.
        """
        results: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for number, (test, programs) in enumerate(zip(references, predictions, strict=True)):
            ended = [passes(f"{program}\n{test}", self._limits) for program in programs]
            results[number] = [(at, {"task_id": number, "passed": passed}) for at, passed in enumerate(ended)]
        counts = [(len(each), sum(found["passed"] for _, found in each)) for each in results.values()]
        rates = {
            f"pass@{size}": sum(_pass_at(total, correct, size) for total, correct in counts) / len(counts)
            for size in k
            if all(total >= size for total, _ in counts)
        }
        return rates, results


def _pass_at(total: int, correct: int, k: int) -> float:
    return 1.0 - math.comb(total - correct, k) / math.comb(total, k)


@contextlib.contextmanager
def code_eval_shut_in(name: str, allowed: bool) -> Iterator[None]:
    """While the task `name` is loaded: `code_eval` is the stand-in, or TaskError where that is not `allowed`."""
    import evaluate

    original = evaluate.load

    def load(path: str, *arguments: Any, **options: Any) -> Any:
        if path != "code_eval":
            return original(path, *arguments, **options)
        if not allowed:
            raise TaskError(f"{name}: {refusal()}")
        if platform.system() != "Linux" or platform.machine() not in MACHINES:
            raise TaskError(
                f"{name}: generated code can only be shut in on Linux (x86_64, aarch64). Leave it out here."
            )
        return CodeEval()

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = original


def check_shut_in(name: str, task: Any, allowed: bool) -> None:
    """TaskError for a task of generated code that is not allowed, or that runs it past the stand-in."""
    if not getattr(task, "UNSAFE_CODE", False):
        return
    if not allowed:
        raise TaskError(f"{name}: {refusal()}")
    # lm-eval keeps a task's own metric as the bound __call__ of its function.
    functions = [getattr(metric, "__self__", metric) for metric in getattr(task, "_metric_fn_list", {}).values()]
    reached = [value for function in functions for value in getattr(function, "__globals__", {}).values()]
    if not any(isinstance(value, CodeEval) for value in reached):
        raise TaskError(f"{name}: it runs generated code in a way of its own, which cannot be shut in. Leave it out.")


def refusal() -> str:
    """What is said without the flag."""
    return f"it runs code that the models write. Give {FLAG} to have it run, shut in: docs/reliability.md says how."
