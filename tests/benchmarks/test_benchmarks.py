"""That the benchmarks run and write what they promise. Never how fast: the machine may be busy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def figures_of(name: str, out: Path, *options: str) -> tuple[dict[str, Any], str]:
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--json", out, *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_merge_speed_writes_its_figures_with_what_they_belong_to(tmp_path: Path) -> None:
    options = ("--quick", "--no-mergekit", "--folder", str(tmp_path), "--threads", "1")
    figures, printed = figures_of("merge_speed", tmp_path / "speed.json", *options)
    assert {"machine", "model", "compile", "mergekit", "families", "disk"} <= set(figures)
    assert figures["mergekit"] is None
    assert {"cpu", "threads", "torch", "heterosis"} <= set(figures["machine"])
    assert [family["parents"] for family in figures["families"]] == [2, 3]
    for family in figures["families"]:
        assert {"linear", "task_arithmetic", "ties", "dare_ties", "della", "breadcrumbs"} <= set(family["methods"])
        for label, row in family["methods"].items():
            assert {"ns_per_delta_element", "index_s", "fraction_of_copy", "copy_gb_per_s"} <= set(row)
            assert label in printed
    assert {"heterosis_s", "cp_s"} == set(figures["disk"]["methods"]["dare_ties"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_its_benchmark_says_so(tmp_path: Path) -> None:
    figures, printed = figures_of("merge_speed_gpu", tmp_path / "gpu.json")
    assert figures["gpu"] is None
    assert "no GPU" in printed
