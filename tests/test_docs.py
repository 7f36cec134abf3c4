"""What the documentation says exists."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRecipe, OpenFamily
from small_tasks import load_one

from heterosis.builder import Builder
from heterosis.config import METHOD_NAMES, SpaceConfig, load_study
from heterosis.merge import METHODS
from heterosis.merge.methods import Method
from heterosis.merge.whole import Inputs

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def snippet(page: str, language: str) -> str:
    """The first piece of code of a page."""
    found = re.search(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found.group(1)


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


def test_the_reference_of_study_files_is_what_the_schema_says_now() -> None:
    written = runpy.run_path(str(DOCS / "reference.py"))["reference"]()
    assert (DOCS / "study-file.md").read_text(encoding="utf-8") == written


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*-7b.yaml")), ids=lambda path: path.name)
def test_examples_that_need_a_gpu_are_valid_studies(path: Path) -> None:
    study = load_study(path)
    assert study.engine.kind == "vllm"
    assert len(study.parents) >= 2


def test_the_method_of_the_page_on_extending_merges(
    open_tiny: OpenFamily, recipe_for: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {"Inputs": Inputs, "Tensor": torch.Tensor}
    exec(snippet("extending.md", "python"), names)
    monkeypatch.setitem(METHODS, "halfway", Method("halfway", "the middle", "this page", names["halfway"]))
    family = open_tiny()
    recipe = recipe_for(family, "halfway", {"a": {"weight": 0.5}, "b": {"weight": 0.25}})
    merged = dict(Builder(family, compiled=False).tensors(recipe))
    assert merged.keys() == family.base.specs.keys()
    for name, tensor in merged.items():
        base, a, b = (family.members[member].tensor(name) for member in ("base", "a", "b"))
        torch.testing.assert_close(tensor, base + 0.25 * (a - base) + 0.125 * (b - base))


def test_the_task_of_the_page_on_extending_loads(tmp_path: Path, demo_family: Path) -> None:
    (tmp_path / "my_task.yaml").write_text(snippet("extending.md", "yaml"), encoding="utf-8")
    docs = [{"question": f"{n} + 1?", "choices": [str(n + 1), str(n + 2)], "answer": 0} for n in range(4)]
    lines = "".join(json.dumps(doc) + "\n" for doc in docs)
    (tmp_path / "my_task.jsonl").write_text(lines, encoding="utf-8")
    task = load_one(tmp_path, "my_task.yaml", demo_family / "base")
    assert (task.name, len(task.items)) == ("my_task", 4)
