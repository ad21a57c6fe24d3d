"""Halt a program at one of its system calls: ``halting.py LOG SIGNAL CALL NUMBER COMMAND...``.

At SIGKILL the call is not carried out. At SIGSTOP it is; then the process stands still, and a line
in the file LOG says so as strace's do. SIGNAL and CALL are numbers of the kernel's; NUMBER counts
the calls of one process, from 1. Ends as COMMAND's first process did, once every process of it has
ended. Who has a program loaded halts a fork of it (:func:`follow`), or lets the call fail.

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
from collections.abc import Callable
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
_LOAD, _EQUAL, _HAS, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_FLAGS: Final = {NUMBERS["open"]: 1, NUMBERS["openat"]: 2}
"""Which argument says how a file is opened, from 0."""
_CREATES: Final = os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2
_CONT, _POKE, _SEIZE, _LISTEN = 7, 6, 0x4206, 0x4208
_RAX_AT, _CALL_AT = 80, 120  # in struct user_regs_struct
# TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC, TRACESECCOMP and EXITKILL.
_OPTIONS: Final = 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
_EVENT_SECCOMP, _EVENT_STOP = 7, 128
_WALL: Final = 0x40000000

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def main(log: str, halt: int, call: int, number: int, command: list[str]) -> None:
    """Run *command* and end as it did."""
    with open(log, "a", encoding="ascii", buffering=1) as lines:
        status = follow(lambda: os.execvp(command[0], command), halt, call, number, lines)  # noqa: S606
    if os.WIFSIGNALED(status):
        ended_by = os.WTERMSIG(status)
        if ended_by != signal.SIGKILL:
            signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    sys.exit(os.waitstatus_to_exitcode(status))


def follow(
    begin: Callable[[], object],
    what: int,
    call: int,
    number: int,
    lines: TextIO | None = None,
    *,
    creating: bool = False,
) -> int:
    """Fork, call *begin* there, and wait until every process of it has ended.

    Args:
        begin: What does not return.
        what: The signal that the process gets at the call; or, negative, the error that the call
            fails with instead of being carried out.
        call: The system call.
        number: Which of them, from 1, of those of each process.
        lines: Where to write that a process stands still.
        creating: Of calls that open, those count that can create or empty a file. The others are
            as many as modules are loaded.

    Returns:
        How the first process ended, as :func:`os.waitpid` says it.
    """
    may_begin, go = os.pipe()
    first = os.fork()
    if not first:
        os.close(go)
        if os.read(may_begin, 1):
            os.close(may_begin)
            _stop_at(call, creating=creating)
            begin()
        os._exit(125)
    os.close(may_begin)
    _ptrace(_SEIZE, first, _OPTIONS)
    os.write(go, b"1")
    os.close(go)
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
        event, signalled = status >> 16, os.WSTOPSIG(status)
        request, passed = _CONT, 0
        if event == _EVENT_SECCOMP:
            counts[process] = counts.get(process, 0) + 1
            if counts[process] == number:
                _disturb(process, what)
        elif event == _EVENT_STOP and signalled != signal.SIGTRAP:
            # It stands still, until somebody has it go on.
            if lines is not None:
                name = signal.Signals(signalled).name
                lines.write(f"{process} --- stopped by {name} ---\n")
            request = _LISTEN
        elif not event:
            passed = signalled
        _ptrace(request, process, passed)


def _disturb(process: int, what: int) -> None:
    if what > 0:
        # Pending while the call is carried out, if it is.
        os.kill(process, what)
    else:
        # It is no call any more, and has this result.
        _ptrace(_POKE, process, -1, _CALL_AT)
        _ptrace(_POKE, process, what, _RAX_AT)


def _stop_at(call: int, *, creating: bool) -> None:
    """Have this process and those that it starts stop at each *call*."""
    asked = [(_ARCH_AT, _EQUAL, _ARCH), (_NUMBER_AT, _EQUAL, call)]
    if creating and call in _FLAGS:
        asked.append((_ARGUMENTS_AT + 8 * _FLAGS[call], _HAS, _CREATES))
    program = b""
    for left, (at, how, value) in zip(range(len(asked), 0, -1), asked, strict=True):
        # Where it is not so, on at the last one.
        program += struct.pack("HBBI", _LOAD, 0, 0, at)
        program += struct.pack("HBBI", how, 0, 2 * left - 1, value)
    program += struct.pack("HBBI", _RETURN, 0, 0, _TRACE)
    program += struct.pack("HBBI", _RETURN, 0, 0, _ALLOW)
    buffer = ctypes.create_string_buffer(program)
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    if os.geteuid():
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _libc.prctl(_PR_SET_SECCOMP, _FILTER, described, 0, 0):
        os._exit(125)


def _ptrace(request: int, process: int, value: int, at: int = 0) -> None:
    if _libc.ptrace(request, process, at, value) < 0 and ctypes.get_errno() != 3:
        raise OSError(ctypes.get_errno(), f"ptrace({request}, {process})")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
