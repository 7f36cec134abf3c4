"""What is scored is what will be exported: faults injected into a real vLLM, and what a full disk does to a study."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from faulty_worker import FAULTS
from test_swap import recipes, sources, start

from heterosis.errors import CanaryError, CandidateError
from heterosis.evaluation.engine import Applied, Sources
from heterosis.evaluation.panel import Score
from heterosis.evaluation.vllm_engine import VllmEngine
from heterosis.recipe import Recipe
from heterosis.scoring import EngineScorer

pytestmark = [
    pytest.mark.usefixtures("needs_vllm"),
    # vLLM and what it imports warn of their own deprecations.
    pytest.mark.filterwarnings("ignore"),
]


class Bench(NamedTuple):
    """An engine whose worker can be made faulty, and candidates for it."""

    engine: VllmEngine
    recipes: list[Recipe]

    def fault(self, name: str) -> None:
        self.engine._llm.collective_rpc("heterosis_fault", args=(name,))

    def apply(self, recipes: list[Recipe]) -> None:
        for recipe in recipes:
            self.engine.apply(recipe)


@pytest.fixture(scope="module")
def bench(demo_family: Path) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the worker's process finds the class
        patch.setattr("heterosis.evaluation.vllm_engine.WORKER", "faulty_worker.FaultyWorker")
        engine = start(Sources(*sources(demo_family)))
    yield Bench(engine, recipes(demo_family))
    engine.close()
    del engine
    gc.collect()


def test_the_live_weights_of_this_model_can_be_summed_up(bench: Bench) -> None:
    assert bench.engine.describe()["live_weights_compared"] is True


@pytest.mark.parametrize("fault", [name for name in FAULTS if name])
def test_a_faulty_swap_is_noticed_and_the_next_candidate_is_sound(fault: str, bench: Bench) -> None:
    before = bench.engine.apply(bench.recipes[0])
    bench.fault(fault)
    try:
        with pytest.raises(CandidateError) as refused:
            bench.apply(bench.recipes[1:3])  # faults that keep something from the candidate before show at the second
    finally:
        bench.fault("")
    assert ("NaN" if fault.startswith("NaN") else "canary") in str(refused.value)
    assert bench.engine.apply(bench.recipes[0]).weights_digest == before.weights_digest


def test_a_cache_that_was_not_cleared_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.engine.apply(bench.recipes[0])
    monkeypatch.setattr(bench.engine._llm, "reset_prefix_cache", lambda: True)
    with pytest.raises(CanaryError, match="cached prefixes"):
        bench.engine.apply(bench.recipes[0])


class Split:
    """Scoring that must not happen."""

    size = 1

    def score(self, _: object, samples: bool = False) -> Score:
        raise AssertionError("a rejected candidate was scored")


class Stubborn:
    """An engine that is as faulty after a restart."""

    max_length = 64

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.restarts: list[str] = []

    def restart(self, reason: str) -> None:
        self.restarts.append(reason)

    def apply(self, recipe: Recipe) -> Applied:
        return self.engine.apply(recipe)


def test_a_rejected_candidate_is_tried_again_and_then_failed_but_never_scored(bench: Bench) -> None:
    engine = Stubborn(bench.engine)
    scorer = EngineScorer(engine, Split(), [], retries=2)  # type: ignore[arg-type]
    bench.fault("masks with another seed")
    try:
        found = scorer.measure(bench.recipes[4])
    finally:
        bench.fault("")
    assert len(engine.restarts) == 3
    assert (found.scores, found.outcomes, found.weights_digest) == ({}, {}, None)
    assert found.error is not None
    assert "is not what the recipe gives" in found.error
