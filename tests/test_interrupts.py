"""Signals: the first waits for a safe place, the second does not."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading

import pytest

from heterosis.errors import InterruptError
from heterosis.interrupts import SIGNALS, Interrupts


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_kept_until_the_next_check(number: signal.Signals) -> None:
    said: queue.Queue[str] = queue.Queue()
    with Interrupts(said.put, lambda: None) as interrupts:
        interrupts.check()
        os.kill(os.getpid(), number)
        with pytest.raises(InterruptError, match=rf"stopped by {number.name}; .* goes on from here") as caught:
            interrupts.check()
    assert caught.value.exit_code == 128 + number
    assert said.get(timeout=30) == f"{number.name}: stopping after this candidate; once more stops at once"


def test_a_signal_in_the_middle_of_a_write_to_the_same_stream_does_no_harm() -> None:
    script = """
import io, os, signal, sys
from heterosis.interrupts import Interrupts
class Slow(io.RawIOBase):
    def writable(self): return True
    def write(self, data):
        if b"first" in bytes(data): os.kill(os.getpid(), signal.SIGTERM)
        return os.write(1, data)
stream = io.TextIOWrapper(io.BufferedWriter(Slow()), line_buffering=True)
with Interrupts(lambda text: print(text, file=stream, flush=True), lambda: None) as interrupts:
    print("first", file=stream, flush=True)
    interrupts.check()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "heterosis.errors.InterruptError: stopped by SIGTERM" in done.stderr
    assert "reentrant" not in done.stderr


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupts(print, print):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def enter() -> None:
        with Interrupts(print, print):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_second_signal_ends_the_process_at_once_after_its_last_act() -> None:
    script = """
import os, signal, time
from heterosis.interrupts import Interrupts
with Interrupts(lambda text: None, lambda: print("killed the engine", flush=True)):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (143, "killed the engine\n")
