"""What on a volume that nothing of ours is on is somebody else's data.

People prepare a volume: they put options, certificates or scripts on it, as root. Data is what a
service writes, as an account of its own, or has a layout that is known.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final

from ipavolume.linux import files, trial
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.volume.failures import attempt
from ipavolume.volume.members import Volume

FILES: Final = {
    "PG_VERSION": "PostgreSQL",
    "ibdata1": "MySQL or MariaDB",
    "mysql.ibd": "MySQL",
    "aria_log_control": "MariaDB",
    "WiredTiger": "MongoDB",
    "mongod.lock": "MongoDB",
    "dump.rdb": "Redis or Valkey",
    "appendonly.aof": "Redis",
    "data.mdb": "LMDB",
    "__db.001": "Berkeley DB",
    "principal.kadm5": "a Kerberos KDC",
    "sam.ldb": "Samba",
}
"""Files that only a certain service makes, whoever their owner is: a copy may be root's.

Sources: PostgreSQL, "Database File Layout"; MySQL, "The System Tablespace" and "Data Dictionary
Schema"; MariaDB, "Aria Storage Engine"; WiredTiger, ``WT_WIREDTIGER`` of ``wiredtiger.h`` (the
``WiredTiger`` file of a home), and MongoDB ``storage_engine_lock_file.h``; ``redis.conf``,
``dbfilename`` and ``appendfilename``; LMDB ``mdb.c``, ``DATANAME``; Berkeley DB, "Shared memory
regions"; MIT krb5 ``plugins/kdb/db2/kdb_db2.c``; Samba ``samdb.py``.
"""
DIRECTORIES: Final = {
    "appendonlydir": "Redis or Valkey",
    "member/wal": "etcd",
    "docker/registry": "a registry of images",
}
"""Directories of the same kind, by their last names.

Sources: ``redis.conf``, ``appenddirname``; etcd ``server/storage/datadir/datadir.go``; distribution
``registry/storage/paths.go``.
"""

AT_THE_TOP: Final = (
    *(STATE_DIRECTORY, f"{trial.PROBE}*"),
    *("lost+found", ".snapshot", ".snapshots", ".zfs", ".Trash*"),
)
"""What is at the top without anybody's doing: ours, and of ext4, NetApp, snapper, ZFS, desktops."""
_MAX_LOOKED_AT: Final = 50_000
"""So much is looked at, what lies higher first: tenths of a second, however much there is."""
_MAX_FOUND: Final = 5


def strangers_data(
    volume: Volume, *, mounted: Collection[str], seed: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """Return up to five paths on *volume* that are somebody else's data, and whose they are.

    Args:
        volume: The volume; nothing of ours is on it.
        mounted: Mount points below it, by the container's paths.
        seed: Globs of what an image wants to find there, relative to the volume or by the
            container's paths; what is below a directory that they match is meant, too.

    Raises:
        VolumeIOError: If something cannot be looked at.
    """
    found: list[tuple[str, str]] = []
    left = _MAX_LOOKED_AT
    todo = deque([""])
    with attempt("look at", volume.directory):
        while todo:
            below = todo.popleft()
            # It is opened name by name, from the top.
            left -= below.count("/")
            try:
                fd = files.open_directory(volume.fd, below)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                # Gone, or not to be seen by who looks: what that is he cannot tell.
                continue
            try:
                for name in _names(fd):
                    left -= 1
                    path = f"{below}/{name}" if below else name
                    if left < 0 or len(found) == _MAX_FOUND:
                        return tuple(found)
                    if f"{volume.mount}/{path}" in mounted or _is_expected(path, volume, seed):
                        continue
                    st = files.lstat(fd, name)
                    if st is None:
                        continue
                    if whose := _whose(path, st):
                        found.append((path, whose))
                    elif stat.S_ISDIR(st.st_mode):
                        todo.append(path)
            finally:
                os.close(fd)
    return tuple(found)


def _names(fd: int) -> Iterator[str]:
    with os.scandir(fd) as entries:
        for entry in entries:
            yield entry.name


def _is_expected(path: str, volume: Volume, seed: Sequence[str]) -> bool:
    if "/" not in path and is_named(path, AT_THE_TOP):
        return True
    return is_named(path, seed) or is_named(f"{volume.mount}/{path}", seed)


def is_named(path: str, globs: Iterable[str]) -> bool:
    """Tell whether one of *globs* matches *path*."""
    return any(fnmatchcase(path, glob) for glob in globs)


def layout_of(path: str, st: os.stat_result) -> str:
    """Return which service lays out its data with a thing like *path*, or ""."""
    above, _, name = path.rpartition("/")
    if stat.S_ISDIR(st.st_mode):
        last = f"{above.rpartition('/')[2]}/{name}"
        return DIRECTORIES.get(name) or DIRECTORIES.get(last, "")
    return FILES.get(name, "") if stat.S_ISREG(st.st_mode) else ""


def _whose(path: str, st: os.stat_result) -> str:
    """Return whose data *path* is; "" where that is not known."""
    layout = layout_of(path, st)
    if layout or stat.S_ISDIR(st.st_mode):
        return layout
    if stat.S_ISREG(st.st_mode) and not st.st_size:
        # A ``.gitkeep`` of the host's user; nobody's data is empty.
        return ""
    return f"user {st.st_uid}" if st.st_uid != 0 else ""
