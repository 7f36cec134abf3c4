"""Task files: what becomes of them, and what is said when they cannot be used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import FamilyFolder
from small_tasks import choice_docs, load_all, load_one, write_task

from heterosis.errors import TaskError
from heterosis.evaluation.engine import Continuation, Generation, Likelihood
from heterosis.evaluation.tasks import TaskChoice, read_task_file, request_counts
from heterosis.evaluation.tokens import RollingWindows

# A few lines that stand for nine to the ninth power of values.
BOMB = "task: t\na0: &a0 [0]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.fixture(scope="module")
def base(tiny_family: FamilyFolder) -> Path:
    return tiny_family() / "base"


def refused(folder: Path, choice: TaskChoice | str, base: Path) -> str:
    """The one line with which a task is refused."""
    with pytest.raises(TaskError) as caught:
        load_one(folder, choice, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_first_metric_and_filter_are_taken_when_none_is_named(tmp_path: Path, base: Path) -> None:
    task = load_one(tmp_path, write_task(tmp_path, "mine", choice_docs(5)), base)
    assert (task.name, task.metric, task.filter, task.higher_is_better) == ("mine", "acc", "none", True)
    assert len(task.items) == 5


def test_every_choice_is_one_request_after_the_same_context(tmp_path: Path, base: Path) -> None:
    docs = choice_docs(3)
    task = load_one(tmp_path, write_task(tmp_path, "mine", docs), base)
    for item, doc in zip(task.items, docs, strict=True):
        contexts = {request.context for request in item.requests if isinstance(request, Continuation)}
        assert contexts == {tuple(int(word[1:]) for word in doc["prompt"].split())}
        assert [len(request.target) for request in item.requests if isinstance(request, Continuation)] == [1, 2, 3]


def test_data_files_are_found_beside_the_task_file(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "tasks"
    inner.mkdir()
    write_task(inner, "mine", choice_docs(4))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(load_one(tmp_path, "tasks/mine.yaml", base).items) == 4


@pytest.mark.parametrize("files", ["x.jsonl", ["x.jsonl"], {"test": "x.jsonl"}, {"test": ["x.jsonl"]}])
def test_data_files_may_be_one_many_or_by_split(tmp_path: Path, files: Any) -> None:
    (tmp_path / "x.jsonl").write_text("{}\n")
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({"task": "t", "dataset_kwargs": {"data_files": files}}))
    found = read_task_file(tmp_path / "t.yaml")["dataset_kwargs"]["data_files"]
    assert str(found).replace(f"{tmp_path}/", "") == str(files)


def test_an_address_is_left_as_it_is(tmp_path: Path) -> None:
    address = "https://example.org/x.jsonl"
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({"task": "t", "dataset_kwargs": {"data_files": address}}))
    assert read_task_file(tmp_path / "t.yaml")["dataset_kwargs"]["data_files"] == address


def test_an_included_file_gives_what_the_file_itself_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "common.yaml").write_text("output_type: generate_until\ntest_split: test\n")
    (tmp_path / "t.yaml").write_text("include: common.yaml\ntask: t\ntest_split: validation\n")
    assert read_task_file(tmp_path / "t.yaml") == {
        "task": "t",
        "output_type": "generate_until",
        "test_split": "validation",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: t\ndoc_to_text: !function mine.text\n", "line 2: !function runs code"),
        (BOMB, "aliases unfold to more than 1,000,000 values"),
        ("task: t\nx: &x [*x]\n", "not a YAML file (a value contains itself)"),
        ("include: t.yaml\ntask: t\n", "includes itself"),
        ("include: none.yaml\ntask: t\n", "not a YAML file"),
        ("task: t\ndataset_kwargs: {data_files: none.jsonl}\n", "data file none.jsonl is not in"),
        ("output_type: multiple_choice\n", "no task name"),
        ("- a\n", "must hold keys and values"),
        ("{", "not a YAML file"),
        ("task: !!python/object/apply:os.getcwd []\n", "not a YAML file"),
        ("task: t\ndataset_path: json\n", "json without files. Add dataset_kwargs"),
    ],
)
def test_a_file_that_is_no_task_is_refused_in_one_line(tmp_path: Path, base: Path, text: str, message: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    assert message in refused(tmp_path, "t.yaml", base)


def test_aliases_within_measure_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("task: t\none: &one {acc: 1}\nother: *one\nmore: {<<: *one}\n")
    assert read_task_file(tmp_path / "t.yaml")["more"] == read_task_file(tmp_path / "t.yaml")["other"] == {"acc": 1}


def test_a_missing_task_file_is_refused(tmp_path: Path, base: Path) -> None:
    assert "none.yaml: no such task file" in refused(tmp_path, "none.yaml", base)


@pytest.mark.parametrize(
    ("docs", "changes", "choice", "message"),
    [
        (0, {}, {}, "data file mine.jsonl is empty"),
        (4, {"metric_list": [{"metric": "acuracy"}]}, {}, "acuracy is no metric of lm-eval's own. Choose one of acc,"),
        (4, {"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, {}, "acc is no metric of lm-eval's own"),
        (4, {"metric_list": {}}, {}, "mine: no metric. Add one"),
        (4, {"doc_to_text": "{{prompt"}, {}, "mine.yaml: lm-eval cannot use this task"),
        (4, {"test_split": "validation"}, {}, "mine.yaml: lm-eval cannot use this task"),
        (4, {"output_type": "essay"}, {}, "mine.yaml: lm-eval cannot use this task"),
        (4, {"filter_list": [{"name": "f", "filter": [{"function": "regexp"}]}]}, {}, "lm-eval cannot use this task"),
        (4, {}, {"metric": "f1"}, "mine: no metric 'f1'; this task has acc, acc_norm"),
        (4, {}, {"filter": "strict"}, "mine: no filter 'strict'; this task has none"),
        (
            4,
            {"metric_list": [{"metric": "f1", "aggregation": "f1"}]},
            {},
            "aggregated by f1_score, which is not a mean",
        ),
        (4, {"doc_to_choice": "{{[' ', prompt, prompt]}}"}, {}, "mine: a choice or continuation is empty"),
        (
            4,
            {"doc_to_choice": "{{['w3 ' * 70, prompt, prompt]}}"},
            {},
            "mine: a continuation of 70 tokens does not fit the engine's 64",
        ),
    ],
)
def test_a_task_that_lm_eval_cannot_use_is_refused_in_one_line(
    tmp_path: Path, base: Path, docs: int, changes: dict[str, Any], choice: dict[str, Any], message: str
) -> None:
    write_task(tmp_path, "mine", choice_docs(docs), **changes)
    assert message in refused(tmp_path, TaskChoice("mine.yaml", **choice), base)


def test_an_unknown_builtin_task_is_refused_with_the_nearest_names(tmp_path: Path, base: Path) -> None:
    assert "arc_eazy: lm-eval has no such task; near: arc_easy" in refused(tmp_path, "arc_eazy", base)


def test_a_task_given_twice_is_refused(tmp_path: Path, base: Path) -> None:
    write_task(tmp_path, "mine", choice_docs(4))
    with pytest.raises(TaskError, match="mine is given twice"):
        load_all(tmp_path, ["mine.yaml", TaskChoice("mine.yaml", metric="acc_norm")], base)


def test_an_items_key_is_its_content_and_not_its_place(tmp_path: Path, base: Path) -> None:
    docs = choice_docs(5)
    for name, some in (("one", docs), ("two", docs[::-1])):
        (tmp_path / name).mkdir()
        write_task(tmp_path / name, "mine", some)
    one, two = (load_one(tmp_path / name, "mine.yaml", base).items for name in ("one", "two"))
    assert [item.key for item in one] == [item.key for item in two][::-1]
    assert [item.prompt_hash for item in one] == [item.prompt_hash for item in two][::-1]
    assert len({item.key for item in one}) == 5


def test_few_shot_examples_are_the_same_every_time(tmp_path: Path, base: Path) -> None:
    write_task(tmp_path, "mine", choice_docs(6), train=choice_docs(8, seed=1), training_split="train")
    few, again, none = (load_one(tmp_path, TaskChoice("mine.yaml", num_fewshot=n), base).items for n in (2, 2, 0))
    assert [item.requests for item in few] == [item.requests for item in again]
    assert [item.key for item in few] == [item.key for item in none]
    assert all(a.prompt_hash != b.prompt_hash for a, b in zip(few, none, strict=True))


def test_the_direction_is_the_tasks_unless_overridden(tmp_path: Path, base: Path) -> None:
    write_task(tmp_path, "mine", choice_docs(4))
    assert load_one(tmp_path, "mine.yaml", base).higher_is_better
    assert not load_one(tmp_path, TaskChoice("mine.yaml", direction="minimize"), base).higher_is_better


def test_outcomes_are_the_tasks_own_metric(tmp_path: Path, base: Path) -> None:
    docs = choice_docs(6)
    task = load_one(tmp_path, write_task(tmp_path, "mine", docs), base)
    right = [[Likelihood(-1.0 if j == doc["gold"] else -9.0, False) for j in range(3)] for doc in docs]
    wrong = [[Likelihood(-9.0 if j == doc["gold"] else -1.0, False) for j in range(3)] for doc in docs]
    assert [outcome.value for outcome in task.outcomes(task.judge(task.items, right))] == [1.0] * 6
    assert [outcome.value for outcome in task.outcomes(task.judge(task.items, wrong))] == [0.0] * 6
    assert [outcome.value for outcome in task.outcomes(task.judge(task.items[2:4], right[2:4]))] == [1.0] * 2


def test_an_empty_text_has_no_weight(tmp_path: Path, base: Path) -> None:
    config = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
    }
    task = load_one(tmp_path, write_task(tmp_path, "mine", [{"text": "w3 w4"}, {"text": ""}], config), base)
    full, empty = task.outcomes(task.judge(task.items, [[-6.0], [0.0]]))
    assert full.weight == 5.0
    assert (empty.value, empty.weight) == (0.0, 0.0)


def test_a_template_cannot_reach_pythons_insides(tmp_path: Path, base: Path) -> None:
    write_task(tmp_path, "mine", choice_docs(4), doc_to_text="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    assert "SecurityError" in refused(tmp_path, "mine.yaml", base)


def test_sampling_several_answers_is_refused(tmp_path: Path, base: Path) -> None:
    config = {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "w3",
        "generation_kwargs": {"until": ["w4"], "do_sample": True, "temperature": 0.7},
        "repeats": 3,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    write_task(tmp_path, "mine", choice_docs(4), config)
    assert "repeats with sampling" in refused(tmp_path, "mine.yaml", base)


@pytest.mark.parametrize(
    ("metric", "aggregation", "logprob", "score"),
    [
        ("word_perplexity", "weighted_perplexity", -6.0, math.exp(2.0)),
        ("byte_perplexity", "weighted_perplexity", -6.0, math.exp(0.75)),
        ("bits_per_byte", "bits_per_byte", -6.0, 0.75 / math.log(2)),
    ],
)
def test_a_texts_score_is_per_word_or_byte(
    tmp_path: Path, base: Path, metric: str, aggregation: str, logprob: float, score: float
) -> None:
    config = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": metric, "aggregation": aggregation, "higher_is_better": False}],
    }
    task = load_one(tmp_path, write_task(tmp_path, "mine", [{"text": "w3 w4 w5"}], config), base)
    (outcome,) = task.outcomes(task.judge(task.items, [[logprob]]))
    assert task.score(outcome.value) == pytest.approx(score)
    assert outcome.weight == (3.0 if metric == "word_perplexity" else 8.0)


def test_request_counts_add_up(tmp_path: Path, base: Path) -> None:
    (item,) = load_one(tmp_path, write_task(tmp_path, "mine", choice_docs(1)), base).items
    assert request_counts([item, item]) == {"likelihoods": 6, "generations": 0, "tokens": 2 * (3 * 4 + 1 + 2 + 3)}
    windows = RollingWindows((Continuation((0,), (3, 4)), Continuation((4,), (5,))))
    asked = item._replace(requests=(windows, Generation((3, 4), 6, ())))
    assert request_counts([asked]) == {"likelihoods": 2, "generations": 1, "tokens": 5 + 8}
