"""The nouns of ipavolume as data: what an image ships and what a volume holds.

Nothing here reads or writes anything. Paths are absolute as the container sees them
(``/data/etc/krb5.conf``); undecodable bytes in them are surrogates (PEP 383), so that
:func:`os.fsencode` gives back what the file system had. ``None`` means "no such file".
"""

from __future__ import annotations

import enum

from ipavolume.model.values import dataclass

STATE_DIRECTORY = ".ipavolume"
BUILD_ID_NAME = "build-id"
VERSION_NAME = "volume-version"
"""What the images of the freeipa-container project have at the top of a volume: its format."""

Xattrs = tuple[tuple[str, bytes], ...]


class FileType(enum.StrEnum):
    """The type of a path, by the word that manifests use."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    OTHER = "other"
    """A socket or device node: never shipped, only found on a volume."""

    @property
    def noun(self) -> str:
        """What a sentence calls it, with its article."""
        return "a socket or a device" if self is FileType.OTHER else f"a {self.value}"


class LinkStanding(enum.Enum):
    """What is to be thought of a symbolic link in a directory's place.

    Attributes:
        TRUSTED: Root alone put it there, and it leads to a directory of root's.
        OWNED: Root alone put it there, and what it leads to is a directory of somebody else, who
            cannot have changed that.
        OUTSIDE: Root alone put it there, and it leads to what only the container has.
        NOWHERE: It leads to something that is not here.
        UNTRUSTED: Somebody else can have put it there, or it leads to no directory.
    """

    TRUSTED = "trusted"
    OWNED = "owned"
    OUTSIDE = "outside"
    NOWHERE = "nowhere"
    UNTRUSTED = "untrusted"


class FileFlags(enum.IntFlag):
    """What a package says of a file; the values are those of rpm's ``RPMFILE_*``."""

    # What is asked is whether one is among them; the library would make flags of the answer, which
    # costs more than all else that is asked of a path.
    __and__ = int.__and__  # type: ignore[assignment]

    NONE = 0
    CONFIG = 1
    MISSINGOK = 8
    NOREPLACE = 16
    GHOST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What an image ships at one path.

    Attributes:
        path: Absolute path in the container, below a mount.
        type: Type of the file; that of the package for a ghost that is not there.
        mode: Permission bits (``0o7777``).
        owner: Name of the owner, or the number in decimal when it has no name.
        group: Name of the group, likewise.
        uid: Number of the owner in this image.
        gid: Number of the group in this image.
        size: Bytes of a regular file, otherwise 0.
        content: SHA-256 in hexadecimal of a regular file, target of a link, otherwise "".
        xattrs: Extended attributes, POSIX ACLs and file capabilities among them, by name;
            none but a file's own, see :func:`ipavolume.model.attributes.is_of_file`.
        flags: What the owning package says of it.
        package: Name of the owning package, or "" when no package owns it.
        rpm_digest: ``algorithm:hex`` of the package's own digest where it differs from
            *content* (a Dockerfile edited the file), otherwise "".
        present: False for a ghost (or a file that was not installed) of which the
            template holds nothing.
        hard_link: Path of the first record that is the same inode, otherwise "".
        refresh: A newer image may replace it although no package owns it.
    """

    path: str
    type: FileType
    mode: int
    owner: str
    group: str
    uid: int
    gid: int
    size: int = 0
    content: str = ""
    xattrs: Xattrs = ()
    flags: FileFlags = FileFlags.NONE
    package: str = ""
    rpm_digest: str = ""
    present: bool = True
    hard_link: str = ""
    refresh: bool = False

    @property
    def metadata(self) -> Metadata:
        """What a file has to have to be as it is shipped."""
        return Metadata(uid=self.uid, gid=self.gid, mode=self.mode, xattrs=self.xattrs)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskState:
    """What ``lstat`` says of a path on a volume.

    Attributes:
        type: Type of the file.
        mode: Permission bits (``0o7777``).
        uid: Number of the owner.
        gid: Number of the group.
        size: Bytes.
        mtime_ns: Modification time in nanoseconds.
        ctime_ns: Change time in nanoseconds.
        dev: Device number.
        ino: Inode number.
        nlink: Number of names the inode has.
    """

    type: FileType
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    dev: int
    ino: int
    nlink: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Owner, mode and extended attributes: what a file has, or is to be given.

    Attributes:
        uid: Number of the owner.
        gid: Number of the group.
        mode: Permission bits (``0o7777``).
        xattrs: ACLs, capabilities and all others that are to be set.
    """

    uid: int
    gid: int
    mode: int
    xattrs: Xattrs = ()
