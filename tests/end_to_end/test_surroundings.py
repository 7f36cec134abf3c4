"""A study on a machine that fails around it: the disk, the database, the clock. One line, and then on from there."""

from __future__ import annotations

import contextlib
import json
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from test_run import trials
from test_run import write_study as write_small_study

from heterosis.files import only_process
from heterosis.scoring import EngineScorer

# transformers and lm-eval warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

WHOLE: dict[str, Any] = {}


def write_study(folder: Path, family: Path, **changes: Any) -> Path:
    return write_small_study(folder, family, **{"budget": {"candidates": 4}} | changes)


def state(folder: Path) -> dict[str, Any]:
    """All that the records and the result say, but for the clock."""
    found: dict[str, Any] = {}
    for split in ("", "/selection", "/test"):
        found[split] = [
            (t.state, t.values, t.params, {k: v for k, v in t.user_attrs.items() if k != "seconds"})
            for t in trials(folder, f"small{split}")
        ]
    result = json.loads((folder / "runs" / "small" / "result.json").read_text())
    return found | {key: result[key] for key in ("winner", "weights_digest", "recipe_digest", "heterosis")}


@pytest.fixture
def whole(heterosis: Command, tmp_path_factory: pytest.TempPathFactory, demo_family: Path) -> dict[str, Any]:
    """The study that nothing happened to."""
    if not WHOLE:
        folder = tmp_path_factory.mktemp("whole")
        code, _, said = heterosis("run", write_study(folder, demo_family), "--quiet")
        assert code == 0, said
        WHOLE.update(state(folder))
    return WHOLE


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Something that happens once, when so many candidates were scored."""

    def arrange(after: int, act: Callable[[], None]) -> None:
        ask, scored = EngineScorer.ask, []

        def ask_and_act(self: EngineScorer, *question: Any) -> Any:
            scored.append(question)
            answer = ask(self, *question)
            if len(scored) == after:
                act()
            return answer

        monkeypatch.setattr(EngineScorer, "ask", ask_and_act)

    return arrange


@contextlib.contextmanager
def no_file_larger_than(size: int | None) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def one_line(said: str, *words: str) -> None:
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    for word in words:
        assert word in lines[0]


def test_a_disk_that_fills_up_is_one_line_and_the_study_goes_on_from_there(
    whole: dict[str, Any], heterosis: Command, tmp_path: Path, demo_family: Path, meanwhile: Callable[..., None]
) -> None:
    study, record = write_study(tmp_path, demo_family), tmp_path / "runs" / "small" / "record.db"

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (record.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    meanwhile(5, fill)
    with no_file_larger_than(None):
        code, _, said = heterosis("run", study, "--quiet")
    assert code == 2
    one_line(said, "small", "Make room on the disk")
    assert 0 < len(trials(tmp_path)) < len(whole[""])
    assert heterosis("run", study, "--quiet")[0] == 0
    assert state(tmp_path) == whole


def test_a_winner_that_does_not_fit_on_the_disk_is_one_line_and_comes_with_the_next_run(
    whole: dict[str, Any], heterosis: Command, tmp_path: Path, demo_family: Path
) -> None:
    study, folder = write_study(tmp_path, demo_family), tmp_path / "runs" / "small"
    with no_file_larger_than(1_500_000):  # room for the record, not for two megabytes of weights
        code, _, said = heterosis("run", study, "--quiet")
    assert code == 2
    one_line(said, str(folder / "winner"), "Make room")
    assert not list(folder.glob("winner*"))
    assert not (folder / "result.json").exists()
    assert heterosis("run", study, "--quiet")[0] == 0
    assert state(tmp_path) == whole


def test_a_result_that_cannot_be_written_is_one_line(
    whole: dict[str, Any], heterosis: Command, tmp_path: Path, demo_family: Path
) -> None:
    study, folder = write_study(tmp_path, demo_family), tmp_path / "runs" / "small"
    (folder / "result.json").mkdir(parents=True)
    code, _, said = heterosis("run", study, "--quiet")
    assert code == 2
    one_line(said, "result.json")
    assert not (folder / "result.json.partial").exists()
    (folder / "result.json").rmdir()
    assert heterosis("run", study, "--quiet")[0] == 0
    assert state(tmp_path) == whole


def test_a_locked_record_is_waited_for(
    whole: dict[str, Any], heterosis: Command, tmp_path: Path, demo_family: Path, meanwhile: Callable[..., None]
) -> None:
    path = tmp_path / "runs" / "small" / "record.db"
    meanwhile(3, lambda: lock(path, seconds=3.0))
    code, _, said = heterosis("run", write_study(tmp_path, demo_family), "--quiet")
    assert code == 0, said
    assert state(tmp_path) == whole


def test_a_record_that_stays_locked_is_one_line(
    whole: dict[str, Any], heterosis: Command, tmp_path: Path, demo_family: Path, meanwhile: Callable[..., None]
) -> None:
    path = tmp_path / "runs" / "small" / "record.db"
    path.parent.mkdir(parents=True)
    study = write_study(tmp_path, demo_family, record=f"sqlite:///{path}?timeout=0.05")
    ended = threading.Event()
    meanwhile(3, lambda: lock(path, until=ended))
    code, _, said = heterosis("run", study, "--quiet")
    ended.set()
    assert code == 2
    one_line(said, "locked", "wait for it, or stop it")
    assert heterosis("run", study, "--quiet")[0] == 0
    assert state(tmp_path) == whole


def lock(path: Path, seconds: float | None = None, until: threading.Event | None = None) -> None:
    """Hold a database in another thread, as another program would."""
    held = threading.Event()

    def hold() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("BEGIN EXCLUSIVE")
            held.set()
            (until or threading.Event()).wait(seconds)
            database.execute("ROLLBACK")

    threading.Thread(target=hold, daemon=True).start()
    held.wait()


def test_a_record_that_may_only_be_read_is_one_line(
    whole: dict[str, Any], heterosis: Command, tmp_path: Path, demo_family: Path
) -> None:
    code, _, said = heterosis("run", write_study(tmp_path, demo_family), "--quiet")
    assert code == 0, said
    path = tmp_path / "runs" / "small" / "record.db"
    study = write_study(
        tmp_path, demo_family, record=f"sqlite:///file:{path}?mode=ro&uri=true", budget={"candidates": 5}
    )
    code, _, said = heterosis("run", study, "--quiet")
    assert code == 2
    one_line(said, "readonly", "Let this user write to it")
    assert state(tmp_path) == whole


def test_a_damaged_record_is_one_line(heterosis: Command, tmp_path: Path, demo_family: Path) -> None:
    study, folder = write_study(tmp_path, demo_family), tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "record.db").write_bytes(b"garbage" * 1000)
    code, _, said = heterosis("run", study, "--quiet")
    assert code == 2
    one_line(said, "not a database", "put a backup in its place")


def test_a_clock_that_goes_backwards_changes_nothing(
    whole: dict[str, Any],
    heterosis: Command,
    tmp_path: Path,
    demo_family: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [time.time()]

    def backwards() -> float:
        now[0] -= 3600.0
        return now[0]

    study = write_study(tmp_path, demo_family, budget={"candidates": 4, "hours": 1})
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", backwards)
        code, _, said = heterosis("run", study, "--quiet")
    assert code == 0, said
    assert state(tmp_path) == whole


def test_a_second_run_on_one_folder_is_refused_by_the_name_of_the_first(
    heterosis: Command, tmp_path: Path, demo_family: Path
) -> None:
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    with only_process(folder):
        code, _, said = heterosis("run", write_study(tmp_path, demo_family), "--quiet")
    assert code == 2
    one_line(said, "in use by process")
    assert sorted(path.name for path in folder.iterdir()) == ["lock"]
