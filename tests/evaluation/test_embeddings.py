"""Hidden states of merges: of each text by itself, and of the model that was merged last."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from heterosis.builder import Builder
from heterosis.checkpoints import Family
from heterosis.errors import EngineError
from heterosis.evaluation.embeddings import Embedder, cosines

FamilyFolder = Callable[..., Path]
TEXTS = [(3, 4, 5), (6,), (7, 8, 9, 10, 11), (4, 3)]


@pytest.fixture
def embedder(tiny_family: FamilyFolder, open_tiny: Callable[..., Family]) -> Embedder:
    return Embedder(tiny_family() / "base", open_tiny().names)


def test_a_text_has_the_states_that_it_has_alone(embedder: Embedder) -> None:
    together = embedder.states(TEXTS)
    for text, states in zip(TEXTS, together, strict=True):
        assert states.shape == (embedder.layers, len(text), 32)
        torch.testing.assert_close(states, embedder.states([text])[0], atol=1e-5, rtol=1e-4)


def test_a_merge_has_the_states_of_the_model_that_it_equals(
    embedder: Embedder, tiny_family: FamilyFolder, open_tiny: Callable[..., Family], recipe_for: Callable[..., Any]
) -> None:
    from transformers import AutoModelForCausalLM

    family = open_tiny()
    embedder.become(Builder(family).tensors(recipe_for(family, "task_arithmetic", {"b": {"weight": 1.0}})))
    model = AutoModelForCausalLM.from_pretrained(tiny_family() / "b", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = torch.stack(model(torch.tensor([TEXTS[2]]), output_hidden_states=True).hidden_states)[:, 0]
    torch.testing.assert_close(embedder.states(TEXTS)[2], expected, atol=1e-5, rtol=1e-4)


def test_cosines_are_means_over_tokens_layer_by_layer() -> None:
    ours = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [3.0, 0.0]]])
    theirs = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [-1.0, 0.0]]])
    assert cosines(ours, theirs) == pytest.approx([1.0, (math.sqrt(0.5) - 1.0) / 2.0])


def test_a_tensor_that_transformers_does_not_know_is_named(tiny_family: FamilyFolder) -> None:
    with pytest.raises(EngineError, match=r"transformers renames model\.odd\.weight"):
        Embedder(tiny_family() / "base", ["model.odd.weight"])
