"""A report of a study that ran, of one that runs, and of what should never mislead a reader or break the page."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from html_page import Page
from small_study import BASELINES, CANDIDATES, Finished

from heterosis.errors import StudyError
from heterosis.ledger.importance import importance
from heterosis.recipe import Recipe
from heterosis.report import write_report
from heterosis.report.geometry import surveyed
from heterosis.report.notices import notices, verdict
from heterosis.report.page import duration, page
from heterosis.report.recipe_plots import quantities
from heterosis.report.search_plots import apart
from heterosis.report.view import View, arranged
from heterosis.stored import open_stored

HOSTILE = "<script>alert(1)</script>&\"'{{ 7 * 7 }}$x$"


@pytest.fixture
def view(finished: Finished) -> Iterator[View]:
    with open_stored(finished.folder) as stored:
        yield arranged(stored)


@pytest.fixture(scope="module")
def drawn(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "r.html"
    return write_report(finished.folder, out).read_text(encoding="utf-8")


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """The run's folder without its model, to be changed."""
    for name in ("record.db", "panel.json", "resolved.yaml", "result.json"):
        shutil.copy(finished.folder / name, tmp_path)
    return tmp_path


def changed(view: View, **changes: Any) -> View:
    """The view of a study with another result."""
    assert view.result is not None
    result = {**json.loads(json.dumps(view.result)), **changes}
    return view._replace(result=result)


def told(view: View) -> str:
    return " ".join(line.text for line in notices(view))


def test_a_study_writes_its_report_and_the_command_writes_the_same(
    finished: Finished, drawn: str, heterosis: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    assert (finished.folder / "report.html").read_text(encoding="utf-8") == drawn
    code, out, _ = heterosis("report", finished.study, "--out", tmp_path / "r.html")
    assert (code, out.strip()) == (0, str(tmp_path / "r.html"))
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == drawn
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_the_page_says_the_verdict_every_score_and_how_to_do_it_again(finished: Finished, drawn: str) -> None:
    text, result = Page(drawn).text, finished.result
    assert result["verdict"][1:] in text
    for row in result["table"]:
        for split in ("search", "selection", "test"):
            if split in row:
                found = row[split]["objective"]
                assert f"{found['estimate']:.4f}" in text
                assert f"[{found['low']:.4f}, {found['high']:.4f}]" in text
    for digest in (*result["sources"].values(), result["panel_digest"], result["recipe_digest"]):
        assert digest in text
    assert result["weights_digest"] in text
    assert result["command"] in text
    assert "selection-biased" in text
    with open_stored(finished.folder) as stored:
        assert all(candidate.label in text for candidate in stored.records["search"].candidates)
        assert len(stored.records["search"].candidates) == CANDIDATES + BASELINES


def test_the_page_is_sound_loads_nothing_and_runs_nothing(drawn: str) -> None:
    found = Page(drawn)
    tags = [tag for tag, _ in found.tags]
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert tags.count("h1") == 1
    assert tags.count("svg") >= 8
    assert "default-src 'none'" in drawn
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "img"} & set(tags)
    for _, attrs in found.tags:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/png;"))
    assert not re.search(r"@import|url\((?!#)", drawn)
    links = {str(attrs["href"])[1:] for tag, attrs in found.tags if tag == "a"}
    assert links <= set(ids)


def test_a_study_under_way_has_no_verdict_and_says_what_its_scores_are(copied: Path) -> None:
    (copied / "result.json").unlink()
    with sqlite3.connect(copied / "record.db") as record:  # as before the finals
        record.execute("UPDATE studies SET study_name = study_name || '-later' WHERE study_name LIKE 'tiny/%'")
    text = Page(write_report(copied, copied / "r.html").read_text(encoding="utf-8")).text
    assert "no verdict yet" in text
    assert f"The study is under way: {CANDIDATES} of {CANDIDATES} candidates are scored" in text
    assert "Test split," not in text
    assert "Search split, 10 items selection-biased" in text
    assert "the best so far is also the luckiest" in text


def test_no_improvement_is_said_as_loudly_as_one(view: View) -> None:
    heterosis = json.loads(json.dumps(view.result and view.result["heterosis"]))
    words = []
    for low, p in ((-0.1, 0.3), (0.1, 0.2), (0.1, 0.001)):
        for claim in heterosis.values():
            claim.update(estimate=0.2, low=low, high=0.3, p=p)
        other = changed(
            view, heterosis=heterosis, winner="c1", best_baseline="average", verdict="no improvement shown: x"
        )
        words.append((verdict(other).level, verdict(other).word))
    assert words == [
        ("warn", "no improvement shown"),
        ("warn", "no improvement shown"),
        ("good", "improvement shown"),
    ]
    heterosis["best_baseline"].update(low=-0.1)
    assert verdict(changed(view, heterosis=heterosis, winner="c1")).level == "caution"
    assert (
        verdict(changed(view, heterosis=heterosis, winner="average", best_baseline="average")).word == "a baseline won"
    )


def test_a_test_split_opened_again_is_the_first_thing_said(view: View) -> None:
    record = view.stored.records["test"]
    assert "opened once" in told(view)
    record.note("openings", [*(record.noted("openings") or []), {"candidates": ["c1"], "searched": 3}])
    first = notices(changed(view, simultaneous_over=2))[0]
    assert first.level == "warn"
    assert "opened 2 times" in first.text
    assert "hold for the 2 proposals" in first.text


def test_what_speaks_against_a_result_is_said(view: View) -> None:
    view.stored.records["search"].note("contamination", ["choice: 3 items are in corpus.jsonl token=abc"])
    bound = {
        "task": "choice",
        "against": None,
        "margin": 0.0,
        "at_least": 0.9,
        "limit": 0.9,
        "score": 0.1,
        "met": False,
    }
    claim = {"against": "b", "estimate": -0.2, "low": -0.3, "high": -0.1, "word": "worse"}
    time = {**(view.result or {})["time"], "candidates": 3}
    text = told(changed(view, constraints=[bound], task_claims={"choice": claim}, time=time, winner="a"))
    assert "Contamination: choice: 3 items are in corpus.jsonl token=***" in text
    assert "Constraint on choice NOT kept: 0.1000 where 0.9000 is asked" in text
    assert "choice (-0.2000 [-0.3000, -0.1000] against b)" in text
    assert f"the verdict is from 3 merges, the plots show {CANDIDATES + BASELINES}" in text
    assert "The winner is a parent itself" in text


def test_scores_from_a_part_of_the_items_are_marked(view: View) -> None:
    row = dict(view.rows[0])
    row["search"] = {**row["search"], "items": 4}
    partial = [seen._replace(known=4) for seen in view.seen]
    text = Page(page(view._replace(rows=[row, *view.rows[1:]], seen=partial), surveyed(view, False))).text
    assert "4 of 10" in text
    assert f"≈ {row['search']['objective']['estimate']:.4f}" in text
    assert f"{CANDIDATES} of {CANDIDATES} candidates answered a part of the 10 search items" in text


def test_names_cannot_break_the_page(copied: Path) -> None:
    """A candidate's label, an error and the command hold markup."""
    with sqlite3.connect(copied / "record.db") as record:
        for label in ("c1", "b"):
            was, now = json.dumps(label), json.dumps(HOSTILE + label)
            record.execute(
                "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'label' AND value_json = ?", (now, was)
            )
    result = json.loads((copied / "result.json").read_text())
    result["command"] = result["verdict"] = HOSTILE
    for row in result["table"]:
        row["label"] = HOSTILE + row["label"] if row["label"] in ("c1", "b") else row["label"]
    (copied / "result.json").write_text(json.dumps(result))
    text = write_report(copied, copied / "r.html", inspect=False).read_text(encoding="utf-8")
    found = Page(text)
    assert "script" not in {tag for tag, _ in found.tags}
    assert HOSTILE + "c1" in found.text
    assert "<script" not in text
    titles = [tag for tag, _ in found.tags if tag == "title"]
    assert len(titles) > CANDIDATES


def test_secrets_of_a_study_are_not_shown(copied: Path) -> None:
    resolved = yaml.safe_load((copied / "resolved.yaml").read_text())
    resolved["tracking"] = "https://user:geheim@tracking.example"
    (copied / "resolved.yaml").write_text(yaml.safe_dump(resolved))
    assert "geheim" not in write_report(copied, copied / "r.html", inspect=False).read_text(encoding="utf-8")


def test_models_are_looked_at_only_as_they_were(view: View) -> None:
    assert surveyed(view, None).survey is not None
    assert "--no-inspect" in surveyed(view, False).why
    candidates = view.stored.records["search"].candidates
    recipe = candidates[0].recipe
    for change, why in (
        ({"digest": "0" * 64}, "other weights than when the study ran"),
        ({"model": "/nowhere"}, "is not on this machine"),
    ):
        parent = recipe.parents[0].model_copy(update=change)
        object.__setattr__(
            candidates[0], "recipe", recipe.model_copy(update={"parents": (parent, *recipe.parents[1:])})
        )
        assert why in surveyed(view, None).why
    object.__setattr__(candidates[0], "recipe", recipe)


def test_a_file_that_cannot_be_written_is_said_before_anything_is_drawn(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="its parent is no folder"):
        write_report(finished.folder, tmp_path / "none" / "r.html")
    with pytest.raises(StudyError, match="is a folder"):
        write_report(finished.folder, tmp_path)


def test_a_recipe_lies_over_depth_by_parent_and_group() -> None:
    source = {"model": "m", "digest": "d"}
    recipe = Recipe.parse(
        {
            "method": "ties",
            "base": {"name": "base", **source},
            "parents": [{"name": "x", **source}, {"name": "y", **source}],
            "groups": {
                "embeddings": r"(^|\.)(embed_tokens|wte|wpe|embed_in|word_embeddings|embed_positions|tok_embeddings)"
            }
            | {"body": ".*"},
            "parameters": {
                "x": {"embeddings": {"weight": 0.2}, "body": {"weight": [0.1, 0.3], "density": 0.5}},
                "y": {"embeddings": {"weight": 0.4}, "body": {"weight": 0.9, "density": 0.5}},
            },
        },
        "test",
    )
    columns, found = quantities(recipe)
    assert columns == ["in", "0", "1"]
    weight = next(each for each in found if each.name == "weight λ")
    assert weight.rows["x · body"] == {"0": 0.1, "1": 0.3}
    assert weight.rows["y · body"] == {"0": 0.9, "1": 0.9}
    assert weight.rows["x · embeddings"] == {"in": 0.2}


def test_importance_finds_the_gene_that_matters_and_says_what_chance_gives() -> None:
    points = [((i * 37) % 100 / 99, (i * 61) % 100 / 99) for i in range(100)]
    genes = [{"matters": a, "idle": b} for a, b in points]
    ranges = {"matters": (0.0, 1.0), "idle": (0.0, 1.0)}
    found = importance(genes, [a for a, _ in points], ranges, 0)
    assert next(iter(found.shares)) == "matters"
    assert found.shares["matters"] > 0.9
    assert found == importance(genes, [a for a, _ in points], ranges, 0)
    turned = importance(genes, [-a for a, _ in points], ranges, 0)
    assert next(iter(turned.shares)) == "matters"


def test_labels_are_moved_apart_as_little_as_needed() -> None:
    assert apart([0.0, 1.0, 2.0], 0.5) == [0.0, 1.0, 2.0]
    assert apart([1.0, 1.0, 1.0], 0.5) == [0.5, 1.0, 1.5]
    moved = apart([0.0, 0.9, 1.0, 3.0], 0.5)
    assert moved == pytest.approx([0.0, 0.7, 1.2, 3.0])
    assert [duration(seconds) for seconds in (12.4, 600, 10_000)] == ["12 s", "10 min", "2 h 47 min"]


PROBE = "<script>parent.postMessage(document.documentElement.scrollWidth + ' ' + innerWidth, '*')</script>"
FRAMES = """<!doctype html><body><p id="said"></p><script>onmessage = event => {
said.textContent += event.data + ';' }</script>
<iframe src="page.html" style="width:1280px;height:900px"></iframe>
<iframe src="probe.html" style="width:390px;height:900px;border:0"></iframe></body>"""


def test_a_browser_shows_it_on_a_phone_without_errors(drawn: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    (tmp_path / "page.html").write_text(drawn)
    probe = re.sub(r"<meta http-equiv[^>]*>", "", drawn).replace("</body>", PROBE + "</body>")
    (tmp_path / "probe.html").write_text(probe)
    (tmp_path / "frames.html").write_text(FRAMES)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=1800,1000"]
    done = subprocess.run(
        [browser, *flags, (tmp_path / "frames.html").as_uri()], capture_output=True, text=True, timeout=180, check=False
    )
    widths = re.search(r'<p id="said">(\d+) (\d+);', done.stdout)
    assert widths is not None, done.stderr[-2000:]
    assert int(widths.group(2)) == 390
    assert int(widths.group(1)) <= 390
    assert "CONSOLE" not in done.stderr


def test_a_study_whose_report_cannot_be_drawn_is_complete(
    finished: Finished, heterosis: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("heterosis.run.write_report", fails)
    code, out, errors = heterosis("run", finished.study, "--format", "json", "--quiet")
    assert code == 0
    assert json.loads(out) == finished.result
    assert "report: not written (ValueError: no ink). `heterosis report` tries again." in " ".join(errors.split())
