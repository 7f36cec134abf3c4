"""Licences: read from a model's own files, and what they mean beside each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from heterosis.publishing.licences import Licence, assess, front_matter, read_licence


def model(folder: Path, card: str | None = None, **files: str) -> Path:
    for name, text in ({} if card is None else {"README.md": card}).items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_card_says_it(tmp_path: Path) -> None:
    found = read_licence(model(tmp_path, "---\nlicense: Apache-2.0\ntags: [x]\n---\n# Model\n"))
    assert (found.key, found.shown, found.texts) == ("apache-2.0", "apache-2.0", ())


def test_a_licence_of_its_own_has_its_name(tmp_path: Path) -> None:
    found = read_licence(
        model(tmp_path, "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: LICENSE\n---\n")
    )
    assert (found.key, found.shown, found.link) == ("other", "qwen-research", "LICENSE")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("                Apache License\n           Version 2.0, January 2004\n", "apache-2.0"),
        ("MIT License\n\nCopyright (c) 2024\n", "mit"),
        ("GNU GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007\n", "gpl-3.0"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3\n", "agpl-3.0"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n", "llama3.1"),
        ("Attribution-NonCommercial 4.0 International\n", "cc-by-nc-4.0"),
        ("Attribution 4.0 International\n", "cc-by-4.0"),
    ],
)
def test_without_a_card_the_text_says_it(tmp_path: Path, text: str, key: str) -> None:
    found = read_licence(model(tmp_path, None, LICENSE=text))
    assert (found.key, [path.name for path in found.texts]) == (key, ["LICENSE"])


def test_a_text_that_nobody_knows_is_not_guessed(tmp_path: Path) -> None:
    found = read_licence(model(tmp_path, None, LICENSE="Do as my aunt says."))
    assert (found.key, found.shown) == ("other", "the text in LICENSE")


@pytest.mark.parametrize(
    "card", ["", "# No front matter\n", "---\nlicense: unknown\n---\n", "---\n- a list\n---\n", "---\na: [\n---\n"]
)
def test_without_either_it_is_unknown(tmp_path: Path, card: str) -> None:
    assert read_licence(model(tmp_path, card)).key == "unknown"


def test_front_matter_that_unfolds_without_measure_is_none(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    assert front_matter(model(tmp_path, f"---\n{bomb}license: mit\n---\n") / "README.md") == {}


def test_a_card_against_its_own_text_is_a_problem(tmp_path: Path) -> None:
    folder = model(tmp_path, "---\nlicense: mit\n---\n", LICENSE="GNU GENERAL PUBLIC LICENSE\nVersion 3")
    assert assess({"a": read_licence(folder)}).problems == ["a: README.md says mit, the text beside it is gpl-3.0"]


def test_one_licence_for_all_is_the_merges(tmp_path: Path) -> None:
    found = assess({"base": Licence("llama3.1"), "a": Licence("llama3.1")})
    assert found == ({"license": "llama3.1"}, [])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("apache-2.0", "unknown"), "no licence is stated by m1"),
        (("unknown", "unknown"), "no licence is stated by m0, m1"),
        (("apache-2.0", "cc-by-nc-4.0"), "cc-by-nc-4.0 (m1) allows no commercial use"),
        (("mit", "llama3"), "llama3 (m1) has terms of its own, which hold beside mit"),
        (("gemma", "llama3"), "gemma (m0) has terms of its own"),
        (("gpl-3.0", "llama3"), "gpl-3.0 (m0) asks for itself on the whole, which llama3 may not allow"),
        (("gpl-3.0", "mit"), "gpl-3.0 (m0) asks for itself on the whole merge"),
        (("cc-by-nd-4.0", "cc-by-nd-4.0"), "cc-by-nd-4.0 (m0, m1) forbids publishing changed versions"),
        (("cc-by-sa-4.0", "cc-by-nc-4.0"), "cc-by-nc-4.0 (m1) allows no commercial use"),
    ],
)
def test_what_does_not_fit_is_said(keys: tuple[str, ...], said: str) -> None:
    found = assess({f"m{i}": Licence(key) for i, key in enumerate(keys)})
    assert any(problem.startswith(said) for problem in found.problems), found.problems


def test_permissive_ones_fit_and_are_both_named() -> None:
    found = assess({"a": Licence("mit"), "b": Licence("apache-2.0")})
    assert found == ({"license": "other", "license_name": "apache-2.0-and-mit"}, [])
