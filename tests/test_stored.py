"""A study read from its folder and its record."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_study import PARENTS, Finished

from heterosis.errors import StudyError
from heterosis.finals import Evidence
from heterosis.ledger import Record
from heterosis.ledger.record import Measurement, Proposal, open_storage, sqlite_url
from heterosis.stored import open_stored


def test_what_is_read_is_what_was_scored(finished: Finished) -> None:
    before = (finished.folder / "record.db").read_bytes()
    with open_stored(finished.folder) as study:
        assert study.config.name == "tiny"
        assert study.result == finished.result
        assert {split: items.size for split, items in study.items.items()} == finished.result["items"]
        found = study.candidates()
        assert list(found)[:3] == list(PARENTS)
        assert set(found[finished.result["winner"]]) == {"search", "selection", "test"}
        evidence = Evidence(study.records["test"].candidates, study.items["test"], study.objective, study.config.seed)
        rows = {row["label"]: row["test"] for row in finished.result["table"] if "test" in row}
        assert {label: evidence.row(label) for label in rows} == rows
    assert (finished.folder / "record.db").read_bytes() == before


def test_a_leader_scored_to_the_end_after_its_race_is_shown_so(finished: Finished, tmp_path: Path) -> None:
    for name in ("record.db", "panel.json", "resolved.yaml", "result.json"):
        shutil.copy(finished.folder / name, tmp_path)
    record = Record(open_storage(sqlite_url(tmp_path / "record.db")), "tiny")
    whole = record.find(finished.result["recipe_digest"])
    assert whole is not None
    table = whole.outcomes["choice"]
    early = table._replace(values=np.where(np.arange(table.values.size) < 4, table.values, np.nan))
    raced = Measurement({"choice": early.mean()}, {"choice": early}, None, whole.seconds, 4)
    proposal = Proposal("c99", whole.generation, whole.recipe)  # a trial of a study without genes
    partial = record.add(proposal, raced, early.mean())
    done = replace(partial, outcomes=whole.outcomes, scores=whole.scores, fitness=whole.fitness, value=whole.value)
    record.keep_later([whole, done])
    assert set(record.later) == {"c99"}
    record.note("scored_later", {"c99": {"choice": {"values": [1.0]}}})  # of an earlier version, which kept less
    with open_stored(tmp_path) as study:
        assert study.records["search"].candidates[-1].known == 4
        found = study.candidates()["c99"]["search"]
    assert (found.known, found.scores, found.value) == (table.values.size, whole.scores, whole.value)
    assert found.fitness == whole.fitness


def test_a_study_is_found_by_its_file_too(finished: Finished) -> None:
    with open_stored(finished.study) as study:
        assert study.folder == finished.folder


def test_a_study_under_way_is_what_it_has_recorded(finished: Finished, tmp_path: Path) -> None:
    for name in ("record.db", "panel.json", "resolved.yaml"):
        shutil.copy(finished.folder / name, tmp_path)
    with open_stored(tmp_path) as study:
        assert study.result is None
        assert study.records["search"].candidates


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("resolved.yaml", "has no resolved.yaml, so it is no study's folder"),
        ("panel.json", "has no panel.json: .* run the study again"),
        ("record.db", "has no record"),
    ],
)
def test_what_is_missing_is_named(finished: Finished, tmp_path: Path, without: str, said: str) -> None:
    for name in {"record.db", "panel.json", "resolved.yaml"} - {without}:
        shutil.copy(finished.folder / name, tmp_path)
    with pytest.raises(StudyError, match=said), open_stored(tmp_path):
        pass


def test_a_broken_result_is_one_line(finished: Finished, tmp_path: Path) -> None:
    for name in ("record.db", "panel.json", "resolved.yaml"):
        shutil.copy(finished.folder / name, tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(StudyError, match=r"result\.json: cannot be read"), open_stored(tmp_path):
        pass


def test_a_study_that_has_not_run_says_how_to_start_it(finished: Finished, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(finished.study.read_text().replace("name: tiny", "name: other"))
    with (
        pytest.raises(StudyError, match=r"has not been run here yet\. Start it with `heterosis run"),
        open_stored(path),
    ):
        pass


def test_nothing_there_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no such study file or folder"), open_stored(tmp_path / "none"):
        pass
