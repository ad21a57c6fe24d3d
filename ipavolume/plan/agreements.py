"""Replication agreements of a directory server, as its configuration has them.

A copy that replicates would tell the peers of what it writes, and be told what they write: in a
rehearsal no agreement of it may be used, whatever its network lets it reach.

Source: 389 Directory Server, "Replication agreement attributes": ``nsds5ReplicaEnabled``; LDIF is
RFC 2849.
"""

from __future__ import annotations

import re
from typing import Final

_IS_AGREEMENT: Final = re.compile(
    rb"^objectclass:\s*(nsds5replicationagreement|nsdswindowsreplicationagreement)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_ENABLED: Final = re.compile(rb"^nsds5replicaenabled:.*\n", re.IGNORECASE | re.MULTILINE)
_FOLDED: Final = re.compile(rb"\r?\n ")
_NAME: Final = re.compile(rb"^cn:\s*(.*?)\s*$", re.IGNORECASE | re.MULTILINE)


def disable(configuration: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return a server's configuration with every replication agreement disabled, and their names.

    Args:
        configuration: ``dse.ldif``, entries separated by empty lines.
    """
    names: list[str] = []
    entries = re.split(rb"(\n(?:\r?\n)+)", configuration)
    for number, entry in enumerate(entries):
        unfolded = _FOLDED.sub(b"", entry)
        if _IS_AGREEMENT.search(unfolded) is None:
            continue
        kept = _ENABLED.sub(b"", unfolded.rstrip(b"\r\n") + b"\n")
        entries[number] = kept + b"nsds5ReplicaEnabled: off"
        # The last one has no empty line behind it, which ends the file.
        if number == len(entries) - 1:
            entries[number] += b"\n"
        name = _NAME.search(unfolded)
        names.append(name[1].decode("utf-8", "replace") if name is not None else "?")
    return b"".join(entries), tuple(names)
