"""Software that was copied into an image and is declared as packages (``[[package]]``).

It has a version as an rpm has one, so that guard, steps and ``check`` know it, and configuration
files that follow the image by the rules of ``%config(noreplace)``. What else it brings no package
owns.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Final

from ipavolume.config.model import DeclaredPackage
from ipavolume.config.reading import version_fault
from ipavolume.errors import CommandFailedError, ConfigurationError
from ipavolume.image.tree import ImageTree
from ipavolume.linux import command
from ipavolume.model.files import FileFlags, FileType
from ipavolume.model.images import ImageHeader
from ipavolume.model.packages import Package, Provide
from ipavolume.model.paths import CONFIG_PATH
from ipavolume.prepare import kept
from ipavolume.prepare.findings import Code, Findings
from ipavolume.prepare.globs import is_pattern, matches
from ipavolume.prepare.packages import PackageFacts
from ipavolume.prepare.relatives import BY_NAME
from ipavolume.rpm.versions import parse_evr

_MAX_FILE_BYTES: Final = 4096
_ENOUGH_LINES: Final = 2
_MAX_NAMED: Final = 5
_PRE_RELEASE: Final = re.compile(
    # A letter alone counts behind a plain number: commits end like that, too (2.0-1.git3f2a9b1).
    r"(?P<before>(?:[0-9]+:)?[0-9.]*[0-9](?=[abc][0-9])|.*[0-9](?=[-._]?[a-z]{2}))"
    r"[-._]?(?P<rest>(?:alpha|beta|rc|pre|preview|dev|snapshot|[abc])[-._]?[0-9.]*(?:-[0-9][^-]*)?)",
    re.IGNORECASE,
)
"""As semantic versioning and Python's write it, at the end of a version, before its release."""
DECLARED_FLAGS: Final = FileFlags.CONFIG | FileFlags.NOREPLACE
"""What a configuration file of such a package is."""
_ALTERNATIVES: Final = "/etc/alternatives"
"""Links to it choose one of several programs or files, and are not what is deleted."""


class _NoVersionError(Exception):
    """Why a version cannot be read."""


def read_packages(
    tree: ImageTree,
    declared: Sequence[DeclaredPackage],
    facts: PackageFacts,
    mounts: Sequence[str],
    *,
    findings: Findings,
) -> tuple[Package, ...]:
    """Return the packages that are declared, with their versions.

    Args:
        tree: The image.
        declared: What its configuration says.
        facts: Its other packages.
        mounts: Mounts of its volumes.
        findings: Takes versions that cannot be read, and what other packages own.
    """
    packages = []
    installed = {package.name for package in facts.packages}
    for one in declared:
        what = f"[[package]] {one.name}"
        if one.name in installed:
            findings.add(
                Code.PACKAGE_OWNED, f"{what}: an rpm of the image has this name", path=CONFIG_PATH
            )
        for glob in one.config:
            _check_glob(what, glob, facts, mounts, findings)
        try:
            version = _version(tree, one)
        except _NoVersionError as err:
            findings.add(Code.NO_VERSION, f"{what}: {err}", path=one.version_file or CONFIG_PATH)
            continue
        if found := _PRE_RELEASE.fullmatch(version):
            release, rest = found["before"], found["rest"]
            findings.add(
                Code.PRE_RELEASE,
                f"{what} {version}: to rpm, by whose rules versions are compared, that is newer "
                f"than {release}, and no volume of this image would go on to that; what comes "
                f"before {release} is {release}~{rest}",
                path=one.version_file or CONFIG_PATH,
            )
        evr = parse_evr(version)
        package = Package(
            name=one.name,
            epoch=int(evr.epoch or 0),
            version=evr.version,
            release=evr.release or "",
            arch="",
        )
        packages.append(_providing_itself(package))
    return tuple(packages)


def _providing_itself(package: Package) -> Package:
    provide = Provide(name=package.name, evr=package.evr)
    return Package(
        name=package.name,
        epoch=package.epoch,
        version=package.version,
        release=package.release,
        arch=package.arch,
        provides=(provide,),
    )


def _check_glob(
    what: str, glob: str, facts: PackageFacts, mounts: Sequence[str], findings: Findings
) -> None:
    for path, packaged in facts.files.items():
        mount = next((one for one in mounts if path.startswith(one + "/")), "")
        if not packaged.is_directory and matches(path, mount, glob):
            findings.add(
                Code.CONFIG_OWNED,
                f"{what}: config: {glob!r} matches {path[len(mount) :]!r}, which is "
                f"{packaged.package}'s",
                path=CONFIG_PATH,
            )
            return


def _version(tree: ImageTree, one: DeclaredPackage) -> str:
    if one.version:
        return one.version
    if one.version_file:
        where = repr(one.version_file)
        try:
            data = tree.read_file(one.version_file, limit_bytes=_MAX_FILE_BYTES)
        except ConfigurationError as err:
            raise _NoVersionError(str(err)) from err
        if data is None:
            raise _NoVersionError(f"there is no file {where} in the image")
        lines = data.decode("utf-8", "replace").strip().splitlines()
    else:
        where = repr(" ".join(one.version_command))
        lines = _printed(tree, one, where)
    if len(lines) != 1:
        found = f"{len(lines)} lines" if len(lines) < _ENOUGH_LINES else "several lines"
        raise _NoVersionError(f"{where} has {found} where one with the version is expected")
    version = lines[0].strip()
    if fault := version_fault(version):
        raise _NoVersionError(f"{where}: {fault}")
    return version


def _printed(tree: ImageTree, one: DeclaredPackage, where: str) -> list[str]:
    if os.path.realpath(tree.root) != "/":
        raise _NoVersionError(
            f"{where} runs only where prepare works in the image itself; nothing of the tree "
            f"{tree.root!r} is executed"
        )
    lines: list[str] = []

    def keep(line: str) -> None:
        if len(lines) < _ENOUGH_LINES and line.strip():
            lines.append(line)

    try:
        ended = command.run_command(one.version_command, timeout_s=one.timeout_s, output=keep)
    except CommandFailedError as err:
        raise _NoVersionError(str(err)) from err
    if ended.timed_out:
        raise _NoVersionError(f"{where} was ended after {one.timeout_s} s")
    if ended.status:
        said = f": {lines[0][:200]!r}" if lines else ""
        raise _NoVersionError(f"{where} ended with status {ended.status}{said}")
    return lines


class Owners:
    """Which declared package each of the image's files is a configuration file of."""

    def __init__(self, declared: Sequence[DeclaredPackage], *, findings: Findings) -> None:
        """Know no file so far."""
        self._declared = declared
        self._findings = findings
        self._used: set[tuple[str, str]] = set()
        self._contents: dict[str, dict[str, str]] = {}
        self._switches: dict[tuple[str, str], list[str]] = {}

    def owner(self, path: str, mount: str, kind: FileType) -> str:
        """Return the package of what is at *path* on a volume, and no other package's; or ""."""
        if not self._declared or kind not in (FileType.FILE, FileType.SYMLINK):
            return ""
        found = ""
        for one in self._declared:
            for glob in one.config:
                if not matches(path, mount, glob):
                    continue
                self._used.add((one.name, glob))
                if found not in ("", one.name):
                    self._findings.add(
                        Code.CONFIG_OWNED,
                        f"[[package]] {one.name}: config: {glob!r} matches "
                        f"{path[len(mount) :]!r}, which is {found}'s",
                        path=CONFIG_PATH,
                    )
                found = found or one.name
        return found

    def note(self, package: str, path: str, content: str) -> None:
        """Remember what a file of *package* has."""
        self._contents.setdefault(package, {})[path] = content

    def note_link(self, package: str, path: str, mount: str, target: str) -> None:
        """Remember the globs by which *package* has a link that switches something on.

        One that a glob without a wildcard names is meant.

        Args:
            package: Its name.
            path: Where the link is on a volume.
            mount: That volume's mount.
            target: Where it leads.
        """
        place = path[len(mount) :]
        if not _is_switch(place, target):
            return
        for one in self._declared:
            for glob in one.config if one.name == package else ():
                if is_pattern(glob) and matches(path, mount, glob):
                    self._switches.setdefault((package, glob), []).append(place)

    def check(self, tree: ImageTree, header: ImageHeader, before: ImageHeader | None) -> None:
        """Warn of globs for no file or for too much, and of one version with two contents.

        Args:
            tree: The image, with the manifest of *before*.
            header: What the image is.
            before: What it was when it was prepared before, if it was.
        """
        for one in self._declared:
            for glob in one.config:
                if (one.name, glob) not in self._used:
                    self._findings.add(
                        Code.UNUSED_CONFIG,
                        f"[[package]] {one.name}: config: no listed file matches {glob!r}",
                        path=CONFIG_PATH,
                    )
        for (name, glob), links in self._switches.items():
            more = len(links) - _MAX_NAMED
            self._findings.add(
                Code.CONFIG_SWITCH,
                f"[[package]] {name}: config: {glob!r} matches what is switched off by deleting "
                "it, and an upgrade would switch it on again: "
                + ", ".join(repr(path) for path in links[:_MAX_NAMED])
                + (f" and {more} more" if more > 0 else "")
                + ". A * matches a slash, too: name what is beside these directories",
                path=CONFIG_PATH,
            )
        names = {one.name for one in self._declared}
        known = {(one.name, one.evr) for one in before.packages} if before else set()
        same = {
            one.name: one.evr
            for one in header.packages
            if one.name in names and (one.name, one.evr) in known
        }
        if same:
            self._check_same(tree, same)

    def _check_same(self, tree: ImageTree, same: Mapping[str, str]) -> None:
        old: dict[str, dict[str, str]] = {}
        for record in kept.read_records(tree):
            if record.package in same:
                old.setdefault(record.package, {})[record.path] = record.content
        for name, evr in same.items():
            was, now = old.get(name, {}), self._contents.get(name, {})
            differ = sorted(
                path for path in was.keys() | now.keys() if was.get(path) != now.get(path)
            )
            if differ:
                more = len(differ) - _MAX_NAMED
                self._findings.add(
                    Code.SAME_VERSION,
                    f"[[package]] {name} {evr}: the same version as before, with other content: "
                    + ", ".join(repr(path) for path in differ[:_MAX_NAMED])
                    + (f" and {more} more" if more > 0 else ""),
                    path=CONFIG_PATH,
                )


def _is_switch(path: str, target: str) -> bool:
    """Tell whether a link is there to switch on what it leads to.

    Such a link has the name of the file, which is in a directory beside its own
    (``sites-enabled/`` and ``sites-available/``, ``conf.d/`` and ``conf.avail/``), or is in a
    directory of which systemd takes the names.
    """
    directory, name = posixpath.split(path)
    if directory.endswith(BY_NAME):
        return True
    led, called = posixpath.split(posixpath.normpath(posixpath.join(directory, target)))
    return (
        called == name
        and led not in (directory, _ALTERNATIVES)
        and posixpath.dirname(led) == posixpath.dirname(directory)
    )
