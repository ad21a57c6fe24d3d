"""The nouns of ipavolume as data: what an image ships and what a volume holds.

Nothing here reads or writes anything. Paths are absolute as the container sees them
(``/data/etc/krb5.conf``); undecodable bytes in them are surrogates (PEP 383), so that
:func:`os.fsencode` gives back what the file system had. ``None`` means "no such file".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

STATE_DIRECTORY = ".ipavolume"
BUILD_ID_NAME = "build-id"

Xattrs = tuple[tuple[str, bytes], ...]


class FileType(enum.StrEnum):
    """The type of a path, by the word that manifests use."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    OTHER = "other"
    """A socket or device node: never shipped, only found on a volume."""


class LinkStanding(enum.Enum):
    """What is to be thought of a symbolic link in a directory's place.

    Attributes:
        TRUSTED: Root alone put it there, and it leads to a directory.
        NOWHERE: It leads to something that is not here.
        UNTRUSTED: Somebody else can have put it there, or it leads to no directory.
    """

    TRUSTED = "trusted"
    NOWHERE = "nowhere"
    UNTRUSTED = "untrusted"


class FileFlags(enum.IntFlag):
    """What a package says of a file; the values are those of rpm's ``RPMFILE_*``."""

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
            never ``security.selinux`` or ``trusted.overlay.*``.
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
class Provide:
    """A capability that a package provides.

    Attributes:
        name: Name of the capability.
        evr: ``epoch:version-release`` as far as given, or "".
    """

    name: str
    evr: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """An installed package.

    Attributes:
        name: Name.
        epoch: Epoch, 0 when the package has none.
        version: Version.
        release: Release.
        arch: Architecture.
        provides: What it provides, its own name included.
    """

    name: str
    epoch: int
    version: str
    release: str
    arch: str
    provides: tuple[Provide, ...] = ()

    @property
    def evr(self) -> str:
        """``epoch:version-release``; the epoch is left out when it is 0."""
        text = f"{self.version}-{self.release}"
        return f"{self.epoch}:{text}" if self.epoch else text


@dataclass(frozen=True, slots=True, kw_only=True)
class RpmFile:
    """What a package's header says of one file.

    Attributes:
        path: Absolute path as the package has it.
        mode: Type and permission bits as in ``st_mode``.
        size: Bytes.
        digest: Hexadecimal digest of a regular file, "" for ghosts and other types.
        digest_algorithm: ``sha256``, ``md5`` and so on, as :mod:`hashlib` names them.
        target: Target of a symbolic link, otherwise "".
        owner: Name of the owner.
        group: Name of the group.
        flags: Flags, only those of :class:`FileFlags`.
        capabilities: File capabilities as text, otherwise "".
        installed: False where rpm recorded that it did not install the file.
    """

    path: str
    mode: int
    size: int
    digest: str
    digest_algorithm: str
    target: str
    owner: str
    group: str
    flags: FileFlags
    capabilities: str = ""
    installed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What a trigger waits for.

    Attributes:
        name: Name of a package; of a file trigger the prefix of a path.
        sense: How the version compares: bits of :class:`ipavolume.versions.Sense`.
        evr: Version that it compares with, or "" for any.
        place: Place among all conditions of the package's triggers of this sort. Of two that
            hold only the first counts.
    """

    name: str
    sense: int = 0
    evr: str = ""
    place: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RpmScriptlet:
    """A scriptlet as a package's header has it.

    Attributes:
        kind: ``post``, ``triggerin``, ``filetriggerun`` and so on, as the spec file names it.
            A trigger without any condition is a ``trigger``, ``filetrigger`` or
            ``transfiletrigger``: rpmbuild drops conditions that overlap earlier ones, and rpm
            never runs what is left without.
        interpreter: The program and its words.
        body: Its text, or ``None`` when there is only the program. A trigger always has one:
            to rpm even an empty one is a script.
        expand: rpm expands macros in the text when it runs (``-e``).
        queryformat: rpm then expands tags of the header in it (``-q``).
        conditions: What a trigger waits for; any of them.
        priority: Of a file trigger; higher ones run first.
        number: Number among the package's triggers of this sort, from 1; otherwise 0.
    """

    kind: str
    interpreter: tuple[str, ...]
    body: bytes | None
    expand: bool = False
    queryformat: bool = False
    conditions: tuple[Condition, ...] = ()
    priority: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RpmPackage:
    """A package with its scriptlets and those of its files that were asked for.

    Attributes:
        package: Name, version and what it provides.
        files: Its files in the header's order.
        scriptlets: Its scriptlets; triggers in the header's order.
        installed: Number of the transaction that installed it and the time, both in seconds
            since 1970; zeros in a package file. It is no part of what the package is.
    """

    package: Package
    files: tuple[RpmFile, ...]
    scriptlets: tuple[RpmScriptlet, ...] = ()
    installed: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSpec:
    """A volume as an image declares it.

    Attributes:
        mount: Where the container sees it.
        template: Where the image keeps its pristine content.
        volatile: Emptied and filled at each start, never upgraded.
        entries: The normalised entries of its path lists, without trailing slashes.
        files: Number of records below the mount that have content in the template.
        bytes: Sum of their sizes.
    """

    mount: str
    template: str
    volatile: bool = False
    entries: tuple[str, ...] = ()
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """Names and numbers of the accounts of an image, from its own files.

    Attributes:
        users: Number by user name.
        groups: Number by group name.
    """

    users: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """The first record of a manifest: which image this is.

    Attributes:
        build_id: Id of the image build.
        image_name: What people call the image, or "".
        created: Time of the build, ISO 8601 in UTC.
        os_id: ``ID`` of os-release.
        os_version: ``VERSION_ID`` of os-release.
        fingerprint: SHA-256 of what matters to a volume; equal for a rebuild without change.
        packages: Installed packages, sorted by name.
        accounts: The image's passwd and group.
        volumes: Its volumes; the first is the primary one.
        links: Symbolic links of the image that lead into a mount: path and target.
        records: Number of path records that follow.
        records_digest: BLAKE2b-256 of the bytes of the record lines.
    """

    build_id: str
    image_name: str = ""
    created: str = ""
    os_id: str = ""
    os_version: str = ""
    fingerprint: str = ""
    packages: tuple[Package, ...] = ()
    accounts: Accounts = Accounts()
    volumes: tuple[VolumeSpec, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    records: int = 0
    records_digest: str = ""
