"""What the shell offers when Tab is pressed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_study import Finished

from heterosis.cli import completion


def offered(words: str, folder: Path, position: int | None = None) -> list[str]:
    """What bash would be given for the last of these words."""
    script = "import sys; sys.argv = ['heterosis']; from heterosis.cli import main; main()"
    at = len(words.split(" ")) - 1 if position is None else position
    variables = {"_HETEROSIS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stderr == ""
    return answer.stdout.split()


def test_commands_and_options_are_offered(tmp_path: Path) -> None:
    assert offered("heterosis st", tmp_path) == ["status"]
    assert offered("heterosis show runs/x --rec", tmp_path) == ["--recipe"]
    assert offered("heterosis doctor --engine v", tmp_path) == ["vllm"]


@pytest.mark.parametrize("command", ["status", "show", "compare"])
def test_studies_are_offered_by_file_and_by_folder(finished: Finished, command: str) -> None:
    root = finished.study.parent
    assert {"choice.yaml", "runs/", "study.yaml"} <= set(offered(f"heterosis {command} ", root))
    assert offered(f"heterosis {command} runs/", root) == ["runs/tiny"]


def test_labels_of_the_study_are_offered(finished: Finished) -> None:
    root = finished.study.parent
    labels = [label for label in offered("heterosis show runs/tiny c", root) if "~" not in label]
    assert labels == ["c", *(f"c{number}" for number in range(1, 10))]
    assert offered("heterosis compare study.yaml winner task", root) == [
        "task_arithmetic(0.3)",
        "task_arithmetic(0.5)",
        "task_arithmetic(1)",
    ]
    assert "winner" in offered("heterosis show runs/tiny w", root)


def test_a_study_that_is_none_has_only_parts(tmp_path: Path) -> None:
    assert offered("heterosis show nowhere wi", tmp_path) == ["winner"]
    assert offered("heterosis show nowhere c", tmp_path) == []


def test_hidden_files_come_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / ".hidden.yaml").touch()
    (tmp_path / "seen.yaml").touch()
    assert completion.studies(f"{tmp_path}/") == [str(tmp_path / "seen.yaml")]
    assert completion.studies(f"{tmp_path}/.h") == [str(tmp_path / ".hidden.yaml")]
    assert completion.studies(str(tmp_path / "none" / "x")) == []
