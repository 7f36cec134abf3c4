import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from heterosis.errors import RecordError
from heterosis.evaluation.panel import TaskOutcomes
from heterosis.ledger import Candidate, Proposal, Record
from heterosis.ledger.record import Measurement, open_storage, sqlite_url
from heterosis.recipe import Recipe
from heterosis.space import GeneSlot

GENES = [GeneSlot("a.weight.all", 0.0, 1.5, 0.5), GeneSlot("a.drop.all", 0.0, 0.9, 0.2)]
THIRD = 1 / 3  # not a decimal fraction

Reopen = Callable[[], Record]


def recipe(weight: float = 0.5) -> Recipe:
    content = {
        "method": "dare_ties",
        "base": {"name": "base", "model": "models/base", "digest": "b" * 64},
        "parents": [{"name": "a", "model": "owner/a", "revision": "main", "digest": "1" * 64}],
        "groups": {"all": ".*"},
        "parameters": {"a": {"all": {"weight": [weight, THIRD], "drop": 0.1}}},
    }
    return Recipe.parse(content, "test")


def proposal(label: str = "c1", weight: float = 0.5) -> Proposal:
    return Proposal(label, 1, recipe(weight), (THIRD, 0.1), {"a.weight.all": weight, "a.drop.all": 0.1 + 0.2})


def measurement(value: float = 2 / 3) -> Measurement:
    outcomes = {
        "choices": TaskOutcomes(np.array([1.0, 0.0, 1.0]), np.ones(3)),
        "bits": TaskOutcomes(np.array([0.1 + 0.2, -1e-300, 5e17]), np.array([THIRD, 17.0, 2**60 + 0.0])),
    }
    seconds = {"merge": 0.25, "swap": 0.5, "score": 1.0, "total": 2.0}
    return Measurement({"choices": value, "bits": np.nextafter(1.0, 2.0)}, outcomes, "w" * 64, seconds, 6)


FAILED = Measurement({}, {}, None, {"merge": 0.0, "swap": 0.1, "score": 0.0, "total": 0.1}, 0, "logits are NaN.")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with Optuna's tables, to copy."""
    path = tmp_path_factory.mktemp("record") / "empty.db"
    open_storage(sqlite_url(path))
    return path


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    """Opens the same study again, as the next process would."""
    if request.param == "memory":
        storage = optuna.storages.InMemoryStorage()
        return lambda: Record(storage, "study", GENES)
    copy = shutil.copy(request.getfixturevalue("empty_database"), tmp_path / "record.db")
    url = sqlite_url(copy)
    return lambda: Record(open_storage(url), "study", GENES)


def same(one: Candidate, other: Candidate) -> bool:
    """Equal bit for bit."""

    def plain(candidate: Candidate) -> dict[str, Any]:
        tables = {task: (table.values.tobytes(), table.weights.tobytes()) for task, table in candidate.outcomes.items()}
        return {**vars(candidate), "outcomes": tables}

    return plain(one) == plain(other)


def test_a_candidate_comes_back_bit_for_bit(reopen: Reopen) -> None:
    asked, measured = proposal(), measurement()
    added = reopen().add(asked, measured, THIRD)
    (found,) = reopen().candidates
    assert same(added, found)
    assert (found.recipe, found.genome, dict(found.genes)) == (asked.recipe, asked.genome, dict(asked.genes))
    assert (found.value, dict(found.scores), found.items) == (THIRD, dict(measured.scores), 6)
    assert found.recipe_digest == asked.recipe.digest
    for task, table in measured.outcomes.items():
        assert found.outcomes[task].values.tobytes() == table.values.tobytes()
        assert found.outcomes[task].weights.tobytes() == table.weights.tobytes()


def test_a_failed_candidate_keeps_its_error_and_has_no_value(reopen: Reopen) -> None:
    reopen().add(proposal(), FAILED, None)
    (found,) = reopen().candidates
    assert (found.value, found.error, dict(found.scores), found.outcomes) == (None, "logits are NaN.", {}, {})


def test_candidates_keep_their_order_and_generation_0_is_the_baselines(reopen: Reopen) -> None:
    record = reopen()
    record.add(Proposal("a", 0, recipe(1.0)), measurement(), 0.5)
    record.add(proposal("c1"), FAILED, None)
    record.add(proposal("c2", 0.7), measurement(), 0.6)
    found = reopen()
    assert [(c.number, c.label) for c in found.candidates] == [(0, "a"), (1, "c1"), (2, "c2")]
    assert [c.label for c in found.baselines] == ["a"]
    assert [c.label for c in found.proposed] == ["c1", "c2"]
    assert found.baselines[0].genome is None


def test_a_recipe_is_found_by_its_digest_unless_it_failed(reopen: Reopen) -> None:
    record = reopen()
    record.add(proposal("c1", 0.5), FAILED, None)
    assert record.find(recipe(0.5).digest) is None
    record.add(proposal("c2", 0.5), measurement(), 0.5)
    for opened in (record, reopen()):
        found = opened.find(recipe(0.5).digest)
        assert found is not None
        assert found.label == "c2"
        assert opened.find(recipe(0.6).digest) is None


def test_listeners_hear_of_what_is_added_and_not_of_what_was_there(reopen: Reopen) -> None:
    reopen().add(proposal("c1"), measurement(), 0.5)
    record, heard = reopen(), []
    record.listen(heard.append)
    added = record.add(proposal("c2", 0.6), measurement(), 0.5)
    assert heard == [added]


def test_the_candidates_seen_earlier_do_not_grow(reopen: Reopen) -> None:
    record = reopen()
    seen = record.candidates
    record.add(proposal(), measurement(), 0.5)
    assert len(seen) == 0


def test_a_bound_record_refuses_another_identity_and_names_what_changed(reopen: Reopen) -> None:
    identity = {"seed": 0, "splits": {"search": 0.5, "test": 0.25}, "parents": ["a", "b"]}
    reopen().bind(identity)
    reopen().bind(identity)
    with pytest.raises(
        RecordError, match=r"^study: splits\.search is 0\.6 now, but the record was made with 0\.5\."
    ) as caught:
        reopen().bind({**identity, "splits": {"search": 0.6, "test": 0.25}})
    assert "\n" not in str(caught.value)


def test_another_seed_is_named_before_the_panel_that_follows_from_it(reopen: Reopen) -> None:
    reopen().bind({"panel": "0abc", "seed": 0})
    with pytest.raises(RecordError, match=r"^study: seed is 5 now, but the record was made with 0\."):
        reopen().bind({"panel": "9def", "seed": 5})
    with pytest.raises(RecordError, match=r"^study: panel is"):
        reopen().bind({"panel": "9def", "seed": 0})


def test_a_database_without_its_driver_says_what_to_install() -> None:
    with pytest.raises(RecordError, match=r"Install the database's driver, such as psycopg2-binary for PostgreSQL\.$"):
        open_storage("oracle://nobody@localhost/x")


@pytest.mark.parametrize("changed", [{"seed": 0, "engine": "vllm"}, {}])
def test_a_key_more_or_less_is_another_identity(reopen: Reopen, changed: dict[str, Any]) -> None:
    reopen().bind({"seed": 0})
    with pytest.raises(RecordError, match=r"(engine|seed) is"):
        reopen().bind(changed)


def test_notes_are_kept(reopen: Reopen) -> None:
    reopen().note("openings", [{"candidates": ["a"]}])
    assert reopen().noted("openings") == [{"candidates": ["a"]}]
    assert reopen().noted("engine") is None


def test_records_of_one_storage_are_separate(tmp_path: Path) -> None:
    storage = open_storage(sqlite_url(tmp_path / "record.db"))
    search, selection = Record(storage, "study", GENES), Record(storage, "study/selection", GENES)
    for record, labels in ((search, ["a", "b"]), (selection, ["b"])):
        for label in labels:
            record.add(proposal(label), measurement(), 0.5)
    assert [c.label for c in Record(storage, "study", GENES).candidates] == ["a", "b"]
    assert [(c.number, c.label) for c in Record(storage, "study/selection", GENES).candidates] == [(0, "b")]


def test_a_foreign_optuna_study_is_refused() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="study")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(RecordError, match=r"trial 0 has no .*not written by heterosis"):
        Record(storage, "study")


def test_a_storage_that_cannot_be_opened_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="the storage cannot be opened") as caught:
        open_storage(sqlite_url(tmp_path / "missing" / "record.db"))
    assert "\n" not in str(caught.value)


# One process per attempt, which dies right after its nth write; the last one lives until the candidate is recorded.
KILLED = """
import os, sys
import sqlalchemy
sys.path.insert(0, os.path.dirname({test!r}))
from test_record import GENES, Record, measurement, open_storage, proposal

def attempt(last):
    record = Record(open_storage({url!r}), "study", GENES)
    writes = 0
    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "after_cursor_execute")
    def die(connection, cursor, statement, *_):
        nonlocal writes
        writes += not statement.startswith("SELECT")
        if writes == last:
            os._exit(9)
    record.listen(lambda _: os._exit(0))
    record.add(proposal(f"n{{last}}"), measurement(), 0.5)

codes = []
while 0 not in codes:
    child = os.fork()
    if child == 0:
        attempt(1 + 4 * len(codes))
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(*codes)
"""


def test_a_killed_process_leaves_a_whole_candidate_or_none(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "record.db")
    Record(open_storage(url), "study", GENES)
    script = KILLED.format(test=__file__, url=url)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *killed, last = map(int, done.stdout.split())
    assert (set(killed), last) == ({9}, 0)
    assert len(killed) >= 3
    (found,) = Record(open_storage(url), "study", GENES).candidates
    assert found.label == f"n{1 + 4 * len(killed)}"
    assert same(
        found, Record(optuna.storages.InMemoryStorage(), "study", GENES).add(proposal(found.label), measurement(), 0.5)
    )
