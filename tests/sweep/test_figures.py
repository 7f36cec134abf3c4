"""Panels as plots: a few lines as lines, many as the rows of a heat map."""

from __future__ import annotations

from pathlib import Path

import pytest

from heterosis.sweep.figures import element, sheet
from heterosis.sweep.panels import Line, Mark, Panel, positions


def panel(lines: int, places: tuple[object, ...] = (0.0, 0.5, 0.9, 0.99), *, even: bool = True) -> Panel:
    marks = {place: Mark(0.5 + 0.01 * i, 0.4, 0.6, 0.45, 0.55, {}) for i, place in enumerate(places)}
    drawn = tuple(Line(f"weight={i}", marks) for i in range(lines))
    return Panel("a, task", "drop rate", "acc", places, even, drawn, {"a": 0.7, "base": 0.2})


def test_lines_have_a_legend_with_the_original_and_the_base() -> None:
    drawn = element(panel(3), "one")
    for label in ("weight=0", "weight=2", "original", "base", "drop rate", "acc", "0.99"):
        assert f">{label}<" in drawn


def test_many_lines_become_a_heat_map_that_names_every_row() -> None:
    drawn = element(panel(12), "one")
    assert all(f">weight={i}<" in drawn for i in range(12))
    assert ">original<" not in drawn


@pytest.mark.parametrize("lines", [2, 12])
def test_places_may_be_words(lines: int) -> None:
    assert ">dare_ties<" in element(panel(lines, ("ties", "dare_ties")), "one")


def test_crowded_drop_rates_stand_at_even_distances() -> None:
    assert list(positions(panel(1)).values()) == [0.0, 1.0, 2.0, 3.0]
    assert list(positions(panel(1, even=False)).values()) == [0.0, 0.5, 0.9, 0.99]


def test_a_sheet_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sheet([panel(2)], tmp_path / name / "score-drop")
    for suffix in (".svg", ".png"):
        first, second = ((tmp_path / name / f"score-drop{suffix}").read_bytes() for name in ("one", "two"))
        assert first == second
    assert not list(tmp_path.rglob("*.partial"))
