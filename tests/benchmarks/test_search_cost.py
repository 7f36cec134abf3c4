"""That the benchmark of searches runs and writes what it promises; and its figures by hand. Never how good they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from search_figures import FINAL, REFERENCE, Point, Run, reached, spread, summary, value_at  # noqa: E402

POINTS = [Point(100, 0.2), Point(200, 0.6), Point(300, 0.5)]


def test_search_cost_writes_its_figures_for_every_way_and_nature(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    command = [sys.executable, str(BENCHMARKS / "search_cost.py"), "--quick", "--seeds", "1", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert {"machine", "plan", "seconds", "cpu_seconds"} <= set(figures)
    assert set(figures["settings"]) == {"smooth", "rough"}
    for setting in figures["settings"].values():
        assert {REFERENCE, "TPE, knots", "random, knots", "racing CMA-ES, knots"} <= set(setting["ways"])
        for way, row in setting["ways"].items():
            assert way in done.stdout
            assert set(row["items_to"]) == {"50%", "75%", "90%", FINAL}
            assert row["candidates"] >= 1
        assert setting["ways"][REFERENCE]["of_reference"]["middle"] == 1.0


def test_a_level_is_reached_where_the_recommendation_is_first_so_good() -> None:
    assert [reached(POINTS, level) for level in (0.2, 0.5, 0.6, 0.7)] == [100, 200, 200, np.inf]
    assert [value_at(POINTS, items) for items in (100, 250, np.inf)] == [0.2, 0.6, 0.5]
    assert np.isnan(value_at(POINTS, 99))


def test_a_median_is_none_when_half_of_the_seeds_never_came_so_far() -> None:
    found = spread(np.array([1.0, 2.0, np.inf, np.inf]))
    assert (found["middle"], found["low"], found["high"]) == (None, 1.0, None)
    assert (found["reached"], found["of"]) == (2, 4)


def test_the_ratio_is_to_what_the_reference_took_for_its_own_final_score() -> None:
    runs = {REFERENCE: [Run(POINTS, 3)], "other": [Run([Point(50, 0.55)], 1)]}
    found = summary(runs, starts=[0.0], ends=[1.0], budget=400)["ways"]["other"]
    assert found["of_reference"]["middle"] == 0.25  # 50 items; the reference first had its final 0.5 at 200
    assert found["of_budget"]["middle"] == 0.125
    assert found["at_the_end"]["middle"] == 0.55
