"""A start on a current volume, without a parser, a library or any other module of ours.

``prepare`` leaves in the image what this needs in one file, together with the
configuration it was derived from; where the two differ, or anything at all is not as it
is when nothing is to be done, :func:`start` returns and the whole program takes over.
"""

import fcntl
import os
import stat
import sys

START_DATA = "/usr/share/ipavolume/start"
CONFIG = "/etc/ipavolume.toml"
BUILD_ID = "/etc/build-id"
STATE_DIRECTORY = ".ipavolume"
MAGIC = b"ipavolume-start-1"
SEPARATOR = b"\0"
_LIMIT = 1 << 20


def dump(build_id: bytes, mounts: list[bytes], words: list[bytes], config: bytes) -> bytes:
    """Return what ``prepare`` leaves: id, mounts, words to execute, configuration."""
    return SEPARATOR.join(
        (MAGIC, build_id, b"%d" % len(mounts), *mounts, b"%d" % len(words), *words, config)
    )


def start(arguments: list[str]) -> None:
    """Execute the container's command if its volumes are current; otherwise return."""
    if arguments and arguments[0] != "--":
        return
    try:
        data = _read(START_DATA).split(SEPARATOR)
        build_id = data[1]
        end = 3 + int(data[2])
        mounts = data[3:end]
        words = data[end + 1 : end + 1 + int(data[end])]
        config = SEPARATOR.join(data[end + 1 + int(data[end]) :])
        if data[0] != MAGIC or not build_id or _read(BUILD_ID).strip() != build_id:
            return
        if config != _read(CONFIG, missing=b"") or not mounts:
            return
        command = words or [os.fsencode(word) for word in arguments[1:]]
        if not command:
            return
        locks: list[int] = []
        for mount in mounts:
            fd = _open_current(mount, build_id)
            if fd < 0:
                for lock in locks:
                    os.close(lock)
                return
            locks.append(fd)
    except (OSError, ValueError, IndexError):
        return
    os.write(
        2,
        b"ipavolume: the volume at %s is current (%s); handing over to %s. If nothing follows, "
        b"that could not start; the volume is fine.\n" % (mounts[0], build_id, command[0]),
    )
    for fd in locks:
        os.set_inheritable(fd, True)  # noqa: FBT003 - its only argument
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is what is wanted
    except OSError as err:
        os.write(
            2,
            b"ipavolume: error: cannot execute %s: %s [cannot-execute]\n"
            % (command[0], os.fsencode(err.strerror or "")),
        )
        sys.exit(73)


def _open_current(mount: bytes, build_id: bytes) -> int:
    """Return a locked descriptor of a volume that is current, or -1."""
    fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        current = _is_current(fd, build_id)
    except OSError:
        current = False
    if not current:
        os.close(fd)
        return -1
    return fd


def _is_current(fd: int, build_id: bytes) -> bool:
    root = os.fstat(fd)
    state = os.stat(STATE_DIRECTORY, dir_fd=fd, follow_symlinks=False)
    for st in (root, state):
        if not stat.S_ISDIR(st.st_mode) or st.st_uid != 0 or st.st_mode & 0o022:
            return False
    for leftover in ("transaction", "staging", "trash"):
        try:
            os.stat(f"{STATE_DIRECTORY}/{leftover}", dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        return False
    recorded = os.stat("build-id", dir_fd=fd, follow_symlinks=False)
    if not stat.S_ISREG(recorded.st_mode) or recorded.st_size > _LIMIT:
        return False
    return _read("build-id", directory=fd).strip() == build_id


def _read(path: str, *, directory: int | None = None, missing: bytes | None = None) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        if missing is None:
            raise
        return missing
    try:
        return os.read(fd, _LIMIT)
    finally:
        os.close(fd)
