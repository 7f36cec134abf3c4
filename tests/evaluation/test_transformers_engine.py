"""The plain engine: its answers are those of the model that transformers loads from an export of the same recipe."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PARENTS, FamilyFolder, MakeRecipe, OpenFamily

from heterosis.builder import Builder
from heterosis.errors import CanaryError, CandidateError, EngineError
from heterosis.evaluation import transformers_engine
from heterosis.evaluation.engine import Continuation, Generation, Likelihood, Sources
from heterosis.evaluation.transformers_engine import TransformersEngine
from heterosis.export import export
from heterosis.recipe import Recipe


def sources(folder: Path) -> Sources:
    return Sources(folder / "base", {name: folder / name for name in PARENTS})


def started(folder: Path, **options: Any) -> TransformersEngine:
    return TransformersEngine(sources(folder), "float32", {"device": "cpu", **options})


@pytest.fixture
def engine(tiny_family: FamilyFolder) -> Iterator[TransformersEngine]:
    live = started(tiny_family())
    yield live
    live.close()


def merge_of(engine: TransformersEngine, recipe_for: MakeRecipe, weight: float = 0.4, **rest: Any) -> Recipe:
    numbers = {name: {"weight": weight, "density": 0.6, "drop": 0.2} for name in PARENTS}
    return recipe_for(engine.builder.family, "dare_ties", numbers, **rest)


def parent(engine: TransformersEngine, recipe_for: MakeRecipe, name: str) -> Recipe:
    weights = {other: {"weight": float(other == name)} for other in PARENTS}
    return recipe_for(engine.builder.family, "task_arithmetic", weights)


def requests(seed: int = 0, count: int = 40) -> list[Continuation]:
    rng = random.Random(seed)

    def tokens(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 64) for _ in range(rng.randint(1, most)))

    return [Continuation(tokens(30), tokens(6)) for _ in range(count)]


def by_hand(folder: Path, request: Continuation, dtype: torch.dtype = torch.float32) -> Likelihood:
    """One forward pass of the loaded model over one unpadded row."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        logits = model(torch.tensor([request.context + request.target])).logits[0, :-1].float()
    logprobs = torch.log_softmax(logits, dim=-1)[-len(request.target) :]
    chosen = logprobs[range(len(request.target)), request.target]
    return Likelihood(float(chosen.sum()), logprobs.argmax(-1).tolist() == list(request.target))


@pytest.mark.parametrize("tied", [False, True])
def test_an_applied_recipe_answers_as_its_export(
    tiny_family: FamilyFolder, recipe_for: MakeRecipe, open_tiny: OpenFamily, tmp_path: Path, tied: bool
) -> None:
    live = started(tiny_family(tied=tied))
    recipe = merge_of(live, recipe_for)
    applied = live.apply(recipe)
    assert applied.weights_digest == export(Builder(open_tiny(tied=tied)), recipe, tmp_path / "out")
    assert applied.merge_seconds > 0.0
    asked = requests(count=5)
    for request, answer in zip(asked, live.likelihoods(asked), strict=True):
        assert answer.logprob == pytest.approx(by_hand(tmp_path / "out", request).logprob, abs=1e-4)
    live.close()


def test_a_later_swap_leaves_nothing_of_the_ones_before(engine: TransformersEngine, recipe_for: MakeRecipe) -> None:
    asked, prompts = requests(), [Generation((5, 6, 7), 8, ())]
    recipe = merge_of(engine, recipe_for)
    digest = engine.apply(recipe).weights_digest
    first = (engine.likelihoods(asked), engine.generate(prompts))
    others = [engine.apply(merge_of(engine, recipe_for, i / 10)).weights_digest for i in range(5, 9)]
    assert engine.likelihoods(asked) != first[0]
    assert len({digest, *others}) == 5
    assert engine.apply(recipe).weights_digest == digest
    assert (engine.likelihoods(asked), engine.generate(prompts)) == first


def test_a_parents_recipe_is_that_parent(
    engine: TransformersEngine, recipe_for: MakeRecipe, tiny_family: FamilyFolder
) -> None:
    assert engine.apply(parent(engine, recipe_for, "b")).weights_digest == engine.builder.family.parents["b"].digest
    (request,) = requests(count=1)
    (answer,) = engine.likelihoods([request])
    assert answer.logprob == pytest.approx(by_hand(tiny_family() / "b", request).logprob, abs=1e-5)


def test_answers_do_not_depend_on_the_batch(
    engine: TransformersEngine, recipe_for: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.apply(merge_of(engine, recipe_for))
    asked = requests()
    together = engine.likelihoods(asked)
    monkeypatch.setattr(transformers_engine, "BATCH_TOKENS", 1)
    alone = engine.likelihoods(asked)
    assert [a.logprob for a in together] == pytest.approx([a.logprob for a in alone], abs=1e-4)
    assert [a.greedy for a in together] == [a.greedy for a in alone]


def test_answers_keep_the_order_of_the_requests(engine: TransformersEngine, recipe_for: MakeRecipe) -> None:
    engine.apply(merge_of(engine, recipe_for))
    asked = requests()
    forth, back = engine.likelihoods(asked), engine.likelihoods(asked[::-1])
    assert [a.logprob for a in forth] == pytest.approx([a.logprob for a in back[::-1]], abs=1e-5)


def test_a_greedy_continuation_is_known_as_such(engine: TransformersEngine, recipe_for: MakeRecipe) -> None:
    engine.apply(merge_of(engine, recipe_for))
    (said,) = engine.generate([Generation((5, 6, 7), 4, ())])
    tokens = tuple(int(word[1:]) for word in said.split())
    other = (*tokens[:3], 3 + (tokens[3] - 2) % 61)
    yes, no = engine.likelihoods([Continuation((5, 6, 7), tokens), Continuation((5, 6, 7), other)])
    assert yes.greedy
    assert not no.greedy
    assert yes.logprob > no.logprob


def test_choices_of_one_token_share_a_forward_pass(engine: TransformersEngine) -> None:
    rows = 0

    def count(_: Any, arguments: tuple[Any, ...]) -> None:
        nonlocal rows
        rows += len(arguments[0])

    hook = engine.model.register_forward_pre_hook(count)
    engine.likelihoods([Continuation((5, 6), (i,)) for i in range(3, 20)] + [Continuation((5,), (6, 7))])
    hook.remove()
    assert rows == 1


def test_probabilities_of_all_tokens_sum_to_one(engine: TransformersEngine) -> None:
    answers = engine.likelihoods([Continuation((5, 6), (i,)) for i in range(64)])
    assert math.fsum(math.exp(answer.logprob) for answer in answers) == pytest.approx(1.0, abs=1e-5)


def test_generation_is_transformers_own_greedy_generation(
    engine: TransformersEngine, recipe_for: MakeRecipe, tiny_family: FamilyFolder
) -> None:
    from transformers import AutoModelForCausalLM

    engine.apply(parent(engine, recipe_for, "a"))
    model = AutoModelForCausalLM.from_pretrained(tiny_family() / "a", dtype=torch.float32)
    for prompt in ((5,), (7, 8, 9), (10, 11)):
        row = torch.tensor([prompt])
        made = model.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=8, do_sample=False, pad_token_id=1
        )
        expected = engine.tokenizer.decode(made[0, len(prompt) :])
        assert engine.generate([Generation(prompt, 8, ())]) == [expected]


def test_generation_ends_before_a_stop_string(engine: TransformersEngine) -> None:
    (whole,) = engine.generate([Generation((5, 6, 7), 6, ())])
    third = whole.split()[2]
    (cut,) = engine.generate([Generation((5, 6, 7), 6, ("never", third))])
    assert cut == whole[: whole.index(third)]


def test_sampling_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(EngineError, match=r"Set engine\.kind: vllm"):
        engine.generate([Generation((5,), 2, (), temperature=0.7)])


def test_a_float32_engine_holds_the_weights_rounded_to_bf16(
    tiny_family: FamilyFolder, recipe_for: MakeRecipe, open_tiny: OpenFamily, tmp_path: Path
) -> None:
    live = started(tiny_family("bfloat16"))
    recipe = merge_of(live, recipe_for, dtype="bfloat16")
    assert live.describe()["dtype"] == "float32"
    assert live.apply(recipe).weights_digest == export(Builder(open_tiny("bfloat16")), recipe, tmp_path / "out")
    (request,) = requests(count=1)
    (answer,) = live.likelihoods([request])
    assert answer.logprob == pytest.approx(by_hand(tmp_path / "out", request).logprob, abs=1e-4)
    live.close()


def test_a_merge_that_overflows_fails_and_the_next_is_sound(engine: TransformersEngine, recipe_for: MakeRecipe) -> None:
    asked = requests(count=4)
    recipe = merge_of(engine, recipe_for)
    engine.apply(recipe)
    sound = engine.likelihoods(asked)
    with pytest.raises(CandidateError, match="NaN or Inf"):
        engine.apply(merge_of(engine, recipe_for, 1e39))
    engine.apply(recipe)
    assert engine.likelihoods(asked) == sound


def test_live_weights_that_are_not_the_merged_ones_are_noticed(
    engine: TransformersEngine, recipe_for: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = engine.model.state_dict
    monkeypatch.setattr(engine.model, "state_dict", lambda: {name: t.clone() for name, t in state().items()})
    with pytest.raises(CanaryError, match="not the merged ones"):
        engine.apply(merge_of(engine, recipe_for))


def test_an_architecture_whose_tensors_transformers_renames_is_refused(
    tiny_family: FamilyFolder, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "family"
    for name in ("base", *PARENTS):
        shutil.copytree(tiny_family() / name, folder / name)
        weights = load_file(folder / name / "model.safetensors")
        weights["model.other.weight"] = torch.ones(3) * len(name)
        save_file(weights, folder / name / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineError, match=r"model\.other\.weight"):
        started(folder)


def test_the_context_is_the_models_or_shorter(tiny_family: FamilyFolder) -> None:
    live = started(tiny_family(), max_model_len=20)
    assert live.max_length == 20
    live.close()


def test_an_engine_describes_itself(engine: TransformersEngine) -> None:
    import transformers

    expected = {"engine": "transformers", "version": transformers.__version__, "device": "cpu", "dtype": "float32"}
    assert engine.describe() == expected
