"""Files and folders that are there whole or not at all, and the lock on a study's folder."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from heterosis.errors import RecordError
from heterosis.files import new_folder, only_process, parse_yaml, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_and_json_come_back(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Umläute\n")
    write_json(tmp_path / "a.json", {"é": [1.5, None]})
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "Umläute\n"
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1.5, None]}
    assert names(tmp_path) == ["a.json", "a.txt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new and longer")
    assert path.read_text() == "old"


def test_what_has_no_json_form_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"bad": object()})
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert names(tmp_path) == ["a.json"]


def test_a_new_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as work:
        (work / "a").write_text("a")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out" / "a").read_text() == "a"


def test_a_new_folder_replaces_the_old_one_entirely(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with new_folder(tmp_path / "out") as work:
        (work / "new").write_text("new")
        assert names(tmp_path / "out") == ["old"]
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")

    def fill() -> None:
        with new_folder(tmp_path / "out") as work:
            (work / "half").write_text("half")
            raise error

    with pytest.raises(error):
        fill()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["old"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    for left in ("out.99999.partial", "out.99999.old", "outer.99999.partial"):
        (tmp_path / left).mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out", "outer.99999.partial"]


HOLD = """
import sys
from pathlib import Path
from heterosis.files import only_process
with only_process(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_by_name_until_the_first_ends(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RecordError, match=rf"in use by process {holder.pid} on "), only_process(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with only_process(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()


def test_a_folder_can_be_held_again(tmp_path: Path) -> None:
    for _ in range(2):
        with only_process(tmp_path):
            assert (tmp_path / "lock").read_text().count("\n") == 1


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n" for before, after in itertools.pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [(BOMB, "unfold to more than 1,000,000 values"), ("a: &a [*a]", "contains itself"), ("a: &a {b: *a}", "itself")],
)
def test_yaml_that_unfolds_without_measure_is_refused(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError, match=message):
        parse_yaml(text)


@pytest.mark.parametrize("text", ["", "a: 1", "- &x {y: [1.5, true, null]}\n- *x", "just text", "a: {b: 2020-01-01}"])
def test_yaml_reads_as_ever(text: str) -> None:
    assert parse_yaml(text) == yaml.safe_load(text)
