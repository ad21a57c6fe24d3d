"""Stopping a program at a system call: by SIGKILL, by an error, or for a while.

strace counts the calls of each process by name, so a point is a name and a number. What an
injected signal means for the call itself differs, and the tests rely on it: at SIGKILL the
call is *not* carried out, at SIGSTOP it is, and then the process stands still.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from support import halting
from support.requirements import need_tool

CHANGING: Final = (
    *("mkdirat", "mkdir", "mknodat", "mknod", "symlinkat", "symlink", "linkat", "link"),
    *("renameat", "renameat2", "rename", "unlinkat", "unlink", "rmdir"),
    *("fchmodat", "fchmodat2", "fchmod", "chmod", "fchownat", "fchown", "chown", "lchown"),
    *("utimensat", "setxattr", "lsetxattr", "fsetxattr"),
    *("removexattr", "lremovexattr", "fremovexattr"),
    *("write", "writev", "pwrite64", "pwritev", "copy_file_range", "sendfile", "ftruncate"),
    *("fallocate", "openat", "open", "creat"),
)
"""What can change a file system; an open only if it creates or truncates."""

SYNCING: Final = ("fsync", "fdatasync", "syncfs", "sync", "sync_file_range")

LOOKING: Final = (
    *("openat", "open", "read", "pread64", "newfstatat", "fstat", "lstat", "stat", "statx"),
    *("getdents64", "readlink", "readlinkat", "getxattr", "listxattr", "lseek", "statfs"),
    *("fstatfs", "flock", "faccessat", "access"),
)
"""What only looks, opening for that included."""

_KNOWN_TO_STRACE: Final = ",".join(f"?{name}" for name in (*CHANGING, *SYNCING))
_LINE: Final = re.compile(r"(?:(\d+) +)?([a-z_0-9]+)\((.*)")
_PATHS: Final = re.compile(r"(?<=\d<)/[^>]*(?=>)|(?<=\")/[^\"]*(?=\")")
"""What strace takes for a call about a path: descriptors of it, and its name as an argument."""
_OF_ONE_RUN: Final = re.compile(r"/proc/\d|#")
"""Paths with numbers of processes and of files without a name: the next run has others."""
_FAST: Final = ("--seccomp-bpf",)
"""Stops the program only at the calls that are asked for. Signals are not injected then."""
_OPENS_ONLY: Final = frozenset({"openat", "open"})
_WRITES: Final = frozenset({"write", "writev"})
_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A system call of a run.

    Attributes:
        name: Its name.
        number: Its number among the calls of this name, from 1.
        text: Arguments and result, as strace prints them.
        process: Number of the process, 0 when there was only one.
        path: Where it is counted among the calls about one path only, that path.
        creating: Of an open that can create or empty a file, its number among those alone.
    """

    name: str
    number: int
    text: str
    process: int = 0
    path: str = ""
    creating: int = 0

    def __str__(self) -> str:
        """Return it as a report of a failed test shows it."""
        return f"{self.name} no. {self.number} ({self.text[:200]})"


def trace(
    command: Sequence[str], *, env: Mapping[str, str], log: Path
) -> tuple[subprocess.CompletedProcess[str], list[Call]]:
    """Run *command*; return how it ended and its calls that change or sync files."""
    options = ("-y", "-s", "300", *_FAST)
    words = _strace(log, f"trace={_KNOWN_TO_STRACE}", options=options)
    done = _run([*words, *command], env=env)
    counts: dict[tuple[str, str], int] = {}
    creating: dict[tuple[str, str], int] = {}
    calls = []
    for line in log.read_text(errors="surrogateescape").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        process, name, text = match.groups()
        key = (process, name)
        counts[key] = counts.get(key, 0) + 1
        if not _matters(name, text):
            continue
        if name in _OPENS_ONLY:
            creating[key] = creating.get(key, 0) + 1
        calls.append(
            Call(
                name=name,
                number=counts[key],
                text=text,
                process=int(process or 0),
                creating=creating.get(key, 0),
            )
        )
    return done, calls


def looks(
    command: Sequence[str], *, env: Mapping[str, str], log: Path, below: Sequence[str]
) -> tuple[subprocess.CompletedProcess[str], list[Call]]:
    """Run *command*; return how it ended and the calls of its first process that look.

    They are counted by path: how often a pipe is read is never the same, nor is how long the list
    of mounts is while other tests mount. What is about no path that the next run has is left out.

    Args:
        command: The command.
        env: Its environment.
        log: A file to write.
        below: The paths that matter: what lies elsewhere is the interpreter's.
    """
    names = ",".join(f"?{name}" for name in LOOKING)
    done = _run(
        [*_strace(log, f"trace={names}", options=("-y", "-s", "300", *_FAST)), *command], env=env
    )
    counts: dict[tuple[str, str], int] = {}
    calls = []
    first = ""
    for line in log.read_text(errors="surrogateescape").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        process, name, text = match.groups()
        first = first or process
        if process != first:
            continue
        arguments, _, result = text.rpartition(") = ")
        paths = _PATHS.findall(arguments)
        for path in {*paths}:
            counts[name, path] = counts.get((name, path), 0) + 1
        about = next((path for path in paths if not _OF_ONE_RUN.search(path)), "")
        if about and not result.startswith("-1 ") and any(path in text for path in below):
            calls.append(Call(name=name, number=counts[name, about], text=text, path=about))
    return done, calls


def _matters(name: str, text: str) -> bool:
    if name in _OPENS_ONLY:
        return any(flag in text for flag in ("O_CREAT", "O_TMPFILE", "O_TRUNC"))
    if name in _WRITES:
        # Standard output and error, and pipes, are no files.
        return not re.match(r"[12]<|\d+<(pipe|/dev/pts)", text)
    return True


def is_change(call: Call) -> bool:
    """Tell whether *call* changed the file system; one that failed did not."""
    return call.name in CHANGING and not re.search(r"\) += -1 ", call.text)


def killed(
    command: Sequence[str], call: Call, *, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run *command*, killed in the place of *call*.

    Raises:
        AssertionError: If it never came to that call.
    """
    words = _halting(os.devnull, signal.SIGKILL, call.name, call.number)
    words = words or _injecting(call, "signal=KILL")
    done = _run([*words, *command], env=env)
    check_killed(done, call)
    return done


def check_killed(done: subprocess.CompletedProcess[str], call: Call) -> None:
    """Assert that a run was killed at *call*."""
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), (
        f"was not killed at {call}, but ended with {done.returncode}: {done.stderr}"
    )


def failing(
    command: Sequence[str], call: Call, error: str, *, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run *command*; instead of being carried out, *call* fails with *error*, or says "0"."""
    what = "retval=0" if error == "0" else f"error={error}"
    return _run([*_injecting(call, what, *_FAST), *command], env=env)


def _halting(log: str, halt: signal.Signals, name: str, number: int) -> list[str]:
    """Return what halts the command that follows, nothing if that cannot be done here."""
    if platform.machine() != halting.MACHINE or name not in halting.NUMBERS:
        return []
    words = [sys.executable, "-I", "-S", halting.__file__, log]
    return [*words, str(int(halt)), str(halting.NUMBERS[name]), str(number)]


def _injecting(call: Call, what: str, *options: str) -> list[str]:
    inject = f"inject={call.name}:{what}:when={call.number}"
    about = ("-P", call.path) if call.path else ()
    return _strace(os.devnull, f"trace={call.name}", inject, options=(*options, *about))


def _strace(log: str | Path, *expressions: str, options: Sequence[str] = ()) -> list[str]:
    words = [need_tool("strace"), "-f", "-qq", "-o", str(log), *options]
    for expression in expressions:
        words += ["-e", expression]
    return words


def _run(command: list[str], *, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        env=dict(env),
        stdin=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
    )


class Stopped:
    """A program that stands still right after a system call.

    Attributes:
        processes: Its processes that stand still, in the order in which they stopped.
    """

    def __init__(self, tracer: subprocess.Popen[str], log: IO[str]) -> None:
        """Take what runs it, and what that reports."""
        self._tracer = tracer
        self._log = log
        self.processes: list[int] = []

    def wait_until_stopped(self, count: int = 1) -> None:
        """Read on in the report until *count* processes stand still.

        Raises:
            AssertionError: If the program ended instead.
        """
        while len(self.processes) < count:
            line = self._log.readline()
            if not line:
                _, errors = self._tracer.communicate()
                message = f"ended with {self._tracer.returncode} instead of stopping: {errors}"
                raise AssertionError(message)
            if "--- stopped by SIGSTOP ---" in line:
                # Every line begins with the process, because children are followed.
                self.processes.append(int(line.split()[0]))

    def kill(self, process: int) -> None:
        """Kill one of the processes that stand still."""
        assert process in self.processes
        os.kill(process, signal.SIGKILL)

    def go_on(self, process: int) -> None:
        """Let one of the processes that stand still go on."""
        assert process in self.processes
        os.kill(process, signal.SIGCONT)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait until the last process has ended; return how the program ended."""
        drain = threading.Thread(target=self._log.read, daemon=True)
        drain.start()
        output, errors = self._tracer.communicate(timeout=_TIMEOUT_S)
        drain.join(_TIMEOUT_S)
        return subprocess.CompletedProcess(
            self._tracer.args, self._tracer.returncode, output, errors
        )

    def is_running(self) -> bool:
        """Tell whether the program has not ended yet."""
        return self._tracer.poll() is None


@contextmanager
def stopped(
    command: Sequence[str],
    name: str,
    number: int,
    *,
    env: Mapping[str, str],
    count: int = 1,
    also: str = "",
    path: str = "",
) -> Iterator[Stopped]:
    """Run *command* until *count* of its processes stand still after a call.

    Whatever is left of it at the end is killed.

    Args:
        command: The command.
        name: Name of the system call.
        number: Number of the call among those of this name and process.
        env: Environment of the command.
        count: How many processes to wait for.
        also: What else to inject there, such as ``retval=0``.
        path: Counted are the calls about this path only, as it is given to them.
    """
    reader, writer = os.pipe()
    words = [] if also or path else _halting(_out(writer), signal.SIGSTOP, name, number)
    if not words:
        what = f"{also}:signal=STOP" if also else "signal=STOP"
        words = [need_tool("strace"), "-f", "-o", _out(writer)]
        words += ["-P", path] if path else []
        words += ["-e", f"trace={name}", "-e", f"inject={name}:{what}:when={number}"]
    with open(reader, encoding="utf-8", errors="surrogateescape") as log:
        tracer = subprocess.Popen(
            [*words, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",
            env=dict(env),
            pass_fds=(writer,),
        )
        os.close(writer)
        with tracer:
            program = Stopped(tracer, log)
            try:
                program.wait_until_stopped(count)
                yield program
            finally:
                _end(tracer, program.processes)


def _out(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _end(tracer: subprocess.Popen[str], processes: Sequence[int]) -> None:
    for process in processes if tracer.poll() is None else ():
        _kill_if_alive(process)
    try:
        tracer.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        tracer.kill()
        raise


def _kill_if_alive(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def find(calls: Sequence[Call], wanted: Callable[[Call], bool]) -> int:
    """Return the position of the first of *calls* that is *wanted*.

    Raises:
        AssertionError: If there is none.
    """
    for position, call in enumerate(calls):
        if wanted(call):
            return position
    raise AssertionError("there is no such call")
