"""Volumes that were populated without ipavolume: what can be learned of their last image.

The freeipa-container project's scripts keep the config files as they were shipped below
``.configfiles`` (hard links or copies); FreeIPA itself records its versions. The rest of
the old image is unknown, and unknown means that nothing is overwritten.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from typing import Final

from ipavolume.formats import manifest
from ipavolume.linux import files
from ipavolume.model.files import FileFlags, FileType, Record
from ipavolume.model.images import ImageHeader
from ipavolume.model.packages import Package, Provide
from ipavolume.volume.members import Volume
from ipavolume.volume.tree import Tree, walk

CONFIG_FILES: Final = ".configfiles"
CONFIG_NOREPLACE: Final = ".configfiles-noreplace"
_SYSUPGRADE: Final = "var/lib/ipa/sysupgrade/sysupgrade.state"
_PKI_VERSION: Final = "etc/pki/pki.version"
_DIRSRV: Final = "etc/dirsrv"
_MAX_RECORD_BYTES: Final = 1 << 20
_DATA_VERSION: Final = rb"(?m)^\s*data_version\s*=\s*([0-9][^\s]*)"
_PKI_CONFIGURATION: Final = rb"(?m)^\s*Configuration-Version:\s*([0-9][^\s]*)"
_DIRSRV_VERSION: Final = rb"(?m)^nsslapd-versionstring:\s*389-Directory/([0-9][^\s]*)"
_FEDORA: Final = r"\.fc([0-9]+)"
_ENTERPRISE: Final = r"\.el([0-9]+)"


def old_lines(volume: Volume, path_of_mount: str) -> list[bytes]:
    """Return records of the config files as the last image shipped them.

    The scripts copied them with owner and mode, so that it is known what of these an
    administrator changed since.
    """
    shipped = _records(volume, CONFIG_FILES, path_of_mount)
    noreplace = {path for path, _ in _names(volume, CONFIG_NOREPLACE, path_of_mount)}
    lines = []
    for record in sorted(shipped, key=lambda item: os.fsencode(item.path)):
        flags = FileFlags.CONFIG
        if record.path in noreplace:
            flags |= FileFlags.NOREPLACE
        lines.append(manifest.dump_record(replace(record, flags=flags)))
    return lines


def _names(volume: Volume, name: str, mount: str) -> list[tuple[str, os.stat_result]]:
    try:
        fd = files.open_at(volume.fd, name, files.DIRECTORY_FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return [(path, st) for path, _, _, st in walk(fd, mount) if stat.S_ISREG(st.st_mode)]
    finally:
        os.close(fd)


def _records(volume: Volume, name: str, mount: str) -> list[Record]:
    found = _names(volume, name, mount)
    if not found:
        return []
    fd = files.open_at(volume.fd, name, files.DIRECTORY_FLAGS)
    try:
        with Tree({mount: fd}) as tree:
            return [
                Record(
                    path=path,
                    type=FileType.FILE,
                    mode=stat.S_IMODE(st.st_mode),
                    owner=str(st.st_uid),
                    group=str(st.st_gid),
                    uid=st.st_uid,
                    gid=st.st_gid,
                    size=st.st_size,
                    content=tree.digest(path),
                    package="unknown",
                )
                for path, st in found
            ]
    finally:
        os.close(fd)


def learn(volume: Volume, *, operator_says: str) -> ImageHeader:
    """Return a header with what can be learned of the image that last ran on *volume*.

    Args:
        volume: The primary volume.
        operator_says: ``id:version`` as the operator gives it, or "".

    Source:
        freeipa ``ipaserver/install/installutils.py`` ``store_version()``; 389-ds-base
        ``nsslapd-versionstring``; pki ``pki.version``.
    """
    packages = []
    os_id, os_version = "", ""
    data_version = _find(volume, _SYSUPGRADE, _DATA_VERSION)
    if data_version:
        packages.append(_package("ipa-server", data_version, also="freeipa-server"))
        os_id, os_version = _release(data_version)
    pki = _find(volume, _PKI_VERSION, _PKI_CONFIGURATION)
    if pki:
        packages.append(_package("pki-server", pki))
    dirsrv = _dirsrv_version(volume)
    if dirsrv:
        packages.append(_package("389-ds-base", dirsrv))
    if operator_says:
        os_id, _, os_version = operator_says.partition(":")
    return ImageHeader(build_id="", os_id=os_id, os_version=os_version, packages=tuple(packages))


def _package(name: str, version: str, *, also: str = "") -> Package:
    upstream, _, release = version.partition("-")
    provides = (Provide(name=also, evr=version),) if also else ()
    return Package(
        name=name, epoch=0, version=upstream, release=release, arch="", provides=provides
    )


def _release(data_version: str) -> tuple[str, str]:
    for pattern, os_id in ((_FEDORA, "fedora"), (_ENTERPRISE, "rhel")):
        match = re.search(pattern, data_version)
        if match:
            return os_id, match.group(1)
    return "", ""


def _dirsrv_version(volume: Volume) -> str:
    with Tree({"/volume": volume.fd}) as tree:
        for name in tree.children(f"/volume/{_DIRSRV}"):
            if name.startswith("slapd-"):
                version = _find(volume, f"{_DIRSRV}/{name}/dse.ldif", _DIRSRV_VERSION)
                if version:
                    return version
    return ""


def _find(volume: Volume, path: str, pattern: bytes) -> str:
    """Return what *pattern* finds in a small file of the volume, following no link."""
    try:
        parent, name = files.open_parent(volume.fd, path)
    except OSError:
        return ""
    try:
        fd = files.open_regular(parent, name)
    finally:
        os.close(parent)
    if fd is None:
        return ""
    with files.reader(fd) as stream:
        match = re.search(pattern, stream.read(_MAX_RECORD_BYTES))
    return match.group(1).decode("ascii", "replace") if match else ""
