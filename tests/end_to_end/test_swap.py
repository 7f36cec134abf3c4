"""A swapped engine is a fresh one: the same tokens and log-probabilities as vLLM started on the exported folder."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from heterosis.builder import Builder
from heterosis.checkpoints import DEFAULT_GROUPS, Checkpoint, open_family
from heterosis.errors import CanaryError, CandidateError
from heterosis.evaluation.engine import Continuation, Generation, Probe, Sources
from heterosis.evaluation.vllm_engine import VllmEngine
from heterosis.export import export
from heterosis.recipe import Parameters, Recipe, Source

pytestmark = [
    pytest.mark.usefixtures("needs_vllm"),
    # vLLM and what it imports warn of their own deprecations.
    pytest.mark.filterwarnings("ignore"),
]

SWAPS = 50
PROMPTS = ("sort kqzpa=", "add 47+85=", "rare abdcabcab=", "add 10+11=", "sort zyxwv=")


def sources(root: Path) -> Sources:
    return Sources(root / "base", {path.name: path for path in sorted(root.iterdir()) if _is_parent(path)})


def _is_parent(path: Path) -> bool:
    return (path / "config.json").is_file() and path.name != "base"


def recipes(root: Path) -> list[Recipe]:
    """SWAPS different merges, each of which moves embeddings, layers and head."""
    found = sources(root)
    digests = {name: Checkpoint(path).digest for name, path in {"base": found.base, **found.parents}.items()}

    def source(name: str) -> Source:
        return Source(name=name, model=str(root / name), digest=digests[name])

    def recipe(i: int) -> Recipe:
        weights = [0.3 + 0.02 * ((i + 3 * k) % 40) for k in range(len(found.parents))]
        return Recipe(
            method="dare_ties",
            base=source("base"),
            parents=tuple(map(source, found.parents)),
            groups=dict(DEFAULT_GROUPS),
            parameters={
                name: {group: Parameters(weight=weight, density=0.8, drop=0.1) for group in DEFAULT_GROUPS}
                for name, weight in zip(found.parents, weights, strict=True)
            },
            seed=i,
        )

    return [recipe(i) for i in range(SWAPS)]


def tokens(engine: VllmEngine, texts: Sequence[str]) -> list[tuple[int, ...]]:
    tokenizer = engine._llm.get_tokenizer()
    return [tuple(tokenizer.encode(text)) for text in texts]


def answers(engine: VllmEngine) -> tuple[list[str], list[float]]:
    """Greedy texts, and log-probabilities by both routes: chains of next tokens and prompt log-probabilities."""
    prompts = tokens(engine, PROMPTS)
    texts = engine.generate([Generation(prompt, 12, ("\n",)) for prompt in prompts])
    short = [Continuation(prompt, (prompt[-1], prompt[1])) for prompt in prompts]
    long = [Continuation(prompt[:1], (prompt[1:] * 2)[:20]) for prompt in prompts]
    return texts, [found.logprob for found in engine.likelihoods([*short, *long])]


def start(found: Sources) -> VllmEngine:
    probes = [Probe((1, *(20 + i, 30, 40 - i) * 14), (25, 60)) for i in range(4)]  # longer than a block of the cache
    return VllmEngine(found, "float32", probes, {"max_model_len": 64, "block_size": 32}, seed=0)


def stop(engine: VllmEngine) -> None:
    engine.close()
    del engine
    gc.collect()


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_a_swapped_engine_equals_a_fresh_one(kind: str, demo_family: Path, untied_family: Path, tmp_path: Path) -> None:
    root = demo_family if kind == "tied" else untied_family
    merges = recipes(root)
    engine = start(sources(root))
    try:
        first_applied = engine.apply(merges[0])
        first = answers(engine)
        for recipe in merges[1:]:
            last_applied = engine.apply(recipe)
        last = answers(engine)
        assert engine.apply(merges[0]).weights_digest == first_applied.weights_digest
        assert answers(engine) == first, "the same recipe after fifty swaps"
    finally:
        stop(engine)
    assert first != last
    for recipe, applied, swapped in ((merges[0], first_applied, first), (merges[-1], last_applied, last)):
        folder = tmp_path / recipe.digest[:8]
        builder = Builder(open_family(*sources(root)), compiled=False)
        assert export(builder, recipe, folder) == applied.weights_digest
        fresh = start(Sources(folder, sources(root).parents))
        try:
            texts, logprobs = answers(fresh)
        finally:
            stop(fresh)
        assert texts == swapped[0]
        assert logprobs == pytest.approx(swapped[1], abs=1e-5)


def test_what_goes_wrong_in_a_swap_is_noticed(demo_family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault rejects the candidate, and the next good one is scored as if nothing had happened."""
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # lets the test send functions into the worker
    merges = recipes(demo_family)
    engine = start(sources(demo_family))
    try:
        engine.apply(merges[0])
        good = answers(engine)
        with monkeypatch.context() as patch:
            patch.setattr(engine._llm, "reset_prefix_cache", lambda: False)
            with pytest.raises(CanaryError, match="could not be cleared"):
                engine.apply(merges[5])
            patch.setattr(engine._llm, "reset_prefix_cache", lambda: True)  # claims to have cleared the cache
            with pytest.raises(CanaryError, match=r"cached prefixes|did not take"):
                engine.apply(merges[7])
        engine._llm.collective_rpc(_freeze_head)
        with pytest.raises(CanaryError, match="did not take"):
            engine.apply(merges[49])
        engine._llm.collective_rpc(_lose_a_tensor)
        with pytest.raises(CandidateError, match=r"never taken|did not load|did not take"):
            engine.apply(merges[11])
        engine._llm.collective_rpc(_mend)
        engine.apply(merges[0])
        assert answers(engine) == good
    finally:
        stop(engine)


def _freeze_head(worker: Any) -> None:
    """The tied head keeps the embedding of the merge before, as a packed copy that nobody refreshes would."""
    import torch

    from heterosis.evaluation import vllm_worker

    head = worker.model_runner.get_model().lm_head
    weight = head.weight.detach().clone()
    worker.kept = (vllm_worker._refresh_tied_head, vllm_worker.Observed)
    vllm_worker._refresh_tied_head = lambda model: None
    head.cpu_linear = lambda x, _weight, bias: torch.nn.functional.linear(x, weight, bias)


def _lose_a_tensor(worker: Any) -> None:
    """One tensor never reaches the engine."""
    from heterosis.evaluation import vllm_worker

    vllm_worker._refresh_tied_head, whole = worker.kept

    class Lossy(whole):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Any:
            return (pair for pair in super().__iter__() if "layers.1.mlp.down_proj" not in pair[0])

    vllm_worker.Observed = Lossy  # type: ignore[misc]


def _mend(worker: Any) -> None:
    from heterosis.evaluation import vllm_worker

    vllm_worker._refresh_tied_head, vllm_worker.Observed = worker.kept  # type: ignore[misc]
