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

START_DATA = b"/usr/share/ipavolume/start"
CONFIG = b"/etc/ipavolume.toml"
BUILD_ID = b"/etc/build-id"
STATE_DIRECTORY = ".ipavolume"
SYSTEMD = b"/systemd/systemd"
MAGIC = b"ipavolume-start-2"
SEPARATOR = b"\0"
FIRST_RUN = b".ipavolume/first-run.json"
NONE, ONCE, NAMED = b"none", b"once", b"named"
"""What is asked of the record of the first run: nothing; that it is done; also whose it is."""
_LIMIT = 1 << 20
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
    for mount in mounts:
        locks.append(os.open(root + mount, _DIRECTORY))
        fcntl.flock(locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_current(locks[-1], build_id):
            return None
    if first_run != NONE and not _is_configured(locks[0], first_run):
        return None
    return command, (
        b"ipavolume: the volume at %s is current (%s); handing over to %s. If nothing follows, "
        b"that could not start; the volume is fine.\n" % (mounts[0], build_id, command[0])
    )


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
