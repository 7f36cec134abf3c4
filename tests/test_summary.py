"""What a finished study says on a terminal."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console
from small_study import Finished

from heterosis.summary import show_result


def shown(result: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show_result(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_on_80_columns_baselines_can_be_told_apart_and_intervals_stay_whole(finished: Finished) -> None:
    text = shown(finished.result, 80)
    table = text[: text.index("against the parent best")]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 80
    assert len(re.findall(r"\[\d\.\d{4}, \d\.\d{4}\]", table)) == sum(
        split in row for row in finished.result["table"] for split in ("search", "selection", "test")
    )


def test_a_search_that_found_nothing_is_not_called_lucky(finished: Finished) -> None:
    luck = {"candidate": "c2", "against": "a", "estimate": -0.04, "optimism": 0.05, "candidates": 12}
    text = shown({**finished.result, "search_optimism": luck}, 160)
    assert "search split: nothing that the search proposed looked better than a" in text
    assert "luckiest" not in text
    assert "c2 looked +0.0400" in shown({**finished.result, "search_optimism": luck | {"estimate": 0.04}}, 160)
