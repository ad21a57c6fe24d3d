"""What a service manager is told that has started the container, see ``sd_notify(3)``.

While there is work to do it is told what, and that it takes longer. That the application is ready
it is told by who has asked: the commands of a run, a daemon that one starts among them, do not get
to know whom they could tell.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from ipavolume.model.progress import Progress

# Later: hardly anybody is told, and every start would load it.
if TYPE_CHECKING:
    import socket

_VARIABLE: Final = "NOTIFY_SOCKET"
_PATIENCE_S: Final = 3600
"""What is done between two lines takes less, but for commands, whose limits are known."""
_WAIT_S: Final = 10
_MAX_STATUS_CHARACTERS: Final = 500
"""A line has paths, which may be long; systemd drops a message that is too large as a whole."""
_OUTPUT: Final = "| "
"""How a line of a command begins; it says nothing of the run."""
_working: Final[list[str]] = []
_announcing: Final[list[str]] = []


def is_asked_for() -> bool:
    """Tell whether there is a service manager that is told by what is executed from now on."""
    return _VARIABLE in os.environ


def begin() -> None:
    """Tell of the work from now on, and keep from what it executes whom."""
    address = os.environ.pop(_VARIABLE, "")
    if address:
        _working[:] = [address]


def end() -> None:
    """Leave it to what is executed from now on."""
    if _working:
        os.environ[_VARIABLE] = _working.pop()


def announce() -> None:
    """Have :func:`ready` tell, and nothing that this process executes."""
    address = os.environ.pop(_VARIABLE, "")
    if address:
        _announcing[:] = [address]


def ready() -> None:
    """Tell, once, that the application is ready, where :func:`announce` was called."""
    if _announcing:
        _try(_announcing.pop(), "READY=1\nSTATUS=ready", wait_s=_WAIT_S, is_last=True)


def telling(say: Progress) -> Progress:
    """Return what says a line by *say*, and tells it if it is one of ours."""

    def tell(line: str) -> None:
        say(line)
        if _working and not line.startswith(_OUTPUT):
            status = line.replace("\n", " ")[:_MAX_STATUS_CHARACTERS]
            _try(_working[0], f"STATUS={status}\nEXTEND_TIMEOUT_USEC={_PATIENCE_S * 1_000_000}")

    return tell


def extend(seconds: float) -> None:
    """Tell that what is done now may take so long, if that is longer than usual."""
    if _working and seconds > _PATIENCE_S:
        _try(_working[0], f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")


def send(text: str) -> None:
    """Tell the service manager something; without one nobody is told.

    Raises:
        OSError: If it cannot be told.
    """
    address = os.environ.get(_VARIABLE, "")
    if address:
        _send(address, text, wait_s=_WAIT_S)


def _try(address: str, text: str, *, wait_s: float = 0, is_last: bool = False) -> None:
    # Nothing of a run depends on whether somebody hears of it.
    with contextlib.suppress(OSError, ValueError):
        _send(address, text, wait_s=wait_s, is_last=is_last)


def _send(address: str, text: str, *, wait_s: float, is_last: bool = False) -> None:
    # Later: hardly anybody is told, and every start would load it.
    import socket

    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        # Who reads too slowly misses lines, not that it is ready.
        connection.settimeout(wait_s)
        connection.connect(address)
        connection.sendall(text.encode("utf-8", "replace"))
        if is_last:
            _wait_until_read(connection, wait_s)


def _wait_until_read(connection: socket.socket, wait_s: float) -> None:
    """Wait until the service manager has read what it was sent.

    It knows a unit by its processes: what it reads when the one that has sent it has ended, it
    takes for nobody's.

    Source: ``sd_notify_barrier(3)``; who knows no barrier drops the pipe with the message.
    """
    import select
    import socket

    reader, writer = os.pipe()
    try:
        try:
            socket.send_fds(connection, [b"BARRIER=1"], [writer])
        finally:
            os.close(writer)
        poll = select.poll()
        # That the other end is closed is told in any case.
        poll.register(reader, 0)
        poll.poll(round(wait_s * 1000))
    finally:
        os.close(reader)
