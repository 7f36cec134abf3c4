"""What the numbers are taken to mean."""

from __future__ import annotations

from typing import Any

import pytest

from heterosis.inspection.advice import advise
from heterosis.inspection.differences import Difference
from heterosis.inspection.records import Crowd, Pair, Region, Size


def size(**numbers: Any) -> Size:
    usual = {"mean": 0.001, "rms": 0.001, "largest": 0.002, "p99": 0.002, "relative": 0.02, "effective_density": 0.6}
    return Size(**{"entries": 1000, "beyond_safe": 0, "beyond_large": 0, "zeros": 0, **usual, **numbers})


def pair(cosine: float | None, *, identical: bool = False) -> Pair:
    return Pair("a", "b", cosine, 0.5, 1000, identical)


def told(sizes: dict[str, Size], pairs: list[Pair] | None = None, crowd: Crowd | None = None) -> list[tuple[str, str]]:
    return [tuple(line) for line in advise(list(sizes), [], Region(None, "all", sizes, pairs or [], crowd))]


@pytest.mark.parametrize(
    ("beyond_safe", "beyond_large", "verdict"),
    [(0, 0, "good"), (10, 0, "good"), (11, 0, "caution"), (900, 10, "caution"), (900, 11, "warn")],
)
def test_the_range_allows_one_entry_in_a_hundred_beyond_a_bound(
    beyond_safe: int, beyond_large: int, verdict: str
) -> None:
    found = size(beyond_safe=beyond_safe, beyond_large=beyond_large)
    assert found.verdict == verdict
    assert [level for level, _ in told({"a": found})] == [verdict]


def test_parents_under_one_verdict_share_a_sentence_that_names_their_shares() -> None:
    wide = {name: size(beyond_safe=900, beyond_large=380) for name in ("code", "math")}
    ((level, text),) = told(wide)
    assert level == "warn"
    assert "38% of code and 38% of math" in text


def test_a_parent_that_equals_the_base_is_dropped_and_not_praised_for_its_range() -> None:
    ((level, text),) = told({"c": size(zeros=1000, mean=0.0, relative=0.0)})
    assert (level, text) == ("caution", "c: equals the base. It adds nothing to a merge; drop it.")


def test_a_task_vector_as_large_as_the_base_asks_for_the_right_base() -> None:
    found = told({"c": size(relative=1.2, beyond_safe=900, beyond_large=900)})
    assert any(level == "warn" and "1.20 times as large as the base" in text for level, text in found)


@pytest.mark.parametrize(
    ("cosine", "level", "words"),
    [
        (0.93, "caution", "point the same way (cosine 0.93)"),
        (0.5, "note", "share part of what they learned"),
        (0.05, "good", "a and b point in largely unrelated directions (cosine 0.05)"),
        (-0.4, "caution", "pull against each other"),
    ],
)
def test_directions_of_a_pair_in_words(cosine: float, level: str, words: str) -> None:
    found = told({"a": size(), "b": size()}, [pair(cosine)])
    assert any(one == level and words in text for one, text in found)


def test_equal_parents_are_called_the_same() -> None:
    found = told({"a": size(), "b": size()}, [pair(1.0, identical=True)])
    assert any("are the same model" in text for _, text in found)
    assert not any("same way" in text for _, text in found)


def test_a_pair_without_direction_is_not_mentioned() -> None:
    found = told({"a": size(), "b": size(zeros=1000)}, [pair(None)], Crowd(None, 0.0))
    assert not any("cosine" in text or "election" in text for _, text in found)


@pytest.mark.parametrize(("loss", "level"), [(0.14, "note"), (0.3, "caution")])
def test_an_election_that_discards_more_than_usual_is_a_caution(loss: float, level: str) -> None:
    found = told({"a": size(), "b": size()}, crowd=Crowd(0.5, loss))
    assert any(one == level and "15%" in text for one, text in found)


def test_a_difference_that_blocks_a_merge_is_a_warning_and_a_dtype_is_a_note() -> None:
    whole = Region(None, "all", {"a": size(), "b": size()}, [], None)
    unlike = [Difference("a", "shape", "x", "[1]", "[2]"), Difference("b", "dtype", "x", "float32", "float16")]
    levels = {line.text.partition(":")[0]: line.level for line in advise(["a", "b"], unlike, whole)}
    assert (levels["a"], levels["b"]) == ("warn", "note")


def test_the_weightiest_comes_first() -> None:
    sizes = {"a": size(), "b": size(beyond_safe=900, beyond_large=900), "c": size(zeros=1000)}
    assert [level for level, _ in told(sizes)] == ["warn", "caution", "good"]
