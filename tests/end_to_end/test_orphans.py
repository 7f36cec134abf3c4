"""vLLM's processes end with the program, also where that is killed while they start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_study import write_study

from heterosis.evaluation import owner

PATIENCE = 120.0


def until(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def descendants(process: int) -> set[int]:
    """Processes that a process started, and those that these did."""
    above = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            above[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = set(), {process}
    while new:
        new = {child for child, parent in above.items() if parent in new} - found
        found |= new
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.vllm
@pytest.mark.usefixtures("needs_vllm")
@pytest.mark.parametrize("processes", [1, 3])
def test_an_engine_whose_program_is_killed_while_it_starts_does_not_stay(
    tmp_path: Path, demo_family: Path, processes: int
) -> None:
    """Killed as soon as so many processes of vLLM's are there: before they have read anything, and later."""
    study = write_study(
        tmp_path,
        demo_family,
        parents={name: str(demo_family / name) for name in ("sort", "add")},
        tasks=[str(demo_family / "tasks" / "demo_rare.yaml")],
        splits={"search": 20, "selection": 10, "test": 10},
        engine={"kind": "vllm", "options": {"max_model_len": 64}},
    )
    command = [sys.executable, "-m", "heterosis", "run", str(study), "--quiet"]
    with (tmp_path / "log").open("wb") as log:
        program = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    started: set[int] = set()

    def enough() -> bool:
        started.update(descendants(program.pid))
        return len(started) >= processes or program.poll() is not None

    try:
        assert until(enough)
        assert program.poll() is None, (tmp_path / "log").read_text()
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()
    assert until(lambda: not any(alive(each) for each in started)), "processes of the engine are still there"


def test_a_process_of_nobody_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    for named in ("", "elsewhere 1 0", f"{socket.gethostname()} none", f"{socket.gethostname()} {os.getpid()} 0"):
        monkeypatch.setenv(owner.VARIABLE, named)
        owner.follow_owner()
    with owner.owning():
        assert os.environ[owner.VARIABLE].split()[:2] == [socket.gethostname(), str(os.getpid())]
    assert owner.VARIABLE not in os.environ


FOLLOW = "from heterosis.evaluation.owner import follow_owner\nfollow_owner()\nprint('lives', flush=True)\ninput()"


@pytest.mark.parametrize("ended", ["before", "after", "another has its number"])
def test_a_process_ends_with_its_owner(ended: str) -> None:
    keeper = subprocess.Popen(["sleep", "600"])
    with owner.owning():
        named = f"{socket.gethostname()} {keeper.pid} {owner._began(keeper.pid)}"
    if ended == "before":
        keeper.kill()
        keeper.wait()
    elif ended == "another has its number":
        named = named.rpartition(" ")[0] + " 1"
    follower = subprocess.Popen(
        [sys.executable, "-c", FOLLOW],
        env=os.environ | {owner.VARIABLE: named},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert follower.stdout is not None
        said = follower.stdout.readline()
        if ended == "after":
            assert said == b"lives\n"
            keeper.kill()
            keeper.wait()
        else:
            assert said == b""
        assert follower.wait(timeout=60) == -signal.SIGKILL
    finally:
        keeper.kill()
        keeper.wait()
        follower.communicate()
