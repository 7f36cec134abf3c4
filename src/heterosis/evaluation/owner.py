"""vLLM's processes end with the program that started them, whenever that is killed.

vLLM's own outlive a program that was killed, keep its memory, and compute on. Each of them calls `follow_owner`: as
soon as it imports this package, which Python's `spawn` has it do before anything else (an engine's process waits for
its program without an end), and as a plugin of vLLM's (`vllm.general_plugins`) where another program began it all.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

# Names the owner to the processes that inherit it: host, process, and when that process began.
VARIABLE = "HETEROSIS_ENGINE_OWNER"


@contextlib.contextmanager
def owning() -> Iterator[None]:
    """Processes that are started within belong to this one."""
    os.environ[VARIABLE] = f"{socket.gethostname()} {os.getpid()} {_began(os.getpid())}"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)


def follow_owner() -> None:
    """End this process as soon as its owner has ended: at once, if that is now."""
    host, _, rest = os.environ.get(VARIABLE, "").partition(" ")
    number, _, began = rest.partition(" ")
    if host != socket.gethostname() or not number.isdigit() or int(number) == os.getpid():
        return
    if not hasattr(os, "pidfd_open"):
        return
    try:
        owner = os.pidfd_open(int(number))
    except ProcessLookupError:
        owner = None
    if owner is None or _began(int(number)) != began:  # another process may have its number by now
        os.kill(os.getpid(), signal.SIGKILL)
        return

    def wait() -> None:
        select.select([owner], [], [])  # readable once the process has ended
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="heterosis-owner", daemon=True).start()


def _began(process: int) -> str:
    """When a process began, in the kernel's ticks; empty if it has ended or the system does not say."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        return ""
