"""A study that is killed a few times ends with the bits of one that is left alone. The long version is a benchmark."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_killed_study_ends_with_the_bits_of_one_left_alone(engine: str, tmp_path: Path) -> None:
    present = importlib.util.find_spec("vllm") is not None
    if present != (engine == "vllm"):
        pytest.skip("vLLM is not installed" if engine == "vllm" else "vLLM is installed, and takes its place")
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(CHAOS), "--engine", engine, "--kills", "3", "--candidates", "6", "--longest", "35"]
    done = subprocess.run(
        [*command, "--json", str(figures), "--folder", str(tmp_path)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert found["killed"] >= 3
    assert found["differences"] == []
