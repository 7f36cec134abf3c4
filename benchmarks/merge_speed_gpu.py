"""How fast merging is on a GPU, and whether its masks and merged weights are those of the CPU.

    python benchmarks/merge_speed_gpu.py --json figures.json

The same functions, resident on the device: base and parents lie there, merged tensors stay there. Exit code 0 where
there is no GPU (it says so), 1 where the GPU's results differ from the CPU's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from setting import BASE_SCALE, PARENTS, STEP_SCALE, machine, write_json
from torch import Tensor

from heterosis.merge import METHODS, Kernel, MagnitudeIndex, ParentTerm, Rules
from heterosis.merge.kernel import drop_key, trim_key
from heterosis.merge.magnitude import KEEP_ALL
from heterosis.merge.masks import counters, drop_threshold
from heterosis.merge.sparsify import drop_mask, trim_mask

WEIGHTS = (0.37125731, 0.53518264, 0.41834927)
# method -> (density, drop rate)
CASES = {
    "linear": ("linear", 1.0, 0.0),
    "task_arithmetic": ("task_arithmetic", 1.0, 0.0),
    "ties": ("ties", 0.5, 0.0),
    "dare_ties": ("dare_ties", 1.0, 0.5),
    "dare_ties, trimmed": ("dare_ties", 0.6, 0.5),
}
NAME = "model.layers.0.mlp.down_proj.weight"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--entries", type=int, default=2**28, help="of each model; 2^28 take 3 GB on the device")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: PyTorch sees no CUDA device here, so there is nothing to measure")
        write_json(options.json, {"benchmark": "merge_speed_gpu", "gpu": None})
        return
    device = torch.device("cuda")
    base, parents = _models(options.entries, device)
    figures: dict[str, Any] = {
        "benchmark": "merge_speed_gpu",
        "gpu": torch.cuda.get_device_name(device),
        "machine": machine(torch.get_num_threads()),
        "entries": options.entries,
        "equal_to_cpu": _compare(base[: 2**22 + 77], [parent[: 2**22 + 77] for parent in parents]),
        "copy_gb_per_s": 4 * options.entries / _seconds(lambda: parents[0].clone(), options.rounds) / 1e9,
        "methods": {},
    }
    for label, (method, density, drop) in CASES.items():
        terms = _terms(base, parents, density, drop)
        figures["methods"][label] = {
            path: _speed(method, base, terms, path == "compiled", options.rounds, figures["copy_gb_per_s"])
            for path in ("compiled", "eager")
        }
    _print(figures)
    write_json(options.json, figures)
    if not all(all(found.values()) for found in figures["equal_to_cpu"].values()):
        sys.exit(1)


def _models(entries: int, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator(device).manual_seed(0)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(entries, generator=generator, device=device)

    base = noise(BASE_SCALE).bfloat16()
    return base, [(base.float() + noise(STEP_SCALE)).bfloat16() for _ in PARENTS]


def _terms(base: Tensor, parents: Sequence[Tensor], density: float, drop: float) -> list[ParentTerm]:
    terms = []
    for digest, weight, parent in zip(PARENTS, WEIGHTS, parents, strict=True):
        threshold = KEEP_ALL
        if density < 1.0:
            threshold = MagnitudeIndex.build(parent.float() - base.float(), trim_key(digest, NAME)).threshold(density)
        terms.append(ParentTerm(parent, digest, weight, drop, threshold))
    return terms


def _compare(base: Tensor, parents: Sequence[Tensor]) -> dict[str, dict[str, bool]]:
    """Whether each method's masks, and its merged weights by both paths, are the CPU's bit for bit."""
    found = {}
    for label, (method, density, drop) in CASES.items():
        terms = _terms(base, parents, density, drop)
        at_home = _terms(base.cpu(), [parent.cpu() for parent in parents], density, drop)
        expected = Kernel().merge(METHODS[method], NAME, base.cpu(), at_home, torch.bfloat16, Rules())
        equal = {"masks": torch.equal(_masks(base, terms).cpu(), _masks(base.cpu(), at_home))}
        for compiled in (False, True):
            merged = Kernel(compiled).merge(METHODS[method], NAME, base, terms, torch.bfloat16, Rules())
            equal["compiled" if compiled else "eager"] = torch.equal(merged.cpu(), expected)
        found[label] = equal
    return found


def _masks(base: Tensor, terms: Sequence[ParentTerm]) -> Tensor:
    """What stays of each parent. -> bool [k, n]."""
    index = counters(0, base.numel(), base.device)
    masks = []
    for term in terms:
        delta = term.tensor.float() - base.float()
        kept = trim_mask(delta, index, *term.threshold, trim_key(term.digest, NAME))
        masks.append(kept & drop_mask(index, drop_threshold(term.drop), *drop_key(0, term.digest, NAME)))
    return torch.stack(masks)


def _speed(
    method: str, base: Tensor, terms: Sequence[ParentTerm], compiled: bool, rounds: int, copy: float
) -> dict[str, float]:
    kernel = Kernel(compiled)
    taken = _seconds(lambda: kernel.merge(METHODS[method], NAME, base, terms, torch.bfloat16, Rules()), rounds)
    moved = (len(terms) + 2) * 2 * base.numel() / taken / 1e9
    return {
        "ns_per_delta_element": taken / base.numel() / len(terms) * 1e9,
        "gb_per_s": moved,
        "fraction_of_copy": moved / copy,
    }


def _seconds(run: Callable[[], Any], rounds: int) -> float:
    """Median of the device's own clock, after one run that compiles and warms up."""
    run()
    found = []
    for _ in range(rounds):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        run()
        ended.record()
        torch.cuda.synchronize()
        found.append(begun.elapsed_time(ended) / 1e3)
    return statistics.median(found)


def _print(figures: dict[str, Any]) -> None:
    print(f"{figures['gpu']}, {figures['entries'] / 1e6:.0f}M entries, copy {figures['copy_gb_per_s']:.0f} GB/s")
    print(f"{'':20} {'ns/delta element':>18} {'of copy':>8} {'eager':>8}  equal to the CPU")
    for label, row in figures["methods"].items():
        fast, equal = row["compiled"], figures["equal_to_cpu"][label]
        differing = [name for name, same in equal.items() if not same]
        line = f"{label:20} {fast['ns_per_delta_element']:18.4f} {fast['fraction_of_copy']:8.0%}"
        line += f" {row['eager']['fraction_of_copy']:8.0%}  {'yes' if not differing else 'no: ' + ', '.join(differing)}"
        print(line)


if __name__ == "__main__":
    main()
