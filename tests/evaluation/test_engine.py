"""What an engine computes in, and how long its sequences are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from heterosis.evaluation.engine import compute_dtype, context_length


def on_a_cpu_with(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


@pytest.mark.parametrize("merged", ["float32", "float16", "bfloat16"])
def test_a_gpu_computes_in_the_merged_dtype(merged: str) -> None:
    assert compute_dtype(merged, on_cpu=False) == merged


@pytest.mark.parametrize("merged", ["float32", "float16", "bfloat16"])
def test_a_cpu_without_bf16_computes_in_float32(monkeypatch: pytest.MonkeyPatch, merged: str) -> None:
    on_a_cpu_with(monkeypatch, avx2=True, avx512_bf16=False)
    assert compute_dtype(merged, on_cpu=True) == "float32"


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_cpu_with_bf16_uses_it(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    on_a_cpu_with(monkeypatch, **{capability: True})
    assert compute_dtype("bfloat16", on_cpu=True) == "bfloat16"
    assert compute_dtype("float16", on_cpu=True) == "float32"


@pytest.mark.parametrize(
    ("config", "wanted", "length"),
    [
        ({"max_position_embeddings": 64}, None, 64),
        ({"max_position_embeddings": 64}, 32, 32),
        ({"max_position_embeddings": 64}, 128, 64),
        ({"n_positions": 1024}, None, 1024),
        ({"max_seq_len": 512}, None, 512),
        ({}, None, 2048),
    ],
)
def test_the_context_is_the_models_own_or_shorter(config: dict[str, Any], wanted: int | None, length: int) -> None:
    assert context_length(config, wanted) == length
