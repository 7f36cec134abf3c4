"""How fast merging is, beside mergekit 0.1.5 and a plain copy of the same bytes.

    python benchmarks/merge_speed.py --json figures.json

A delta element is one entry of one parent. All contestants run in turn on the same random models, with the same number
of threads. The copy reads the same base and parents from the same mapped files and writes all that it reads; speeds are
bytes read and written per second. The least and the median of the rounds are reported. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from setting import PARENTS, QUICK, USUAL, interleaved, machine, make_family, recipe_for, say, timed, write_json

from heterosis.builder import Builder
from heterosis.checkpoints import Family, open_family

MERGEKIT = "0.1.5"
# mergekit is timed on the first layers: it needs minutes for what takes us seconds.
MERGEKIT_LAYERS = 4
# Numbers as a search draws them: weights with no common measure, so that few elections tie.
WEIGHTS = dict(zip(PARENTS, (0.37125731, 0.53518264, 0.41834927), strict=True))


class Case(NamedTuple):
    """One row of the table: a method, its parameters, and mergekit's name of it."""

    method: str
    parameters: Mapping[str, float]
    mergekit: str | None = None
    mergekit_parameters: Mapping[str, Any] = {}
    equal_weights: bool = False


DELLA = {"density": 0.5, "epsilon": 0.1}
CASES = {
    "linear": Case("linear", {}, "linear"),
    "task_arithmetic": Case("task_arithmetic", {}, "task_arithmetic"),
    "ties": Case("ties", {"density": 0.5}, "ties", {"density": 0.5}),
    "ties, equal weights": Case("ties", {"density": 0.5}, "ties", {"density": 0.5}, equal_weights=True),
    "dare_ties": Case("dare_ties", {"drop": 0.5}, "dare_ties", {"density": 0.5}),
    "dare_ties, trimmed": Case("dare_ties", {"drop": 0.5, "density": 0.6}),
    "della": Case("della", {"drop": 0.5, "epsilon": 0.1}, "della", DELLA),
    "breadcrumbs": Case("breadcrumbs", {"density": 0.5, "gamma": 0.01}, "breadcrumbs", {"density": 0.5, "gamma": 0.01}),
}
ON_DISK = ("dare_ties",)


def main() -> None:
    options = _options()
    threads, clock = (1, "process_time") if options.processor_time else (options.threads, "perf_counter")
    torch.set_num_threads(threads)
    shape, rounds = (QUICK, 2) if options.quick else (USUAL, options.rounds)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        peer = None if options.no_mergekit else _mergekit(options.mergekit)
        say("writing random models")
        make_family(work / "models", shape, PARENTS)
        folders = {name: work / "models" / name for name in PARENTS}
        with closing(open_family(work / "models" / "base", folders)) as family:
            figures = {"benchmark": "merge_speed", "quick": options.quick, "machine": machine(threads)}
            figures["clock"] = clock
            figures["model"] = _model(family)
            figures["compile"] = _compile_times(work)
            worker = stack.enter_context(_worker(peer, family, threads, clock)) if peer else None
            figures["mergekit"] = worker and worker.versions
            figures["families"] = [
                _family(family, PARENTS[:count], options.only, worker, rounds, not options.quick, getattr(time, clock))
                for count in (2, 3)
            ]
        on_disk = [label for label in ON_DISK if label in options.only and not options.no_disk]
        figures["disk"] = _disk(work, on_disk, peer, 1 if options.quick else 2)
    _print(figures)
    write_json(options.json, figures)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="a small model, to see that all works")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="rows of the table; all of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--processor-time", action="store_true", help="one thread, and its processor time: for a machine that is busy"
    )
    parser.add_argument("--no-disk", action="store_true", help="leave the whole commands out")
    parser.add_argument("--folder", type=Path, help="where to put the models, 3 GB; default: the system's temporary")
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON", help=f"a Python that has mergekit {MERGEKIT}")
    parser.add_argument("--no-mergekit", action="store_true", help="leave mergekit out")
    return parser.parse_args()


def _mergekit(given: Path | None) -> Path:
    """A Python with mergekit: the one given, or a virtual environment in the user's cache."""
    if given is not None:
        return given
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "heterosis" / f"mergekit-{MERGEKIT}"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        say(f"installing mergekit {MERGEKIT} in {home}")
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"mergekit=={MERGEKIT}"], check=True)
        (home / "ready").touch()
    return python


class Worker:
    """mergekit in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], elements: int, first: Mapping[str, Any]) -> None:
        self._process, self.elements = process, elements
        self.versions = self._ask(first) | {"entries_per_model": elements}

    def seconds(self, case: Case, weights: Sequence[float]) -> Callable[[], float]:
        """A contestant: one pass over the worker's tensors."""
        lists = {name: [value] * len(weights) for name, value in case.mergekit_parameters.items()}
        request = {"method": case.mergekit, "parents": len(weights), "parameters": {"weight": list(weights)} | lists}
        return lambda: self._ask(request)["seconds"]

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(
                "mergekit's process ended; its message is above. Give a Python with mergekit by --mergekit."
            )
        return json.loads(answer)


@contextmanager
def _worker(python: Path, family: Family, threads: int, clock: str) -> Iterator[Worker]:
    names = [name for name in family.base.specs if any(f".layers.{at}." in name for at in range(MERGEKIT_LAYERS))]
    elements = sum(family.base.specs[name].numel for name in names)
    folders = [str(member.folder) for member in family.members.values()]
    first = {"threads": threads, "clock": clock, "names": names, "folders": folders}
    command = [python, Path(__file__).with_name("mergekit_worker.py")]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        try:
            yield Worker(process, elements, first)
        finally:
            process.terminate()


def _model(family: Family) -> dict[str, Any]:
    sizes = [spec.numel for spec in family.base.specs.values()]
    return {"entries": sum(sizes), "tensors": len(sizes), "largest_tensor": max(sizes), "dtype": "bfloat16"}


PROBE = """
import time, torch
from heterosis.merge import METHODS, Kernel, ParentTerm, Rules
base = torch.randn(4096).bfloat16()
terms = [ParentTerm((base + 0.01 * torch.randn(4096)).bfloat16(), d, 0.4, 0.5) for d in "abc"]
begun = time.perf_counter()
Kernel(compiled=True).merge(METHODS["dare_ties"], "w", base, terms, torch.bfloat16, Rules())
print(time.perf_counter() - begun)
"""


def _compile_times(work: Path) -> dict[str, float]:
    """Seconds of a process's first dare_ties of three parents: with an empty cache, and with a full one."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(work / "compiled")}
    seconds = {}
    for state in ("cold", "warm"):
        say(f"compiling, cache {state}")
        command = [sys.executable, "-W", "ignore", "-c", PROBE]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        seconds[f"{state}_s"] = float(done.stdout)
    return seconds


def _family(
    family: Family,
    parents: Sequence[str],
    only: Sequence[str],
    worker: Worker | None,
    rounds: int,
    compiled: bool,
    clock: Callable[[], float],
) -> dict[str, Any]:
    entries = sum(spec.numel for spec in family.base.specs.values())
    read, written = (len(parents) + 1) * 2 * entries, 2 * entries
    copies = _copies(family, ("base", *parents))
    rows = {}
    for label in only:
        case = CASES[label]
        say(f"{len(parents)} parents: {label}")
        weights = {name: 0.4 if case.equal_weights else WEIGHTS[name] for name in parents}
        run, index_s = _ours(family, case, weights, compiled, clock)
        contestants = {"ours": timed(run, clock), **{name: timed(copy, clock) for name, copy in copies.items()}}
        found = interleaved(contestants, rounds)
        ours = found["ours"].per(entries * len(parents))
        speed = {name: 2 * read / found[name].least for name in copies}
        rows[label] = {
            "parameters": dict(case.parameters),
            "ns_per_delta_element": ours,
            "index_s": index_s,
            "index_ns_per_delta_element": index_s / entries / len(parents) * 1e9,
            "gb_per_s": (read + written) / found["ours"].least / 1e9,
            "copy_gb_per_s": {name: value / 1e9 for name, value in speed.items()},
            "fraction_of_copy": {name: (read + written) / found["ours"].least / value for name, value in speed.items()},
        }
        if worker is not None and case.mergekit is not None:
            again = {"ours": timed(run, clock), "mergekit": worker.seconds(case, list(weights.values()))}
            both = interleaved(again, 2)
            theirs = both["mergekit"].per(worker.elements * len(parents))
            beside = both["ours"].per(entries * len(parents))
            rows[label]["mergekit_ns_per_delta_element"] = theirs
            rows[label]["times_mergekit"] = {key: theirs[key] / beside[key] for key in theirs}
    return {"parents": len(parents), "methods": rows}


def _ours(
    family: Family, case: Case, weights: Mapping[str, float], compiled: bool, clock: Callable[[], float]
) -> tuple[Callable[[], None], float]:
    """One merge of the whole model as a search makes it, and the seconds that building the indices took before."""
    parameters = {name: {"weight": weight, **case.parameters} for name, weight in weights.items()}

    def merge(builder: Builder) -> None:
        for _ in builder.tensors(plan):
            pass

    builder = Builder(family, compiled=compiled)
    plan = builder.plan(recipe_for(family, case.method, parameters))
    merge(builder)  # compiles
    usual = timed(lambda: merge(builder), clock)()
    fresh = Builder(family, compiled=compiled)
    first = timed(lambda: merge(fresh), clock)()
    return lambda: merge(builder), max(0.0, first - usual) if "density" in case.parameters else 0.0


def _copies(family: Family, members: Sequence[str]) -> dict[str, Callable[[], None]]:
    """Plain copies of all that a merge reads: into memory at hand, and into fresh memory."""
    size = sum(spec.numel for spec in family.base.specs.values())
    target = torch.zeros(size, dtype=torch.bfloat16)

    def at_hand() -> None:
        for member in members:
            at = 0
            for name, spec in family.base.specs.items():
                target[at : at + spec.numel].copy_(family.members[member].tensor(name).reshape(-1))
                at += spec.numel

    def fresh() -> None:
        for member in members:
            for name in family.base.specs:
                family.members[member].tensor(name).clone()

    return {"at hand": at_hand, "fresh": fresh}


def _disk(work: Path, only: Sequence[str], peer: Path | None, rounds: int) -> dict[str, Any]:
    """Whole runs of the commands from folders to a folder, beside `cp` of what they read; mergekit's once."""
    models = [work / "models" / name for name in ("base", *PARENTS)]
    size = sum(file.stat().st_size for model in models for file in model.glob("*.safetensors"))
    rows: dict[str, Any] = {"bytes_read": size, "methods": {}}
    for label in only:
        say(f"on disk: {label}")
        recipes = _files(work, CASES[label])
        contestants = {"heterosis_s": _command([_beside("heterosis"), "merge", recipes[0], work / "out"], work / "out")}
        contestants["cp_s"] = _command(["cp", "-r", work / "models", work / "out"], work / "out")
        found = interleaved(contestants, rounds)
        if peer is not None:
            say(f"on disk: {label}, mergekit")
            command = [peer.parent / "mergekit-yaml", recipes[1], work / "out", "--no-copy-tokenizer", "--quiet"]
            found |= interleaved({"mergekit_s": _command(command, work / "out")}, 1)
        rows["methods"][label] = {name: {"min": s.least, "median": s.median} for name, s in found.items()}
    return rows


def _beside(name: str) -> Path:
    return Path(sys.executable).parent / name


def _command(command: Sequence[str | Path], made: Path) -> Callable[[], float]:
    def seconds() -> float:
        begun = time.perf_counter()
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        taken = time.perf_counter() - begun
        shutil.rmtree(made)
        return taken

    return seconds


def _files(work: Path, case: Case) -> tuple[Path, Path]:
    """The same merge as a recipe and as mergekit YAML."""
    ours = {
        "method": case.method,
        "base": {"name": "base", "model": str(work / "models" / "base")},
        "parents": [{"name": name, "model": str(work / "models" / name)} for name in PARENTS],
        "groups": {"all": ".*"},
        "parameters": {name: {"all": {"weight": WEIGHTS[name], **case.parameters}} for name in PARENTS},
        "dtype": "bfloat16",
    }
    numbers = {name: {"weight": WEIGHTS[name], **case.mergekit_parameters} for name in PARENTS}
    theirs = {
        "merge_method": case.mergekit,
        "base_model": str(work / "models" / "base"),
        "models": [{"model": str(work / "models" / name), "parameters": numbers[name]} for name in PARENTS],
        "dtype": "bfloat16",
    }
    paths = work / "recipe.yaml", work / "mergekit.yaml"
    for path, content in zip(paths, (ours, theirs), strict=True):
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return paths


def _print(figures: Mapping[str, Any]) -> None:
    model, host = figures["model"], figures["machine"]
    print(f"{host['cpu']}, {host['threads']} threads, torch {host['torch']}, {figures['clock']}")
    print(f"{model['entries'] / 1e6:.0f}M parameters in {model['tensors']} tensors, {model['dtype']}")
    print("first use: {cold_s:.1f} s to compile, {warm_s:.1f} s in later processes".format(**figures["compile"]))
    for family in figures["families"]:
        head = ("ns/delta element", "index once", "of copy", "(fresh)", "mergekit", "times")
        print(f"\n{family['parents']} parents".ljust(21) + "{:>16} {:>11} {:>8} {:>8} {:>9} {:>6}".format(*head))
        for label, row in family["methods"].items():
            ns, part = row["ns_per_delta_element"], row["fraction_of_copy"]
            line = f"{label:20} {ns['min']:7.3f} ({ns['median']:6.3f}) {row['index_ns_per_delta_element']:10.2f} "
            line += f"{part['at hand']:9.0%} {part['fresh']:8.0%}"
            if "times_mergekit" in row:
                line += f" {row['mergekit_ns_per_delta_element']['min']:9.1f} {row['times_mergekit']['min']:6.0f}"
            print(line)
    if not figures["disk"]["methods"]:
        return
    print(f"\non disk, {figures['disk']['bytes_read'] / 1e9:.1f} GB read")
    for label, row in figures["disk"]["methods"].items():
        print(f"{label:20} " + "   ".join(f"{name.removesuffix('_s')} {s['min']:.1f} s" for name, s in row.items()))


if __name__ == "__main__":
    main()
