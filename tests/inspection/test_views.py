"""A survey on the terminal and as a page: whole, self-contained, and safe whatever names it shows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from html_page import Page
from rich.console import Console
from safetensors.torch import load_file, save_file

from heterosis.inspection import Survey, inspect_models
from heterosis.inspection.page import page, write_page
from heterosis.inspection.table import render
from heterosis.inspection.wording import listed, percent, printable, ratio, small

FamilyFolder = Callable[..., Path]

HOSTILE = "<script>alert('x')</script>&\"$\\frac{1}$[bold]\x1b[31m\u202e{{ 7 * 7 }}"
HOSTILE_TENSOR = "<img src=x onerror=alert(1)>&[red]{{ 7 * 7 }}"  # the reader refuses control characters


@pytest.fixture(scope="module")
def survey(tiny_family: FamilyFolder) -> Survey:
    folder = tiny_family()
    return inspect_models(folder / "base", {name: folder / name for name in ("a", "b", "c")})


@pytest.fixture(scope="module")
def drawn(survey: Survey) -> str:
    return page(survey)


@pytest.fixture(scope="module")
def hostile(tiny_family: FamilyFolder, tmp_path_factory: pytest.TempPathFactory) -> Survey:
    """Parents and tensors whose names try to be markup, formulas and terminal commands; one parent is the base."""
    folder, odd = tiny_family(), tmp_path_factory.mktemp("odd") / "odd"
    shutil.copytree(folder / "a", odd)
    tensors = load_file(odd / "model.safetensors")
    tensors[HOSTILE_TENSOR] = tensors.pop("model.norm.weight")
    save_file(tensors, odd / "model.safetensors")
    parents = {HOSTILE: odd, "b": folder / "b", "same": folder / "base"}
    return inspect_models(folder / "base", parents)


def printed(survey: Survey, width: int) -> str:
    console = Console(width=width, color_system=None, force_terminal=False, record=True, quiet=False)
    with console.capture() as captured:
        render(survey, console)
    return captured.get()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_shows_every_parent_layer_and_advice_at_any_width(survey: Survey, width: int) -> None:
    text = printed(survey, width)
    for word in ("embeddings", "attention", "mlp", "norms", "head", "conflict", "DARE's range"):
        assert word in text
    flat = " ".join(text.split())
    assert "Read the warnings before you merge these models." in flat
    if width >= 80:
        assert all(len(line) <= width for line in text.splitlines())
        assert f"{small(survey.overall.sizes['a'].mean)}" in text


def test_one_parent_alone_has_no_pairs_to_show(tiny_family: FamilyFolder) -> None:
    folder = tiny_family()
    alone = inspect_models(folder / "base", {"a": folder / "a"})
    assert "cosine" not in printed(alone, 100)
    assert "Directions" not in page(alone)


def test_names_cannot_steer_the_terminal(hostile: Survey) -> None:
    text = printed(hostile, 250)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold]" in text  # shown, not obeyed
    assert HOSTILE_TENSOR in text


def test_the_page_is_sound_html_with_a_plot_per_parent(drawn: str) -> None:
    found = Page(drawn)
    tags = [tag for tag, _ in found.tags]
    assert tags.count("h1") == 1
    assert tags.count("svg") == 1 + 3 + 2
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_loads_nothing_and_runs_nothing(drawn: str) -> None:
    found = Page(drawn)
    assert "default-src 'none'" in drawn
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in found.tags}
    for _, attrs in found.tags:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "xlink:href", "action", "data"):
            target = attrs.get(name) or "#"
            assert target.startswith(("#", "data:image/")), target
    assert not re.search(r"@import|url\((?!#)", drawn)


def test_the_page_follows_the_readers_light_or_dark_screen_and_prints(drawn: str) -> None:
    assert "prefers-color-scheme: dark" in drawn
    assert "@media print" in drawn
    assert "width=device-width" in drawn


def test_names_cannot_break_the_page(hostile: Survey) -> None:
    text = page(hostile)
    found = Page(text)
    assert "script" not in {tag for tag, _ in found.tags}
    assert "\x1b" not in text
    assert "\u202e" not in text
    shown = "".join(found.parts)
    assert printable(HOSTILE) in shown
    assert HOSTILE_TENSOR in shown


def test_drawing_twice_gives_the_same_page(survey: Survey, drawn: str) -> None:
    assert page(survey) == drawn


def test_the_page_is_written_whole(survey: Survey, drawn: str, tmp_path: Path) -> None:
    write_page(survey, tmp_path / "inspection.html")
    assert [path.name for path in tmp_path.iterdir()] == ["inspection.html"]
    assert (tmp_path / "inspection.html").read_text(encoding="utf-8") == drawn


def test_a_family_with_nothing_in_common_still_has_a_page(tiny_family: FamilyFolder, tmp_path: Path) -> None:
    folder = tiny_family()
    shutil.copytree(folder / "a", tmp_path / "alien")
    tensors = load_file(folder / "a" / "model.safetensors")
    save_file({"other.weight": tensors["model.norm.weight"]}, tmp_path / "alien" / "model.safetensors")
    alien = inspect_models(folder / "base", {"alien": tmp_path / "alien"})
    assert "not a fine-tune of this base" in Page(page(alien)).text
    assert "not a fine-tune of this base" in " ".join(printed(alien, 200).split())


def test_numbers_are_short_and_nothing_that_is_there_reads_as_zero() -> None:
    assert [percent(share) for share in (None, 0.0, 1e-6, 0.0234, 0.5, 1.0)] == [
        "-",
        "0%",
        "<0.1%",
        "2.3%",
        "50%",
        "100%",
    ]
    assert [small(number) for number in (0.0, 1.5e-7, 0.00123, 12.3)] == ["0", "1.5e-07", "0.0012", "12"]
    assert [ratio(number) for number in (None, 0.931)] == ["-", "0.93"]
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[2J\u202eb\udc80é漢") == "a\\x1b[2J\\u202eb\\udc80é漢"
