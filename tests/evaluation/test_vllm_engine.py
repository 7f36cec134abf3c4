"""What the vLLM engine does without vLLM."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from heterosis.evaluation import vllm_engine


def test_what_an_engine_says_goes_to_its_log_also_under_a_live_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = io.StringIO()
    monkeypatch.setattr(sys, "stdout", view)
    with vllm_engine._output_to(tmp_path / "engine.log"):
        sys.stdout.write("said by its log\n")
        os.write(1, b"said by a process of its own\n")
    sys.stdout.write("said by the program\n")
    assert view.getvalue() == "said by the program\n"
    said = (tmp_path / "engine.log").read_text().splitlines()
    assert sorted(said) == ["said by a process of its own", "said by its log"]
