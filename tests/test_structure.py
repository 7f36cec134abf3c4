"""The house plan, held: what imports what, where heavy libraries live, and how long things are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import heterosis

SOURCE = Path(heterosis.__file__).parent

# A room imports only from rooms above it in this list.
ROOMS = [
    "errors",
    "files",
    "drawing",
    "config",
    "checkpoints",
    "merge",
    "evidence",
    "inspection",
    "recipe",
    "sources",
    "wiring",
    "builder",
    "profiles",
    "space",
    "optimizers",
    "evaluation",
    "statistics",
    "ledger",
    "stored",
    "starter",
    "scoring",
    "race",
    "anchored",
    "search",
    "standings",
    "finals",
    "fronts",
    "warmstart",
    "mergekit",
    "publishing",
    "export",
    "reproduce",
    "study",
    "check",
    "doctor",
    "results",
    "views",
    "watch",
    "summary",
    "report",
    "interrupts",
    "live",
    "sweep",
    "run",
    "cli",
    "__main__",
]

# What takes long to import, or may be missing, and the rooms that own it.
OWNERS = {
    "vllm": {"evaluation"},
    "lm_eval": {"evaluation"},
    "transformers": {"checkpoints", "evaluation", "evidence"},
    "datasets": set(),
    "matplotlib": {"drawing", "inspection", "report", "sweep"},
    "mlflow": {"ledger"},
    "optuna": {"ledger", "optimizers"},
    "cma": {"optimizers"},
    "huggingface_hub": {"checkpoints", "publishing"},
}

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules() -> dict[str, Path]:
    """Module name -> file."""
    found = {}
    for path in FILES:
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_every_room_is_in_the_plan() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_above_it(room: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(room)], room, "__version__"}
    for path in (path for path in FILES if room_of(path) == room):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("heterosis.")}
        assert used <= allowed, f"{path.relative_to(SOURCE)} imports {sorted(used - allowed)}"


def test_modules_import_each_other_without_circles() -> None:
    modules = own_modules()
    graph = {}
    for module, path in modules.items():
        used = {name if name in modules else name.rpartition(".")[0] for name in imports(path)}
        graph[module] = (used & set(modules)) - {module, "heterosis"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_evaluation_sees_recipes_and_never_genomes() -> None:
    for path in (path for path in FILES if room_of(path) in ("merge", "evaluation")):
        rooms = {name.split(".")[1] for name in imports(path) if name.startswith("heterosis.")}
        assert not rooms & {"space", "optimizers", "search", "ledger"}, path


@pytest.mark.parametrize("library", OWNERS)
def test_heavy_libraries_stay_in_the_rooms_that_own_them(library: str) -> None:
    users = {room_of(path) for path in FILES if any(name.split(".")[0] == library for name in imports(path))}
    assert users == OWNERS[library]


@pytest.mark.parametrize("module", ["heterosis", "heterosis.cli", "heterosis.config", "heterosis.errors"])
def test_the_command_line_loads_no_heavy_library(module: str) -> None:
    heavy = {*OWNERS, "torch", "numpy"}
    script = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_files_and_functions_are_short() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{path.relative_to(SOURCE)} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{path.relative_to(SOURCE)}: {node.name} has {length} lines"


def test_no_room_is_a_grab_bag() -> None:
    assert not {path.stem for path in FILES} & {"utils", "util", "common", "helpers", "helper", "misc"}


def test_every_module_says_what_it_is_for() -> None:
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
