"""What the documentation says exists."""

from __future__ import annotations

import re
from pathlib import Path

from heterosis.config import METHOD_NAMES, SpaceConfig
from heterosis.merge import METHODS

ROOT = Path(__file__).resolve().parents[1]


def rows() -> dict[str, list[str]]:
    """Method -> the cells of its row in the table of methods."""
    found = {}
    for line in (ROOT / "docs" / "merging.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), cells)
    return found


def test_every_method_is_in_the_table_with_what_it_reads() -> None:
    table = rows()
    assert table.keys() == METHODS.keys()
    symbols = {"λ": "weight", "d": "density", "p": "drop", "epsilon": "epsilon", "gamma": "gamma"}
    for name, cells in table.items():
        if name != "passthrough":
            assert {symbols[word] for word in cells[2].split()} == set(METHODS[name].genes), name
        named = {word.strip() for word in cells[3].split(",") if word.strip()}
        assert set(METHODS[name].settings) <= named | {"normalize"}, name


def test_a_study_may_name_every_method_but_passthrough() -> None:
    assert set(METHOD_NAMES.__args__) == set(METHODS) - {"passthrough"}  # type: ignore[attr-defined]
    assert SpaceConfig(method="della").method == "della"


def test_links_of_the_documentation_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
