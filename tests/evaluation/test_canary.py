"""The canary: agrees with the right weights and cries at the wrong ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import FamilyFolder
from safetensors.torch import load_file
from torch import Tensor

from heterosis.errors import CanaryError
from heterosis.evaluation.canary import Reference, compare, pick_probes
from heterosis.evaluation.engine import Continuation, Probe

PROBES = [Probe((3, 4, 5), (6, 7)), Probe((8,), (9,)), Probe((10, 11, 12, 13), (14,))]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_probes_are_distinct_short_and_spread_over_the_requests() -> None:
    requests = [Continuation(tuple(range(i, i + 100)), (5, 6)) for i in range(60)]
    probes = pick_probes(requests + requests, count=6, length=48)
    assert [probe.prompt[0] - 52 for probe in probes] == [0, 10, 20, 30, 40, 50]
    assert all(len(probe.prompt) == 48 and probe.targets == (5,) for probe in probes)


@pytest.mark.parametrize("count", [1, 5, 7])
def test_few_requests_give_few_probes(count: int) -> None:
    assert len(pick_probes([Continuation((i,), (i,)) for i in range(count)])) == min(count, 6)


@pytest.mark.parametrize("tied", [False, True])
def test_the_reference_answers_as_the_loaded_model(tiny_family: FamilyFolder, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_family(tied=tied)
    answers = Reference(folder / "base").answer(weights(folder / "a"), PROBES)
    model = AutoModelForCausalLM.from_pretrained(folder / "a", dtype=torch.float32)
    for probe, answer in zip(PROBES, answers, strict=True):
        with torch.inference_mode():
            expected = torch.log_softmax(model(torch.tensor([probe.prompt])).logits[0, -1], dim=-1)
        assert answer == pytest.approx(expected[list(probe.targets)].tolist(), abs=1e-6)


def test_the_references_own_weights_play_no_part(tiny_family: FamilyFolder) -> None:
    state = weights(tiny_family() / "a")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = Reference(tiny_family() / "base").answer(state, PROBES)
        torch.manual_seed(2)
        assert Reference(tiny_family() / "base").answer(state, PROBES) == one


def test_making_a_reference_leaves_the_global_generator_alone(tiny_family: FamilyFolder) -> None:
    before = torch.get_rng_state()
    Reference(tiny_family() / "base")
    assert torch.equal(torch.get_rng_state(), before)


EXPECTED = [[-1.0, -20.0], [-3.0]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_equal_answers_pass(dtype: str) -> None:
    compare(EXPECTED, EXPECTED, dtype)


def test_what_rounding_explains_depends_on_the_dtype() -> None:
    rounded = [[-1.03, -20.4], [-2.98]]
    compare(rounded, EXPECTED, "bfloat16")
    with pytest.raises(CanaryError):
        compare(rounded, EXPECTED, "float16")
    compare([[-1.0001, -20.001], [-3.0002]], EXPECTED, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("live", [[[-2.0, -21.5], [-4.0]], [[math.nan, -20.0], [-3.0]], [[-math.inf, -20.0], [-3.0]]])
def test_other_answers_and_nan_raise(live: list[list[float]], dtype: str) -> None:
    with pytest.raises(CanaryError, match="The swap did not take"):
        compare(live, EXPECTED, dtype)
