"""Programs that models wrote: they are judged, and reach nothing."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heterosis.errors import TaskError
from heterosis.evaluation import sandbox
from heterosis.evaluation.sandbox import FLAG, CodeEval, Limits, check_shut_in, passes
from heterosis.evaluation.tasks import PanelTask, TaskChoice, load_tasks
from heterosis.evaluation.tokens import Tokenizer

TIGHT = Limits(cpu=1, wall=20.0, memory=1 << 30)


@pytest.mark.parametrize(
    "program",
    [
        "assert sorted([2, 1]) == [1, 2]",
        "import threading\nx = []\nt = threading.Thread(target=x.append, args=(1,))\nt.start()\nt.join()\nassert x",
        "import numpy\nassert numpy.ones((8, 8)).sum() == 64",
        "open('mine', 'w').write('x')\nassert open('mine').read() == 'x'",
        "print('noise')\nimport sys\nsys.stderr.write('noise')",
    ],
)
def test_a_program_that_runs_to_its_end_passes(program: str) -> None:
    assert passes(program)


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "def f(:",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "import os\nfor handle in range(3, 20):\n    os.write(handle, b'started')",
        "while True: pass",
        "x = bytearray(3 << 30)",
        "import os\nos.abort()",
        "open('large', 'wb').write(bytes(20 << 20))",
    ],
)
def test_one_that_does_not_fails(program: str) -> None:
    assert not passes(program, TIGHT)


def test_one_that_waits_is_stopped_by_the_clock() -> None:
    assert not passes("import time\ntime.sleep(600)", TIGHT._replace(wall=1.0))


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.socket()",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 0)",
        "import multiprocessing as m; p = m.Process(target=print); p.start()",
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); assert c.ptrace(16, 1, 0, 0) == 0",
    ],
)
def test_it_reaches_no_network_and_no_other_process(attempt: str) -> None:
    assert not passes(attempt)
    # It is refused, and not merely broken: the refusal is what a program sees.
    if "ptrace" not in attempt:
        assert passes(f"try:\n    {attempt}\nexcept PermissionError:\n    pass\nelse:\n    raise AssertionError")


def test_it_writes_nowhere_but_in_a_folder_that_is_gone_afterwards(tmp_path: Path) -> None:
    target = tmp_path / "written"
    landlocked = not passes(f"open({str(target)!r}, 'w')")
    assert target.exists() != landlocked
    if not landlocked:
        pytest.skip("this kernel has no Landlock")


def test_it_does_not_see_this_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert passes("import os\nassert 'HF_TOKEN' not in os.environ")


def test_where_a_process_cannot_be_shut_in_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "guarded.py"
    broken.write_text("import sys\nsys.stdin.read()\nraise OSError('seccomp')\n")
    monkeypatch.setattr(sandbox, "GUARDED", broken)
    with pytest.raises(TaskError, match=r"cannot be shut in on this machine .*seccomp.*so it was not run"):
        passes("pass")


def test_the_stand_in_counts_as_code_eval_does() -> None:
    rates, results = CodeEval().compute(
        references=["assert f() == 1", "assert f() == 2"],
        predictions=[["def f(): return 1", "def f(): return 2"], ["def f(): return 1", "def f(): return 3"]],
        k=[1, 2, 5],
    )
    assert rates == {"pass@1": 0.25, "pass@2": 0.5}
    assert [[found["passed"] for _, found in each] for each in results.values()] == [[True, False], [False, False]]


HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def add(a, b):\n",
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
}
MBPP = {
    "task_id": 1,
    "text": "Write a function to add.",
    "code": "def add(a, b): return a + b",
    "test_list": ["assert add(1, 2) == 3"] * 3,
    "test_setup_code": "",
    "challenge_test_list": [],
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two data sets of the hub, as far as lm-eval looks at them."""
    import datasets

    def load(path: str, *_: Any, **__: Any) -> Any:
        rows = [HUMANEVAL] if "humaneval" in path else [MBPP | {"task_id": number} for number in range(4)]
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split in ("train", "test", "prompt")})

    monkeypatch.setattr(datasets, "load_dataset", load)


def loaded(name: str, demo_family: Path, **options: bool) -> PanelTask:
    (task,) = load_tasks([TaskChoice(name)], Tokenizer(demo_family / "base", 8192), demo_family, **options)
    return task


@pytest.mark.usefixtures("hub")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("humaneval", "    return a + b\n", "    return a - b\n"),
        ("mbpp", "def add(a, b):\n    return a + b\n", "import os; os._exit(0)"),
    ],
)
def test_benchmarks_of_generated_code_are_scored_shut_in_and_only_on_the_flag(
    demo_family: Path, name: str, right: str, wrong: str
) -> None:
    with pytest.raises(TaskError, match=rf"^{name}: it runs code that the models write\. Give {FLAG}"):
        loaded(name, demo_family)
    task = loaded(name, demo_family, unsafe_code=True)
    item = task.items[:1]
    assert [task.outcomes(task.judge(item, [[answer]]))[0].value for answer in (right, wrong)] == [1.0, 0.0]
    # Once loaded, lm-eval keeps the module; without the flag it is refused all the same.
    with pytest.raises(TaskError, match=FLAG):
        loaded(name, demo_family)


def test_a_benchmark_that_runs_code_in_its_own_way_is_refused() -> None:
    own: Any = SimpleNamespace(UNSAFE_CODE=True, _metric_fn_list={"acc": os.getpid})
    with pytest.raises(TaskError, match="in a way of its own"):
        check_shut_in("cruxeval", own, allowed=True)
    plain: Any = SimpleNamespace(UNSAFE_CODE=False)
    check_shut_in("arc_easy", plain, allowed=False)
