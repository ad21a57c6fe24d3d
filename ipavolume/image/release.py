"""The accounts and the release of an image, read from its files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from ipavolume.errors import ConfigurationError
from ipavolume.formats.manifest import MAX_ID
from ipavolume.image.tree import ImageTree
from ipavolume.model.images import Accounts
from ipavolume.model.values import dataclass

_MAX_ACCOUNTS_BYTES: Final = 64 << 20
_MAX_OS_RELEASE_BYTES: Final = 64 << 10
_MAX_DIGITS: Final = 10
_SHOWN_DIGITS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountNames:
    """The accounts of an image, both ways.

    Attributes:
        accounts: Numbers by name.
        users: Name by number, the first that the file has.
        groups: Likewise.
    """

    accounts: Accounts
    users: Mapping[int, str]
    groups: Mapping[int, str]


def read_accounts(tree: ImageTree) -> AccountNames:
    """Read ``passwd`` and ``group`` of the image; lines that make no sense are passed over.

    Raises:
        ConfigurationError: If an account has a number that no owner can have; what is its would
            become root's, or stay whose it was.
    """
    users = _read_ids(tree, "/etc/passwd")
    groups = _read_ids(tree, "/etc/group")
    return AccountNames(
        accounts=Accounts(users=users, groups=groups),
        users={number: name for name, number in reversed(users.items())},
        groups={number: name for name, number in reversed(groups.items())},
    )


def _read_ids(tree: ImageTree, path: str) -> dict[str, int]:
    data = tree.read_file(path, limit_bytes=_MAX_ACCOUNTS_BYTES) or b""
    result: dict[str, int] = {}
    for line in data.split(b"\n"):
        fields = line.split(b":")
        if len(fields) < 3 or not fields[0] or b"\0" in fields[0]:
            continue
        if not fields[2].removeprefix(b"-").isdigit():
            continue
        digits = fields[2].lstrip(b"0") or b"0"
        number = int(digits) if digits.isdigit() and len(digits) <= _MAX_DIGITS else MAX_ID + 1
        name = os.fsdecode(fields[0])
        if number > MAX_ID:
            raise ConfigurationError(
                f"{path!r} of the image gives {name!r} the number "
                f"{os.fsdecode(fields[2][:_SHOWN_DIGITS])}, which no owner of a file can have",
                hint=f"Numbers go from 0 to {MAX_ID}. Correct it in the image.",
                path=path,
            )
        result.setdefault(name, number)
    return result


def read_os_release(tree: ImageTree) -> tuple[str, str]:
    """Return ``ID`` and ``VERSION_ID`` of the image's os-release, "" where not given."""
    data = None
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        data = tree.read_file(path, limit_bytes=_MAX_OS_RELEASE_BYTES)
        if data is not None:
            break
    values: dict[str, str] = {}
    for line in (data or b"").decode("utf-8", "replace").splitlines():
        key, mark, value = line.strip().partition("=")
        if mark and not key.startswith("#"):
            values[key] = value.strip("\"'").replace("\0", "")
    return values.get("ID", ""), values.get("VERSION_ID", "")
