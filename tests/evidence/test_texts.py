from pathlib import Path

import pytest

from heterosis.errors import TaskError
from heterosis.evidence import read_texts


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_blank_lines_part_the_examples_of_a_text_file(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "\n\n one\ntwo\n \t\n\n\nthree\n\n")
    assert read_texts(path) == ["one\ntwo", "three"]


def test_without_blank_lines_every_line_is_an_example(tmp_path: Path) -> None:
    assert read_texts(write(tmp_path, "a.txt", "one\ntwo\n")) == ["one", "two"]
    assert read_texts(write(tmp_path, "b.txt", "only one")) == ["only one"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_ends_and_a_byte_order_mark_play_no_part(tmp_path: Path, newline: str) -> None:
    path = write(tmp_path, "a.txt", "\ufeff" + newline.join(["one", "", "zwö", ""]))
    assert read_texts(path) == ["one", "zwö"]


def test_every_line_of_a_jsonl_file_is_an_example(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "one\\n\\ntwo"}\n\n{"text": " three", "more": 1}\n')
    assert read_texts(path) == ["one\n\ntwo", " three"]


def test_another_field_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "one", "question": "two"}\n')
    assert read_texts(path, field="question") == ["two"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_the_first_examples_are_taken_and_no_more_are_read(tmp_path: Path, name: str) -> None:
    lines = ["one", "two", "three"] if name == "a.txt" else ['{"text": "one"}', '{"text": "two"}', "damaged"]
    assert read_texts(write(tmp_path, name, "\n".join(lines)), limit=2) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "", "holds no text"),
        ("a.txt", " \n\n\t\n", "holds no text"),
        ("a.jsonl", "\n", "holds no text"),
        ("a.jsonl", '{"text": "one"}\n{"text": ', "line 2: not JSON"),
        ("a.jsonl", '{"texts": "one"}', "line 1: no text under 'text'"),
        ("a.jsonl", '{"text": 3}', "line 1: no text under 'text'"),
        ("a.jsonl", '{"text": " "}', "line 1: no text under 'text'"),
        ("a.jsonl", '["one"]', "line 1: no text under 'text'"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("a.txt", b"one\xff\xfe", "not UTF-8 at byte 3"),
        ("a.csv", "one", r"must be a \.txt or \.jsonl file"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    with pytest.raises(TaskError, match=said) as refused:
        read_texts(write(tmp_path, name, content))
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    for name in ("missing.txt", "folder.txt"):
        with pytest.raises(TaskError, match="no such file"):
            read_texts(tmp_path / name)
