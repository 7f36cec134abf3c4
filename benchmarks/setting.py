"""What the benchmarks share: random families of models, the machine's description, and interleaved timing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from heterosis.checkpoints import Family
from heterosis.recipe import Recipe

PARENTS = ("a", "b", "c")
BASE_SCALE, STEP_SCALE = 0.02, 0.001


class Shape(NamedTuple):
    """A Llama's dimensions."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int


# 323 million and 0.6 million parameters.
USUAL = Shape(1024, 2816, 20, 32_000)
QUICK = Shape(128, 256, 2, 1024)


def make_family(folder: Path, shape: Shape, parents: Sequence[str], seed: int = 0, layers_per_file: int = 8) -> None:
    """Write `base` and parents: random bf16 weights under the names and shapes that transformers gives a Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=shape.hidden // 64,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    names, index = list(shapes), {}
    for member in ("base", *parents):
        (folder / member).mkdir(parents=True)
        config.save_pretrained(folder / member)
    per_file = layers_per_file * 9
    files = [names[first : first + per_file] for first in range(0, len(names), per_file)]
    for number, held in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        index |= dict.fromkeys(held, file)
        origin = {name: BASE_SCALE * torch.randn(shapes[name], generator=generator) for name in held}
        for member in ("base", *parents):
            weights = origin if member == "base" else _moved(origin, generator)
            rounded = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
            save_file(rounded, folder / member / file, {"format": "pt"})
    for member in ("base", *parents):
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / member / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _moved(origin: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    return {
        name: weight.to(torch.bfloat16).float() + STEP_SCALE * torch.randn(weight.shape, generator=generator)
        for name, weight in origin.items()
    }


def recipe_for(family: Family, method: str, parameters: Mapping[str, Mapping[str, float]]) -> Recipe:
    """One number each for every tensor."""

    def source(name: str) -> dict[str, str]:
        member = family.members[name]
        return {"name": name, "model": str(member.folder), "digest": member.digest}

    content = {
        "method": method,
        "base": source("base"),
        "parents": [source(name) for name in parameters],
        "groups": {"all": ".*"},
        "parameters": {name: {"all": dict(numbers)} for name, numbers in parameters.items()},
        "dtype": "bfloat16",
    }
    return Recipe.parse(content, "benchmark")


class Spread(NamedTuple):
    """Seconds of several rounds: the machine may be busy with other things, so the least and the middle."""

    least: float
    median: float

    def per(self, amount: float, unit: float = 1e9) -> dict[str, float]:
        """Per so many elements, in nanoseconds."""
        return {"min": self.least / amount * unit, "median": self.median / amount * unit}


def interleaved(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Spread]:
    """Run all in turn, round after round, so that a busy spell meets all of them. Each returns its seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            seconds[name].append(run())
    return {name: Spread(min(found), statistics.median(found)) for name, found in seconds.items()}


def timed(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A contestant for `interleaved`."""

    def seconds() -> float:
        begun = clock()
        run()
        return clock() - begun

    return seconds


def machine(threads: int) -> dict[str, Any]:
    """Processor, threads and versions that figures belong to."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "numpy", "heterosis")},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    found = dict(reversed([part.strip() for part in line.split(":", 1)]) for line in lines if line.count(":"))
    name = next((value for value, key in found.items() if key == "model name"), platform.processor())
    flags = next((value for value, key in found.items() if key == "flags"), "")
    vectors = next((word for word in ("avx512f", "avx2") if word in flags.split()), "no AVX2")
    return f"{name}, {vectors}{', bf16 instructions' if 'avx512_bf16' in flags.split() else ''}"


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write the figures where wanted."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
