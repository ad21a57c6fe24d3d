"""The program loaded once and started many times: each start is a fork of what is loaded.

Loading is two thirds of a small run, and sweeps start thousands that are only to come to an end, or
to be killed or to fail at one of the calls that change files. At which, is found out by a run that
is started as users start it, and traced; ``tests/promises/test_interruption.py`` has a test that a
fork makes the same ones. What is killed once, what fails where it only looks, and what goes on
after it stood still is started as users start it, and loads all it needs.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import platform
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from support import halting, tracing
from support.command import PROJECT, clean_environment
from support.tracing import Call

_LIMIT_S: Final = 120.0
_REQUEST_BYTES: Final = 1 << 17
_PATH: Final = os.pathsep.join(map(str, (PROJECT, Path(__file__).parents[1])))

_SERVER: Final = """
import gc, importlib, json, os, pkgutil, socket, sys
import ipavolume
from ipavolume.__main__ import end
from support.halting import follow

for module in pkgutil.walk_packages(ipavolume.__path__, "ipavolume."):
    importlib.import_module(module.name)
gc.freeze()
asking = socket.socket(fileno=int(sys.argv[1]))
while True:
    request, received, _, _ = socket.recv_fds(asking, int(sys.argv[2]), 3)
    if not request:
        break
    words, environment, disturbed = json.loads(request)
    outputs, lines = received[:2], [open(fd, "w", buffering=1) for fd in received[2:]]

    def begin():
        asking.close()
        for number, fd in enumerate(outputs, 1):
            os.dup2(fd, number)
            os.close(fd)
        for stream in lines:
            stream.close()
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["ipavolume", *words]
        end()

    if disturbed:
        status = follow(begin, *disturbed, *lines, creating=True)
    elif child := os.fork():
        status = None
    else:
        begin()
    for fd in outputs:
        os.close(fd)
    for stream in lines:
        stream.close()
    if status is None:
        status = os.waitpid(child, 0)[1]
    asking.send(str(os.waitstatus_to_exitcode(status)).encode())
"""


class Forked:
    """Runs of ``ipavolume``, one after the other."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Load the program in *environment*, which decides the order of what has none."""
        self._asked, asking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with asking:
            words = [sys.executable, "-c", _SERVER, str(asking.fileno()), str(_REQUEST_BYTES)]
            server = subprocess.Popen(
                words,
                env={**(environment or clean_environment()), "PYTHONPATH": _PATH},
                stdin=subprocess.DEVNULL,
                pass_fds=[asking.fileno()],
                start_new_session=True,
            )
        # Also at the end of this process.
        self._end = weakref.finalize(self, _end, self._asked, server)

    def killed(
        self, command: Sequence[str], call: Call, *, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Do as :func:`support.tracing.killed` does."""
        if not _can_be_halted(call):
            return tracing.killed(command, call, env=env)
        done = self.run(_words(command), env, _at(call, signal.SIGKILL))
        tracing.check_killed(done, call)
        return done

    def failing(
        self, command: Sequence[str], call: Call, error: str, *, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Do as :func:`support.tracing.failing` does."""
        if not _can_be_halted(call):
            return tracing.failing(command, call, error, env=env)
        return self.run(_words(command), env, _at(call, -getattr(errno, error)))

    @contextlib.contextmanager
    def stopped(
        self, command: Sequence[str], call: Call, *, env: Mapping[str, str]
    ) -> Iterator[None]:
        """Run *command* until it stands still right after *call*; at the end it is killed."""
        if not _can_be_halted(call):
            with tracing.stopped(command, call.name, call.number, env=env):
                yield
            return
        asked = json.dumps([list(_words(command)), dict(env), _at(call, signal.SIGSTOP)])
        with tempfile.TemporaryFile() as said:
            process = self._until_it_stands(asked.encode(), said.fileno())
            if process is None:
                status = self._status(_LIMIT_S)
                said.seek(0)
                message = f"ended with {status} instead of stopping at {call}: {said.read()!r}"
                raise AssertionError(message)
        try:
            yield
        finally:
            os.kill(process, signal.SIGKILL)
            self._status(_LIMIT_S)

    def run(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        disturbed: tuple[int, int, int] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run it with the arguments *words*; return its exit status and what it printed.

        Args:
            words: Its arguments.
            environment: Its environment.
            disturbed: What happens to it, at which system call, and at which of those; see
                :func:`support.halting.follow`.

        Raises:
            TimeoutError: If it does not come to an end; then nothing else can be run.
        """
        try:
            status, said = self._run(
                json.dumps([list(words), dict(environment), disturbed]).encode()
            )
        except BaseException:
            # A later run would be told the status of this one.
            self._end()
            raise
        texts = [text.decode("utf-8", "surrogateescape") for text in said]
        return subprocess.CompletedProcess(["ipavolume", *words], status, *texts)

    def _run(self, request: bytes) -> tuple[int, list[bytearray]]:
        readers, writers = zip(os.pipe(), os.pipe(), strict=True)
        deadline = time.monotonic() + _LIMIT_S
        said = {reader: bytearray() for reader in readers}
        with contextlib.ExitStack() as stack:
            for reader in readers:
                stack.callback(os.close, reader)
            try:
                socket.send_fds(self._asked, [request], writers)
            finally:
                for writer in writers:
                    os.close(writer)
            with selectors.DefaultSelector() as selector:
                for reader in readers:
                    selector.register(reader, selectors.EVENT_READ)
                # Until no process of the run has the other ends any more.
                while selector.get_map():
                    ready = selector.select(max(0, deadline - time.monotonic()))
                    if not ready:
                        raise TimeoutError(f"a run takes more than {_LIMIT_S} s")
                    for key, _ in ready:
                        if data := os.read(key.fd, 1 << 16):
                            said[key.fd] += data
                        else:
                            selector.unregister(key.fd)
        # It may have closed them, and go on.
        return self._status(max(1.0, deadline - time.monotonic())), [*said.values()]

    def _until_it_stands(self, request: bytes, output: int) -> int | None:
        """Return the process that stands still, ``None`` where the run has ended instead."""
        reader, writer = os.pipe()
        with open(reader, encoding="ascii") as lines:
            try:
                socket.send_fds(self._asked, [request], [output, output, writer])
            finally:
                os.close(writer)
            line = lines.readline()
        return int(line.split()[0]) if line else None

    def _status(self, limit_s: float) -> int:
        self._asked.settimeout(limit_s)
        status = self._asked.recv(64)
        if not status:
            raise ConnectionError("the server has ended")
        return int(status)


@functools.cache
def loaded() -> Forked:
    """Return the program, loaded once a process."""
    return Forked()


def _words(command: Sequence[str]) -> Sequence[str]:
    assert list(command[:3]) == [sys.executable, "-m", "ipavolume"]
    return command[3:]


def _can_be_halted(call: Call) -> bool:
    return platform.machine() == halting.MACHINE and call.name in halting.NUMBERS


def _at(call: Call, what: int) -> tuple[int, int, int]:
    return what, halting.NUMBERS[call.name], call.creating or call.number


def _end(asked: socket.socket, server: subprocess.Popen[bytes]) -> None:
    asked.close()
    with contextlib.suppress(ProcessLookupError):
        # With whatever it runs.
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
