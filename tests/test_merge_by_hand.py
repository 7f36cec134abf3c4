"""`merge`, `convert` and `inspect` as a user runs them: real folders in, one that loads out, one line for a mistake."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Command, FamilyFolder, MakeRecipe, OpenFamily
from safetensors.torch import load_file, save_file
from torch import Tensor

from heterosis.recipe import Recipe

Write = Callable[..., Path]


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.fixture
def family(tiny_family: FamilyFolder, tmp_path: Path) -> Path:
    """A copy of the tiny family that a test may break."""
    shutil.copytree(tiny_family(), tmp_path / "family")
    return tmp_path / "family"


def write(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def linear(*names: str, **rest: Any) -> dict[str, Any]:
    models = [{"model": name, "parameters": {"weight": 1.0}} for name in names]
    return {"merge_method": "linear", "models": models, "dtype": "float32", **rest}


def test_a_mergekit_file_becomes_a_folder_that_loads(family: Path, heterosis: Command) -> None:
    from transformers import AutoModelForCausalLM

    code, out, errors = heterosis("merge", write(family / "merge.yml", linear("a", "b")), family / "out")
    assert (code, errors) == (0, "")
    _, notes = AutoModelForCausalLM.from_pretrained(family / "out", output_loading_info=True)
    assert not any(notes.values())
    a, b, merged = weights(family / "a"), weights(family / "b"), weights(family / "out")
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (a[name] + b[name]) / 2)
    # What was written builds the same again, from our file and from mergekit's.
    for again in ("recipe.yaml", "mergekit_config.yml"):
        code, out_again, _ = heterosis("merge", family / "out" / again, family / again.replace(".", "-"))
        assert code == 0
        assert out_again.split()[-1] == out.split()[-1]


def test_a_stack_has_its_layers_in_its_configuration(family: Path, heterosis: Command) -> None:
    from transformers import AutoModelForCausalLM

    parts = [[("a", 0, 2)], [("b", 1, 3)], [("a", 2, 3)]]
    slices = [{"sources": [{"model": m, "layer_range": [i, k]} for m, i, k in part]} for part in parts]
    recipe = write(family / "stack.yml", {"merge_method": "passthrough", "slices": slices, "dtype": "float32"})
    assert heterosis("merge", recipe, family / "out")[0] == 0
    assert json.loads((family / "out" / "config.json").read_text())["num_hidden_layers"] == 5
    loaded, notes = AutoModelForCausalLM.from_pretrained(family / "out", output_loading_info=True)
    assert not any(notes.values())
    merged = weights(family / "out")
    for layer, (member, origin) in enumerate([("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(merged[name.format(layer)], weights(family / member)[name.format(origin)])
    assert torch.equal(merged["model.norm.weight"], weights(family / "a")["model.norm.weight"])
    assert len(loaded.model.layers) == 5


def add_token(folder: Path, token: str, fill: float) -> None:
    """Give a model one more token, with a row of its own in embeddings and head."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([token])
    tokenizer.save_pretrained(folder)
    tensors = weights(folder)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.full((1, tensors[name].shape[1]), fill)])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))


@pytest.mark.parametrize(("source", "rows"), [("union", 66), ("base", 64), ("b", 65)])
def test_tokenizers_that_differ_are_aligned(family: Path, heterosis: Command, source: str, rows: int) -> None:
    from transformers import AutoTokenizer

    add_token(family / "a", "<think>", 0.25)
    add_token(family / "b", "<answer>", 0.5)
    content = linear("a", "b", base_model="base")
    content["models"].append({"model": "base", "parameters": {"weight": 0.0}})
    recipe = write(family / "m.yml", content)
    code, _, errors = heterosis("merge", recipe, family / "out")
    assert code == 2
    assert "is [65, 32], the base has [64, 32]" in errors
    write(recipe, content | {"tokenizer_source": source})
    assert heterosis("merge", recipe, family / "out")[::2] == (0, "")
    merged = weights(family / "out")["model.embed_tokens.weight"]
    assert merged.shape == (rows, 32)
    assert json.loads((family / "out" / "config.json").read_text())["vocab_size"] == rows
    vocabulary = AutoTokenizer.from_pretrained(family / "out").get_vocab()
    for token, fill, owner in (("<think>", 0.25, "a"), ("<answer>", 0.5, "b")):
        assert (token in vocabulary) == (source in ("union", owner))
        if token in vocabulary:
            torch.testing.assert_close(merged[vocabulary[token]], torch.full((32,), fill))


def test_rows_are_padded_on_request(family: Path, heterosis: Command) -> None:
    tokenizer = {"source": "base", "pad_to_multiple_of": 48}
    recipe = write(family / "m.yml", linear("base", "a", base_model="base", tokenizer=tokenizer))
    assert heterosis("merge", recipe, family / "out")[0] == 0
    assert weights(family / "out")["lm_head.weight"].shape == (96, 32)


def lora(base: Path, folder: Path) -> None:
    """A PEFT adapter on `base` that changes something."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape))
        adapted.save_pretrained(folder)
        adapted.merge_and_unload().save_pretrained(folder.parent / "merged")


def test_an_adapter_is_a_parent_like_any_other(family: Path, heterosis: Command, recipe_for: MakeRecipe) -> None:
    lora(family / "base", family / "adapter")
    models = [{"model": "base+adapter", "parameters": {"weight": 0.5}}, {"model": "a", "parameters": {"weight": 0.25}}]
    content = {"merge_method": "task_arithmetic", "base_model": "base", "models": models, "dtype": "float32"}
    assert heterosis("merge", write(family / "m.yml", content), family / "out")[::2] == (0, "")
    base, full, a = (weights(family / name) for name in ("base", "merged", "a"))
    for name, tensor in weights(family / "out").items():
        expected = base[name] + 0.5 * (full[name] - base[name]) + 0.25 * (a[name] - base[name])
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
    again = heterosis("merge", family / "out" / "recipe.yaml", family / "again")
    assert again[0] == 0
    assert weights(family / "again").keys() == base.keys()
    # The folder of the adapter alone stands for the adapter on the recipe's base.
    models[0]["model"] = "adapter"
    assert heterosis("merge", write(family / "m.yml", content), family / "third")[0] == 0
    assert all(torch.equal(x, weights(family / "third")[name]) for name, x in weights(family / "out").items())


def test_fisher_and_regmean_measure_each_parent_on_its_own_texts(
    family: Path, heterosis: Command, open_tiny: OpenFamily, recipe_for: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(family / "cache"))
    for name, text in (("a", "w3 w4 w5 w6"), ("b", "w7 w8 w9 w10")):
        (family / f"{name}.txt").write_text("\n\n".join(f"{text} w{i}" for i in range(11, 15)))
    data = {name: {"path": f"{name}.txt", "samples": 4} for name in "ab"}
    a, b = weights(family / "a"), weights(family / "b")
    for method in ("fisher", "regmean"):
        recipe = recipe_for(open_tiny(), method, {"a": {}, "b": {}}, data=data)
        recipe.save(family / f"{method}.yaml")
        assert heterosis("merge", family / f"{method}.yaml", family / method)[0] == 0
        merged = weights(family / method)
        up = "model.layers.1.mlp.up_proj.weight"
        assert not torch.equal(merged[up], (a[up] + b[up]) / 2)
        norm = "model.norm.weight"
        between = torch.minimum(a[norm], b[norm]) - 1e-6 <= merged[norm]
        assert bool(between.all())
    assert len(list((family / "cache").rglob("*.safetensors"))) == 4
    (family / "a.txt").unlink()
    code, _, errors = heterosis("merge", family / "fisher.yaml", family / "none")
    assert code == 2
    assert "a.txt" in errors


def test_convert_goes_both_ways_and_refuses_what_a_format_cannot_say(
    family: Path, heterosis: Command, open_tiny: OpenFamily, recipe_for: MakeRecipe
) -> None:
    theirs = write(family / "m.yml", linear("a", "b"))
    assert heterosis("convert", theirs, family / "r.yaml")[::2] == (0, "")
    assert Recipe.load(family / "r.yaml").method == "linear"
    code, out, _ = heterosis("convert", family / "r.yaml")
    assert code == 0
    assert yaml.safe_load(out)["merge_method"] == "linear"
    recipe_for(open_tiny(), "ties", {"a": {"density": 0.5}, "b": {}}).save(family / "ties.yaml")
    code, out, errors = heterosis("convert", family / "ties.yaml")
    assert (code, out) == (2, "")
    assert "mergekit cannot express this merge" in errors
    assert "number of agreeing parents" in errors
    code, out, _ = heterosis("convert", family / "ties.yaml", "--nearest")
    assert code == 0
    assert out.startswith("# The nearest mergekit configuration, NOT the same merge")
    recipe_for(open_tiny(), "tsv", {"a": {}, "b": {}}).save(family / "tsv.yaml")
    code, _, errors = heterosis("convert", family / "tsv.yaml", "--nearest")
    assert code == 2
    assert "mergekit has no method like tsv" in errors


def test_inspect_speaks_to_people_to_programs_and_in_a_page(family: Path, heterosis: Command) -> None:
    command = ("inspect", family / "base", family / "a", family / "b")
    code, out, _ = heterosis(*command, "--html", family / "page.html")
    assert code == 0
    assert "a" in out
    assert "<html" in (family / "page.html").read_text()
    code, out, _ = heterosis(*command, "--format", "json")
    assert code == 0
    code, _, errors = heterosis("inspect", family / "base", family / "nobody")
    assert code == 2
    assert "nobody: no such folder" in errors
    code, out, _ = heterosis(*command, "--format", "json")
    assert {"advice", "overall"} <= json.loads(out).keys()


def test_a_recipe_written_by_hand_needs_no_digests_and_gets_them(family: Path, heterosis: Command) -> None:
    content = {
        "method": "ties",
        "base": {"name": "base", "model": "base"},
        "parents": [{"name": "a", "model": "a"}, {"name": "b", "model": "b"}],
        "parameters": {"a": {"all": {"density": 0.5}}},
        "dtype": "float32",
    }
    code, out, errors = heterosis("merge", write(family / "hand.yaml", content), family / "out")
    assert (code, errors) == (0, "")
    written = Recipe.load(family / "out" / "recipe.yaml")
    assert all(len(source.digest) == 64 for source in (written.base, *written.parents))
    assert heterosis("merge", family / "out" / "recipe.yaml", family / "again")[1].split()[-1] == out.split()[-1]
    # Other weights in their place are no longer taken.
    shutil.rmtree(family / "b")
    shutil.copytree(family / "c", family / "b")
    code, _, errors = heterosis("merge", family / "out" / "recipe.yaml", family / "third")
    assert code == 2
    assert "b: no parent at hand has weights" in errors


def test_a_device_that_is_not_there_is_named(family: Path, heterosis: Command) -> None:
    code, _, errors = heterosis("merge", write(family / "m.yml", linear("a")), family / "out", "--device", "abacus")
    assert code == 2
    assert "--device abacus: cannot compute there" in errors
    assert errors.count("\n") == 1


def test_a_merge_that_overflows_says_so_and_leaves_nothing(family: Path, heterosis: Command) -> None:
    content = {"merge_method": "task_arithmetic", "base_model": "base", "models": linear("a")["models"]}
    content |= {"parameters": {"lambda": 1e9}, "out_dtype": "float16"}
    code, _, errors = heterosis("merge", write(family / "m.yml", content), family / "out")
    assert code == 2
    assert "does not fit into float16" in errors
    assert not list(family.glob("out*"))


def test_a_link_in_the_way_is_not_followed(family: Path, heterosis: Command) -> None:
    (family / "out").symlink_to(family / "nowhere")
    code, _, errors = heterosis("merge", write(family / "m.yml", linear("a")), family / "out")
    assert code == 2
    assert "exists already" in errors
    code, _, errors = heterosis("merge", family / "m.yml", family / "no" / "such" / "out")
    assert code == 2
    assert "its parent is no folder" in errors


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def poison(path: Path) -> None:
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def reshape(path: Path) -> None:
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, path, metadata={"format": "pt"})


def pickle(path: Path) -> None:
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


def escape(path: Path) -> None:
    names = dict.fromkeys(load_file(path), "../../model.safetensors")
    path.rename(path.parent.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": names}
    (path.parent / "model.safetensors.index.json").write_text(json.dumps(index))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a truncated file": (truncate, "a: model.safetensors"),
    "NaN": (poison, "a: model.norm.weight holds NaN or Inf"),
    "another shape": (reshape, "a: model.norm.weight is [31], the base has [32]"),
    "a pickle": (pickle, "pickles can run code"),
    "an index that leaves the folder": (escape, "in the model's own folder"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_models_are_refused_in_one_line_and_nothing_is_written(
    family: Path, heterosis: Command, name: str
) -> None:
    break_it, message = BROKEN[name]
    break_it(family / "a" / "model.safetensors")
    content = {"merge_method": "ties", "base_model": "base", "models": linear("a", "b")["models"]}
    code, out, errors = heterosis("merge", write(family / "m.yml", content), family / "out")
    assert (code, out) == (2, "")
    assert message in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert not list(family.glob("out*"))


def test_pickles_are_read_when_allowed(family: Path, heterosis: Command) -> None:
    pickle(family / "a" / "model.safetensors")
    recipe = write(family / "m.yml", linear("a", "b"))
    assert heterosis("merge", recipe, family / "out")[0] == 2
    assert heterosis("merge", recipe, family / "out", "--allow-pickle")[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: []\nmerge_method: ties\n", "exactly one of models, slices and modules"),
        ("[1, 2", "not YAML"),
        ("just text", "recipe: Input should be"),
        ("method: ties\nbase: {name: base, model: x, digest: x}\nparents: []\n", "at least one"),
    ],
)
def test_files_that_describe_no_merge_are_refused(family: Path, heterosis: Command, text: str, message: str) -> None:
    (family / "m.yml").write_text(text)
    code, out, errors = heterosis("merge", family / "m.yml", family / "out")
    assert (code, out) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
