"""Whether a volume can take what a plan puts on it: room, rights, what its file system keeps."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Sequence
from typing import Final

from ipavolume.errors import IpaVolumeError, VolumeIOError
from ipavolume.linux import files, mounts
from ipavolume.linux.rights import effective_capabilities
from ipavolume.linux.statx import project_of
from ipavolume.linux.trial import probe
from ipavolume.model.actions import SetMetadata
from ipavolume.model.attributes import ACL_NAMES, CAPABILITY_NAME
from ipavolume.model.files import Metadata
from ipavolume.volume import ownership
from ipavolume.volume.failures import STATE_UNTOUCHED, attempt, io_error, without
from ipavolume.volume.members import Volume

NOT_MOUNTED: Final = "not-mounted"


def is_of_root(volume: Volume) -> bool:
    """Tell whether nothing is mounted where *volume* is: it is a directory of the root."""
    directory = os.path.realpath(volume.directory)
    return directory != "/" and mounts.origin_of(directory)[0] == "/"


def is_shown_read_only(volume: Volume) -> bool:
    """Tell whether only this mount of the file system is read-only, not the file system.

    Source: ``proc_pid_mountinfo(5)``: the options of the mount, then those of the file system,
    both beginning with ``ro`` or ``rw``.
    """
    switches = [word for word in volume.options.split(",") if word in ("ro", "rw")]
    return switches[:2] == ["ro", "rw"]


def allocated(volume: Volume, action: SetMetadata) -> int:
    """Return what a copy takes: holes, of which a file can have terabytes, stay holes."""
    try:
        parent, name = files.open_parent(volume.fd, action.path[len(volume.mount) + 1 :])
    except OSError:
        return action.before.size
    try:
        st = files.lstat(parent, name)
    finally:
        os.close(parent)
    return action.before.size if st is None else min(action.before.size, st.st_blocks * 512)


def room_of(volume: Volume) -> object:
    """Return what is the same for volumes that take of one another's room.

    Where one of them has a quota of its own (a project of xfs or ext4), ``statvfs`` says that it
    is larger or smaller than the other. Of equal ones each is its own where both have room; without
    a quota a project says nothing, and it is the whole file system that is told.
    """
    device, room = files.fstat(volume.fd).st_dev, files.statvfs(volume.fd)
    project = project_of(volume.fd)
    if project and 2 * room.f_blocks * room.f_frsize <= mounts.size_of_device(device):
        return device, room.f_blocks, project
    return device, room.f_blocks


def check_room(volumes: Sequence[Volume], size: int, inodes: int) -> None:
    """Make sure that *size* bytes and *inodes* inodes are free.

    Args:
        volumes: Volumes on one file system, which have to share it. Can the last one be written?
        size: What all of them need.
        inodes: What all of them need.

    Raises:
        VolumeIOError: If they are not, or nothing can be written.
    """
    volume = volumes[-1]
    room = files.statvfs(volume.fd)
    is_mount = volume.directory == volume.mount
    if room.f_flag & os.ST_RDONLY and is_mount and is_of_root(volume):
        raise VolumeIOError(
            f"nothing is mounted at {volume.mount}, and the container's root is read-only",
            code=NOT_MOUNTED,
            hint=f"Mount a volume there: -v NAME:{volume.mount}",
            state=STATE_UNTOUCHED,
        )
    if room.f_flag & os.ST_RDONLY:
        raise VolumeIOError(
            f"the volume {volume.directory!r} is mounted read-only",
            code="read-only",
            hint="Mount it read-write, then start again.",
            state=STATE_UNTOUCHED,
        )
    blocks = room.f_bfree if os.geteuid() == 0 else room.f_bavail
    free = blocks * room.f_frsize
    if free < size:
        lacking = f"{free >> 10} KiB free, the plan needs up to {size >> 10} KiB"
    elif room.f_files and room.f_ffree < inodes:
        lacking = f"{room.f_ffree} inodes free, the plan needs up to {inodes}"
    else:
        return
    names = " and ".join(repr(one.directory) for one in volumes)
    whose = f"the volume {names} has"
    place = "on the volume"
    if len(volumes) > 1:
        whose = f"the volumes {names}, on one file system, have"
        place = "there"
    raise VolumeIOError(
        f"{whose} {lacking}",
        code="no-space",
        hint=f"Make room {place}, then start again; or try it with --allow space.",
        state=STATE_UNTOUCHED,
    )


def try_calls(volume: Volume, wanted: Collection[Metadata], *, looking: bool) -> None:
    """Try on a file of our own what the plan will do to files.

    Set-id bits, ACLs and capabilities are only tried where the plan has some.

    Raises:
        VolumeIOError: If a call does not work, which is named; or this is not root.
    """
    if os.geteuid() != 0:
        if looking:
            return
        raise _not_root(volume)
    uid, gid = next(((item.uid, item.gid) for item in wanted if item.uid), (1, 1))
    bits = next((item.mode & 0o6000 for item in wanted if item.mode & 0o6000), 0)
    samples = []
    for name in (*ACL_NAMES[:1], CAPABILITY_NAME):
        values = [value for item in wanted for key, value in item.xattrs if key == name]
        samples += [(name, value) for value in values[:1]]
    trial = Metadata(uid=uid, gid=gid, mode=0o750 | bits, xattrs=tuple(samples))
    with attempt("try calls on", volume.directory, now=STATE_UNTOUCHED):
        failed = probe(volume.fd, trial, thorough=not looking)
    if failed is not None:
        raise _missing_right(volume, *failed) from failed[1]


def _not_root(volume: Volume) -> VolumeIOError:
    return VolumeIOError(
        f"only root can change the volume {volume.directory!r}, and this is user {os.geteuid()}",
        code="missing-right",
        hint="Run it as root, in a container as its root (no --user, no --userns=keep-id, no "
        "runAsUser; OpenShift: a security context constraint that allows root, such as anyuid). "
        "Then start again.",
        state=STATE_UNTOUCHED,
    )


_DOING: Final = {
    "open with O_TMPFILE": "create files on",
    "mkdir": "create files on",
    "write": "write to",
    "fchown": "change owners on",
    "fchmod": "change modes on",
    "open": "open files of all owners on",
    "setxattr": "store ACLs or capabilities on",
    "fsync": "make files durable on",
    "link": "make hard links on",
    "rename": "rename files on",
    "symlink": "make symbolic links on",
}
"""What a call is for, by its first words as :func:`ipavolume.linux.trial.probe` names it."""
_CHOWN, _DAC_OVERRIDE, _FOWNER, _FSETID, _SETFCAP = 0, 1, 3, 4, 31
_CAPABILITY_WORDS: Final = {
    _CHOWN: "CAP_CHOWN",
    _DAC_OVERRIDE: "CAP_DAC_OVERRIDE",
    _FOWNER: "CAP_FOWNER",
    _FSETID: "CAP_FSETID",
    _SETFCAP: "CAP_SETFCAP",
}
_NEEDED: Final = {
    "fchown": _CHOWN,
    "open": _DAC_OVERRIDE,
    "mkdir": _DAC_OVERRIDE,
    "fchmod": _FOWNER,
    "setxattr": _FOWNER,
    "link": _FOWNER,
}
"""Numbers of capabilities(7)."""


def _missing_right(volume: Volume, call: str, err: OSError) -> IpaVolumeError:
    """Return what to raise for a *call* of the probe that did not work."""
    doing = next(words for name, words in _DOING.items() if call.startswith(name))
    message = f"cannot {doing} {volume.directory!r} ({call}): {err.strerror or err}"
    if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        return io_error(doing, volume.directory, err, now=STATE_UNTOUCHED)
    if err.errno in (errno.EOPNOTSUPP, errno.ENOTSUP):
        code, hint = "unsupported", f"{_unable(volume)} Keep the volume on ext4, xfs or btrfs."
    else:
        code, hint = "missing-right", f"{_cause(volume, call, err)} Then start again."
    return VolumeIOError(message, code=code, hint=hint, state=STATE_UNTOUCHED)


def _cause(volume: Volume, call: str, err: OSError) -> str:
    """Say why a call usually fails so, and what changes that."""
    lacking = _lacking(call, err)
    kind = volume.file_system
    if err.errno == errno.EINVAL and call.startswith("fchown"):
        ids = call.rpartition(" ")[2]
        return (
            f"This user namespace has no user or group of {ids}: give the container an id mapping "
            "that has them (/etc/subuid, /etc/subgid, --uidmap), usually 65536 ids."
        )
    if lacking:
        return without(lacking)
    if kind.startswith("nfs"):
        return "The NFS server treats root as somebody else: export it with no_root_squash."
    if kind.startswith(_FOREIGN) or not err.errno:
        return f"{_unable(volume)} Keep the volume on ext4, xfs or btrfs."
    if ownership.is_remapped():
        return (
            f"Root of this user namespace is {ownership.outside_of(0)} outside of it: check the id "
            "mapping of the container, and who owns the file system that holds the volume."
        )
    return "Check the label of the volume (:Z), the security profile, and mount options."


_FOREIGN: Final = ("vfat", "msdos", "exfat", "ntfs", "fuse", "cifs", "smb", "9p", "virtiofs")
"""File systems that store owners only under conditions, or never."""


def _unable(volume: Volume) -> str:
    kind = volume.file_system or "unknown"
    return f"The file system of the volume ({kind}) does not keep what the image's files have."


def _lacking(call: str, err: OSError) -> str:
    """Return the capability that *call* failed for and this process has not, or ""."""
    wanted = _NEEDED.get(call.partition(" ")[0])
    if CAPABILITY_NAME in call:
        wanted = _SETFCAP
    elif call.startswith("fchmod") and not err.errno:
        # Without this right the kernel drops the set-group-id bit and says nothing.
        wanted = _FSETID
    if wanted is None or effective_capabilities() >> wanted & 1:
        return ""
    return _CAPABILITY_WORDS[wanted]
