"""The panel: splits that share no item, and scores that are those of lm-eval."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PARENTS, FamilyFolder, MakeRecipe
from small_tasks import choice_docs, load_all, load_one, words, write_task

from heterosis.builder import Builder
from heterosis.errors import CandidateError, TaskError
from heterosis.evaluation.engine import Continuation, Generation, Likelihood, Sources
from heterosis.evaluation.panel import SPLITS, Outcomes, Panel, SplitName, TaskOutcomes, deal, fill
from heterosis.evaluation.samples import Sample
from heterosis.evaluation.tasks import Item, PanelTask, TaskChoice, read_task_file
from heterosis.evaluation.transformers_engine import TransformersEngine
from heterosis.export import export

THIRDS: dict[SplitName, float] = {"search": 0.4, "selection": 0.3, "test": 0.3}

FEWSHOT_CHOICE = {"num_fewshot": 2, "training_split": "train", "fewshot_split": "train"}
CONTINUE = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{target}}",
    "target_delimiter": " ",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
    ],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
    ],
}
GENERATE = {
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{target}}",
    "generation_kwargs": {"until": ["w7"], "max_gen_toks": 6, "do_sample": False},
    "filter_list": [
        {
            "name": "second-word",
            "filter": [
                {"function": "regex", "regex_pattern": r"w\d+ (w\d+)"},
                {"function": "take_first"},
            ],
        },
        {"name": "whole", "filter": [{"function": "take_first"}]},
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def choice_task(folder: Path, model: Path, docs: list[dict[str, Any]], **choice: Any) -> PanelTask:
    folder.mkdir(exist_ok=True)
    return load_one(folder, TaskChoice(write_task(folder, "choice", docs), **choice), model)


def dealt(task: PanelTask, sizes: dict[SplitName, float], seed: int = 0) -> dict[SplitName, list[Item]]:
    return deal([task], sizes, seed)[task.name]


def keys(hands: dict[SplitName, list[Item]]) -> dict[str, set[str]]:
    return {split: {item.key for item in items} for split, items in hands.items()}


@pytest.fixture(scope="module")
def base(tiny_family: FamilyFolder) -> Path:
    return tiny_family() / "base"


@pytest.fixture(scope="module")
def fifty(base: Path, tmp_path_factory: pytest.TempPathFactory) -> PanelTask:
    """A task of fifty distinct items."""
    return choice_task(tmp_path_factory.mktemp("fifty"), base, choice_docs(50))


def test_splits_are_disjoint_and_fractions_cover_all_items(fifty: PanelTask) -> None:
    hands = dealt(fifty, THIRDS)
    assert [len(hands[split]) for split in SPLITS] == [20, 15, 15]
    found = keys(hands)
    assert len(found["search"] | found["selection"] | found["test"]) == 50


def test_counts_deal_so_many_items(fifty: PanelTask) -> None:
    hands = dealt(fifty, {"search": 7, "selection": 11, "test": 0.2})
    assert [len(hands[split]) for split in SPLITS] == [7, 11, 10]
    assert [item.doc_id for item in hands["search"]] == sorted(item.doc_id for item in hands["search"])


def test_a_seed_decides_the_deal(fifty: PanelTask) -> None:
    assert dealt(fifty, THIRDS, seed=3) == dealt(fifty, THIRDS, seed=3)
    assert keys(dealt(fifty, THIRDS, seed=3)) != keys(dealt(fifty, THIRDS, seed=4))


def test_the_deal_does_not_depend_on_the_order_in_the_file(base: Path, tmp_path: Path) -> None:
    docs = choice_docs(30)
    moved = random.Random(5).sample(docs, len(docs))
    one = choice_task(tmp_path / "one", base, docs)
    other = choice_task(tmp_path / "other", base, moved)
    assert keys(dealt(one, THIRDS)) == keys(dealt(other, THIRDS))


def test_duplicates_stay_together(base: Path, tmp_path: Path) -> None:
    docs = choice_docs(12)
    task = choice_task(tmp_path, base, docs + docs[::2] + docs[::3])
    hands = dealt(task, THIRDS)
    found = keys(hands)
    assert [len(found[split]) for split in SPLITS] == [5, 4, 3]
    assert not found["search"] & found["selection"]
    assert not found["search"] & found["test"]
    assert not found["selection"] & found["test"]
    assert sum(len(items) for items in hands.values()) == len(task.items) == 22


def test_a_document_that_two_tasks_share_lies_in_one_split(base: Path, tmp_path: Path) -> None:
    docs = choice_docs(24)
    write_task(tmp_path, "one", docs[:16])
    write_task(tmp_path, "other", docs[8:], doc_to_text="{{prompt}} w3")
    hands = deal(load_all(tmp_path, ["one.yaml", "other.yaml"], base), THIRDS, 0)
    of_one, of_other = keys(hands["one"]), keys(hands["other"])
    for split in SPLITS:
        for elsewhere in set(SPLITS) - {split}:
            assert not of_one[split] & of_other[elsewhere]
    assert sum(len(of_one[split] & of_other[split]) for split in SPLITS) >= 7


def test_items_that_ask_the_same_prompt_lie_in_one_split(base: Path, tmp_path: Path) -> None:
    docs = choice_docs(12)
    twins = [doc | {"note": "another document, the same question"} for doc in docs]
    task = choice_task(tmp_path, base, docs + twins)
    hands = dealt(task, THIRDS)
    prompts = {split: {item.prompt_hash for item in items} for split, items in hands.items()}
    assert [len(items) for items in hands.values()] == [2 * len(prompts[split]) for split in SPLITS]
    assert not prompts["search"] & prompts["selection"]
    assert not (prompts["search"] | prompts["selection"]) & prompts["test"]


def passages(count: int, questions: int, seed: int = 0) -> list[dict[str, Any]]:
    """Documents that ask several questions of each passage."""
    rng = random.Random(seed)
    docs = choice_docs(count * questions, seed)
    told = [words(40, rng) for _ in range(count)]
    return [doc | {"passage": told[number // questions], "id": number // questions} for number, doc in enumerate(docs)]


@pytest.mark.parametrize("choice", [{}, {"cluster": "id"}, {"cluster": "passage"}])
def test_questions_on_one_passage_stay_together(base: Path, tmp_path: Path, choice: dict[str, Any]) -> None:
    docs = passages(20, 3)
    for doc in docs:
        doc |= {"passage": docs[0]["passage"]} if choice == {"cluster": "id"} else {}
    split = Panel([choice_task(tmp_path, base, docs, **choice)], THIRDS).splits
    assert [split[name].size for name in SPLITS] == [24, 18, 18]
    for name in SPLITS:
        asked = [docs[item.doc_id]["id"] for item in split[name].items["choice"]]
        numbers = split[name].clusters["choice"].tolist()
        assert (
            len(set(asked)) == len(set(numbers)) == len(set(zip(asked, numbers, strict=True))) == split[name].size / 3
        )


def test_a_text_that_all_documents_hold_makes_no_cluster(base: Path, tmp_path: Path) -> None:
    docs = [doc | {"instruction": words(50, random.Random(1))} for doc in choice_docs(30)]
    split = Panel([choice_task(tmp_path, base, docs)], THIRDS).splits["search"]
    assert split.clusters["choice"].tolist() == list(range(12))


def test_a_passage_that_two_tasks_ask_about_lies_in_one_split(base: Path, tmp_path: Path) -> None:
    write_task(tmp_path, "one", passages(20, 2))
    write_task(tmp_path, "other", [doc | {"prompt": doc["prompt"] + " w3"} for doc in passages(20, 2)])
    splits = Panel(load_all(tmp_path, ["one.yaml", "other.yaml"], base), THIRDS).splits
    for name in SPLITS:
        of_one, of_other = ({item.doc_id for item in splits[name].items[task]} for task in ("one", "other"))
        assert of_one == of_other


def test_the_values_of_a_field_mean_something_within_their_task_only(base: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "other")):
        write_task(tmp_path, name, [doc | {"id": row // 2} for row, doc in enumerate(choice_docs(40, seed))])
    choices = [TaskChoice(f"{name}.yaml", cluster="id") for name in ("one", "other")]
    one, other = load_all(tmp_path, choices, base)
    assert not {link for item in one.items for link in item.shared} & {link for i in other.items for link in i.shared}


def test_a_field_that_no_document_has_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"choice: cluster: no document has 'article'. Name one of .*: choices, gold"):
        choice_task(tmp_path, base, choice_docs(5), cluster="article")


def test_a_limit_counts_passages(base: Path, tmp_path: Path) -> None:
    hands = dealt(choice_task(tmp_path, base, passages(20, 3), limit=10), THIRDS)
    assert [len(hands[split]) for split in SPLITS] == [12, 9, 9]


def test_a_limit_keeps_so_many_distinct_items(base: Path, tmp_path: Path) -> None:
    docs = choice_docs(30)
    hands = dealt(choice_task(tmp_path / "few", base, docs, limit=10), THIRDS)
    assert [len(hands[split]) for split in SPLITS] == [4, 3, 3]


def test_too_few_items_for_the_splits_are_refused(fifty: PanelTask) -> None:
    with pytest.raises(TaskError, match=r"50 distinct items are too few for splits search 40, selection 20, test 1"):
        dealt(fifty, {"search": 40, "selection": 20, "test": 1})


def test_the_manifest_pins_every_item_once(fifty: PanelTask) -> None:
    panel = Panel([fifty], THIRDS)
    listed = [tuple(item) for split in SPLITS for item in panel.manifest()["splits"][split]["choice"]]
    assert sorted(doc_id for doc_id, _, _ in listed) == list(range(50))
    assert panel.digest == Panel([fifty], THIRDS).digest
    assert panel.digest != Panel([fifty], THIRDS, seed=1).digest


def test_probes_come_from_the_search_split(fifty: PanelTask) -> None:
    panel = Panel([fifty], THIRDS)
    asked = {
        (request.context, request.target[:1])
        for item in panel.splits["search"].items["choice"]
        for request in item.requests
        if isinstance(request, Continuation)
    }
    probes = panel.probes()
    assert 1 <= len(probes) <= 6
    assert {tuple(probe) for probe in probes} <= asked


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [3.0, 0.1 + 0.2, 7.0]])
def test_outcomes_come_back_from_json_bit_for_bit(weights: list[float]) -> None:
    before = TaskOutcomes(np.array([1.0, 1 / 3, -1e300]), np.array(weights))
    after = TaskOutcomes.from_json(before.to_json())
    assert after.values.tobytes() == before.values.tobytes()
    assert after.weights.tobytes() == before.weights.tobytes()


class Constant:
    """An engine that gives every continuation the same log-probability, and counts what it is asked."""

    max_length = 64

    def __init__(self, logprob: float = -1.0) -> None:
        self.logprob = logprob
        self.asked: list[Continuation] = []

    def likelihoods(self, requests: list[Continuation]) -> list[Likelihood]:
        self.asked += requests
        return [Likelihood(self.logprob, False) for _ in requests]

    def generate(self, requests: list[Generation]) -> list[str]:
        return ["" for _ in requests]


def test_equal_requests_are_asked_once(base: Path, tmp_path: Path) -> None:
    docs = choice_docs(12)
    panel = Panel([choice_task(tmp_path, base, docs + docs)], THIRDS)
    engine = Constant()
    split = panel.splits["search"]
    outcomes = split.score(engine).outcomes  # type: ignore[arg-type]
    assert split.size == 2 * len(engine.asked) // 3
    assert len(outcomes["choice"].values) == split.size


def test_log_probabilities_that_are_nan_fail_the_candidate(fifty: PanelTask) -> None:
    with pytest.raises(CandidateError, match="not finite"):
        Panel([fifty], THIRDS).splits["search"].score(Constant(math.nan))  # type: ignore[arg-type]


def test_rungs_ask_an_engine_what_the_whole_split_asks(fifty: PanelTask) -> None:
    split = Panel([fifty], {"search": 40, "selection": 5, "test": 5}).splits["search"]
    at_once, in_parts = Constant(), Constant()
    whole = split.score(at_once).outcomes  # type: ignore[arg-type]
    found: Outcomes | None = None
    for rung in split.rungs((0.125, 0.25, 0.5, 1.0), 4):
        found = fill(found, rung, rung.split.score(in_parts).outcomes, split)  # type: ignore[arg-type]
    assert found is not None
    assert found["choice"].values.tobytes() == whole["choice"].values.tobytes()
    assert sorted(in_parts.asked) == sorted(at_once.asked)


# Parity with lm-eval: the same exported model, the same items, once through each program.

CASES = {
    "choice": ["acc", "acc_norm"],
    "few_shot": ["acc", "acc_norm"],
    "continue": ["acc", "perplexity"],
    "rolling": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
    "generate": ["exact_match"],
}
# lm-eval's vLLM model leaves two tokens of the context free when it cuts a long text into windows, its Hugging Face
# model none. The panel follows the vLLM rule, so the Hugging Face model is told of two tokens fewer.
CONTEXT = {"rolling": 62}


@pytest.fixture(scope="module")
def merged(
    tiny_family: FamilyFolder, recipe_for: MakeRecipe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TransformersEngine, Path]]:
    """An engine turned into a merge, and the same merge as a folder."""
    from heterosis.checkpoints import open_family

    root = tiny_family()
    parents = {name: root / name for name in PARENTS}
    family = open_family(root / "base", parents)
    parameters = {name: {"weight": 2.5, "density": 0.5, "drop": 0.3} for name in PARENTS}
    recipe = recipe_for(family, "dare_ties", parameters)
    folder = tmp_path_factory.mktemp("export") / "merged"
    export(Builder(family), recipe, folder)
    engine = TransformersEngine(Sources(root / "base", parents), "float32", {"device": "cpu"})
    engine.apply(recipe)
    yield engine, folder
    engine.close()
    family.close()


@pytest.fixture(scope="module")
def task_folder(merged: tuple[TransformersEngine, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of all output types; half of the texts to be generated or to be likely are what the model says itself."""
    engine, _ = merged
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(1)
    write_task(folder, "choice", choice_docs(12))
    write_task(folder, "few_shot", choice_docs(12, seed=2), train=choice_docs(9, seed=3), **FEWSHOT_CHOICE)
    prompts = [words(5, rng) for _ in range(12)]
    said = engine.generate([Generation(engine_tokens(prompt), 6, ()) for prompt in prompts])
    pairs = list(enumerate(zip(prompts, said, strict=True)))
    likely = [{"prompt": p, "target": " ".join(s.split()[:2]) if i % 2 else words(2, rng)} for i, (p, s) in pairs]
    write_task(folder, "continue", likely, CONTINUE)
    answers = [{"prompt": p, "target": s.split()[1] if i % 2 else "w0"} for i, (p, s) in pairs]
    write_task(folder, "generate", answers, GENERATE)
    lengths = (1, 2, 30, 61, 62, 63, 64, 90, 124, 125, 150, 200)
    write_task(folder, "rolling", [{"text": words(n, rng)} for n in lengths], ROLLING)
    return folder


def engine_tokens(prompt: str) -> tuple[int, ...]:
    return tuple(int(word[1:]) for word in prompt.split())


def by_lm_eval(name: str, folder: Path, model: Path) -> dict[str, Any]:
    """What lm-eval says of an exported model: aggregates and samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lm-eval's and its dependencies' own deprecations
        from lm_eval import simple_evaluate
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        lm = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=4, max_length=CONTEXT.get(name, 64))
        with torch.random.fork_rng():
            task = ConfigurableTask(config=read_task_file(folder / f"{name}.yaml"))
            found = simple_evaluate(
                lm, tasks=[task], bootstrap_iters=0, task_manager=TaskManager(include_defaults=False)
            )
    assert found is not None
    return dict(found)


def assert_same_samples(ours: list[Sample], theirs: dict[int, Any]) -> None:
    """What was asked and answered is what lm-eval keeps; numbers may differ in their last digits."""
    for sample in ours:
        whole = theirs[sample["doc_id"]]
        assert list(sample) == list(whole)
        for key in ("doc", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash"):
            assert sample[key] == whole[key]
        assert sample["target"] == str(whole["target"])
        asked = [list(request.values()) for request in sample["arguments"].values()]
        assert asked == [list(arguments) for arguments in whole["arguments"]]
        for key in ("resps", "filtered_resps"):
            said, expected = flattened(sample[key]), flattened(whole[key])
            assert len(said) == len(expected)
            for one, other in zip(said, expected, strict=True):
                plain = isinstance(other, str | bool)
                assert one == str(other) if plain else float(one) == pytest.approx(other, abs=1e-4)


def flattened(content: Any) -> list[Any]:
    return [leaf for each in content for leaf in flattened(each)] if isinstance(content, list | tuple) else [content]


@pytest.mark.parametrize("name", CASES)
def test_the_panel_scores_what_lm_eval_reports(
    name: str, merged: tuple[TransformersEngine, Path], task_folder: Path
) -> None:
    engine, model = merged
    theirs = by_lm_eval(name, task_folder, model)
    filters = ["second-word", "whole"] if name == "generate" else ["none"]
    for metric, filter_ in ((metric, filter_) for metric in CASES[name] for filter_ in filters):
        choice = TaskChoice(f"{name}.yaml", metric=metric, filter=filter_)
        (task,) = load_all(task_folder, [choice], model)
        panel = Panel([task], {"search": 4, "selection": 4, "test": 4})
        samples = {s["doc_id"]: s for s in theirs["samples"][name] if s["filter"] == filter_}
        everything: list[tuple[float, float]] = []
        for split in panel.splits.values():
            score = split.score(engine, samples=True)
            outcomes = score.outcomes[name]
            assert_same_samples(score.samples[name], samples)
            assert outcomes.weights.tolist() == [item.weight for item in split.items[name]]
            everything += zip(outcomes.values, outcomes.weights, strict=True)
            for item, value, weight in zip(split.items[name], outcomes.values, outcomes.weights, strict=True):
                expected = samples[item.doc_id][metric]
                given = (-value * weight, weight) if isinstance(expected, tuple | list) else value
                if metric == "perplexity":
                    given = -value
                if metric == "bits_per_byte":
                    given = (-value * weight * math.log(2), weight)
                assert given == pytest.approx(tuple(expected) if isinstance(expected, list) else expected, abs=1e-4)
        pooled = TaskOutcomes(*np.array(everything).T)
        reported = theirs["results"][name][f"{metric},{filter_}"]
        assert float(task.score(pooled.mean())) == pytest.approx(reported, rel=1e-4, abs=1e-4)
        if filter_ == "second-word" or metric == "acc":
            assert 0.0 < reported < 1.0, "a task on which all answers are alike shows nothing"
