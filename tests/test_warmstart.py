"""Warm starts from records that are really written and really opened."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from heterosis.config import SpaceConfig
from heterosis.errors import RecordError, StudyError
from heterosis.evaluation.panel import TaskOutcomes
from heterosis.ledger.record import Measurement, Proposal, Record, open_storage, sqlite_url
from heterosis.ledger.redact import masked
from heterosis.optimizers import Fitness
from heterosis.recipe import Recipe, Source
from heterosis.space import WHOLE, Genome, Space
from heterosis.warmstart import NEIGHBOURHOOD, WarmStart, recipe_profiles, same_parents, warm_start

LAYERS = 6
SECONDS = {"merge": 0.0, "swap": 0.0, "score": 0.0, "total": 0.0}
FAILED = Measurement({}, {}, None, SECONDS, 0, "logits are NaN.")

Scored = tuple[Genome, Fitness | float | None]
Folder = Callable[..., Path]


def names(layers: int = LAYERS) -> list[str]:
    body = [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in ("self_attn.q_proj", "mlp.up_proj")]
    return ["model.embed_tokens.weight", *body, "model.norm.weight", "lm_head.weight"]


def space(parents: dict[str, str] | None = None, layers: int = LAYERS, **changes: object) -> Space:
    """A space over parents x and y (name -> digest)."""
    blank = Recipe(
        method="task_arithmetic",
        base=Source(name="base", model="b", digest="0"),
        parents=tuple(Source(name=n, model=n, digest=d) for n, d in (parents or {"x": "1", "y": "2"}).items()),
        groups=WHOLE,
        parameters={},
    )
    config = {"method": "task_arithmetic", "depth": "uniform", **changes}
    return Space(SpaceConfig.model_validate(config), blank, names(layers))


def measurement(known: int = 4) -> Measurement:
    values = np.where(np.arange(4) < known, 1.0, np.nan)
    return Measurement({"task": 1.0}, {"task": TaskOutcomes(values, np.ones(4))}, "w", SECONDS, known)


@pytest.fixture(scope="session")
def empty_record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with Optuna's tables, to copy."""
    path = tmp_path_factory.mktemp("record") / "empty.db"
    open_storage(sqlite_url(path))
    return path


@pytest.fixture
def earlier(tmp_path: Path, empty_record: Path) -> Folder:
    """Writes the run folder of an earlier study."""

    def write(
        where: Space,
        scored: Sequence[Scored],
        partial: Sequence[int] = (),
        objectives: Sequence[str] = ("objective",),
        **resolved: Any,
    ) -> Path:
        folder = tmp_path / "runs" / "earlier"
        folder.mkdir(parents=True, exist_ok=True)
        path = resolved.pop("path", folder / "record.db")
        shutil.copy(empty_record, path)
        record = Record(open_storage(sqlite_url(path)), "earlier", where.genes, objectives)
        record.bind({"seed": 0})
        for at, (genome, fitness) in enumerate(scored):
            proposal = Proposal(f"c{at + 1}", 1, where.recipe(genome), genome, where.values(genome))
            measured = FAILED if fitness is None else measurement(2 if at in partial else 4)
            record.add(proposal, measured, fitness)
        (folder / "resolved.yaml").write_text(yaml.safe_dump({"name": "earlier", "record": None, **resolved}))
        return folder

    return write


GOOD: list[Scored] = [((0.2, 0.6), 0.5), ((0.3, 0.7), 0.7), ((0.4, 0.8), 0.6), ((0.9, 0.1), 0.1)]


def deviation(units: Sequence[float]) -> float:
    return math.sqrt(NEIGHBOURHOOD**2 + float(np.var(units)))


def test_the_start_is_the_mean_of_the_best_with_their_spread_and_a_neighbourhood(earlier: Folder) -> None:
    here = space(sigma=0.25)
    found = warm_start(earlier(here, GOOD), 0.1, here)
    assert found.mean == pytest.approx((0.3, 0.7))
    assert found.spread == pytest.approx([deviation([0.2, 0.3, 0.4]) / 0.25] * 2)
    assert [*map(tuple, found.starts)] == [pytest.approx(point) for point in ((0.3, 0.7), (0.4, 0.8), (0.2, 0.6))]


def test_the_deviation_is_that_of_a_mixture_of_gaussians_around_the_best(earlier: Folder) -> None:
    found = warm_start(earlier(space(), GOOD), 0.1, space())
    rng = np.random.default_rng(0)
    centres = rng.choice([0.2, 0.3, 0.4], 200_000)
    draws = centres + NEIGHBOURHOOD * rng.standard_normal(200_000)
    assert found.spread[0] * space().config.sigma == pytest.approx(np.std(draws), rel=0.01)


def test_top_is_a_fraction_and_at_least_three_points(earlier: Folder) -> None:
    scored: list[Scored] = [((i / 20, 0.5), i / 20) for i in range(20)]
    folder = earlier(space(), scored)
    assert [len(warm_start(folder, top, space()).starts) for top in (0.01, 0.1, 0.25, 1.0)] == [3, 3, 5, 20]


def test_fewer_than_three_points_are_enough(earlier: Folder) -> None:
    found = warm_start(earlier(space(), GOOD[:1]), 0.1, space())
    assert found.mean == pytest.approx((0.2, 0.6))
    assert found.spread == pytest.approx([NEIGHBOURHOOD / space().config.sigma] * 2)


def test_of_equal_candidates_those_scored_on_every_item_come_first(earlier: Folder) -> None:
    scored: list[Scored] = [((at / 10, 0.5), 0.5) for at in range(4)]
    found = warm_start(earlier(space(), scored, partial=(0, 2)), 1.0, space())
    assert [start[0] for start in found.starts] == pytest.approx([0.1, 0.3, 0.0, 0.2])


def test_candidates_that_miss_a_constraint_come_after_those_that_meet_it(earlier: Folder) -> None:
    scored: list[Scored] = [
        ((0.1, 0.5), Fitness(0.9, (0.9,), (0.2,))),
        ((0.2, 0.5), Fitness(0.9, (0.9,), (0.1,))),
        ((0.3, 0.5), Fitness(0.1, (0.1,), (-0.1,))),
    ]
    found = warm_start(earlier(space(), scored), 1.0, space())
    assert [start[0] for start in found.starts] == pytest.approx([0.3, 0.2, 0.1])


def test_failures_and_baselines_are_no_starts(earlier: Folder) -> None:
    here = space()
    folder = earlier(here, [((0.9, 0.9), None), *GOOD[:1]])
    record = Record(open_storage(sqlite_url(folder / "record.db")), "earlier", here.genes)
    record.add(Proposal("x", 0, here.recipe((1.0, 0.0))), measurement(), 0.9)
    assert warm_start(folder, 1.0, here).starts == [pytest.approx((0.2, 0.6))]


def test_a_merge_that_was_scored_twice_is_one_start(earlier: Folder) -> None:
    assert len(warm_start(earlier(space(), [GOOD[0], GOOD[0]]), 1.0, space()).starts) == 1


def test_the_record_stays_as_it_was(earlier: Folder) -> None:
    folder = earlier(space(), GOOD)

    def state() -> dict[str, tuple[str, int]]:
        return {p.name: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in folder.iterdir()}

    before = state()
    first = warm_start(folder, 0.5, space())
    assert state() == before
    assert warm_start(folder, 0.5, space()) == first


def test_a_record_that_may_only_be_read_is_enough(earlier: Folder) -> None:
    folder = earlier(space(), GOOD)
    expected = warm_start(folder, 0.5, space())
    (folder / "record.db").chmod(0o444)
    folder.chmod(0o555)
    try:
        assert warm_start(folder, 0.5, space()) == expected
    finally:
        folder.chmod(0o755)


def test_a_record_that_another_process_writes_to_can_be_read(earlier: Folder) -> None:
    folder = earlier(space(), GOOD)
    writer = sqlite3.connect(folder / "record.db")
    writer.execute("BEGIN IMMEDIATE")
    assert warm_start(folder, 0.5, space()).mean == pytest.approx((0.3, 0.7))
    writer.close()


def test_what_a_killed_study_left_half_written_is_not_read(earlier: Folder) -> None:
    folder = earlier(space(), GOOD)
    expected = warm_start(folder, 0.5, space())
    script = """
import os, sqlite3, sys
record = sqlite3.connect(sys.argv[1])
record.execute("PRAGMA cache_size=1")
record.execute("DELETE FROM trial_user_attributes")
record.executemany("INSERT INTO alembic_version VALUES (?)", [(f"{i}" + "x" * 3000,) for i in range(100)])
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", script, str(folder / "record.db")], check=False)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "record.db-journal" in before
    assert warm_start(folder, 0.5, space()) == expected
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_record_is_found_where_the_study_kept_it(earlier: Folder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.db"
    folder = earlier(space(), GOOD, path=elsewhere, record=sqlite_url(elsewhere))
    assert not (folder / "record.db").exists()
    assert warm_start(folder, 0.5, space()).mean == pytest.approx((0.3, 0.7))


def test_a_study_with_several_objectives_is_ranked_by_the_one_number(earlier: Folder) -> None:
    scored: list[Scored] = [((at / 10, 0.5), Fitness(at / 10, (1.0 - at / 10, at / 10))) for at in range(4)]
    found = warm_start(earlier(space(), scored, objectives=("one", "two")), 0.1, space())
    assert [start[0] for start in found.starts] == pytest.approx([0.3, 0.2, 0.1])


def test_a_start_in_a_finer_space_gives_the_same_merge(earlier: Folder) -> None:
    coarse, fine = space(), space(depth={"knots": 3})
    (start,) = warm_start(earlier(coarse, GOOD[:1]), 0.1, fine).starts
    by_group = fine.recipe(start).parameters["x"]
    assert set(by_group) == {"embeddings", "body", "head"}
    for group, parameters in by_group.items():
        expected = coarse.recipe(GOOD[0][0]).parameters["x"]["all"].weight
        assert parameters.weight == pytest.approx(expected if group != "body" else (expected,) * LAYERS)


@pytest.mark.parametrize("depth", ["uniform", {"knots": 2}, {"knots": 4}, {"blocks": 4}, "per_layer"])
def test_a_study_of_the_same_space_starts_at_the_points_themselves(depth: object, earlier: Folder) -> None:
    here = space(method="dare_ties", depth=depth)
    genome = tuple(np.random.default_rng(0).uniform(size=len(here.genes)).tolist())
    (start,) = warm_start(earlier(here, [(genome, 0.5)]), 0.1, here).starts
    assert start == pytest.approx(genome)


def test_a_model_with_another_number_of_layers_is_read_at_the_same_relative_depth(earlier: Folder) -> None:
    small, large = space(depth={"knots": 3}, layers=5), space(depth={"knots": 3}, layers=9)
    genome = tuple(np.random.default_rng(0).uniform(size=len(small.genes)).tolist())
    (start,) = warm_start(earlier(small, [(genome, 0.5)]), 0.1, large).starts
    assert start == pytest.approx(genome)


def test_parents_are_matched_by_their_weights_before_their_names(earlier: Folder) -> None:
    folder = earlier(space({"x": "1", "y": "2"}), GOOD[:1])
    assert warm_start(folder, 0.1, space({"x": "2", "other": "1"})).mean == pytest.approx((0.6, 0.2))
    assert warm_start(folder, 0.1, space({"x": "8", "y": "9"})).mean == pytest.approx((0.2, 0.6))


def test_a_parent_is_never_taken_for_two() -> None:
    def sources(**digests: str) -> list[Source]:
        return [Source(name=name, model=name, digest=digest) for name, digest in digests.items()]

    assert same_parents(sources(new="1", x="3"), sources(x="1", y="2")) == {"new": "x"}
    assert same_parents(sources(x="", y=""), sources(x="", y="")) == {"x": "x", "y": "y"}


def test_a_parent_that_the_earlier_study_lacks_keeps_the_spaces_start_and_sigma(earlier: Folder) -> None:
    here = space({"x": "1", "z": "3"})
    found = warm_start(earlier(space(), GOOD), 0.1, here)
    assert found.mean == pytest.approx((0.3, here.initial[1]))
    assert found.spread == pytest.approx((deviation([0.2, 0.3, 0.4]) / here.config.sigma, 1.0))


def test_genes_that_the_earlier_method_lacks_keep_the_spaces_start_and_sigma(earlier: Folder) -> None:
    here = space(method="dare_ties")
    found = warm_start(earlier(space(), GOOD), 0.1, here)
    assert found.mean == pytest.approx((0.3, 0.7, *here.initial[2:]))
    assert found.spread[2:] == (1.0,) * 4


def test_a_drop_rate_in_front_of_another_method_is_told_of() -> None:
    searched = space(drop={"low": 0.0, "high": 0.8}).recipe((0.5, 0.5, 0.5, 0.5))
    plain = space().recipe((0.5, 0.5))
    parents = {"x": "x"}
    assert ("x", "drop") in recipe_profiles(searched, parents).values
    assert ("x", "drop") not in recipe_profiles(plain, parents).values


def test_settings_are_taken_over(earlier: Folder) -> None:
    here = space(method="lines", settings={"beta": {"low": 0.0, "high": 2.0}})
    found = warm_start(earlier(here, [((0.1, 0.2, 0.3), 0.5)]), 0.1, here)
    assert found.mean == pytest.approx((0.1, 0.2, 0.3))


def test_a_warm_start_is_plain_data(earlier: Folder) -> None:
    found = warm_start(earlier(space(), GOOD), 0.1, space())
    assert isinstance(found, WarmStart)
    assert all(type(number) is float for part in (found.mean, found.spread, *found.starts) for number in part)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no folder .*nowhere") as error:
        warm_start(tmp_path / "nowhere", 0.1, space())
    assert one_line(error).startswith("warm_start.run: ")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"has no resolved\.yaml"):
        warm_start(tmp_path, 0.1, space())


def test_a_folder_without_a_record_is_refused_and_gets_none(earlier: Folder) -> None:
    folder = earlier(space(), GOOD)
    (folder / "record.db").unlink()
    with pytest.raises(StudyError, match="has no record: no file"):
        warm_start(folder, 0.1, space())
    assert [path.name for path in folder.iterdir()] == ["resolved.yaml"]


def test_a_record_of_another_study_is_refused(earlier: Folder) -> None:
    with pytest.raises(StudyError, match="holds no study other"):
        warm_start(earlier(space(), GOOD, name="other"), 0.1, space())


def test_a_file_that_is_no_record_is_refused(earlier: Folder) -> None:
    folder = earlier(space(), GOOD)
    (folder / "record.db").write_bytes(os.urandom(5000))
    with pytest.raises(StudyError, match="cannot be read as a record") as error:
        warm_start(folder, 0.1, space())
    one_line(error)


@pytest.mark.parametrize("scored", [[], [((0.5, 0.5), None)]])
def test_a_study_without_scored_candidates_is_refused(scored: list[Scored], earlier: Folder) -> None:
    with pytest.raises(StudyError, match="holds no scored candidates"):
        warm_start(earlier(space(), scored), 0.1, space())


def test_a_study_of_other_parents_is_refused(earlier: Folder) -> None:
    with pytest.raises(StudyError, match="merged x, y, none of this study's parents"):
        warm_start(earlier(space(), GOOD), 0.1, space({"p": "7", "q": "8"}))


def test_a_study_that_says_nothing_of_the_genes_is_refused(earlier: Folder) -> None:
    other = space(method="ties", weight=1.0)
    stock = space(method="model_stock", drop={"low": 0.0, "high": 0.9})
    folder = earlier(stock, [((0.5, 0.5), 0.5)])
    with pytest.raises(StudyError, match="says nothing of this space's genes"):
        warm_start(folder, 0.1, other)


def test_a_study_of_models_of_another_shape_is_refused(earlier: Folder) -> None:
    here = space()
    folder = earlier(space(groups={"mlp": r"mlp", "rest": r"model|lm_head"}), [((0.1, 0.2, 0.3, 0.4), 0.5)])
    assert warm_start(folder, 0.1, here)
    blank = Recipe(base=Source(name="base", model="b"), parents=here.parents, method="ties")
    gpt = Space(here.config, blank, ["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"])
    with pytest.raises(StudyError, match="merged models of another shape") as error:
        warm_start(folder, 0.1, gpt)
    one_line(error)


SERVER = "postgresql://user:hidden@host/studies"


@pytest.mark.parametrize(
    ("given", "opened"),
    [
        (SERVER, SERVER),
        (None, "postgresql://host/studies"),
        ("postgresql://user:hidden@elsewhere/studies", "postgresql://host/studies"),
    ],
)
def test_the_password_of_a_server_can_be_given_or_left_to_the_environment(
    given: str | None, opened: str, earlier: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def unreachable(url: str) -> None:
        asked.append(url)
        raise RecordError("record: the storage cannot be opened.")

    folder = earlier(space(), [], record=masked(SERVER))
    monkeypatch.setattr("heterosis.stored.open_storage", unreachable)
    with pytest.raises(RecordError):
        warm_start(folder, 0.1, space(), record=given)
    assert asked == [opened]
