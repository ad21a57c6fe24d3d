"""A directory server's copy is kept from replicating, before anything of it runs."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from ipavolume.linux import files
from ipavolume.plan import agreements
from ipavolume.volume.failures import attempt
from ipavolume.volume.members import Volume

PROFILE: Final = "freeipa"
"""The profile of images whose volumes have such a server."""
_SERVERS: Final = "etc/dirsrv"
_DSE: Final = "dse.ldif"
_MAX_BYTES: Final = 64 << 20


def disable(copy: Volume) -> tuple[str, ...]:
    """Disable the replication agreements of every server on *copy*, durably; return their names.

    Raises:
        VolumeIOError: If a configuration cannot be read or replaced.
        UnsafeVolumeError: If something else is in its place.
    """
    names: list[str] = []
    with attempt("look into", f"{copy.directory}/{_SERVERS}"):
        try:
            servers = files.open_directory(copy.fd, _SERVERS)
        except FileNotFoundError:
            return ()
    try:
        for server in sorted(files.listdir(servers)):
            with attempt("disable replication in", f"{copy.directory}/{_SERVERS}/{server}"):
                names += _disable_in(servers, server)
    finally:
        os.close(servers)
    return tuple(names)


def _disable_in(servers: int, server: str) -> tuple[str, ...]:
    st = files.lstat(servers, server)
    if st is None or not stat.S_ISDIR(st.st_mode):
        return ()
    directory = files.open_at(servers, server, files.DIRECTORY_FLAGS)
    try:
        fd = files.open_regular(directory, _DSE)
        if fd is None:
            return ()
        with files.reader(fd) as stream:
            kept = files.metadata(files.fstat(fd), files.read_xattrs(fd))
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), _DSE)
        disabled, names = agreements.disable(data)
        if disabled != data:
            files.write_complete(directory, f".{_DSE}.new", disabled, kept)
            files.rename(directory, f".{_DSE}.new", directory, _DSE)
        if names:
            # Also for what one that was killed has renamed.
            os.fsync(directory)
        return names
    finally:
        os.close(directory)
