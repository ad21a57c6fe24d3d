"""A start on a current volume, without a parser, a library or any other module of ours.

``prepare`` leaves in the image what this needs in one file, together with the
configuration it was derived from; where the two differ, or anything at all is not as it
is when nothing is to be done, :func:`start` returns and the whole program takes over.
"""

# What signal is made of; that one imports enum, which takes a millisecond.
import _signal  # type: ignore[import-not-found]
import fcntl
import os
import stat
import sys
import time

START_DATA = b"/usr/share/ipavolume/start"
CONFIG = b"/etc/ipavolume.toml"
BUILD_ID = b"/etc/build-id"
STATE_DIRECTORY = ".ipavolume"
SYSTEMD = b"/systemd/systemd"
MAGIC = b"ipavolume-start-2"
SEPARATOR = b"\0"
LOCK = ".ipavolume/lock"
FIRST_RUN = b".ipavolume/first-run.json"
NONE, ONCE, NAMED = b"none", b"once", b"named"
"""What is asked of the record of the first run: nothing; that it is done; also whose it is."""
_LIMIT = 1 << 20
_ONE = (1).to_bytes(8, sys.byteorder)
_ID, _SHORT_ID, _UUID = 64, 12, 36
_LOCKING = frozenset(
    (b"ext4", b"xfs", b"btrfs", b"tmpfs", b"overlay", b"zfs", b"f2fs", b"bcachefs", b"ceph")
)
"""File systems on which the short way is taken; on NFS there is more to look at."""
_SHOWN = fcntl.F_WRLCK.to_bytes(2, sys.byteorder) + bytes(14) + _ONE + bytes(8)
"""``struct flock`` for the first byte, as ``linux.locking`` has it."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def dump(
    build_id: bytes, first_run: bytes, mounts: list[bytes], words: list[bytes], config: bytes
) -> bytes:
    """Return what ``prepare`` leaves: id, first run, mounts, words to execute, configuration."""
    counted = (b"%d" % len(mounts), *mounts, b"%d" % len(words), *words)
    return SEPARATOR.join((MAGIC, build_id, first_run, *counted, config))


def start(arguments: list[str]) -> None:
    """Execute the container's command if its volumes are current; otherwise return.

    Args:
        arguments: What follows ``start``; with other options than ``--root DIR`` in front of
            ``--`` the whole program is needed.
    """
    root = ""
    if arguments[:1] == ["--root"]:
        root = "".join(arguments[1:2]).rstrip("/")
        arguments = arguments[2:]
    if arguments and arguments[0] != "--":
        return
    if os.environ.get("IPAVOLUME_EXPECT", "") not in ("", "existing", "any"):
        # A certain volume: whether it is that one is not looked up here.
        return
    locks: list[int] = []
    try:
        found = _find_command(os.fsencode(root), arguments[1:], locks)
    except (OSError, ValueError, IndexError):
        found = None
    if found is None:
        # Whatever it is, the whole program finds out and says it.
        for fd in locks:
            os.close(fd)
        return
    command, said = found
    os.write(2, said)
    try:
        execute(command, locks)
    except OSError as err:
        os.write(
            2,
            b"ipavolume: error: cannot execute %s: %s [cannot-execute]\n"
            % (command[0], os.fsencode(err.strerror or "")),
        )
        sys.exit(73)


def execute(command: list[bytes], locks: list[int], keeper: int = 0) -> None:
    """Execute the container's command as if the interpreter had not run before it.

    Args:
        command: Its words.
        locks: Descriptors that it inherits: the volumes stay locked while it lives.
        keeper: The process that :func:`keep` has left for this command, if it was called.

    Raises:
        OSError: If it cannot be executed.
    """
    keeper = keeper or keep(command, locks)
    for fd in locks:
        os.set_inheritable(fd, True)  # noqa: FBT003 - its only argument
    # Python ignores these, and what is executed would go on ignoring them.
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)
    _restore_locale()
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is what is wanted
    finally:
        if keeper:
            os.kill(keeper, _signal.SIGKILL)


def keep(command: list[bytes], locks: list[int]) -> int:
    """Leave a process that keeps the locks, because systemd closes what it inherits.

    It also keeps what this process's standard output and error lead to, which is what the
    engine shows of the container. It ends with the container, and before if it is told to, as
    systemd does at the end.

    Args:
        command: What is going to be executed.
        locks: Descriptors of the volumes.

    Returns:
        Its number, or 0: *command* is not a container's first process, or not systemd.
    """
    if os.getpid() != 1 or not os.path.realpath(command[0]).endswith(SYSTEMD):
        return 0
    keeper: int = os.fork()
    if keeper:
        return keeper
    try:
        os.chdir("/")
        os.setsid()
        if 0 not in locks:
            os.close(0)
        os.closerange(3, min(locks))
        os.closerange(max(locks) + 1, 4096)
        while True:
            _signal.pause()
    finally:
        os._exit(1)


def _restore_locale() -> None:
    """Undo what Python does to ``LC_CTYPE`` in an environment without a locale (PEP 538)."""
    name = b"LC_CTYPE"
    try:
        words = _read(b"/proc/self/environ").split(SEPARATOR)
    except OSError:
        return
    before = [word for word in words if word.startswith(name + b"=")]
    if before:
        os.environb[name] = before[0][len(name) + 1 :]
    else:
        os.environb.pop(name, None)


def _find_command(
    root: bytes, arguments: list[str], locks: list[int]
) -> tuple[list[bytes], bytes] | None:
    """Return what to execute and what to say before, if every volume is current and locked."""
    data = _read(root + START_DATA).split(SEPARATOR)
    build_id, first_run = data[1:3]
    end = 4 + int(data[3])
    mounts = data[4:end]
    words = data[end + 1 : end + 1 + int(data[end])]
    config = SEPARATOR.join(data[end + 1 + int(data[end]) :])
    if data[0] != MAGIC or not build_id or _read(root + BUILD_ID).strip() != build_id:
        return None
    if config != _read(root + CONFIG, missing=b"") or not mounts:
        return None
    command = words or [os.fsencode(word) for word in arguments]
    if not command:
        return None
    volumes = []
    for mount in mounts:
        volumes.append(os.open(root + mount, _DIRECTORY))
        locks.append(volumes[-1])
        locks.append(_lock(volumes[-1]))
        fcntl.flock(volumes[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_current(volumes[-1], build_id):
            return None
    if first_run != NONE and not _is_configured(volumes[0], first_run):
        return None
    for fd in locks:
        if fd not in volumes:
            name_holder(fd)
    return command, (
        b"ipavolume: the volume at %s is current (%s); handing over to %s. If nothing follows, "
        b"that could not start; the volume is fine.\n" % (mounts[0], build_id, command[0])
    )


def _lock(volume: int) -> int:
    """Return a descriptor that has the lock of a volume's lock file.

    Raises:
        OSError: If it is not there, or somebody else has the lock.
        ValueError: If it is not as it has to be, or the file system is none that is known to lock
            for everybody.
    """
    if not _is_trusted(volume) or _file_system(volume) not in _LOCKING:
        raise ValueError
    if not _is_lock(os.stat(LOCK, dir_fd=volume, follow_symlinks=False)):
        raise ValueError
    fd = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=volume)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _SHOWN)
        opened, there = os.fstat(fd), os.stat(LOCK, dir_fd=volume, follow_symlinks=False)
        is_there = (opened.st_dev, opened.st_ino) == (there.st_dev, there.st_ino)
    except OSError:
        os.close(fd)
        raise
    if not is_there or not _is_lock(opened):
        os.close(fd)
        raise ValueError
    return fd


def _is_lock(st: os.stat_result) -> bool:
    return stat.S_ISREG(st.st_mode) and (st.st_uid, st.st_nlink, st.st_mode & 0o077) == (0, 1, 0)


def _file_system(fd: int) -> bytes:
    number = _read(b"/proc/self/fdinfo/%d" % fd).partition(b"mnt_id:")[2].split(maxsplit=1)[0]
    with open("/proc/self/mountinfo", "rb") as stream:
        mount = next((line for line in stream if line.startswith(number + b" ")), b"")
    return b"".join(mount.partition(b" - ")[2].split(maxsplit=1)[:1])


def name_holder(fd: int) -> None:
    """Write into the locked file *fd* that it is this container that has it now.

    One line: host, container and since when. What cannot be written is not said, the lock is held
    all the same.
    """
    host = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_"
        for letter in os.uname().nodename[:64]
    )
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f"{host or '-'} {_container()} {since}\n".encode("ascii")
    try:
        os.ftruncate(fd, os.pwrite(fd, line, 0))
    except OSError:
        return


def _container() -> str:
    """Return the id of this container as engines show it, or "-"."""
    try:
        with open("/proc/self/mountinfo", "rb") as stream:
            words = stream.read().decode("ascii", "replace").split()
    except OSError:
        return "-"
    for word in words:
        for folder, digits, shown in (("containers/", _ID, _SHORT_ID), ("/pods/", _UUID, _UUID)):
            name = word.rpartition(folder)[2].partition("/")[0]
            if folder in word and len(name) == digits and name.replace("-", "").isalnum():
                return name[:shown]
    return "-"


def _is_trusted(fd: int) -> bool:
    root = os.fstat(fd)
    state = os.stat(STATE_DIRECTORY, dir_fd=fd, follow_symlinks=False)
    return all(
        stat.S_ISDIR(st.st_mode) and st.st_uid == 0 and not st.st_mode & 0o022
        for st in (root, state)
    )


def _is_current(fd: int, build_id: bytes) -> bool:
    for leftover in ("transaction", "staging", "trash"):
        try:
            os.stat(f"{STATE_DIRECTORY}/{leftover}", dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        return False
    recorded = os.stat("build-id", dir_fd=fd, follow_symlinks=False)
    if not stat.S_ISREG(recorded.st_mode) or recorded.st_size > _LIMIT:
        return False
    return _read(b"build-id", directory=fd).strip() == build_id


def _is_configured(fd: int, first_run: bytes) -> bool:
    """Tell whether the first run is recorded as done, where it matters by a server of our name."""
    recorded = os.stat(FIRST_RUN, dir_fd=fd, follow_symlinks=False)
    if not stat.S_ISREG(recorded.st_mode) or recorded.st_uid != 0 or recorded.st_mode & 0o022:
        return False
    name = os.fsencode(os.uname().nodename)
    host = b'"host":"%s",' % name if first_run == NAMED else b""
    return _read(FIRST_RUN, directory=fd).startswith(b'{"state":"done",' + host)


def _read(path: bytes, *, directory: int | None = None, missing: bytes | None = None) -> bytes:
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
