"""Whether what an engine calls a directory is that directory here.

An engine may be on another host, in a virtual machine or in a container, and this process may be in
a container of it. The path of a volume says nothing then: there may be something else at it here,
such as the volume of the same name of another engine.

Sources: ``docker info`` of 20.10 and 28, ``podman info`` of 4.3; ``tcp://`` and ``ssh://`` as
``DOCKER_HOST`` and contexts have them.
"""

from __future__ import annotations

import os
import re
import socket
from typing import Any, Final
from urllib.parse import urlsplit

from ipavolume.engines.engine import Engine
from ipavolume.linux import mounts
from ipavolume.model.paths import WRITTEN_BY_ENGINES
from ipavolume.model.values import dataclass

_BY_NETWORK: Final = ("tcp", "http", "https", "ssh")
_OF_ANOTHER_ENGINE: Final = (
    ", a container that it does not know: one of another engine on that host has to have the "
    "host's name (--uts host)"
)
_ID: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """How the directories of an engine are seen from here.

    Attributes:
        elsewhere: Why none of them is here, or "".
        container: The engine's container that this process is in, or "".
        mounted: What of the engine's host is mounted in that one: where, and what.
    """

    elsewhere: str = ""
    container: str = ""
    mounted: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, engine: Engine) -> Sight:
        """Return how the directories of an engine are seen.

        Raises:
            CommandFailedError: If it does not answer.
        """
        own = _own_container(engine)
        if own is not None:
            found = (one for one in own.get("Mounts") or () if one.get("Source"))
            return cls(
                container=str(own.get("Name", "")).lstrip("/"),
                mounted=tuple((str(one["Destination"]), str(one["Source"])) for one in found),
            )
        name, here = engine.host_name(), os.uname().nodename
        if name not in ("", here):
            why = f"the engine is on {name!r}, and this is {here!r}"
            return cls(elsewhere=why + _OF_ANOTHER_ENGINE * bool(own_files()))
        address = engine.address()
        if _is_of_another_host(address):
            return cls(elsewhere=f"the engine is asked at {address}, which is not here")
        return cls()

    def why_not(self, directory: str) -> str:
        """Return why what the engine calls *directory* is not that here, or ""."""
        if self.elsewhere or not self.container:
            return self.elsewhere
        around = [one for one in self.mounted if f"{directory}/".startswith(f"{one[0]}/")]
        where, source = max(around, default=("", ""), key=lambda one: len(one[0]))
        if around and source + directory.removeprefix(where) == directory:
            return ""
        return f"this is in the container {self.container!r}, in which it is not mounted there"


def own_files() -> list[str]:
    """Return where the host has the files that engines mount in this process' container."""
    found = [(path, mounts.origin_of(path)) for path in WRITTEN_BY_ENGINES]
    return [origin for path, (where, origin) in found if where == path]


def _own_container(engine: Engine) -> dict[str, Any] | None:
    """Return what an engine says of the container that this process is in; ``None``: none of it."""
    parts = {part for origin in own_files() for part in origin.split("/")}
    for part in sorted(filter(_ID.fullmatch, parts)):
        found = engine.inspected("container", part)
        if found is not None:
            return found
    return None


def _is_of_another_host(address: str) -> bool:
    """Tell whether an engine's address is one of a network, and none of this host."""
    try:
        told = urlsplit(address)
        if told.scheme not in _BY_NETWORK or not told.hostname:
            return False
        found = socket.getaddrinfo(told.hostname, None, type=socket.SOCK_DGRAM)
    except (ValueError, OSError):
        # What only ssh knows by that name.
        return True
    return not any(_is_here(family, place) for family, _, _, _, place in found)


def _is_here(family: int, place: tuple[Any, ...]) -> bool:
    try:
        # Without that version of the protocol in the kernel there is no such socket at all.
        with socket.socket(family, socket.SOCK_DGRAM) as tried:
            tried.bind(place)
    except OSError:
        return False
    return True
