import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from heterosis.checkpoints import Adapter, Checkpoint, open_family
from heterosis.checkpoints.adapter import add_low_rank
from heterosis.checkpoints.tensors import is_finite
from heterosis.errors import CheckpointError

Q = "model.layers.1.self_attn.q_proj"
Make = Callable[..., Path]


def train(model: Any, folder: Path, **settings: Any) -> dict[str, Tensor]:
    """Save an adapter with random weights on a model, and return what PEFT merges the two into."""
    noise = torch.Generator().manual_seed(5)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=noise)
        wrapped.save_pretrained(folder)
        merged = wrapped.merge_and_unload()
    return {name: parameter.detach() for name, parameter in merged.named_parameters()}


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def make(tiny_family, tmp_path: Path) -> Make:
    """Trains an adapter on the tiny base and gives its folder."""

    def made(**settings: Any) -> Path:
        folder = tmp_path / "adapter"
        train(load(tiny_family() / "base"), folder, **({"r": 4, "target_modules": ["q_proj", "down_proj"]} | settings))
        return folder

    return made


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def configure(folder: Path, **settings: object) -> None:
    content = json.loads((folder / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(content))


def key(tensors: dict[str, Tensor], ending: str) -> str:
    return next(name for name in tensors if name.endswith(ending))


def refusal(base: Path, folder: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        _ = open_family(base, {"math": folder}, **options).parents["math"].digest
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("math: ")
    return message


SETTINGS = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "every linear layer": {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"},
    "rank-stabilised": {"r": 5, "lora_alpha": 7, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "up_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7, "proj": 3},
        "alpha_pattern": {r"^model\.layers\.[02]\..*": 3, "down_proj": 32},
    },
    "patterns, rank-stabilised": {
        "r": 4,
        "use_rslora": True,
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"model.layers.0.self_attn.q_proj": 9, r"layers.[12].*": 2},
        "alpha_pattern": {r".*_proj": 5},
    },
    "modules saved": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "embeddings": {"r": 4, "lora_alpha": 16, "target_modules": ["embed_tokens", "lm_head", "o_proj"]},
    "DoRA": {"r": 4, "lora_alpha": 6, "use_dora": True, "target_modules": ["q_proj", "k_proj", "down_proj"]},
    "DoRA, embeddings": {"r": 4, "use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_adapter_is_what_peft_merges(tiny_family, tmp_path: Path, settings: dict[str, Any], mapped: bool) -> None:
    base = tiny_family() / "base"
    expected = train(load(base), tmp_path / "adapter", **settings)
    family = open_family(base, {"math": tmp_path / "adapter"}, mapped=mapped)
    adapter = family.parents["math"]
    assert adapter.specs.keys() == expected.keys()
    changed = 0
    for name, merged in expected.items():
        found = adapter.tensor(name)
        assert (tuple(found.shape), found.dtype) == adapter.specs[name]
        torch.testing.assert_close(found, merged, rtol=1e-6, atol=1e-6)
        changed += not torch.equal(found, family.base.tensor(name))
    assert changed >= 4
    family.close()


@pytest.fixture
def conv1d(tmp_path: Path) -> Path:
    """A GPT-2: its layers are stored [in, out], its attention's projection is square, and its head is tied."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16))
    model.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("dora", [True, False])
def test_layers_stored_the_other_way_round_are_what_peft_merges(conv1d: Path, said: bool, dora: bool) -> None:
    folder = conv1d.parent / "adapter"
    expected = train(load(conv1d), folder, r=3, use_dora=dora, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    configure(folder, fan_in_fan_out=said)  # older versions left it out for layers where it is plain
    adapter = open_family(conv1d, {"math": folder}).parents["math"]
    for name, merged in expected.items():
        torch.testing.assert_close(adapter.tensor(name), merged, rtol=1e-6, atol=1e-6)


def test_the_shapes_tell_which_way_a_layer_is_stored(conv1d: Path) -> None:
    """A model that is not known here, and an adapter that does not say."""
    folder = conv1d.parent / "adapter"
    expected = train(load(conv1d), folder, r=3, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    configure(folder, fan_in_fan_out=False)
    content = json.loads((conv1d / "config.json").read_text()) | {"model_type": "unknown"}
    (conv1d / "config.json").write_text(json.dumps(content))
    adapter = open_family(conv1d, {"math": folder}).parents["math"]
    for name, merged in expected.items():
        torch.testing.assert_close(adapter.tensor(name), merged, rtol=1e-6, atol=1e-6)


def test_trained_biases_are_taken(conv1d: Path) -> None:
    folder = conv1d.parent / "adapter"
    expected = train(load(conv1d), folder, r=3, bias="all", target_modules=["c_attn"], fan_in_fan_out=True)
    adapter = open_family(conv1d, {"math": folder}).parents["math"]
    for name, merged in expected.items():
        torch.testing.assert_close(adapter.tensor(name), merged, rtol=1e-6, atol=1e-6)
    assert not torch.equal(adapter.tensor("transformer.h.0.attn.c_attn.bias"), torch.zeros(48))


def test_a_bias_of_the_low_rank_update_is_added(conv1d: Path) -> None:
    folder = conv1d.parent / "adapter"
    settings = {"r": 3, "lora_alpha": 7, "lora_bias": True, "target_modules": ["c_fc"], "fan_in_fan_out": True}
    expected = train(load(conv1d), folder, **settings)
    adapter = open_family(conv1d, {"math": folder}).parents["math"]
    for name, merged in expected.items():
        torch.testing.assert_close(adapter.tensor(name), merged, rtol=1e-6, atol=1e-6)
    assert not torch.equal(adapter.tensor("transformer.h.0.mlp.c_fc.bias"), torch.zeros(64))


def test_worked_by_hand() -> None:
    weight, a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [4.0]])
    assert add_low_rank(weight, a, b, 0.5).tolist() == [[2.0, 1.0], [5.0, 2.0]]
    assert add_low_rank(weight, a, b, 0.5, transposed=True).tolist() == [[2.0, 4.0], [2.0, 2.0]]
    # W + BA is [[3, 0], [0, -4]]: norms of the rows 3 and 4, then scaled to 6 and 2
    scaled = add_low_rank(torch.tensor([[1.0, 2.0], [-4.0, 0.0]]), a, b, 1.0, magnitude=torch.tensor([6.0, 2.0]))
    assert scaled.tolist() == [[6.0, 0.0], [0.0, -2.0]]


def test_only_tensors_that_the_adapter_changes_are_float32(make: Make, tiny_family) -> None:
    family = open_family(tiny_family("bfloat16") / "base", {"math": make(target_modules=["q_proj"])})
    adapter = family.parents["math"]
    for name, spec in adapter.specs.items():
        assert spec.dtype == (torch.float32 if "q_proj" in name else torch.bfloat16)
        assert adapter.tensor(name).dtype == spec.dtype
    assert adapter.bytes == sum(adapter.tensor(name).nbytes for name in adapter.specs)
    assert adapter.tied == family.base.tied
    assert adapter.config == family.base.config


def test_the_same_bits_come_with_every_call(make: Make, tiny_family) -> None:
    folder = make()
    one, other = (open_family(tiny_family() / "base", {"a": folder}).parents["a"] for _ in range(2))
    for name in one.specs:
        first = one.tensor(name).clone()
        assert torch.equal(first, one.tensor(name))
        assert torch.equal(first, other.tensor(name))


def test_the_digest_follows_the_base_the_weights_and_the_settings(make: Make, tiny_family) -> None:
    folder = make()

    def digest(base: str = "base") -> str:
        return open_family(tiny_family() / base, {"math": folder}).parents["math"].digest

    first = digest()
    assert digest() == first
    configure(folder, lora_dropout=0.5, base_model_name_or_path="another/name")
    assert digest() == first
    found = {first, digest("a")}
    configure(folder, lora_alpha=9)
    found.add(digest())
    rewrite(folder, lambda tensors: tensors[key(tensors, "lora_B.weight")].add_(1))
    found.add(digest())
    assert len(found) == 4


def test_names_may_lack_the_prefix_and_hold_the_adapters_name(make: Make, tiny_family) -> None:
    folder, base = make(use_dora=True), tiny_family() / "base"
    plain = open_family(base, {"math": folder}).parents["math"]
    expected = {name: plain.tensor(name) for name in plain.specs}

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            short = name.removeprefix("base_model.model.")
            tensors[short.replace(".weight", "") + ".default.weight"] = tensors.pop(name)

    rewrite(folder, rename)
    renamed = open_family(base, {"math": folder}).parents["math"]
    assert all(torch.equal(renamed.tensor(name), tensor) for name, tensor in expected.items())


def test_an_adapter_may_sit_on_a_model_that_is_not_the_base(make: Make, tiny_family) -> None:
    folder, root = make(), tiny_family()
    family = open_family(root / "base", {"math": root / "a", "code": root / "b"}, adapters={"math": folder})
    alone = Adapter(folder, "math", Checkpoint(root / "a"))
    assert family.parents["math"].digest == alone.digest
    name = f"{Q}.weight"
    step = alone.tensor(name) - Checkpoint(root / "a").tensor(name)
    on_base = open_family(root / "base", {"math": folder}).parents["math"]
    torch.testing.assert_close(step, on_base.tensor(name) - family.base.tensor(name), rtol=1e-4, atol=1e-6)
    family.close()


def test_an_adapter_named_on_the_base_is_the_same_as_a_bare_one(make: Make, tiny_family) -> None:
    folder, base = make(), tiny_family() / "base"
    named = open_family(base, {"math": base}, adapters={"math": folder})
    assert named.parents["math"].digest == open_family(base, {"math": folder}).parents["math"].digest
    named.close()


def test_saved_embeddings_of_another_size_need_alignment(make: Make, tiny_family) -> None:
    folder, base = make(modules_to_save=["embed_tokens", "lm_head"]), tiny_family() / "base"

    def grow(tensors: dict[str, Tensor]) -> None:
        for ending in ("embed_tokens.weight", "lm_head.weight"):
            tensors[key(tensors, ending)] = torch.ones(70, 32)

    rewrite(folder, grow)
    assert "[70, 32], the base has [64, 32]" in refusal(base, folder)
    adapter = open_family(base, {"math": folder}, vocabulary="union").parents["math"]
    assert adapter.config["vocab_size"] == 70
    assert adapter.tensor("lm_head.weight").shape == (70, 32)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
    ],
    ids=str,
)
def test_what_would_untie_tied_embeddings_is_refused(tiny_family, tmp_path: Path, settings: dict[str, Any]) -> None:
    base = tiny_family(tied=True) / "base"
    train(load(base), tmp_path / "adapter", **({"r": 4, "target_modules": ["q_proj"]} | settings))
    rewrite(  # training moved the two apart
        tmp_path / "adapter", lambda tensors: [t.add_(1) for n, t in tensors.items() if n.endswith("lm_head.weight")]
    )
    message = refusal(base, tmp_path / "adapter")
    assert "ties" in message
    assert "embed_tokens" in message or "lm_head" in message


def test_tied_embeddings_that_were_trained_together_are_taken(tiny_family, tmp_path: Path) -> None:
    base = tiny_family(tied=True) / "base"
    settings = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    expected = train(load(base), tmp_path / "adapter", **settings)
    adapter = open_family(base, {"math": tmp_path / "adapter"}).parents["math"]
    assert adapter.specs.keys() == expected.keys()
    for name, merged in expected.items():
        torch.testing.assert_close(adapter.tensor(name), merged, rtol=1e-6, atol=1e-6)


BROKEN_CONFIGS = {
    "another kind": {"peft_type": "IA3"},
    "no kind": {"peft_type": None},
    "replicated layers": {"layer_replication": [[0, 2], [1, 3]]},
    "weights outside modules": {"target_parameters": ["experts.weight"]},
    "single tokens": {"trainable_token_indices": [1, 2]},
    "an activated adapter": {"alora_invocation_tokens": [1, 2]},
    "a setting of the future": {"use_quantum": True},
    "PiSSA": {"init_lora_weights": "pissa_niter_4"},
    "OLoRA": {"init_lora_weights": "olora"},
    "rank 0": {"r": 0},
    "rank of text": {"r": "4"},
    "true rank": {"r": True},
    "wrong rank": {"r": 5},
    "alpha not a number": {"lora_alpha": float("nan")},
    "alpha too large": {"lora_alpha": 10**400},
    "patterns in a list": {"rank_pattern": ["q_proj"]},
    "pattern with rank 0": {"rank_pattern": {"q_proj": 0}},
    "pattern with text": {"alpha_pattern": {"q_proj": "8"}},
    "broken pattern": {"rank_pattern": {"q_proj(": 4}},
    "saved modules as text": {"modules_to_save": "lm_head"},
    "DoRA without magnitudes": {"use_dora": True},
}


@pytest.mark.parametrize("settings", BROKEN_CONFIGS.values(), ids=BROKEN_CONFIGS)
def test_a_configuration_that_is_not_understood_is_refused_by_name(make: Make, tiny_family, settings) -> None:
    folder = make()
    configure(folder, **settings)
    message = refusal(tiny_family() / "base", folder)
    setting = next(iter(settings))
    assert setting in message or setting in ("r", "use_dora")


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", "null", "[" * 100_000, "\xff"], ids=range(7))
def test_a_configuration_that_cannot_be_read_is_refused(make: Make, tiny_family, content: str) -> None:
    folder = make()
    (folder / "adapter_config.json").write_bytes(content.encode("latin-1"))
    assert "adapter_config.json" in refusal(tiny_family() / "base", folder)


def drop(ending: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(key(tensors, ending))


def put(ending: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({key(tensors, ending): tensor})


def add(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: tensor})


BROKEN_WEIGHTS = {
    "empty": lambda tensors: tensors.clear(),
    "A without B": drop("q_proj.lora_B.weight"),
    "B without A": drop("q_proj.lora_A.weight"),
    "A of another width": put("q_proj.lora_A.weight", torch.zeros(4, 31)),
    "B of another height": put("q_proj.lora_B.weight", torch.zeros(31, 4)),
    "B of another rank": put("q_proj.lora_B.weight", torch.zeros(32, 3)),
    "A of one dimension": put("q_proj.lora_A.weight", torch.zeros(4)),
    "A without entries": put("q_proj.lora_A.weight", torch.zeros(0, 32)),
    "a module that the base lacks": add(
        "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", torch.ones(4, 32)
    ),
    "a tensor that the base lacks": add("base_model.model.model.extra.weight", torch.ones(1)),
    "a full weight of another shape": add("base_model.model.model.norm.weight", torch.ones(31)),
    "magnitudes without DoRA": add(f"base_model.model.{Q}.lora_magnitude_vector", torch.ones(32)),
    "a bias that the base lacks": add(f"base_model.model.{Q}.lora_B.bias", torch.ones(32)),
    "two adapters": add(f"base_model.model.{Q}.lora_A.other.weight", torch.ones(4, 32)),
    "an embedding of a linear layer": add("base_model.model.model.norm.lora_embedding_A", torch.ones(4, 32)),
    "integers": put("q_proj.lora_A.weight", torch.ones(4, 32, dtype=torch.int8)),
    "NaN": put("q_proj.lora_A.weight", torch.full((4, 32), float("nan"))),
    "infinity": put("q_proj.lora_B.weight", torch.full((32, 4), float("inf"))),
}


@pytest.mark.parametrize("change", BROKEN_WEIGHTS.values(), ids=BROKEN_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(make: Make, tiny_family, change: Callable[..., object]) -> None:
    folder = make()
    rewrite(folder, change)
    refusal(tiny_family() / "base", folder)


def test_an_update_that_overflows_is_refused_where_it_is_read(make: Make, tiny_family) -> None:
    folder = make()
    rewrite(folder, lambda tensors: [tensor.fill_(1e30) for tensor in tensors.values()])
    adapter = open_family(tiny_family() / "base", {"math": folder}).parents["math"]
    with pytest.raises(CheckpointError, match=f"^math: {Q}.weight is not finite"):
        adapter.tensor(f"{Q}.weight")
    assert is_finite(adapter.tensor("model.norm.weight"))


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_a_truncated_adapter_is_refused(make: Make, tiny_family, keep: int) -> None:
    path = make() / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "adapter_model.safetensors" in refusal(tiny_family() / "base", path.parent)


def test_an_adapter_without_weights_is_refused(make: Make, tiny_family) -> None:
    folder = make()
    (folder / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in refusal(tiny_family() / "base", folder)


def test_a_pickled_adapter_is_read_only_where_that_is_allowed(make: Make, tiny_family) -> None:
    folder, base = make(), tiny_family() / "base"
    expected = open_family(base, {"math": folder}).parents["math"].digest
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.bin is a pickle" in refusal(base, folder)
    assert open_family(base, {"math": folder}, allow_pickle=True).parents["math"].digest == expected


def test_an_adapter_of_another_architecture_is_refused(conv1d: Path, tiny_family) -> None:
    folder = conv1d.parent / "adapter"
    train(load(conv1d), folder, r=3, target_modules=["c_attn"], fan_in_fan_out=True)
    assert "a gpt2; the base is a llama" in refusal(tiny_family() / "base", folder)
    configure(folder, base_model_name_or_path="owner/not-at-hand")
    assert "which the base lacks" in refusal(tiny_family() / "base", folder)


def test_an_adapter_is_no_base(make: Make, tiny_family) -> None:
    with pytest.raises(CheckpointError, match=r"^base: .* holds an adapter, but a full model is needed"):
        open_family(make(), {"a": tiny_family() / "a"})


def test_peft_loads_the_adapters_that_these_tests_make(make: Make, tiny_family) -> None:
    """The folder on disk, not only the model in memory, gives what PEFT merges."""
    folder, base = make(), tiny_family() / "base"
    shutil.copy(base / "tokenizer.json", folder)
    merged = PeftModel.from_pretrained(load(base), folder).merge_and_unload()
    adapter = open_family(base, {"math": folder}).parents["math"]
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(adapter.tensor(name), parameter.detach(), rtol=1e-6, atol=1e-6)


def test_an_adapter_of_another_kind_of_model_is_refused_where_that_model_is_at_hand(
    tiny_family, make: Make, tmp_path: Path
) -> None:
    adapter, base = make(), tiny_family() / "base"
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    configure(adapter, base_model_name_or_path=str(tmp_path / "qwen"))
    assert "a qwen2; the base is a llama" in refusal(base, adapter)
    configure(adapter, base_model_name_or_path="owner/not-at-hand")
    open_family(base, {"math": adapter}).close()
