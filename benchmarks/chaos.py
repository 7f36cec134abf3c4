"""A study that is killed again and again beside one that is left alone: do they end with the same bits?

    python benchmarks/chaos.py --kills 50 --json figures.json

Runs the demo's family through the real command and real vLLM (`--engine transformers` where there is none). At random,
seeded moments it sends SIGKILL to the program, to its engine or to both, runs the same command again, and at the end
compares all records: candidates, outcomes, weights, races, winner.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import yaml

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
VICTIMS = ("program", "engine", "both")
# What the clock decides, and what says when something was written.
CLOCK = {"seconds"}


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work = Path(folder)
        whole = Trial(work / "whole", options.engine, options.candidates)
        started = time.perf_counter()
        _say("the study that is left alone")
        whole.run_to_the_end()
        alone = time.perf_counter() - started
        cut = Trial(work / "cut", options.engine, options.candidates)
        expected = whole.state()
        kills, differences = _kill_again_and_again(
            cut, expected, options.kills, options.longest, random.Random(options.seed)
        )
        cut.run_to_the_end()
        differences += _differences(expected, cut.state())
    figures = {
        "benchmark": "chaos",
        "engine": options.engine,
        "candidates": options.candidates,
        "kills": dict(kills),
        "killed": sum(kills.values()),
        "seconds_alone": round(alone, 1),
        "seconds_killed": round(time.perf_counter() - started - alone, 1),
        "differences": differences,
    }
    print(f"{figures['killed']} kills ({', '.join(f'{n} {victim}' for victim, n in kills.items())}): ", end="")
    print("the same bits" if not differences else "; ".join(differences[:5]))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if differences else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--longest", type=float, default=60.0, help="seconds from start to kill, at most")
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    return parser.parse_args()


class Trial:
    """One study in a folder of its own."""

    def __init__(self, folder: Path, engine: str, candidates: int) -> None:
        self.folder = folder
        study = yaml.safe_load((EXAMPLES / "demo.yaml").read_text(encoding="utf-8"))
        study["base"] = str(EXAMPLES / study["base"])
        study["parents"] = {name: str(EXAMPLES / path) for name, path in study["parents"].items()}
        study["tasks"] = [str(EXAMPLES / task) for task in study["tasks"]]
        study |= {"splits": {"search": 60, "selection": 40, "test": 60}, "budget": {"candidates": candidates}}
        study["engine"] = {"kind": engine, "options": {"max_model_len": 64}}
        folder.mkdir(parents=True)
        (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")

    def start(self) -> subprocess.Popen[bytes]:
        """The command, in a session of its own."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        command = [sys.executable, "-m", "heterosis", "run", "study.yaml", "--quiet"]
        log = (self.folder / "log").open("ab")
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )

    def run_to_the_end(self) -> None:
        """Run until it says that it is done."""
        if self.start().wait() != 0:
            raise SystemExit((self.folder / "log").read_text(errors="replace")[-4000:])

    @property
    def finished(self) -> bool:
        return (self.folder / "runs" / "demo" / "result.json").is_file()

    def begin_again(self) -> None:
        """Forget the study, which ended before it was killed often enough."""
        shutil.rmtree(self.folder / "runs")

    def state(self) -> dict[str, Any]:
        """All that the records and the result say, but for the clock."""
        home = self.folder / "runs" / "demo"
        found: dict[str, Any] = {}
        for split in ("", "/rungs", "/selection", "/test"):
            study = optuna.load_study(study_name=f"demo{split}", storage=f"sqlite:///{home / 'record.db'}")
            for trial in study.trials:
                said = {name: value for name, value in trial.user_attrs.items() if name not in CLOCK}
                key = f"demo{split} {said['label']}" + (f" rung {said['rung']}" if "rung" in said else "")
                found[key] = {"number": trial.number, "values": trial.values, "params": trial.params, **said}
        result = json.loads((home / "result.json").read_text(encoding="utf-8"))
        found["result"] = {key: result[key] for key in ("winner", "weights_digest", "recipe_digest", "heterosis")}
        return found


def _kill_again_and_again(
    trial: Trial, expected: dict[str, Any], kills: int, longest: float, rng: random.Random
) -> tuple[Counter[str], list[str]]:
    """Kills by victim, and differences of the studies that ended before they were killed often enough."""
    done: Counter[str] = Counter()
    differences: list[str] = []
    while sum(done.values()) < kills:
        process = trial.start()
        deadline = time.monotonic() + rng.uniform(1.0, longest)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is not None:
            if process.returncode != 0:
                raise SystemExit((trial.folder / "log").read_text(errors="replace")[-4000:])
            if trial.finished and sum(done.values()) < kills:
                differences += _differences(expected, trial.state())
                trial.begin_again()
            continue
        victim = rng.choice(VICTIMS)
        done[victim] += _kill(process, victim)
        if victim == "engine":  # the program goes on with another engine; give it some time, then kill it too
            time.sleep(rng.uniform(0.0, longest / 2))
            if process.poll() is None:
                done["program"] += _kill(process, "program")
        process.wait()
        _say(f"{sum(done.values())} kills")
    return done, differences


def _kill(process: subprocess.Popen[bytes], victim: str) -> int:
    engines = _children(process.pid)
    if victim in ("program", "both"):
        process.kill()
    if victim in ("engine", "both"):
        for engine in engines:
            os.kill(engine, signal.SIGKILL)
    return 1 if victim != "engine" or engines else 0


def _children(pid: int) -> list[int]:
    """The engine's processes: all descendants of the program."""
    try:
        own = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in own] + [grand for child in own for grand in _children(int(child))]


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    found = [f"{key} is only in one of them" for key in sorted(one.keys() ^ other.keys())]
    for key in sorted(one.keys() & other.keys()):
        found += [f"{key}: {part} differs" for part in one[key] if one[key][part] != other[key].get(part)]
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
