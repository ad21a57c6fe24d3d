"""What a rehearsal came to, decided from how it ended and from what was printed."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Final

from ipavolume.errors import EXIT_COMMAND_FAILED, EXIT_LOCKED
from ipavolume.model.values import dataclass

_NETWORK: Final = re.compile(
    r"temporary failure in name resolution|name or service not known"
    r"|(could not|cannot|can't|failed to|unable to) resolve (the )?"
    r"(host|proxy|peer|domain|server|kdc|(network )?address|dns)"
    r"|could not translate host name|\bunknown host\b|\bhost not found"
    r"|network is unreachable|network is down|no route to host|no servers could be reached"
    r"|connection timed out",
    re.IGNORECASE,
)
"""What resolvers, ``strerror(3)`` and common clients say where there is no network. That a
connection is refused is not among it: on the same machine that is a service that is not there; nor
that something else than a host cannot be resolved: users, symbols, specifiers of units; nor that an
LDAP server cannot be contacted, which clients say of the one on the same machine as well."""


class Ending(enum.StrEnum):
    """How a rehearsal ended."""

    FINE = "fine"
    """The application was ready, and what steps verify was right."""
    FAILED = "failed"
    """It was not; nor would it be on the volume itself."""
    UNDECIDED = "undecided"
    """What failed wanted the network, which a rehearsal does not have; or the first run waits."""

    @property
    def exit_status(self) -> int:
        """Exit status of a rehearsal that ended so."""
        match self:
            case Ending.FINE:
                return 0
            case Ending.FAILED:
                return EXIT_COMMAND_FAILED
            case Ending.UNDECIDED:
                return EXIT_LOCKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """What a rehearsal came to.

    Attributes:
        ending: How it ended.
        code: Code of what failed, or "".
        message: Why, in one line.
        unit: The systemd unit that failed, or "".
        step: Key of the step or scriptlet that failed, or "".
        lines: The last lines that what failed printed.
        seconds: From the start of the container until this was known.
    """

    ending: Ending
    message: str
    code: str = ""
    unit: str = ""
    step: str = ""
    lines: tuple[str, ...] = ()
    seconds: int = 0


def failed(
    message: str,
    *,
    code: str = "",
    unit: str = "",
    step: str = "",
    lines: Iterable[str] = (),
    seconds: float = 0,
) -> Rehearsed:
    """Return what a rehearsal came to that did not go well, for lack of a network or not."""
    kept = tuple(lines)
    ending = Ending.UNDECIDED if wanted_network([message, *kept]) else Ending.FAILED
    return Rehearsed(
        ending=ending,
        code=code,
        message=message,
        unit=unit,
        step=step,
        lines=kept,
        seconds=round(seconds),
    )


def wanted_network(lines: Iterable[str]) -> bool:
    """Tell whether one of *lines* says that there is no network, or nobody who answers on it."""
    return any(_NETWORK.search(line) for line in lines)
