"""Does an engine start here and answer? Tried on a tiny random model, in a process of its own: `heterosis doctor`."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from heterosis.checkpoints import TensorSpec, open_family, write_checkpoint
from heterosis.errors import EngineError, HeterosisError
from heterosis.evaluation.engine import Continuation, Engine, Generation, Probe, Sources, compute_dtype
from heterosis.recipe import Recipe

OUTCOME, LOG = "outcome.json", "engine.log"
WORDS, HIDDEN, INNER, LAYERS, HEADS, LENGTH = 32, 64, 96, 2, 2, 64
PROMPT = (1, 5, 6, 7)


def main() -> None:
    """In the process of its own: arguments are the engine's kind and a folder to work in."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    try:
        outcome: dict[str, Any] = try_engine(kind, folder)
    except HeterosisError as error:
        outcome = {"error": str(error)}
    except Exception as error:  # an engine's start fails in as many ways as there are machines
        outcome = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    (folder / OUTCOME).write_text(json.dumps(outcome), encoding="utf-8")


def try_engine(kind: str, folder: Path) -> dict[str, Any]:
    """Start an engine on a random base with one parent, merge inside it, ask it; seconds and settings."""
    sources = write_models(folder)
    dtype = compute_dtype("bfloat16", on_cpu=not torch.cuda.is_available())
    started = time.perf_counter()
    engine = _started(kind, sources, dtype, folder / LOG)
    try:
        ready = time.perf_counter()
        engine.apply(_recipe(sources))
        (likelihood,) = engine.likelihoods([Continuation(PROMPT[:-1], PROMPT[-1:])])
        engine.generate([Generation(PROMPT, 4, ())])
        if not math.isfinite(likelihood.logprob):
            raise EngineError(f"its log-probability is {likelihood.logprob}.")
        done = time.perf_counter()
        about = engine.describe()
    finally:
        engine.close()
    version = about["version"]
    return {"start": round(ready - started, 1), "swap": round(done - ready, 1), "dtype": dtype, "version": version}


def _started(kind: str, sources: Sources, dtype: str, log: Path) -> Engine:
    if kind == "transformers":
        from heterosis.evaluation.transformers_engine import TransformersEngine

        return TransformersEngine(sources, dtype, {})
    from heterosis.evaluation.vllm_engine import VllmEngine

    probes = [Probe(PROMPT[: at + 1], tuple(range(4, 12))) for at in range(4)]
    options: dict[str, Any] = {"max_model_len": LENGTH}
    if torch.cuda.is_available():  # others may use the GPU too, and graphs would only take time
        options |= {"gpu_memory_utilization": 0.1, "enforce_eager": True}
    return VllmEngine(sources, dtype, probes, options, log=log)


def _recipe(sources: Sources) -> Recipe:
    family = open_family(sources.base, sources.parents)
    try:
        digests = {name: member.digest for name, member in family.members.items()}
    finally:
        family.close()
    content = {
        "method": "task_arithmetic",
        "base": {"name": "base", "model": str(sources.base), "digest": digests["base"]},
        "parents": [{"name": "tuned", "model": str(sources.parents["tuned"]), "digest": digests["tuned"]}],
        "parameters": {"tuned": {"all": {"weight": 0.5}}},
    }
    return Recipe.parse(content, "trial")


def write_models(folder: Path) -> Sources:
    """A random Llama and a parent of it, with a tokenizer of a few words."""
    found = {}
    for seed, name in enumerate(("base", "tuned")):
        found[name] = folder / name
        found[name].mkdir()
        specs = {key: TensorSpec(shape, torch.bfloat16) for key, shape in _shapes().items()}
        generator = torch.Generator().manual_seed(seed)
        tensors = (
            (key, torch.ones(spec.shape).bfloat16())
            if len(spec.shape) == 1
            else (key, (0.05 * torch.randn(spec.shape, generator=generator)).bfloat16())
            for key, spec in specs.items()
        )
        write_checkpoint(found[name], specs, tensors)
        for file, content in (("config.json", _config()), *_tokenizer().items()):
            (found[name] / file).write_text(json.dumps(content), encoding="utf-8")
    return Sources(found["base"], {"tuned": found["tuned"]})


def _shapes() -> dict[str, tuple[int, ...]]:
    half = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in ("q", "o")}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (half, HIDDEN) for name in ("k", "v")}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        shapes |= {f"{at}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (WORDS, HIDDEN)}


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": WORDS,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "max_position_embeddings": LENGTH,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }


def _tokenizer() -> dict[str, dict[str, Any]]:
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, WORDS)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
    whole: dict[str, Any] = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    whole |= {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    return {"tokenizer.json": whole, "tokenizer_config.json": about}
