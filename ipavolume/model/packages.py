"""Packages and their scriptlets, as rpm knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

from ipavolume.model.files import FileFlags
from ipavolume.model.values import dataclass


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
        release: Release, or "" where what was declared has none.
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
        """``epoch:version-release``; what is 0 or not there is left out."""
        text = f"{self.version}-{self.release}" if self.release else self.version
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
        sense: How the version compares: bits of :class:`ipavolume.rpm.versions.Sense`.
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
        prefixes: Directories that a relocatable package was made for, or was moved to.
        installed: Number of the transaction that installed it and the time, both in seconds
            since 1970; zeros in a package file. It is no part of what the package is.
    """

    package: Package
    files: Sequence[RpmFile]
    scriptlets: tuple[RpmScriptlet, ...] = ()
    prefixes: tuple[str, ...] = ()
    installed: tuple[int, int] = field(default=(0, 0), compare=False)
