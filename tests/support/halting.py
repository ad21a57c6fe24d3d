"""Halt a program at one of its system calls: ``halting.py LOG SIGNAL CALL NUMBER COMMAND...``.

At SIGKILL the call is not carried out. At SIGSTOP it is; then the process stands still, and a line
in the file LOG says so as strace's do. SIGNAL and CALL are numbers of the kernel's; NUMBER counts
the calls of one process, from 1. Ends as COMMAND's first process did, once every process of it has
ended.

strace can do this, but it injects a signal only where the program is stopped at *every* call,
which multiplies the time of a run that imports much. Here the kernel stops it at that one call
alone (:manpage:`seccomp(2)`, ``SECCOMP_RET_TRACE``).
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import struct
import sys
from typing import Final, TextIO

_TABLE: Final = """
    write=1 open=2 pwrite64=18 writev=20 sendfile=40 fsync=74 fdatasync=75 ftruncate=77 rename=82
    mkdir=83 rmdir=84 creat=85 link=86 unlink=87 symlink=88 chmod=90 fchmod=91 chown=92 fchown=93
    lchown=94 mknod=133 sync=162 setxattr=188 lsetxattr=189 fsetxattr=190 removexattr=197
    lremovexattr=198 fremovexattr=199 openat=257 mkdirat=258 mknodat=259 fchownat=260 unlinkat=263
    renameat=264 linkat=265 symlinkat=266 fchmodat=268 utimensat=280 sync_file_range=277
    fallocate=285 pwritev=296 syncfs=306 renameat2=316 copy_file_range=326 fchmodat2=452
"""
NUMBERS: Final = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", _TABLE)}
"""Numbers of the x86_64 kernel's calls that change or sync files (``asm/unistd_64.h``)."""

MACHINE: Final = "x86_64"

_ARCH: Final = 0xC000003E  # AUDIT_ARCH_X86_64
_TRACE: Final = 0x7FF00000
_ALLOW: Final = 0x7FFF0000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2
_CONT, _SEIZE, _LISTEN = 7, 0x4206, 0x4208
# TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC, TRACESECCOMP and EXITKILL.
_OPTIONS: Final = 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
_EVENT_SECCOMP, _EVENT_STOP = 7, 128
_WALL: Final = 0x40000000

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def main(log: str, halt: int, call: int, number: int, command: list[str]) -> None:
    """Run *command* and end as it did."""
    may_begin, begin = os.pipe()
    first = os.fork()
    if not first:
        os.close(begin)
        if os.read(may_begin, 1):
            _become(call, command)
        os._exit(125)
    _ptrace(_SEIZE, first, _OPTIONS)
    os.write(begin, b"1")
    with open(log, "a", encoding="ascii", buffering=1) as lines:
        status = _follow(first, halt, number, lines)
    if os.WIFSIGNALED(status):
        ended_by = os.WTERMSIG(status)
        if ended_by != signal.SIGKILL:
            signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    sys.exit(os.waitstatus_to_exitcode(status))


def _follow(first: int, halt: int, number: int, lines: TextIO) -> int:
    """Count the calls of every process; return how the first ended."""
    counts: dict[int, int] = {}
    ended = 0
    while True:
        try:
            process, status = os.waitpid(-1, _WALL)
        except ChildProcessError:
            return ended
        if not os.WIFSTOPPED(status):
            ended = status if process == first else ended
            continue
        event, what = status >> 16, os.WSTOPSIG(status)
        request, passed = _CONT, 0
        if event == _EVENT_SECCOMP:
            counts[process] = counts.get(process, 0) + 1
            if counts[process] == number:
                # Pending while the call is carried out, if it is.
                os.kill(process, halt)
        elif event == _EVENT_STOP and what != signal.SIGTRAP:
            # It stands still, until somebody has it go on.
            lines.write(f"{process} --- stopped by {signal.Signals(what).name} ---\n")
            request = _LISTEN
        elif not event:
            passed = what
        _ptrace(request, process, passed)


def _become(call: int, command: list[str]) -> None:
    """Become *command*, stopped at each *call*."""
    program = b"".join(
        struct.pack("HBBI", *one)
        for one in (
            *((_LOAD, 0, 0, 4), (_EQUAL, 0, 2, _ARCH), (_LOAD, 0, 0, 0), (_EQUAL, 1, 0, call)),
            *((_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _TRACE)),
        )
    )
    buffer = ctypes.create_string_buffer(program)
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    if os.geteuid():
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _libc.prctl(_PR_SET_SECCOMP, _FILTER, described, 0, 0):
        os._exit(125)
    os.execvp(command[0], command)  # noqa: S606


def _ptrace(request: int, process: int, value: int) -> None:
    if _libc.ptrace(request, process, None, value) < 0 and ctypes.get_errno() != 3:
        raise OSError(ctypes.get_errno(), f"ptrace({request}, {process})")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
