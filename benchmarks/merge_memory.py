"""How much memory merging to disk takes, on a model larger than the memory that the process may have.

    python benchmarks/merge_memory.py --json figures.json

Runs `heterosis merge` on a random model under a limit (RLIMIT_DATA) of half the model's size over what the program
takes for a small one, and beside it `cp` of all that the merge reads. The limit is on all private writable memory,
touched or not (heap, compiler, thread stacks), so it is harder than one on resident memory; mapped files are free.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from setting import Shape, interleaved, machine, make_family, say, timed, write_json

PARENTS = ("a", "b")
# Small beside the program itself: 21 million parameters.
SMALL = Shape(512, 1408, 4, 8192)
# A layer of the large model holds 51 million parameters, its embeddings 66 million each.
HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 5632, 32_000
LAYER_BYTES, FIXED_BYTES = 2 * 51.4e6, 4 * 65.5e6

# Sets the limit in the process itself, runs the command line, and leaves behind what it took at most. Models of all
# sizes are merged by compiled code, so that what the compiler takes counts as the program's and not as the model's.
LIMITED = """
import json, resource, sys, threading, time
limit, report, *arguments = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
peak = {"VmHWM": 0, "VmData": 0}
def look():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    for name in peak:
        peak[name] = max(peak[name], int(status[name].split()[0]) * 1024)
def watch():
    while True:
        look()
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
sys.argv = ["heterosis", *arguments]
import heterosis.builder
from heterosis.cli import main
heterosis.builder.COMPILE_ONCE_FROM = 0
try:
    main()
except SystemExit as end:
    code = end.code
look()
json.dump(peak, open(report, "w"))
sys.exit(code)
"""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work = Path(folder)
        layers = 2 if options.quick else max(1, round((options.gigabytes * 1e9 - FIXED_BYTES) / LAYER_BYTES))
        large = Shape(256, 512, 2, 4096) if options.quick else Shape(HIDDEN, INTERMEDIATE, layers, VOCABULARY)
        for name, shape in (("small", SMALL), ("large", large)):
            say(f"writing the {name} models")
            make_family(work / name, shape, PARENTS, layers_per_file=2)
        figures = _measure(work, large, options)
    _print(figures)
    write_json(options.json, figures)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="a small model, to see that all works")
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of each of the three models")
    parser.add_argument("--method", default="dare_ties", choices=["linear", "task_arithmetic", "ties", "dare_ties"])
    parser.add_argument("--folder", type=Path, help="where to put the models; default: the system's temporary folder")
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args()


def _measure(work: Path, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    model = _bytes(work / "large" / "base")
    largest = 2 * max(shape.vocabulary, shape.intermediate) * shape.hidden
    say("the small model, without limit")
    for _ in range(2):  # the first compiles, which takes more
        bare = _merge(work, "small", options.method, limit=0)
    limit = bare["VmData"] + model // 2
    peaks = []

    def merge() -> None:
        peaks.append(_merge(work, "large", options.method, limit)["VmHWM"])

    contestants: dict[str, Callable[[], float]] = {"heterosis": timed(merge), "cp": timed(lambda: _copy(work))}
    say(f"the large model, under {limit / 1e9:.2f} GB")
    found = interleaved(contestants, options.rounds)
    read = model * (len(PARENTS) + 1)
    over = max(peaks) - bare["VmHWM"]
    return {
        "benchmark": "merge_memory",
        "machine": machine(os.cpu_count() or 1),
        "method": options.method,
        "model_bytes": model,
        "largest_tensor_bytes": largest,
        "limit_bytes": limit,
        "bare_program_bytes": bare["VmHWM"],
        "peak_bytes": max(peaks),
        "peak_over_bare_in_largest_tensors": over / largest,
        "peak_over_bare_in_models": over / model,
        "bytes_read_once": read,
        "seconds": {name: {"min": spread.least, "median": spread.median} for name, spread in found.items()},
        "mb_per_s": {name: read / spread.least / 1e6 for name, spread in found.items()},
    }


def _merge(work: Path, models: str, method: str, limit: int) -> dict[str, int]:
    recipe, out, report = work / f"{models}.yaml", work / "out", work / "report.json"
    numbers = {"density": 0.6} if method == "ties" else {"drop": 0.5} if method == "dare_ties" else {}
    content = {
        "method": method,
        "base": {"name": "base", "model": str(work / models / "base")},
        "parents": [{"name": name, "model": str(work / models / name)} for name in PARENTS],
        "groups": {"all": ".*"},
        "parameters": {name: {"all": {"weight": 0.4, **numbers}} for name in PARENTS},
        "dtype": "bfloat16",
    }
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    command = [sys.executable, "-c", LIMITED, str(limit), str(report), "merge", str(recipe), str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["rm", "-r", out], check=True)
    peak: dict[str, int] = json.loads(report.read_text(encoding="utf-8"))
    return peak


def _copy(work: Path) -> None:
    subprocess.run(["cp", "-r", work / "large", work / "copy"], check=True)
    subprocess.run(["rm", "-r", work / "copy"], check=True)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _print(figures: dict[str, Any]) -> None:
    print(f"{figures['method']}, {len(PARENTS)} parents, models of {figures['model_bytes'] / 1e9:.2f} GB each")
    print(f"limit on data         {figures['limit_bytes'] / 1e9:8.2f} GB")
    print(f"program alone         {figures['bare_program_bytes'] / 1e9:8.2f} GB")
    times = figures["peak_over_bare_in_largest_tensors"]
    print(f"peak                  {figures['peak_bytes'] / 1e9:8.2f} GB, {times:.1f} largest tensors over the program")
    for name, rate in figures["mb_per_s"].items():
        print(f"{name:21} {rate:8.0f} MB/s of what is read, {figures['seconds'][name]['min']:.1f} s")


if __name__ == "__main__":
    main()
