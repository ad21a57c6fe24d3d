"""The program loaded once and started many times: each start is a fork of what is loaded.

Loading is two thirds of a small run, and sweeps start thousands that are only to come to an end.
What is to be killed, to fail or to be traced is started as users start it, and loads all it needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Final

from support.command import clean_environment

_LIMIT_S: Final = 120.0
_REQUEST_BYTES: Final = 1 << 17

_SERVER: Final = """
import gc, importlib, json, os, pkgutil, socket, sys
import ipavolume
from ipavolume.__main__ import end

for module in pkgutil.walk_packages(ipavolume.__path__, "ipavolume."):
    importlib.import_module(module.name)
gc.freeze()
asking = socket.socket(fileno=int(sys.argv[1]))
while True:
    request, outputs, _, _ = socket.recv_fds(asking, int(sys.argv[2]), 2)
    if not request:
        break
    child = os.fork()
    if not child:
        asking.close()
        for number, fd in enumerate(outputs, 1):
            os.dup2(fd, number)
            os.close(fd)
        words, environment = json.loads(request)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["ipavolume", *words]
        end()
    for fd in outputs:
        os.close(fd)
    asking.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
"""


class Forked:
    """Runs of ``ipavolume``, one after the other."""

    def __init__(self) -> None:
        """Load the program."""
        self._asked, asking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with asking:
            words = [sys.executable, "-c", _SERVER, str(asking.fileno()), str(_REQUEST_BYTES)]
            server = subprocess.Popen(
                words,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                pass_fds=[asking.fileno()],
                start_new_session=True,
            )
        # Also at the end of this process.
        self._end = weakref.finalize(self, _end, self._asked, server)

    def run(
        self, words: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run it with the arguments *words*; return its exit status and what it printed.

        Raises:
            TimeoutError: If it does not come to an end; then nothing else can be run.
        """
        try:
            status, said = self._run(json.dumps([list(words), dict(environment)]).encode())
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
        self._asked.settimeout(max(1.0, deadline - time.monotonic()))
        status = self._asked.recv(64)
        if not status:
            raise ConnectionError("the server has ended")
        return int(status), [*said.values()]


def _end(asked: socket.socket, server: subprocess.Popen[bytes]) -> None:
    asked.close()
    with contextlib.suppress(ProcessLookupError):
        # With whatever it runs.
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
