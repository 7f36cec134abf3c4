"""A small Llama family whose weights are exact fractions, so that every machine makes the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, HIDDEN, INNER, ROWS = 4, 32, 48, 40
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": ROWS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
# Steps of the fractions that tell the members apart; all prime to the 251 and 127 below.
MEMBERS = {"base": 0, "a": 3, "b": 7, "c": 11}


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, HIDDEN)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        found |= {
            f"{at}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{at}self_attn.k_proj.weight": (16, HIDDEN),
            f"{at}self_attn.v_proj.weight": (16, HIDDEN),
            f"{at}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{at}mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{at}mlp.up_proj.weight": (INNER, HIDDEN),
            f"{at}mlp.down_proj.weight": (HIDDEN, INNER),
            f"{at}input_layernorm.weight": (HIDDEN,),
            f"{at}post_attention_layernorm.weight": (HIDDEN,),
        }
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (ROWS, HIDDEN)}


def write_family(root: Path, dtype: torch.dtype = torch.float32) -> None:
    """Folders `base`, `a`, `b`, `c` in `root`."""
    for member, step in MEMBERS.items():
        tensors, first = {}, 0
        for name, shape in shapes().items():
            n = torch.Size(shape).numel()
            index = torch.arange(first, first + n, dtype=torch.int64)
            first += n
            # Of 2^-7 and, distinct in magnitude within a tensor, of 2^-20: exact in float32, rounded in bfloat16.
            own = ((index * (step + 1)) % 251 - 125).double() * 2.0**-9 + (index % 4096).double() * 2.0**-20
            weights = ((index * 37) % 127 - 63).double() * 2.0**-7 + (own if step else 0.0)
            tensors[name] = weights.to(dtype).reshape(shape)
        folder = root / member
        folder.mkdir(parents=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = CONFIG | {"dtype": str(dtype).removeprefix("torch.")}
        (folder / "config.json").write_text(json.dumps(config))
