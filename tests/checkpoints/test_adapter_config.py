import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from heterosis.checkpoints.adapter_config import Key, parse_key, read_settings
from heterosis.errors import CheckpointError

MODULES = [
    f"model.layers.{layer}.{module}"
    for layer in (0, 1, 11)
    for module in ("self_attn.q_proj", "mlp.up_proj", "mlp.gate")
] + ["lm_head", "model.embed_tokens"]
PATTERNS = [
    "q_proj",
    "proj",
    ".*proj",
    "self_attn.q_proj",
    r"layers\.1\..*",
    "layers.1",
    "^model.layers.0.*",
    "lm_head",
    "e",
    "model.layers.[01].mlp.up_proj|gate",
]


def settings(folder: Path, **content: object) -> object:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | content))
    return read_settings(folder, "math")


@given(patterns=st.lists(st.sampled_from(PATTERNS), unique=True), module=st.sampled_from(MODULES))
def test_patterns_choose_as_in_peft(tmp_path_factory: pytest.TempPathFactory, patterns: list[str], module: str) -> None:
    ranks = {pattern: i + 1 for i, pattern in enumerate(patterns)}
    found = settings(tmp_path_factory.getbasetemp(), r=99, lora_alpha=50, rank_pattern=ranks, alpha_pattern=ranks)
    expected = ranks.get(get_pattern_key(ranks.keys(), module), 99)
    assert found.rank_of(module) == expected
    assert found.scaling_of(module) == (expected if expected < 99 else 50) / expected


def test_scaling_is_alpha_over_rank_or_over_its_root(tmp_path: Path) -> None:
    assert settings(tmp_path, r=4, lora_alpha=8).scaling_of("q_proj") == 2.0
    assert settings(tmp_path, r=4, lora_alpha=8, use_rslora=True).scaling_of("q_proj") == 4.0
    assert settings(tmp_path, r=3, lora_alpha=1, use_rslora=True).scaling_of("q_proj") == 1 / math.sqrt(3)


def test_what_peft_writes_by_default_is_understood(tmp_path: Path) -> None:
    from peft import LoraConfig

    LoraConfig(target_modules=["q_proj"]).save_pretrained(tmp_path)
    found = read_settings(tmp_path, "math")
    assert (found.rank, found.alpha, found.rslora, found.dora) == (8, 8.0, False, False)


def test_settings_that_are_switched_off_are_not_refused(tmp_path: Path) -> None:
    settings(tmp_path, use_quantum=False, layer_replication=None, target_parameters=[], arrow_config={})


@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=5)))
def test_any_configuration_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content) -> None:
    try:
        settings(tmp_path_factory.getbasetemp(), **content)
    except CheckpointError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("base_model.model.model.layers.0.q_proj.lora_A.weight", ("model.layers.0.q_proj", "lora_A", "weight")),
        ("base_model.model.model.layers.0.q_proj.lora_B.default.weight", ("model.layers.0.q_proj", "lora_B", "weight")),
        ("model.layers.0.q_proj.lora_B.bias", ("model.layers.0.q_proj", "lora_B", "bias")),
        ("base_model.model.h.0.c_attn.lora_magnitude_vector", ("h.0.c_attn", "lora_magnitude_vector", "weight")),
        ("base_model.model.wte.lora_embedding_A", ("wte", "lora_embedding_A", "weight")),
        ("base_model.model.wte.lora_embedding_B.default", ("wte", "lora_embedding_B", "weight")),
        ("base_model.model.lm_head.weight", ("lm_head", "", "weight")),
        ("base_model.model.lm_head.base_layer.bias", ("lm_head", "", "bias")),
        ("base_model.model.lm_head.modules_to_save.default.weight", ("lm_head", "", "weight")),
        ("weight", ("", "", "weight")),
        ("", ("", "", "")),
    ],
)
def test_names_are_taken_apart(key: str, expected: tuple[str, str, str]) -> None:
    assert parse_key(key) == Key(*expected)
