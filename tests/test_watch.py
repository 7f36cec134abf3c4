"""What a person sees while a study runs."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from small_study import Finished
from stopped_study import stopped

from heterosis.ledger.record import Candidate
from heterosis.search import Budget
from heterosis.stored import Stored, open_stored
from heterosis.views import Tracker
from heterosis.watch import Watcher


class Record:
    """The part of a record that a watcher reads."""

    def __init__(self, candidates: list[Candidate]) -> None:
        self.candidates = candidates

    @property
    def proposed(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if not candidate.is_baseline]


def begun(watcher: Watcher, study: Stored, budget: Budget, count: int | None = None) -> Record:
    """A watcher that was told of a search which has recorded `count` candidates."""
    prepared: Any = SimpleNamespace(
        config=study.config,
        panel=SimpleNamespace(splits=study.items),
        objective=study.objective,
        space=SimpleNamespace(genes=range(9)),
        population=4,
    )
    record = Record(list(study.records["search"].candidates)[:count])
    watcher.begin(prepared, budget, record)  # type: ignore[arg-type]
    return record


def on(terminal: bool, width: int = 80) -> Console:
    return Console(file=io.StringIO(), record=True, width=width, force_terminal=terminal, highlight=False)


def panel(watcher: Watcher) -> list[str]:
    """The live panel's lines as they stand."""
    console = on(terminal=False)
    console.print(watcher.view())
    return [line.rstrip() for line in console.export_text().splitlines()]


def flat(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def test_the_panel_compares_the_best_with_parents_and_baselines(finished: Finished, tmp_path: Path) -> None:
    with open_stored(stopped(finished, tmp_path / "run", 6)) as study, Watcher(on(terminal=True)) as watcher:
        begun(watcher, study, Budget(9, None, 100_000))
        lines = panel(watcher)
    assert max(map(len, lines)) <= 80
    text = flat(lines)
    for title in ("best so far", "best parent", "best baseline", "pace", "left", "time merge", "spent"):
        assert title in text
    assert "6 of 9 candidates" in text
    assert "67%" in text
    assert "3 candidates" in text
    assert "(limit: candidates)" in text
    assert "; best so far " in text
    assert "search split" in text


@pytest.mark.parametrize("limit", ["candidates", "items", "hours"])
def test_time_left_follows_the_limit_that_ends_first(finished: Finished, tmp_path: Path, limit: str) -> None:
    with open_stored(stopped(finished, tmp_path / "run", 6)) as study, Watcher(on(terminal=True)) as watcher:
        found = study.records["search"].candidates
        spent = sum(candidate.seconds["total"] for candidate in found), sum(candidate.items for candidate in found)
        budgets = {
            "candidates": Budget(9, None, None),
            "items": Budget(9000, None, spent[1] + 5),
            "hours": Budget(9000, spent[0] + 0.1, None),
        }
        begun(watcher, study, budgets[limit])
        assert f"(limit: {limit})" in flat(panel(watcher))


def test_a_budget_that_is_spent_leaves_nothing(finished: Finished) -> None:
    with open_stored(finished.folder) as study, Watcher(on(terminal=True)) as watcher:
        begun(watcher, study, Budget(9, None, None))
        assert "left nothing: the budget of candidates is spent" in flat(panel(watcher))


def test_before_a_search_there_is_the_stage_alone() -> None:
    with Watcher(on(terminal=True)) as watcher:
        watcher.stage("reading [models] and tasks")
        (line,) = panel(watcher)
    assert "reading [models] and tasks" in line


def test_failures_are_said_once_and_stay_on_the_panel(finished: Finished, tmp_path: Path) -> None:
    console = on(terminal=True)
    with open_stored(stopped(finished, tmp_path / "run", 4, failing="c4")) as study, Watcher(console) as watcher:
        record = begun(watcher, study, Budget(9, None, None), count=-1)
        failed = study.records["search"].candidates[-1]
        record.candidates.append(failed)
        watcher.recorded("search", failed)
        watcher.stage("going on")
        assert "failed c4: the engine [died]" in flat(panel(watcher))
    assert console.export_text().count("warning: c4 failed: the engine [died]") == 1


def test_a_race_shows_its_rungs_before_anything_is_recorded(finished: Finished) -> None:
    with open_stored(finished.folder) as study, Watcher(on(terminal=True)) as watcher:
        begun(watcher, study, Budget(99, None, None))
        for label in ("c10", "c11"):
            watcher.answered(label, 0, 20)
        assert "rung 1, answered by 2; 40 items so far" in flat(panel(watcher))
        watcher.answered("c10", 1, 30)
        assert "rung 2, answered by 1; 70 items so far" in flat(panel(watcher))
        watcher.recorded("search", study.records["search"].candidates[-1])
        assert "rung" not in flat(panel(watcher))


def test_an_engines_start_passes_and_the_stage_stays(finished: Finished) -> None:
    with open_stored(finished.folder) as study, Watcher(on(terminal=True)) as watcher:
        begun(watcher, study, Budget(99, None, None))
        watcher.starting("vllm")
        assert "starting vllm" in panel(watcher)[0]
        watcher.recorded("search", study.records["search"].candidates[-1])
        assert "searching 9 genes" in panel(watcher)[0]


def test_what_was_recorded_last_is_on_the_panel(finished: Finished) -> None:
    with open_stored(finished.folder) as study, Watcher(on(terminal=True)) as watcher:
        candidates = study.records["search"].candidates
        record = begun(watcher, study, Budget(9, None, None), count=4)
        for candidate in candidates[4:]:
            record.candidates.append(candidate)
            watcher.recorded("search", candidate)
        deadline = time.monotonic() + 20
        while "9 of 9 candidates" not in flat(panel(watcher)):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_fault_of_the_panel_does_not_end_the_study(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    console = on(terminal=True)
    with open_stored(finished.folder) as study, Watcher(console) as watcher:
        monkeypatch.setattr(Tracker, "progress", broken)
        begun(watcher, study, Budget(9, None, None))
        watcher.recorded("search", study.records["search"].candidates[-1])
        panel(watcher)
    assert flat(console.export_text().splitlines()).count("progress cannot be shown (ZeroDivisionError: by zero)") == 1


def test_a_live_panel_leaves_nothing_behind(finished: Finished) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, highlight=False)
    with open_stored(finished.folder) as study, Watcher(console) as watcher:
        begun(watcher, study, Budget(9, None, None))
    assert out.getvalue().endswith("\x1b[2K")  # the last line is erased
    assert "\x1b[?25h" in out.getvalue()  # and the cursor is shown again


def test_off_a_terminal_each_generation_has_its_line(finished: Finished) -> None:
    console = on(terminal=False, width=200)
    with open_stored(finished.folder) as study, Watcher(console) as watcher:
        record = begun(watcher, study, Budget(9, None, None), count=0)
        for candidate in study.records["search"].candidates:
            record.candidates.append(candidate)
            watcher.recorded("search", candidate)
        watcher.recorded("test", study.records["test"].candidates[0])
    lines = console.export_text().splitlines()
    generations = {candidate.generation for candidate in record.proposed}
    said = [line for line in lines if "generation " in line and "best so far" in line]
    assert len(said) == len(generations)
    assert "generation 1, candidate 1: best so far" in said[0]
    assert all("search: " in line for line in lines if "average" in line)
    assert lines[-1].split(" ", 1)[1].startswith("test: ")


def test_quiet_is_quiet_but_for_warnings(finished: Finished) -> None:
    console = on(terminal=True)
    with open_stored(finished.folder) as study, Watcher(console, quiet=True) as watcher:
        record = begun(watcher, study, Budget(9, None, None))
        watcher.recorded("search", record.candidates[-1])
        watcher.warn("look [here]")
    assert console.export_text() == "warning: look [here]\n"
