"""What an image ships: the content of its templates together with what packages say of it."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ipavolume.config.pathlist import normalise
from ipavolume.errors import ConfigurationError
from ipavolume.formats import manifest
from ipavolume.image.tree import ImageTree, Visit, walk
from ipavolume.linux import files as fsops
from ipavolume.model.files import Accounts, FileFlags, FileType, Record, RpmFile
from ipavolume.prepare.files import (
    Attributes,
    DigestCache,
    digests_of,
    reported,
    xattrs_of,
)
from ipavolume.prepare.packages import PackagedFile, PackageFacts
from ipavolume.prepare.placement import is_reserved

_MAX_ACCOUNTS_BYTES: Final = 64 << 20
_MAX_OS_RELEASE_BYTES: Final = 64 << 10
_MAX_ID: Final = 0xFFFFFFFE


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
    """Read ``passwd`` and ``group`` of the image; lines that make no sense are passed over."""
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
        if len(fields) >= 3 and fields[0] and fields[2].isdigit() and b"\0" not in fields[0]:
            number = int(fields[2]) if len(fields[2]) <= 10 else _MAX_ID + 1
            if number <= _MAX_ID:
                result.setdefault(os.fsdecode(fields[0]), number)
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


def packaged_attributes(file: RpmFile, names: AccountNames) -> Attributes:
    """Return owner and mode as the package has them; an unknown owner is root, as in rpm."""
    return Attributes(
        uid=names.accounts.users.get(file.owner, 0),
        gid=names.accounts.groups.get(file.group, 0),
        mode=stat.S_IMODE(file.mode),
    )


class Shipped:
    """Makes the records of an image."""

    def __init__(
        self,
        tree: ImageTree,
        *,
        facts: PackageFacts,
        names: AccountNames,
        digests: DigestCache,
        refresh: Sequence[str],
        warn: Callable[[str], None],
    ) -> None:
        """Keep what records are made of.

        Args:
            tree: The image.
            facts: What packages say.
            names: The image's accounts.
            digests: Digests of files that were read already.
            refresh: Globs of the configuration.
            warn: Told of what is left out, and of links that lead nowhere on a volume.
        """
        self._tree = tree
        self._facts = facts
        self._names = names
        self._digests = digests
        self._refresh = refresh
        self._warn = warn
        self.files: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def records(self, templates: Mapping[str, str]) -> Iterator[Record]:
        """Yield the records of all templates, sorted by the bytes of their paths.

        Args:
            templates: Location of the template by mount.
        """
        for mount in sorted(templates, key=lambda path: os.fsencode(path) + b"/"):
            self.files[mount] = self.bytes[mount] = 0
            with reported(f"read the template of {mount!r}"):
                yield from self._below(mount, templates[mount])

    def _below(self, mount: str, template: str) -> Iterator[Record]:
        ghosts = sorted(
            (
                path
                for path, packaged in self._facts.files.items()
                if path.startswith(mount + "/")
                and packaged.file.flags & FileFlags.GHOST
                and not is_reserved(path[len(mount) + 1 :].partition("/")[0])
            ),
            key=os.fsencode,
            reverse=True,
        )
        paths_by_inode: dict[tuple[int, int], str] = {}
        if self._tree.lstat(template) is not None:
            top = self._tree.open_directory(template)
            try:
                for visit in walk(top, skip=lambda path: "/" not in path and is_reserved(path)):
                    if visit.leaving:
                        continue
                    path = f"{mount}/{visit.path}"
                    key = os.fsencode(path)
                    while ghosts and os.fsencode(ghosts[-1]) < key:
                        yield from self._absent(ghosts.pop())
                    if ghosts and ghosts[-1] == path:
                        ghosts.pop()
                    if fsops.type_of(visit.st.st_mode) is FileType.OTHER:
                        self._warn(f"{path!r} is a socket or device in the template; left out")
                        continue
                    record = self._present(path, mount, visit, paths_by_inode)
                    self.files[mount] += 1
                    self.bytes[mount] += 0 if record.hard_link else record.size
                    yield record
            finally:
                os.close(top)
        while ghosts:
            yield from self._absent(ghosts.pop())

    def _present(
        self,
        path: str,
        mount: str,
        visit: Visit,
        paths_by_inode: dict[tuple[int, int], str],
    ) -> Record:
        st = visit.st
        kind = fsops.type_of(st.st_mode)
        if len(path) > manifest.MAX_PATH_CHARACTERS:
            raise ConfigurationError(
                f"{path[:80]!r}... has {len(path)} characters; a path has at most "
                f"{manifest.MAX_PATH_CHARACTERS}",
                hint="No process can open it by its path: remove it from the image.",
            )
        packaged = self._facts.files.get(path)
        content = rpm_digest = hard_link = ""
        if kind is FileType.FILE:
            content, rpm_digest = self._content(visit, packaged)
        elif kind is FileType.SYMLINK:
            content = os.readlink(visit.name, dir_fd=visit.directory)
            self._check_link(path, mount, content)
        if kind is not FileType.FILE and packaged and packaged.file.digest:
            rpm_digest = f"{packaged.file.digest_algorithm}:{packaged.file.digest}"
        if st.st_nlink > 1 and kind is not FileType.DIRECTORY:
            first = paths_by_inode.setdefault((st.st_dev, st.st_ino), path)
            hard_link = "" if first == path else first
        record = Record(
            path=path,
            type=kind,
            mode=stat.S_IMODE(st.st_mode),
            owner=self._names.users.get(st.st_uid, str(st.st_uid)),
            group=self._names.groups.get(st.st_gid, str(st.st_gid)),
            uid=st.st_uid,
            gid=st.st_gid,
            size=st.st_size if kind is FileType.FILE else 0,
            content=content,
            xattrs=xattrs_of(visit.directory, visit.name),
            flags=packaged.file.flags if packaged else FileFlags.NONE,
            package=packaged.package if packaged else "",
            rpm_digest=rpm_digest,
            hard_link=hard_link,
            refresh=kind is FileType.FILE and packaged is None and self._refreshed(path, mount),
        )
        if len(path) > 1024 and len(manifest.dump_record(record)) > manifest.MAX_RECORD_BYTES:
            raise ConfigurationError(
                f"{path[:80]!r}... is too long a path for a volume",
                hint="Take it out of the image or of the path lists.",
            )
        return record

    def _content(self, visit: Visit, packaged: PackagedFile | None) -> tuple[str, str]:
        """Return the SHA-256 of a file, and the package's digest where it differs."""
        digest = packaged.file.digest if packaged else ""
        algorithm = packaged.file.digest_algorithm if packaged else ""
        algorithms = ["sha256"]
        if digest and algorithm != "sha256" and algorithm in hashlib.algorithms_available:
            algorithms.append(algorithm)
        known = self._digests.get(visit.st) if len(algorithms) == 1 else ""
        found = (known,) if known else digests_of(visit.directory, visit.name, algorithms)
        compared = found[-1] if algorithm == algorithms[-1] else ""
        differs = bool(digest) and digest != compared
        return found[0], f"{algorithm}:{digest}" if differs else ""

    def _refreshed(self, path: str, mount: str) -> bool:
        return any(
            fnmatch.fnmatchcase(path, glob) or fnmatch.fnmatchcase(path[len(mount) :], glob)
            for glob in self._refresh
        )

    def _check_link(self, path: str, mount: str, target: str) -> None:
        """Warn of a relative link that led somewhere in the image and no longer does."""
        if target.startswith("/"):
            return
        below = path[len(mount) :]
        led = posixpath.join(posixpath.dirname(below), target)
        leads = posixpath.join(posixpath.dirname(path), target)
        if not self._tree.exists(leads) and self._tree.exists(led):
            self._warn(
                f"the relative link {below!r} led to {normalise(led)!r}, on the volume it leads "
                f"to {normalise(leads)!r}, where nothing is"
            )

    def _absent(self, path: str) -> Iterator[Record]:
        """Yield the record of a ghost of which the template holds nothing."""
        packaged = self._facts.files[path]
        kind = fsops.type_of(packaged.file.mode)
        if kind is FileType.OTHER:
            return
        attributes = packaged_attributes(packaged.file, self._names)
        yield Record(
            path=path,
            type=kind,
            mode=attributes.mode,
            owner=packaged.file.owner,
            group=packaged.file.group,
            uid=attributes.uid,
            gid=attributes.gid,
            content=packaged.file.target if kind is FileType.SYMLINK else "",
            flags=packaged.file.flags,
            package=packaged.package,
            present=False,
        )
