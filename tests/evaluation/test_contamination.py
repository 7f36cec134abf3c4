"""Near duplicates between splits, and benchmark items in training files."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import FamilyFolder
from small_tasks import choice_docs, load_all, load_one, words, write_task

from heterosis.errors import TaskError
from heterosis.evaluation import contamination, training_text
from heterosis.evaluation.contamination import found_in, near_duplicates
from heterosis.evaluation.panel import SPLITS, Panel, SplitName

THIRDS: dict[SplitName, float] = {"search": 0.4, "selection": 0.3, "test": 0.3}
REAL = Path(__file__).parents[2].parent / "shared" / "data"
real_data = pytest.mark.skipif(not (REAL / "tasks").is_dir(), reason="needs the real task files in ../shared/data")

Docs = Sequence[Mapping[str, Any]]


@pytest.fixture(scope="module")
def base(tiny_family: FamilyFolder) -> Path:
    return tiny_family() / "base"


def panel_of(folder: Path, base: Path, **tasks: Docs) -> Panel:
    """A panel of tasks with these documents."""
    names = [write_task(folder, name, docs) for name, docs in tasks.items()]
    return Panel(load_all(folder, names, base), THIRDS)


def told(count: int, length: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with a text of so many words beside them."""
    rng = random.Random(seed)
    return [
        doc | {"text": " ".join(f"v{rng.randrange(5000)}" for _ in range(length))} for doc in choice_docs(count, seed)
    ]


def home(panel: Panel, task: str) -> dict[int, SplitName]:
    return {item.doc_id: split for split in SPLITS for item in panel.splits[split].items[task]}


def triples(texts: Sequence[str]) -> set[tuple[str, ...]]:
    """Word 3-grams by their definition."""
    split = [text.split() for text in texts]
    return {tuple(own[at : at + 3]) for own in split for at in range(max(1, len(own) - 2))}


def test_near_duplicates_are_those_that_comparing_all_pairs_finds(base: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    docs: list[dict[str, Any]] = []
    for doc in told(30, 90):
        for changed in range(3):
            text = doc["text"].split()
            for _ in range(changed):
                text[rng.randrange(len(text))] = words(1, rng)
            docs.append(doc | {"prompt": words(4, rng), "text": " ".join(text)})
    panel = panel_of(tmp_path, base, quiz=docs)
    where = home(panel, "quiz")
    texts = {item.doc_id: panel.tasks["quiz"].texts(item) for item in panel.tasks["quiz"].items}
    sets = {row: triples(texts[row]) for row in where}
    expected = {
        one
        for one, other in itertools.permutations(sets, 2)
        if where[one] != where[other] and len(sets[one] & sets[other]) >= 0.8 * len(sets[one] | sets[other])
    }
    found = near_duplicates(panel)
    assert 5 < len(expected) < len(where) - 5, "near duplicates and others"
    for count in found.counts:
        assert count.found == sum(where[row] == count.split for row in expected)
        assert count.items == panel.splits[count.split].size
    for pair in found.examples:
        one, other = sets[pair.one.doc_id], sets[pair.other.doc_id]
        assert pair.similarity == len(one & other) / len(one | other) >= 0.8
        assert pair.one.split != pair.other.split


def test_one_item_under_two_wordings_is_named_in_a_warning(base: Path, tmp_path: Path) -> None:
    docs = told(40, 30)
    twins = [doc | {"choices": doc["choices"][::-1], "text": doc["text"].upper() + "!"} for doc in docs]
    panel = panel_of(tmp_path, base, one=docs, other=twins)
    found = near_duplicates(panel)
    one, other = home(panel, "one"), home(panel, "other")
    apart = {row for row in one if row in other and one[row] != other[row]}
    assert sum(count.found for count in found.counts if count.task == "one") == len(apart) > 5
    warning = next(line for line in found.warnings() if line.startswith("one: ") and " test items" in line)
    assert "near duplicate in another split (document" in warning
    assert "100% like other's" in warning
    assert len(found.warnings()) == 6


def test_distinct_items_give_no_warning_though_labels_and_instructions_are_alike(base: Path, tmp_path: Path) -> None:
    docs = [doc | {"do": "v " * 200, "label": "a b c d e f g h i"} for doc in told(40, 12)]
    found = near_duplicates(panel_of(tmp_path, base, quiz=docs))
    assert found.warnings() == []
    assert {(count.task, count.split, count.found) for count in found.counts} == {("quiz", s, 0) for s in SPLITS}


PLANTED = range(0, 40, 4)


def by_file(folder: Path, docs: Docs) -> dict[str, Path]:
    """Every fourth text in files of all kinds, among others."""
    rng = random.Random(9)
    noise = ["".join(f"v{rng.randrange(5000)} " for _ in range(20)) for _ in range(20)]
    texts = [docs[row]["text"] for row in PLANTED]
    wrapped = ["\n".join(" ".join(text.split()[at : at + 7]) for at in range(0, 30, 7)) for text in texts]
    content = {
        "plain.txt": "\n".join([*noise, *texts]),
        "wrapped.txt": "\n\n".join([*noise, *(text.title() + "." for text in wrapped)]),
        "one_line.txt": " ".join([*noise, *texts]),
        "lines.jsonl": "\n".join(json.dumps({"text": text, "n": 1}) for text in [*noise, *texts]),
        "chat.jsonl": "\n\n".join(
            json.dumps({"messages": [{"role": "user", "content": f"Tell: {text}"}, {"role": "x", "content": noise[0]}]})
            for text in texts
        ),
        "whole.json": json.dumps({"data": [{"paragraphs": [text]} for text in [*texts, *noise]]}),
    }
    for name, text in content.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in content}


@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_items_are_found_in_files_of_every_kind(
    base: Path, tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_text, "PIECE", piece)
    monkeypatch.setattr(training_text, "BATCH", piece)
    docs = told(40, 30)
    panel = panel_of(tmp_path, base, quiz=docs)
    where = home(panel, "quiz")
    files = by_file(tmp_path, docs)
    found = found_in(panel, list(files.values()))
    assert [each.file for each in found.files] == [str(path) for path in files.values()]
    for each in found.files:
        for count in each.counts:
            assert count.found == sum(where.get(row) == count.split for row in PLANTED), each.file
        assert all(example.item.doc_id in PLANTED and example.share == 1.0 for example in each.examples)
        assert 0 < len(each.examples) <= 9
    assert len(found.warnings()) == 3 * len(files)
    assert "quiz: " in found.warnings()[0]
    assert "items stand in" in found.warnings()[0]


@pytest.mark.parametrize(("kept", "there"), [(20, True), (18, True), (17, False), (7, False)])
def test_an_item_stands_in_a_file_when_most_of_its_word_sequences_do(
    base: Path, tmp_path: Path, kept: int, there: bool
) -> None:
    docs = told(12, 20)
    panel = panel_of(tmp_path, base, quiz=docs)
    (tmp_path / "t.txt").write_text("\n".join(" ".join(doc["text"].split()[:kept]) + " else" for doc in docs))
    (only,) = found_in(panel, [tmp_path / "t.txt"]).files
    assert {count.found == count.items for count in only.counts} == {there}
    assert {example.share for example in only.examples} == ({(kept - 7) / 13} if there else set())


def test_a_question_is_found_without_its_answers(base: Path, tmp_path: Path) -> None:
    docs = [doc | {"answers": [f"v{n} " * 12, f"u{n} " * 12]} for n, doc in enumerate(told(12, 20))]
    panel = panel_of(tmp_path, base, quiz=docs)
    (tmp_path / "t.txt").write_text(docs[0]["text"])
    assert [example.item.doc_id for example in found_in(panel, [tmp_path / "t.txt"]).files[0].examples] == [0]


@pytest.mark.parametrize(
    ("name", "content", "there"),
    [
        ("t.txt", "before\nPlay it, again!\nafter\n", True),
        ("t.txt", "before\nPlay it, again!", True),
        ("t.txt", "they play it again\n", False),
        ("t.txt", "play it\nagain\n", False),
        ("t.jsonl", '{"text": "play it again"}\n', True),
        ("t.jsonl", '"first line\\nplay it again\\nlast line"\n', True),
        ("t.jsonl", '{"text": "play it", "more": "again"}\n', False),
    ],
)
def test_an_item_of_few_words_is_found_by_a_whole_line_alone(
    base: Path, tmp_path: Path, name: str, content: str, there: bool
) -> None:
    docs = [{"prompt": f"w{n}", "choices": ["w3", "w4"], "gold": 0, "text": f"text number {n}"} for n in range(5, 20)]
    panel = panel_of(tmp_path, base, quiz=[docs[0] | {"text": "Play it again."}, *docs[1:]])
    (tmp_path / name).write_text(content)
    assert bool(found_in(panel, [tmp_path / name]).warnings()) == there


def test_words_are_compared_without_case_form_and_punctuation() -> None:
    assert contamination.words("It's ＡＢＣ, straße—x_1!") == ["it", "s", "abc", "strasse", "x_1"]
    assert contamination.words("東京は Tokyo") == ["東", "京", "は", "tokyo"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "none.txt: no such training file"),
        ("t.parquet", b"", "t.parquet: a training file must be one of .txt, .jsonl, .json"),
        ("t.txt", b"caf\xe9", "t.txt: not UTF-8"),
        ("t.jsonl", b'{"a": "b"}\n\n{"a":\n', "t.jsonl, line 3: not JSON"),
        ("t.json", b"[" * 100_000, "t.json: not JSON"),
        ("t.json", b'"' + b"x" * 2000 + b'"', "t.json: too large to be parsed whole"),
        ("t.jsonl", b'{}\n"' + b"x" * 2000 + b'"', "t.jsonl, line 2: too large to be parsed whole"),
    ],
)
def test_a_training_file_that_cannot_be_read_is_refused_in_one_line(
    base: Path, tmp_path: Path, name: str, content: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if message.endswith("whole"):
        monkeypatch.setattr(training_text, "LARGEST", 1000)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    panel = panel_of(tmp_path, base, quiz=choice_docs(12))
    with pytest.raises(TaskError) as caught:
        found_in(panel, [tmp_path / name])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@real_data
def test_real_items_are_found_where_they_are_and_only_there() -> None:
    model = REAL / "families" / "stories260k" / "base"
    panel = Panel([load_one(REAL / "tasks", "mbpp_text.yaml", model, 2048)], THIRDS)
    bench = REAL / "bench"
    source, other = found_in(panel, [bench / "mbpp" / "mbpp.jsonl", bench / "text" / "wikitext2_valid.txt"]).files
    assert sum(count.found for count in source.counts) == sum(count.items for count in source.counts) == 500
    assert not any(count.found for count in other.counts)


@real_data
def test_real_queries_that_differ_by_a_comma_are_near_duplicates() -> None:
    model = REAL / "families" / "stories260k" / "base"
    panel = Panel([load_one(REAL / "tasks", "clinc_domain.yaml", model, 2048)], THIRDS)
    found = near_duplicates(panel)
    assert 0 < sum(count.found for count in found.counts) < 100
    assert found.examples[0].similarity == 1.0
