"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from heterosis.errors import RecordError


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file: to a temporary name, to the disk, then renamed. OSError names the file."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with naming(path), temporary.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file would only take more of a full disk
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in what the system says of writing it: a full disk is not said of any."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(
            error.errno, f"{os.strerror(error.errno)}; make room or choose another place", str(path)
        ) from error


# Values that a YAML file may unfold to: far more than any study or recipe has.
YAML_VALUES = 1_000_000


def parse_yaml(text: str) -> Any:
    """What a YAML document holds, plain values alone. yaml.YAMLError where it is none, or unfolds without measure.

    A few lines of aliases on aliases can stand for more values than a machine can hold. Of a key that stands twice YAML
    would keep the last, and a mistake would go unseen.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _unfolded(node, {}) > YAML_VALUES:
            raise yaml.YAMLError(f"its aliases unfold to more than {YAML_VALUES:,} values")
        _refuse_repeated_keys(loader, node, set())
        return loader.construct_document(node)
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # PyYAML lets Python's own errors through where a value does not fit its tag: `seed: 2020-99-99`.
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else f"a value has no meaning: {error}"
        raise yaml.YAMLError(reason) from error
    finally:
        loader.dispose()


def _refuse_repeated_keys(loader: yaml.SafeLoader, node: yaml.Node, done: set[int]) -> None:
    if id(node) in done or not isinstance(node, yaml.CollectionNode):
        return
    done.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _refuse_repeated_keys(loader, each, done)
        return
    lines: dict[Any, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode):
            name = key.value if key.tag.endswith(":merge") else loader.construct_object(key)
            if name in lines:
                raise yaml.YAMLError(f"{key.value} stands twice, in lines {lines[name]} and {line}; keep one of them")
            lines[name] = line
        _refuse_repeated_keys(loader, value, done)


def _unfolded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, aliases counted as often as they are used."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise yaml.YAMLError("a value contains itself")
        return known[id(node)]
    known[id(node)] = 0
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = [each for pair in inner for each in pair] if isinstance(node, yaml.MappingNode) else inner
    known[id(node)] = min(1 + sum(_unfolded(each, known) for each in parts), 2 * YAML_VALUES)
    return known[id(node)]


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `path` (and replaces what was there) only if the block succeeds."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    name = glob.escape(path.name)
    for left in (*path.parent.glob(f"{name}.*.partial"), *path.parent.glob(f"{name}.*.old")):
        shutil.rmtree(left, ignore_errors=True)  # by a process that was killed
    temporary.mkdir(parents=True)
    try:
        with naming(path):
            yield temporary
        _sync_folder(temporary)
        old = path.with_name(f"{path.name}.{os.getpid()}.old")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; RecordError names the process that has it."""
    path = folder / "lock"
    with path.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise RecordError(f"{folder}: in use by {holder}. Wait for it, or stop it.") from None
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


def holder(folder: Path) -> str | None:
    """The process that holds a folder (`only_process`), in words; None if none does."""
    try:
        with (folder / "lock").open("r", encoding="utf-8") as lock:
            written = lock.read().strip()
            if _is_gone(written):
                return None  # and the lock stays untouched: a process may be about to take it
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return written or "another process"
    except OSError:
        return None
    return None


def _is_gone(written: str) -> bool:
    """Whether a lock file names a process of this machine that has ended."""
    found = re.fullmatch(r"process (\d+) on (.+)", written)
    if found is None or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's
        return False
    return False


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
