"""Whatever stands in a YAML file that a user gives: it is read, or refused in one line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PARENTS, FamilyFolder, MakeRecipe, OpenFamily
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heterosis.builder import Builder
from heterosis.checkpoints import Family
from heterosis.config import load_study
from heterosis.evaluation.tasks import read_task_file
from heterosis.mergekit import open_mergekit, parse
from heterosis.mergekit.schema import load as load_mergekit
from heterosis.recipe import Recipe

from .nasty import EXAMPLES, FILES, as_yaml, files, mutations, settle, write

fuzzed = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])

SPACE: dict[str, Any] = {
    "method": "dare_ties",
    "depth": {"knots": 3},
    "groups": {"attention": r"self_attn", "rest": ".*"},
    "weight": {"low": 0.0, "high": 1.5, "initial": 0.5},
    "density": {"low": 0.1, "high": 1.0, "initial": 0.7, "depth": "uniform", "shared": True},
    "drop": 0.1,
    "sigma": 0.2,
}
STUDY: dict[str, Any] = {
    "name": "fuzzed",
    "base": {"model": "owner/base", "revision": "main"},
    "parents": {"a": "models/a", "b": {"model": "owner/b"}},
    "space": SPACE,
    "tasks": ["mine.yaml", {"task": "gsm8k", "metric": "exact_match", "weight": 2, "limit": 100, "num_fewshot": 3}],
    "splits": {"search": 0.5, "selection": 100, "test": 0.25},
    "objective": "mean",
    "budget": {"candidates": 100, "hours": 2.5, "items": 100000},
    "optimizer": {"name": "cma", "sigma": 0.3},
    "engine": {"kind": "vllm", "options": {"max_model_len": 512}, "retries": 2, "deadline": 60},
    "tracking": "none",
    "output": "runs",
    "seed": 3,
}
TASK: dict[str, Any] = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data.jsonl", "train": ["data.jsonl"]}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "include": "other.yaml",
}
MERGEKIT: dict[str, Any] = {
    "merge_method": "dare_ties",
    "base_model": "base",
    "models": [
        {"model": "a", "parameters": {"weight": 0.5, "density": [0.2, 0.9]}},
        {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": 0.3}, {"value": 0.6}], "density": 0.5}},
    ],
    "parameters": {"normalize": True, "lambda": 1.0, "rescale": True, "int8_mask": False},
    "dtype": "float32",
    "tokenizer_source": "base",
}
SLICES: dict[str, Any] = {
    "merge_method": "passthrough",
    "slices": [
        {"sources": [{"model": "a", "layer_range": [0, 2]}]},
        {"sources": [{"model": "b", "layer_range": [1, 3], "parameters": {"scale": 0.5}}]},
    ],
    "dtype": "bfloat16",
}
RECIPE_PARAMETERS = {"a": {"weight": 0.5, "density": 0.5, "drop": 0.1}, "b": {"weight": [0.1, 0.2, 0.3]}}


def read_space(path: Path) -> object:
    """A space file, by the study that names it."""
    with tempfile.TemporaryDirectory() as folder:
        return load_study(write(Path(folder) / "study.yaml", as_yaml(STUDY | {"space": str(path)})))


READERS: dict[str, Callable[[Path], object]] = {
    "study": load_study,
    "space": read_space,
    "recipe": Recipe.load,
    "mergekit": load_mergekit,
    "task": read_task_file,
}


@pytest.mark.parametrize("text", FILES)
@pytest.mark.parametrize("kind", READERS)
def test_no_file_makes_a_traceback(kind: str, text: str, tmp_path: Path) -> None:
    assert settle(lambda: READERS[kind](write(tmp_path / "given.yaml", FILES[text]))) is not None


@pytest.mark.parametrize("text", [name for name, text in FILES.items() if text.startswith(b"seed: ")])
def test_no_seed_makes_a_traceback(text: str, tmp_path: Path) -> None:
    others = {key: value for key, value in STUDY.items() if key != "seed"}
    assert settle(lambda: load_study(write(tmp_path / "study.yaml", as_yaml(others) + FILES[text]))) is not None


@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_file_makes_no_traceback(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "absent", tmp_path / "folder", tmp_path / "study.yaml" / "under"):
        assert settle(lambda at=path: READERS[kind](at)) is not None


@pytest.mark.parametrize("kind", READERS)
@fuzzed
@given(content=files)
def test_no_text_makes_a_traceback(kind: str, content: bytes, tmp_path: Path) -> None:
    settle(lambda: READERS[kind](write(tmp_path / "given.yaml", content)))


@fuzzed
@given(content=mutations(STUDY))
def test_no_study_makes_a_traceback(content: object, tmp_path: Path) -> None:
    settle(lambda: load_study(write(tmp_path / "study.yaml", as_yaml(content))))


@fuzzed
@given(content=mutations(SPACE))
def test_no_space_makes_a_traceback(content: object, tmp_path: Path) -> None:
    settle(lambda: read_space(write(tmp_path / "space.yaml", as_yaml(content))))


@fuzzed
@given(content=mutations(TASK))
def test_no_task_file_makes_a_traceback(content: object, tmp_path: Path) -> None:
    write(tmp_path / "data.jsonl", b'{"question": "?", "answer": "!"}\n')
    write(tmp_path / "other.yaml", b"num_fewshot: 0\n")
    settle(lambda: read_task_file(write(tmp_path / "task.yaml", as_yaml(content))))


@fuzzed
@given(content=st.one_of(mutations(MERGEKIT), mutations(SLICES)))
def test_no_mergekit_file_makes_a_traceback(content: object, tiny_family: FamilyFolder) -> None:
    def merge() -> None:
        found = open_mergekit(parse(content, "merge.yml"), tiny_family())
        try:
            builder = Builder(found.family, compiled=False)
            builder.specs(builder.plan(found.recipe))
        finally:
            found.family.close()

    settle(merge)


@pytest.fixture(scope="module")
def family(tiny_family: FamilyFolder) -> Family:
    from heterosis.checkpoints import open_family

    folder = tiny_family()
    return open_family(folder / "base", {name: folder / name for name in PARENTS})


@pytest.mark.parametrize("method", ["dare_ties", "della", "breadcrumbs", "slerp", "model_stock"])
@settings(max_examples=EXAMPLES // 2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_recipe_makes_a_traceback(
    method: str, data: st.DataObject, family: Family, recipe_for: MakeRecipe, tmp_path: Path
) -> None:
    valid = recipe_for(family, method, {name: {"weight": 0.5} for name in "ab"}).model_dump(mode="json")
    content = data.draw(mutations(valid))

    def merge() -> None:
        recipe = Recipe.load(write(tmp_path / "recipe.yaml", as_yaml(content)))
        assert Recipe.parse(recipe.model_dump(mode="json"), "again").digest == recipe.digest
        builder = Builder(family, compiled=False)
        builder.specs(builder.plan(recipe))

    settle(merge)


def test_a_repeated_key_is_refused_with_both_lines(tmp_path: Path) -> None:
    text = as_yaml(STUDY) + b"seed: 4\n"
    refusal = settle(lambda: load_study(write(tmp_path / "study.yaml", text)))
    lines = text.decode().splitlines()
    first = 1 + next(i for i, line in enumerate(lines) if line.startswith("seed:"))
    assert refusal is not None
    assert f"seed stands twice, in lines {first} and {len(lines)}" in refusal


def test_a_nested_repeated_key_is_refused(open_tiny: OpenFamily, tmp_path: Path) -> None:
    refusal = settle(
        lambda: load_mergekit(write(tmp_path / "m.yml", b"merge_method: ties\nparameters: {a: 1, 'a': 2}"))
    )
    assert refusal is not None
    assert "a stands twice, in lines 2 and 2" in refusal
