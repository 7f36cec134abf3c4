import itertools
import json
import re
import shutil
import weakref
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heterosis.builder import Builder
from heterosis.checkpoints import (
    Checkpoint,
    Family,
    TensorSpec,
    content_digest,
    open_family,
    tensor_digest,
    write_checkpoint,
)
from heterosis.errors import RecipeError
from heterosis.merge import METHODS, kernel
from heterosis.recipe import Recipe

DTYPES = ["float32", "bfloat16"]
# What needs statistics of its parents, and the stacks of passthrough, have tests of their own.
PLAIN = [name for name, method in METHODS.items() if method.evidence is None and name != "passthrough"]
ENTRYWISE = [name for name in PLAIN if isinstance(METHODS[name].combine, str)]
SUMS = [name for name in ENTRYWISE if METHODS[name].combine != "mean"]
USUAL = {
    "a": {"weight": [0.7, 0.2, -0.4], "density": 0.6, "drop": 0.3},
    "b": {"weight": -0.4, "density": [0.2, 0.5, 1.0], "drop": 0.0},
    "c": {"weight": 1.0, "density": 1.0, "drop": [0.8, 0.1, 0.5]},
}


def usual(method: str) -> dict[str, dict[str, object]]:
    """Usual parameters for as many parents as the method takes."""
    return dict(list(USUAL.items())[: METHODS[method].parents[1]])


def build(family: Family, recipe: Recipe) -> dict[str, Tensor]:
    return dict(Builder(family, compiled=False).tensors(recipe))


def digest(builder: Builder, recipe: Recipe) -> str:
    """Content digest of a merge, from the stream."""
    return content_digest(
        builder.specs(recipe), {name: tensor_digest(tensor) for name, tensor in builder.tensors(recipe)}
    )


def merge_digest(family: Family, recipe: Recipe) -> str:
    return digest(Builder(family, compiled=False), recipe)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", SUMS)
def test_weight_zero_returns_the_base_bit_for_bit(open_tiny, recipe_for, method: str, dtype: str) -> None:
    family = open_tiny(dtype)
    nothing = {"weight": 0.0, "density": 0.5, "drop": 0.5}
    recipe = recipe_for(family, method, dict.fromkeys("abc", nothing), dtype=dtype)
    assert merge_digest(family, recipe) == family.base.digest


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_density_zero_returns_the_base_bit_for_bit(open_tiny, recipe_for, scope: str) -> None:
    family = open_tiny()
    recipe = recipe_for(family, "ties", {key: {"density": 0.0} for key in "abc"}, trim_scope=scope)
    assert merge_digest(family, recipe) == family.base.digest


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", [name for name in ENTRYWISE if name != "lines"])
def test_one_untouched_parent_is_returned_bit_for_bit(open_tiny, recipe_for, method, tied, dtype) -> None:
    family = open_tiny(dtype, tied=tied)
    alone = recipe_for(family, method, {"b": {}}, dtype=dtype)
    beside = recipe_for(family, method, {"a": {"weight": 0.0}, "b": {}, "c": {"weight": 0.0, "drop": 0.5}}, dtype=dtype)
    assert merge_digest(family, alone) == family.parents["b"].digest
    assert merge_digest(family, beside) == family.parents["b"].digest


@pytest.mark.parametrize(
    ("method", "divisor"),
    [(method, "count") for method in PLAIN] + [("ties", "weight"), ("dare_ties", "none"), ("ties", "signed_weight")],
)
def test_parents_in_another_order_or_by_other_names_give_the_same_bits(
    open_tiny, recipe_for, method: str, divisor: str
) -> None:
    family = open_tiny("bfloat16")
    parameters = usual(method)
    digests = set()
    for order in itertools.permutations(parameters):
        recipe = recipe_for(family, method, {name: parameters[name] for name in order}, divisor=divisor)
        digests.add(merge_digest(family, recipe))
    recipe = recipe_for(family, method, parameters, divisor=divisor)
    document = json.loads(recipe.model_dump_json().replace('"a"', '"zebra"'))
    digests.add(merge_digest(family, Recipe.parse(document, "test")))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("method", "scope"),
    [(method, "tensor") for method in PLAIN] + [("ties", "model"), ("breadcrumbs", "model"), ("dare_ties", "model")],
)
def test_shards_blocks_and_threads_change_no_bit(open_tiny, recipe_for, monkeypatch, method: str, scope: str) -> None:
    family = open_tiny("bfloat16")
    recipe = recipe_for(family, method, usual(method), trim_scope=scope, dtype="bfloat16")
    expected = merge_digest(family, recipe)
    assert merge_digest(open_tiny("bfloat16", sharded=True), recipe) == expected
    monkeypatch.setattr(kernel, "BLOCK", 333)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert merge_digest(family, recipe) == expected
    finally:
        torch.set_num_threads(before)


def test_a_builder_gives_the_same_merge_whatever_it_built_before(open_tiny, recipe_for) -> None:
    family = open_tiny("bfloat16")
    scopes = ("tensor", "model")
    recipes = [recipe_for(family, method, usual(method), trim_scope=scope) for method in PLAIN for scope in scopes]
    builder = Builder(family, compiled=False)
    first = [digest(builder, recipe) for recipe in recipes]
    assert [digest(builder, recipe) for recipe in reversed(recipes)][::-1] == first
    assert [merge_digest(family, recipe) for recipe in recipes] == first


def test_two_streams_of_one_builder_do_not_disturb_each_other(open_tiny, recipe_for) -> None:
    family = open_tiny()
    builder = Builder(family, compiled=False)
    one, two = (recipe_for(family, "dare_ties", USUAL, seed=seed) for seed in (0, 1))
    pairs = list(zip(builder.tensors(one), builder.tensors(two), strict=True))
    for stream, recipe in enumerate((one, two)):
        alone = build(family, recipe)
        assert all(torch.equal(alone[name], tensor) for name, tensor in (pair[stream] for pair in pairs))


def test_names_come_in_storage_order_with_the_announced_shapes_and_dtype(open_tiny, recipe_for) -> None:
    family = open_tiny("bfloat16")
    recipe = recipe_for(family, "linear", USUAL, dtype="float16")
    builder = Builder(family, compiled=False)
    announced = builder.specs(recipe)
    found = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in builder.tensors(recipe)}
    assert list(found) == list(announced) == family.names
    assert found == announced


def test_yielded_tensors_are_fresh(open_tiny, recipe_for) -> None:
    """Engines buffer what they are given, so no tensor may be a view of a source or of another."""
    family = open_tiny()
    for numbers in ({"weight": 0.0}, {}, {"weight": 0.5}):
        recipe = recipe_for(family, "task_arithmetic", {"a": numbers})
        before = merge_digest(family, recipe)
        for tensor in build(family, recipe).values():
            tensor.fill_(9.0)
        assert merge_digest(family, recipe) == before


@pytest.mark.parametrize("density", [0.1, 0.37, 0.9])
def test_trim_scope_tensor_keeps_the_fraction_of_each_tensor(open_tiny, recipe_for, density: float) -> None:
    family = open_tiny()
    recipe = recipe_for(family, "ties", {"a": {"density": density}})
    for name, merged in build(family, recipe).items():
        moved = (merged != family.base.tensor(name)).sum().item()
        assert moved == int(density * merged.numel())


@pytest.mark.parametrize("density", [0.1, 0.37, 0.9])
def test_trim_scope_model_has_one_threshold_for_the_whole_task_vector(open_tiny, recipe_for, density: float) -> None:
    family = open_tiny()
    recipe = recipe_for(family, "ties", {"a": {"density": density}}, trim_scope="model")
    kept, trimmed = [], []
    for name, merged in build(family, recipe).items():
        base = family.base.tensor(name)
        magnitude = (family.parents["a"].tensor(name) - base).abs()
        kept.append(magnitude[merged != base])
        trimmed.append(magnitude[merged == base])
    kept_numel = torch.cat(kept).numel()
    # One more than the fraction, as the TIES authors' code has it: 201 of 1000 at 20 %.
    assert kept_numel == int(density * (kept_numel + torch.cat(trimmed).numel())) + 1
    assert torch.cat(kept).min() > torch.cat(trimmed).max()


def test_a_higher_drop_rate_only_removes_entries(open_tiny, recipe_for) -> None:
    family = open_tiny()
    moved = []
    for drop in (0.1, 0.5, 0.50001, 0.9):
        merged = build(family, recipe_for(family, "dare_linear", {"a": {"drop": drop}}))
        moved.append(torch.cat([(merged[n] != family.base.tensor(n)).reshape(-1) for n in family.names]))
    for wider, narrower in itertools.pairwise(moved):
        assert not (narrower & ~wider).any()
    assert abs(moved[1].float().mean() - 0.5) < 0.02


def test_parameters_of_one_group_and_layer_touch_only_that_part(open_tiny, recipe_for) -> None:
    family = open_tiny()
    parameters = {"a": {"mlp": {"weight": [0.0, 1.0, 0.0]}, "rest": {"weight": 0.0}}}
    recipe = recipe_for(family, "task_arithmetic", {"a": {}})
    recipe = Recipe.parse(recipe.model_dump() | {"groups": {"mlp": "mlp", "rest": ".*"}, "parameters": parameters}, "t")
    for name, merged in build(family, recipe).items():
        donor = family.parents["a"] if "layers.1.mlp" in name else family.base
        assert tensor_digest(merged) == tensor_digest(donor.tensor(name))


def test_sources_of_several_dtypes_meet_in_float32(tiny_family, recipe_for) -> None:
    folder, rounded = tiny_family("float32"), tiny_family("bfloat16")
    family = open_family(folder / "base", {"a": folder / "a", "b": rounded / "b"})
    recipe = recipe_for(family, "task_arithmetic", {"a": {"weight": 0.5}, "b": {"weight": 0.25}})
    for name, merged in build(family, recipe).items():
        base, a, b = (member.tensor(name).float() for member in family.members.values())
        torch.testing.assert_close(merged, base + 0.5 * (a - base) + 0.25 * (b - base))


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (1.0, -1.0, 0.0), (0.1, 0.2, -0.3), (0.2, -0.3, 0.1)])
def test_linear_weights_that_sum_to_zero_are_refused_before_the_first_tensor(open_tiny, recipe_for, weights) -> None:
    family = open_tiny()
    recipe = recipe_for(family, "linear", {n: {"weight": w} for n, w in zip("abc", weights, strict=True)})
    with pytest.raises(RecipeError, match=r"^linear: the weights for model.embed_tokens.weight sum to 0"):
        Builder(family, compiled=False).tensors(recipe)


def test_linear_weights_that_sum_to_zero_in_one_layer_only_are_refused_too(open_tiny, recipe_for) -> None:
    family = open_tiny()
    recipe = recipe_for(family, "linear", {"a": {"weight": [1.0, 1.0, 2.0]}, "b": {"weight": [1.0, -1.0, 0.0]}})
    with pytest.raises(RecipeError, match=r"weights for model\.layers\.1\..* sum to 0"):
        Builder(family, compiled=False).tensors(recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": {"all": "layers"}}, "groups: no pattern matches model.embed_tokens.weight"),
        ({"groups": {"all": "("}}, "groups: '(' is not a regular expression"),
        ({"parameters": {"a": {"all": {"weight": [1.0, 2.0]}}}}, "parameters.a.all.weight has 2 values"),
        ({"base": {"name": "base", "model": ".", "digest": "0" * 64}}, "base: the recipe was made for weights 0000"),
        ({"parents": [{"name": "a", "model": ".", "digest": "0" * 64}]}, "a: no parent at hand has weights 0000"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_the_first_tensor(
    open_tiny, recipe_for, changes: dict, message: str
) -> None:
    family = open_tiny()
    recipe = Recipe.parse(recipe_for(family, "ties", {"a": {}}).model_dump() | changes, "test")
    with pytest.raises(RecipeError, match=r"^" + re.escape(message)) as caught:
        Builder(family, compiled=False).tensors(recipe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_a_written_merge_is_the_merge_for_us_and_for_transformers(
    open_tiny, recipe_for, tmp_path: Path, tied: bool, shard_bytes: int
) -> None:
    from transformers import AutoModelForCausalLM

    family = open_tiny("bfloat16", tied=tied)
    recipe = recipe_for(family, "dare_ties", USUAL, dtype="bfloat16")
    builder = Builder(family, compiled=False)
    write_checkpoint(tmp_path, builder.specs(recipe), builder.tensors(recipe), shard_bytes)
    shutil.copy(family.base.folder / "config.json", tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes == 20_000)
    assert Checkpoint(tmp_path).digest == digest(builder, recipe)

    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    merged = build(family, recipe)
    loaded = dict(model.named_parameters())
    assert loaded.keys() == merged.keys()
    assert all(tensor_digest(loaded[name]) == tensor_digest(tensor) for name, tensor in merged.items())
    if tied:
        assert model.lm_head.weight is model.model.embed_tokens.weight


MEMBERS = {"stories260k": ("shakespeare", "gsm8k", "mbpp"), "stories15m": ("sst2", "clinc", "code")}


@pytest.mark.parametrize("name", MEMBERS)
def test_real_parents_come_back_bit_for_bit(real_families: Path, recipe_for, tmp_path: Path, name: str) -> None:
    folder, parents = real_families / name, MEMBERS[name]
    family = open_family(folder / "base", {parent: folder / parent for parent in parents})
    dtype = str(next(iter(family.base.specs.values())).dtype).removeprefix("torch.")
    numbers = {parent: {"weight": float(parent == parents[0])} for parent in parents}
    recipe = recipe_for(family, "dare_ties", numbers, dtype=dtype)
    builder = Builder(family, compiled=False)
    write_checkpoint(tmp_path, builder.specs(recipe), builder.tensors(recipe), 20_000_000)
    shutil.copy(folder / "base" / "config.json", tmp_path)
    assert Checkpoint(tmp_path).digest == family.parents[parents[0]].digest


def test_real_merges_keep_the_exact_fraction_of_bfloat16_task_vectors(real_families: Path, recipe_for) -> None:
    folder = real_families / "stories15m"
    family = open_family(folder / "base", {"sst2": folder / "sst2"})
    recipe = recipe_for(family, "ties", {"sst2": {"density": 0.2}})
    builder = Builder(family, compiled=False)
    for name, merged in builder.tensors(recipe):
        base, parent = family.base.tensor(name), family.parents["sst2"].tensor(name)
        moved = int((merged != base).sum())
        changed = int((parent != base).sum())
        assert abs(moved - min(int(0.2 * base.numel()), changed)) <= 1e-4 * base.numel(), name


def ties_of_its_authors(base: Tensor, parents: list[Tensor], density: float, weight: float) -> Tensor:
    """TIES-Merging over whole task vectors, as the paper's own code does it, written anew from the paper.

    Kept: whatever reaches the magnitude of the (k+1)-th largest entry (201 of 1000 at 20 %). A sum of exactly 0 takes
    the sign that most entries elected. The mean is over the entries that agree, and λ comes last.
    """
    deltas = torch.stack([parent - base for parent in parents])
    least = deltas.abs().kthvalue(deltas.shape[1] - int(density * deltas.shape[1]), dim=1, keepdim=True).values
    kept = torch.where(deltas.abs() >= least, deltas, 0.0)
    signs = torch.sign(kept.sum(dim=0))
    signs = torch.where(signs == 0, torch.sign(signs.sum()), signs)
    chosen = torch.where(torch.sign(kept) == signs, kept, 0.0)
    return base + weight * chosen.sum(dim=0) / (chosen != 0).sum(dim=0).clamp(min=1)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.7])
def test_trim_scope_model_is_the_ties_of_its_authors(open_tiny, recipe_for, density: float) -> None:
    family = open_tiny()
    parameters = {name: {"density": density, "weight": 0.8} for name in "abc"}
    merged = build(family, recipe_for(family, "ties", parameters, trim_scope="model"))

    def flat(member) -> Tensor:
        return torch.cat([member.tensor(name).reshape(-1) for name in family.names])

    expected = ties_of_its_authors(flat(family.base), [flat(family.parents[name]) for name in "abc"], density, 0.8)
    torch.testing.assert_close(torch.cat([merged[name].reshape(-1) for name in family.names]), expected)


def test_the_expectation_over_seeds_is_the_merge_without_drops(open_tiny, recipe_for) -> None:
    family = open_tiny()
    name, draws = "model.layers.1.mlp.up_proj.weight", 120
    total = torch.zeros(family.base.specs[name].shape, dtype=torch.float64)
    builder = Builder(family, compiled=False)
    for seed in range(draws):
        recipe = recipe_for(family, "dare_linear", {"a": {"drop": 0.5, "weight": 0.9}}, seed=seed)
        total += next(tensor for at, tensor in builder.tensors(recipe) if at == name).double()
    plain = build(family, recipe_for(family, "task_arithmetic", {"a": {"weight": 0.9}}))[name].double()
    # Each entry deviates by |λ δ| at p = 1/2; 5.5 standard errors leave less than one in a million outside.
    bound = 5.5 * (plain - family.base.tensor(name).double()).abs() / draws**0.5 + 1e-7
    assert ((total / draws - plain).abs() <= bound).all()


def test_elections_that_tie_go_to_the_majority_of_the_whole_model_where_that_is_trimmed(tmp_path: Path) -> None:
    """In tensor `w` most elect +, in the whole model most elect -; the last entry of `w` ties."""
    from safetensors.torch import save_file

    def write(name: str, w: list[float], x: list[float]) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": false}')
        tensors = {"model.layers.0.w": torch.tensor(w), "model.layers.0.x": torch.tensor(x)}
        save_file(tensors, tmp_path / name / "model.safetensors")

    write("base", [0.0] * 4, [0.0] * 6)
    write("a", [1.0, 1.0, 1.0, 2.0], [-1.0] * 6)
    write("b", [1.0, 1.0, 1.0, -2.0], [-1.0] * 6)
    family = open_family(tmp_path / "base", {"a": tmp_path / "a", "b": tmp_path / "b"})
    content = {
        "method": "ties",
        "base": {"name": "base", "model": "base", "digest": family.base.digest},
        "parents": [{"name": n, "model": n, "digest": family.parents[n].digest} for n in "ab"],
        "dtype": "float32",
    }
    found = {}
    for scope in ("tensor", "model"):
        merged = build(family, Recipe.parse(content | {"trim_scope": scope}, "test"))
        found[scope] = merged["model.layers.0.w"][3].item()
    assert found == {"tensor": 2.0, "model": -2.0}


def test_while_merging_from_disk_no_more_than_two_tensors_inputs_are_held(tiny_family, recipe_for, monkeypatch) -> None:
    folder, held, most = tiny_family(), [], 0
    members = {name: folder / name for name in USUAL}
    with closing(open_family(folder / "base", members, mapped=False)) as family:
        plan = Builder(family, compiled=False).plan(recipe_for(family, "ties", USUAL))
        read = Checkpoint.tensor

        def counted(checkpoint: Checkpoint, name: str) -> Tensor:
            nonlocal held, most
            tensor = read(checkpoint, name)
            held = [each for each in held if each() is not None] + [weakref.ref(tensor)]
            most = max(most, len(held))
            return tensor

        monkeypatch.setattr(Checkpoint, "tensor", counted)
        for _ in Builder(family, compiled=False).tensors(plan):
            pass
    assert most <= 2 * (len(USUAL) + 1)
