"""Whatever lies in a model's folder: it is read, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FamilyFolder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from heterosis.checkpoints import Checkpoint, open_family
from heterosis.checkpoints.adapter_config import read_settings
from heterosis.checkpoints.safetensors_header import read_header
from heterosis.errors import CheckpointError, HeterosisError, InputError
from heterosis.evaluation.engine import context_length
from heterosis.evaluation.vllm_engine import _check_head_size

from .nasty import EXAMPLES, FILES, VALUES, as_json, files, mutations, settle, write

fuzzed = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])

TENSORS = {"model.a": torch.ones(2, 3), "model.b": torch.zeros(4, dtype=torch.bfloat16)}
WHOLE = save(TENSORS)
HEADER = json.loads(WHOLE[8 : 8 + int.from_bytes(WHOLE[:8], "little")])
DATA = WHOLE[8 + int.from_bytes(WHOLE[:8], "little") :]
INDEX = {"metadata": {"total_size": 32}, "weight_map": {"model.a": "one.safetensors", "model.b": "two.safetensors"}}
ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "bias": "none",
    "rank_pattern": {"q_proj": 4},
    "alpha_pattern": {"q_proj": 8},
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "init_lora_weights": True,
    "base_model_name_or_path": "base",
    "target_modules": ["q_proj"],
    "task_type": "CAUSAL_LM",
}


def packed(header: bytes, data: bytes = DATA) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@fuzzed
@given(content=files)
def test_no_bytes_make_a_traceback_as_safetensors(content: bytes, tmp_path: Path) -> None:
    for given_ in (content, packed(content)):
        settle(lambda each=given_: read_header(write(tmp_path / "model.safetensors", each), "m"), CheckpointError)


@fuzzed
@given(header=mutations(HEADER))
def test_no_header_makes_a_traceback(header: object, tmp_path: Path) -> None:
    settle(lambda: read_header(write(tmp_path / "model.safetensors", packed(as_json(header))), "m"), CheckpointError)


@pytest.mark.parametrize("text", FILES)
def test_no_header_of_the_corpus_makes_a_traceback(text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", packed(FILES[text]))
    assert settle(lambda: read_header(path, "m"), CheckpointError) is not None


@pytest.mark.parametrize("length", [0, 1, 8, 99_999_999, 10**8 + 1, 2**63, 2**64 - 1])
def test_no_length_of_a_header_makes_a_traceback(length: int, tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", length.to_bytes(8, "little") + WHOLE[8:])
    assert settle(lambda: read_header(path, "m"), CheckpointError) is not None


@fuzzed
@given(cut=st.integers(0, len(WHOLE) - 1))
def test_no_truncation_makes_a_traceback(cut: int, tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", WHOLE[:cut])
    assert settle(lambda: read_header(path, "m"), CheckpointError) is not None


def model_folder(folder: Path) -> Path:
    write(folder / "config.json", b"{}")
    for name, file in INDEX["weight_map"].items():
        save_file({name: TENSORS[name]}, folder / file)
    return folder


def open_folder(folder: Path) -> None:
    model = Checkpoint(folder, "m")
    try:
        assert model.digest
    finally:
        model.close()


@fuzzed
@given(content=st.one_of(mutations(INDEX).map(as_json), files))
def test_no_index_makes_a_traceback(content: bytes, tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    write(folder / "model.safetensors.index.json", content)
    settle(lambda: open_folder(folder), CheckpointError)


@pytest.mark.parametrize("text", FILES)
def test_no_index_of_the_corpus_makes_a_traceback(text: str, tmp_path: Path) -> None:
    write(model_folder(tmp_path) / "model.safetensors.index.json", FILES[text])
    assert settle(lambda: open_folder(tmp_path), CheckpointError) is not None


@pytest.mark.parametrize(
    "file", ["../one.safetensors", "/etc/passwd", "a/../one.safetensors", "..", "", "\x00", "x" * 300]
)
def test_no_shard_lies_outside_its_folder(file: str, tmp_path: Path) -> None:
    content = {"weight_map": {"model.a": file}}
    write(model_folder(tmp_path) / "model.safetensors.index.json", as_json(content))
    assert settle(lambda: open_folder(tmp_path), CheckpointError) is not None


@fuzzed
@given(content=st.one_of(mutations(ADAPTER).map(as_json), files))
def test_no_adapter_configuration_makes_a_traceback(content: bytes, tmp_path: Path) -> None:
    def read() -> None:
        write(tmp_path / "adapter_config.json", content)
        found = read_settings(tmp_path, "adapter")
        for module in ("model.layers.0.self_attn.q_proj", "lm_head"):
            assert found.rank_of(module) > 0
            float(found.scaling_of(module))

    settle(read, CheckpointError)


@pytest.mark.parametrize("text", FILES)
def test_no_adapter_configuration_of_the_corpus_makes_a_traceback(text: str, tmp_path: Path) -> None:
    write(tmp_path / "adapter_config.json", FILES[text])
    assert settle(lambda: read_settings(tmp_path, "adapter"), CheckpointError) is not None


@pytest.fixture(scope="module")
def pair(tiny_family: FamilyFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    for name in ("base", "a"):
        shutil.copytree(tiny_family() / name, folder / name)
    return folder


def open_pair(pair: Path) -> None:
    family = open_family(pair / "base", {"a": pair / "a"})
    try:
        assert context_length(family.base.config, None) > 0
        settle(lambda: _check_head_size(family.base.config), HeterosisError)
    finally:
        family.close()


@pytest.mark.parametrize("member", ["base", "a"])
@fuzzed
@given(data=st.data())
def test_no_configuration_makes_a_traceback(member: str, data: st.DataObject, pair: Path) -> None:
    before = (pair / member / "config.json").read_bytes()
    content = data.draw(st.one_of(mutations(json.loads(before)).map(as_json), files))
    try:
        write(pair / member / "config.json", content)
        settle(lambda: open_pair(pair), InputError)
    finally:
        write(pair / member / "config.json", before)


@pytest.mark.parametrize("key", ["max_position_embeddings", "num_attention_heads", "hidden_size", "head_dim"])
def test_no_count_in_a_configuration_makes_a_traceback(key: str) -> None:
    for value in VALUES:
        settle(lambda given_={key: value}: context_length(given_, None), CheckpointError)
        settle(lambda given_={"hidden_size": 64, key: value}: _check_head_size(given_), HeterosisError)


@pytest.mark.parametrize("text", FILES)
def test_no_configuration_of_the_corpus_makes_a_traceback(text: str, tmp_path: Path) -> None:
    write(model_folder(tmp_path) / "config.json", FILES[text])
    (tmp_path / "one.safetensors").rename(tmp_path / "model.safetensors")
    settle(lambda: open_folder(tmp_path), CheckpointError)
