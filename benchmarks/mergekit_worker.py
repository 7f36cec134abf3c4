"""Times mergekit's merge methods, in mergekit's own environment: one JSON request per line in, one answer out.

Speaks to `merge_speed.py` and imports nothing of this project.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from safetensors.torch import load_file


def load(folder: str, names: list[str]) -> dict[str, torch.Tensor]:
    """The named tensors of a model, in memory."""
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= {name: tensor.clone() for name, tensor in load_file(file).items() if name in names}
    return tensors


def seconds(models: list[dict[str, torch.Tensor]], names: list[str], request: dict, clock: Callable) -> float:
    """One pass over all tensors. models: base first."""
    method = registry.get(request["method"])
    begun = clock()
    for name in names:
        tensors = [model[name] for model in models]
        if request["method"] == "linear":
            group = TensorGroup.from_tensors(tensors[1:], name=name)
        else:
            group = TensorGroup.from_tensors(tensors, base_index=0, name=name)
        method([group], parameters=request["parameters"])
    return clock() - begun


def main() -> None:
    first = json.loads(sys.stdin.readline())
    torch.set_num_threads(first["threads"])
    models = [load(folder, first["names"]) for folder in first["folders"]]
    answer = {"mergekit": version("mergekit"), "torch": torch.__version__}
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        with torch.no_grad():
            taken = seconds(models[: request["parents"] + 1], first["names"], request, getattr(time, first["clock"]))
        print(json.dumps({"seconds": taken}), flush=True)


if __name__ == "__main__":
    main()
