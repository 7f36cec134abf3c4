"""Runs one program that a model wrote, shut in: the child's side of `sandbox`. It imports nothing of this package.

Standard input is JSON: the program, a token, and the limits. The token is written to standard output if the program
ran to its end. Linux only: a seccomp filter refuses sockets, further processes, signals and the tracing of others;
Landlock, where the kernel has it, refuses writing outside the working folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys

# Numbers of the system calls that are refused: x86_64, aarch64 (None: it has no such call).
REFUSED = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "io_uring_setup": (425, 425),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "userfaultfd": (323, 282),
}
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
CLONE, CLONE3 = (56, 220), 435
CLONE_THREAD = 0x00010000
X32 = 0x40000000
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
LOAD, EQUAL, AT_LEAST, SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT, LANDLOCK_PATH_BENEATH = 444, 445, 446, 1
# Writing, and making or removing whatever can be in a folder, as version 1 of Landlock knows it.
WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))

Instruction = tuple[int, int, int, int]


def program() -> list[Instruction]:
    """The filter: code, jump if true, jump if false, operand."""
    column, architecture = MACHINES[platform.machine()]
    found: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, KILL),
    ]
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            found += [(EQUAL, 0, 1, number), (RETURN, 0, 0, EPERM)]
    # Threads are made by clone too; of clone3 the flags cannot be seen, and without it libraries take clone.
    found += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ENOSYS)]
    found += [(EQUAL, 0, 3, CLONE[column]), (LOAD, 0, 0, FIRST_ARGUMENT), (SET, 1, 0, CLONE_THREAD)]
    return [*found, (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)]


def shut_in(folder: str) -> None:
    """From here on this process may neither talk to others nor write outside `folder`. OSError where it cannot be."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    _landlock(libc, folder)
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in program())
    code = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("HxxxxxxP", len(packed) // 8, ctypes.addressof(code))
    pointer = ctypes.create_string_buffer(header, len(header))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, pointer, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _landlock(libc: ctypes.CDLL, folder: str) -> None:
    """Refuse writing outside a folder, where the kernel can."""
    handled = ctypes.c_uint64(WRITES)
    rules = libc.syscall(LANDLOCK_CREATE, ctypes.byref(handled), ctypes.c_size_t(8), 0)
    if rules < 0:
        return
    within = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    beneath = ctypes.create_string_buffer(struct.pack("=Qi", WRITES, within), 12)
    if libc.syscall(LANDLOCK_ADD, rules, LANDLOCK_PATH_BENEATH, beneath, 0) == 0:
        libc.syscall(LANDLOCK_RESTRICT, rules, 0)
    os.close(within)
    os.close(rules)


def main() -> None:
    """Read, shut in, run, and say so if the end was reached."""
    asked = json.load(sys.stdin)
    answer = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(nowhere, handle)
    resource.setrlimit(resource.RLIMIT_CPU, (asked["cpu"], asked["cpu"] + 1))
    resource.setrlimit(resource.RLIMIT_AS, (asked["memory"], asked["memory"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (asked["file"], asked["file"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    shut_in(".")
    os.write(answer, b"started\n")
    with contextlib.suppress(BaseException):
        exec(compile(asked["program"], "<generated>", "exec"), {"__name__": "__main__"})  # noqa: S102 (what it is for)
        os.write(answer, asked["token"].encode())
    os._exit(0)


if __name__ == "__main__":
    main()
