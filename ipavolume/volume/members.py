"""A volume, opened, and the files in its state directory: trusted only if root alone can write."""

from __future__ import annotations

import os
import shlex
import stat
from typing import Any, BinaryIO, Final

from ipavolume.errors import ManifestError, UnsafeVolumeError, VolumeIOError
from ipavolume.formats import checks
from ipavolume.formats.manifest import NEWER
from ipavolume.linux import files
from ipavolume.linux.rights import wanting
from ipavolume.model.files import STATE_DIRECTORY, FileType
from ipavolume.model.values import dataclass
from ipavolume.volume import ownership
from ipavolume.volume.failures import without
from ipavolume.volume.layout import (
    ATTEMPTS,
    BASELINE,
    FIRST_RUN,
    HISTORY,
    IDENTITY,
    INDEX,
    LOCK,
    LOGS,
    PENDING,
    PRISTINE,
    REFUSED,
    REHEARSAL,
    RUNNING,
    SAVED,
    SNAPSHOTS,
    STAGING,
    TRANSACTION,
    TRASH,
    UNDONE,
    VERIFIED,
)

_MAX_JSON_BYTES: Final = 16 << 20
_NO_MOUNT: Final = "/volume"
"""Stands for where a container sees it, where nobody says that."""
_FILES: Final = (
    *(BASELINE, INDEX, IDENTITY, HISTORY, FIRST_RUN, PENDING, VERIFIED, ATTEMPTS),
    REHEARSAL,
    REFUSED,
    RUNNING,
)
_DIRECTORIES: Final = (PRISTINE, SAVED, STAGING, TRANSACTION, TRASH, LOGS, SNAPSHOTS, UNDONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume that was opened.

    Attributes:
        mount: Where the container sees it.
        directory: Where it is here.
        fd: Descriptor of its root directory.
        file_system: Type of its file system, as mountinfo names it.
        options: Mount options.
    """

    mount: str
    directory: str
    fd: int
    file_system: str = ""
    options: str = ""


def open_volume(mount: str, directory: str, *, file_system: str = "", options: str = "") -> Volume:
    """Open the root directory of a volume.

    Raises:
        VolumeIOError: If it is no directory or cannot be opened.
    """
    hint = f"Mount a volume at {mount}, or say where it is with --volume {mount}=DIR."
    if directory != mount:
        hint = (
            f"Name the directory of the volume: --volume {mount}=DIR. Of one that docker or podman "
            "has, 'volume inspect' of the engine says it; the commands check, status and rehearse "
            "take its name, too (--volume-name)."
        )
    fd = _open(directory, called=f" {mount!r}", hint=hint)
    return Volume(mount=mount, directory=directory, fd=fd, file_system=file_system, options=options)


def open_named(directory: str) -> Volume:
    """Open the root directory of a volume of which only that is known.

    Raises:
        VolumeIOError: If it is no directory or cannot be opened.
    """
    fd = _open(
        directory,
        hint="Name the directory of a volume, as 'volume inspect' of the engine or ipavolume list "
        "--format json has it.",
    )
    return Volume(mount=_NO_MOUNT, directory=directory, fd=fd)


def _open(directory: str, *, called: str = "", hint: str) -> int:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as err:
        raise unreadable(directory, err) from err
    except OSError as err:
        raise VolumeIOError(
            f"cannot open the volume{called} at {directory!r}: {err.strerror}",
            code="no-volume",
            hint=hint,
        ) from err


def unreadable(path: str, err: PermissionError) -> VolumeIOError:
    """Return what to raise for a *path* that this user cannot read."""
    message = f"cannot read {path!r}: {err.strerror}"
    if lacking := wanting(err):
        return VolumeIOError(message, code="unreadable", hint=without(lacking), path=path)
    if os.geteuid() == 0:
        hint = (
            "Root is kept out: check the label of the volume (:Z), the security profile, and on "
            "NFS the export, which wants no_root_squash."
        )
    else:
        hint = (
            "Run it as root, in a container as its root (no --user, no runAsUser); of a rootless "
            "engine's volume as its user, with podman unshare in front."
        )
    return VolumeIOError(message, code="unreadable", hint=hint, path=path)


def check_trust(volume: Volume) -> None:
    """Make sure that only root can have written the state directory.

    Raises:
        UnsafeVolumeError: If the volume's root or the state directory is not a real
            directory of root that nobody else can write.
    """
    root = files.fstat(volume.fd)
    if root.st_uid != 0:
        moved = ownership.explain(volume.fd, volume.directory)
        if moved := moved or ownership.of_own_engine(root.st_uid, volume.directory):
            raise moved
    _check_directory(volume.directory, root)
    state = files.lstat(volume.fd, STATE_DIRECTORY)
    if state is None:
        return
    path = f"{volume.directory.rstrip('/')}/{STATE_DIRECTORY}"
    if not stat.S_ISDIR(state.st_mode):
        raise UnsafeVolumeError(
            f"{path!r} is {KIND_WORDS[files.type_of(state.st_mode)]}, not a directory",
            hint="Look at who put it there, and remove it or restore the directory.",
        )
    _check_directory(path, state)
    _check_members(volume, path)


def _check_members(volume: Volume, path: str) -> None:
    try:
        fd = files.open_at(volume.fd, STATE_DIRECTORY, files.DIRECTORY_FLAGS)
    except PermissionError as err:
        raise unreadable(path, err) from err
    try:
        for name in sorted(files.listdir(fd)):
            st = files.lstat(fd, name)
            if st is None:
                continue
            if name == LOCK:
                check_lock(f"{path}/{name}", st)
                continue
            expected = (
                FileType.FILE
                if name in _FILES
                else FileType.DIRECTORY
                if name in _DIRECTORIES
                else None
            )
            found = files.type_of(st.st_mode)
            if expected is not None and found is not expected:
                raise UnsafeVolumeError(
                    f"{path + '/' + name!r} is {KIND_WORDS[found]}, not {KIND_WORDS[expected]}",
                    hint="Look at who put it there, and restore it from a backup.",
                )
            if expected is not None:
                _check_directory(f"{path}/{name}", st)
    finally:
        os.close(fd)


def _check_directory(path: str, st: os.stat_result) -> None:
    if (error := untrusted(path, uid=st.st_uid, mode=st.st_mode)) is not None:
        raise error


FS_GROUP_BITS: Final = stat.S_ISGID | 0o070
"""What Kubernetes sets on each directory with the group of a pod's fsGroup."""
_FS_GROUP: Final = (
    "If a pod with an fsGroup did that, take it out of the securityContext first: it does so at "
    "every mount. "
)


def untrusted(path: str, *, uid: int, mode: int) -> UnsafeVolumeError | None:
    """Return what to raise for *path* unless it is root's, and nobody else can write to it."""
    # The group bits of the mode are the mask of an ACL, so they say no when nobody can write.
    if uid != 0:
        return UnsafeVolumeError(
            f"{path!r} belongs to user {uid}, not to root",
            path=path,
            hint="After making sure that nothing on it was planted: chown root "
            f"{shlex.quote(path)}",
        )
    if mode & 0o022:
        return UnsafeVolumeError(
            f"{path!r} can be written by others than root (mode {stat.S_IMODE(mode):04o})",
            path=path,
            hint=_FS_GROUP * (mode & FS_GROUP_BITS == FS_GROUP_BITS)
            + f"After making sure that nothing on it was planted: chmod go-w {shlex.quote(path)}",
        )
    return None


def check_lock(path: str, st: os.stat_result) -> None:
    """Make sure that a lock file is one that root alone can open.

    Raises:
        UnsafeVolumeError: If it is not.
    """
    found = files.type_of(st.st_mode)
    if found is not FileType.FILE:
        raise unsafe_lock(path, f"is {KIND_WORDS[found]}, not a file")
    if st.st_uid != 0:
        raise unsafe_lock(path, f"belongs to user {st.st_uid}, not to root")
    if st.st_nlink != 1:
        raise unsafe_lock(path, f"has {st.st_nlink} names")
    if st.st_mode & 0o077:
        mode = stat.S_IMODE(st.st_mode)
        raise unsafe_lock(path, f"can be opened by others than root (mode {mode:04o})")


def unsafe_lock(path: str, what: str) -> UnsafeVolumeError:
    """Return what to raise for a lock file, which *what*."""
    return UnsafeVolumeError(
        f"the lock file {path!r} {what}",
        code="unsafe-lock",
        path=path,
        hint="Look at who put it there. Once no container and no command uses the volume, remove "
        "it: the next start makes it anew.",
    )


def open_state(volume: Volume) -> int | None:
    """Open the state directory, or return ``None`` when there is none."""
    try:
        return files.open_at(volume.fd, STATE_DIRECTORY, files.DIRECTORY_FLAGS)
    except FileNotFoundError:
        return None


def read_json(fd: int, name: str, *, hint: str = "") -> dict[str, Any] | None:
    """Return the object in a small file of a directory of ours, or ``None``.

    Args:
        fd: Descriptor of the directory.
        name: The file's name.
        hint: What is to be done where it is damaged; "": what is done with the volume then.

    Raises:
        UnsafeVolumeError: If the file is not a JSON object.
    """
    data = read_small(fd, name, limit_bytes=_MAX_JSON_BYTES)
    if data is None:
        return None
    try:
        return checks.decode(data)
    except checks.MalformedError as err:
        raise damaged(fd, name, "is cut short or was altered", hint=hint or _RESTORE) from err


def read_small(fd: int, name: str, *, limit_bytes: int) -> bytes | None:
    """Return the bytes of a file in a directory of ours, or ``None`` when there is none.

    Raises:
        UnsafeVolumeError: If it is not a file of root, or larger than that.
        VolumeIOError: If it may not be read.
    """
    stream = open_member(fd, name)
    if stream is None:
        return None
    with stream:
        data = stream.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise damaged(fd, name, f"is larger than {limit_bytes} bytes")
    return data


def read_of_state(volume: Volume, name: str, *, limit_bytes: int) -> bytes | None:
    """Return the bytes of a file in the state directory, or ``None`` when there is none."""
    state = open_state(volume)
    if state is None:
        return None
    try:
        return read_small(state, name, limit_bytes=limit_bytes)
    finally:
        os.close(state)


def open_member(fd: int, name: str) -> BinaryIO | None:
    """Open a regular file in a directory of ours for reading, or return ``None``.

    Raises:
        UnsafeVolumeError: If it is not a file of root.
        VolumeIOError: If it may not be read.
    """
    st = files.lstat(fd, name)
    if st is None:
        return None
    try:
        opened = files.open_regular(fd, name)
    except PermissionError as err:
        raise unreadable(path_of_member(fd, name), err) from err
    if opened is None:
        raise damaged(fd, name, f"is {KIND_WORDS[files.type_of(st.st_mode)]}, not a file")
    stream = files.reader(opened)
    try:
        _check_directory(path_of_member(fd, name), files.fstat(opened))
    except UnsafeVolumeError:
        stream.close()
        raise
    return stream


KIND_WORDS: Final = {
    FileType.FILE: "a file",
    FileType.DIRECTORY: "a directory",
    FileType.SYMLINK: "a symbolic link",
    FileType.FIFO: "a FIFO",
    FileType.OTHER: "a socket or device",
}


def path_of_member(fd: int, name: str) -> str:
    """Return where *name* in the directory *fd* is, for messages."""
    return f"{os.readlink(files.proc_path(fd)).rstrip('/')}/{name}"


_RESTORE: Final = (
    "Restore the volume from a backup. Without one, move all but 'lock' out of the state "
    "directory: the volume can then be taken over with --allow stateless --from ID:VERSION, "
    "ID and VERSION_ID of the os-release of the image that it was last used with."
)


def damaged(fd: int, name: str, what: str, *, hint: str = _RESTORE) -> UnsafeVolumeError:
    """Return what to raise for the member *name* of a directory of ours, which *what*."""
    path = path_of_member(fd, name)
    return UnsafeVolumeError(f"{path!r} {what}", code="damaged-state", hint=hint, path=path)


def not_readable(fd: int, name: str, err: ManifestError) -> UnsafeVolumeError:
    """Return what to raise for the manifest *name* in a directory of ours."""
    if err.code != NEWER:
        return damaged(fd, name, f"is not readable: {err}")
    path = path_of_member(fd, name)
    return UnsafeVolumeError(f"{path!r}: {err}", code=NEWER, hint=err.hint, path=path)
