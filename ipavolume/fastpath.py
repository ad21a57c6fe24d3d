"""A start on a current volume, without a parser, a library or any other module of ours.

``prepare`` leaves in the image what this needs in one file, together with the
configuration it was derived from; where the two differ, or anything at all is not as it
is when nothing is to be done, :func:`start` returns and the whole program takes over.
"""

# What signal is made of; that one imports enum, which takes a millisecond.
import _signal  # type: ignore[import-not-found]
import errno
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
MAGIC = b"ipavolume-start-3"
SEPARATOR = b"\0"
OWN_STEPS = b"/etc/ipavolume/upgrade_steps"
LOCK = ".ipavolume/lock"
FIRST_RUN = b".ipavolume/first-run.json"
REFUSED = b".ipavolume/refused.jsonl"
VERIFIED = b".ipavolume/verified.json"
NONE, ONCE, NAMED = b"none", b"once", b"named"
"""What is asked of the record of the first run: nothing; that it is done; also whose it is."""
_LIMIT = 1 << 20
_PRIME = (1 << 30) - 35
"""The largest that is one digit for Python, which is eight times as fast as with two."""
LOG_FORMAT = "IPAVOLUME_LOG_FORMAT"
WORK_LOCK = "/usr/share/ipavolume/lock"
"""What those lock who work in a container; prepare makes it, and only root can open it."""
ALWAYS = "exit-on-finished=always"
"""Who says that wants no service, however current the volume is."""
KEEPER = b"@ipavolume: keeps the lock"
"""What the keeper is called; by the first letter systemd-shutdown spares it."""
_SPARED = (_signal.SIGTERM, _signal.SIGHUP, _signal.SIGINT)
_CLONE = {
    **dict.fromkeys(("aarch64", "riscv64", "loongarch64"), 220),
    **dict.fromkeys(("ppc64", "ppc64le", "s390x"), 120),
    "x86_64": 56,
}
"""Number of ``clone(2)`` by machine."""
_STARTED = 19
_ARGUMENTS = slice(45, 47)
"""``starttime``, ``arg_start`` and ``arg_end`` behind the name in ``proc_pid_stat(5)``."""
Held = tuple[int, int]
"""Descriptors of a volume's root directory and of its lock file, which have the locks; -1: none."""
_LOOK_S = 1
_WATCH_S = 10
_ONE = (1).to_bytes(8, sys.byteorder)
_ID, _SHORT_ID, _UUID = 64, 12, 36
_LOCKING = frozenset(
    (
        b"ext2",
        b"ext3",
        b"ext4",
        b"xfs",
        b"btrfs",
        b"tmpfs",
        b"overlay",
        b"zfs",
        b"f2fs",
        b"bcachefs",
    )
)
"""File systems on which the short way is taken; on a network there is more to look at."""
_LACK = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Of what a machine lacks for a while, which says nothing of a lock."""
_SHOWN = fcntl.F_WRLCK.to_bytes(2, sys.byteorder) + bytes(14) + _ONE + bytes(8)
"""``struct flock`` for the first byte, as ``linux.locking`` has it."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RUN = b"/run"
_OF_ENGINES = (b"/run/secrets", b"/run/.containerenv")
_BEGAN = b"/run/.ipavolume-began"
"""Made by a container's first start: its time says when that was, its text in which."""
_LEVELS, _COARSE_S = 32, 0.05


Left = tuple[bytes, bytes, list[bytes], list[bytes], list[bytes], bytes]
"""What ``prepare`` leaves: id, first run, mounts, words to execute, sources, configuration.

Sources are what it has read besides the configuration: locations of path lists and of the image's
own steps, each followed by what :func:`sum_of` says of its content, and at the end the number of
names in the directory of these steps.
"""


def dump(left: Left) -> bytes:
    """Return what ``prepare`` leaves as one file."""
    *first, mounts, words, sources, config = left
    counted = (
        field for fields in (mounts, words, sources) for field in (b"%d" % len(fields), *fields)
    )
    return SEPARATOR.join((MAGIC, *first, *counted, config))


def load(data: bytes) -> Left:
    """Return what ``prepare`` has left.

    Raises:
        ValueError: If it was not this version that wrote it.
        IndexError: If it is cut short.
    """
    fields = data.split(SEPARATOR)
    if fields[0] != MAGIC:
        raise ValueError
    counted = []
    begin = 4
    for _ in range(3):
        end = begin + int(fields[begin - 1])
        counted.append(fields[begin:end])
        begin = end + 1
    if len(fields) < begin:
        raise IndexError
    mounts, words, sources = counted
    return fields[1], fields[2], mounts, words, sources, SEPARATOR.join(fields[begin - 1 :])


def sum_of(content: bytes) -> bytes:
    """Return what tells one content of a source from another, without a library."""
    content = content[:_LIMIT]
    return b"%d %d" % (len(content), int.from_bytes(content, "little") % _PRIME)


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
    if not root:
        empty_run()
    if arguments and arguments[0] != "--":
        return
    if os.environ.get("IPAVOLUME_EXPECT", "") not in ("", "existing", "any"):
        # A certain volume: whether it is that one is not looked up here.
        return
    if os.environ.get("IPAVOLUME_REHEARSAL") or ALWAYS in arguments:
        return
    if os.environ.get(LOG_FORMAT, "") not in ("", "text", "json"):
        return
    locks: list[Held] = []
    try:
        found = _find_command(os.fsencode(root), arguments[1:], locks)
    except (OSError, ValueError, IndexError):
        found = None
    if found is None:
        # Whatever it is, the whole program finds out and says it.
        for fd in _descriptors(locks):
            os.close(fd)
        return
    command, said = found
    _say(_logged(said))
    try:
        execute(command, locks)
    except OSError as err:
        what = b"cannot execute %s: %s" % (command[0], os.fsencode(err.strerror or ""))
        _say(_logged(what, b"cannot-execute", state=NOT_STARTED, hint=OTHER_COMMAND))
        sys.exit(73)


def empty_run() -> None:
    """Remove what the container's last run left in ``/run``, where nobody has mounted anything.

    A machine's is empty at each boot, and a daemon may not start beside the pid file of another
    life. What is younger than the container's first start and older than this one goes: files,
    links, sockets and FIFOs. Directories stay, which packages made and nobody makes again; so does
    what is mounted there, and what was there before the container began, by its image or by a copy,
    unless it was changed since.
    """
    if os.getpid() != 1:
        return
    try:
        with open("/proc/self/mountinfo", "rb") as stream:
            mounted = [line.split(b" ", 5)[3:5] for line in stream]
        if not all(_is_anonymous(root) for root, place in mounted if place == _RUN):
            return
        kept = {place for _, place in mounted if place != _RUN}
        kept.update((*_OF_ENGINES, _BEGAN))
        # What an entry point writes before it executes this is of this run. File systems have a
        # coarser clock than processes.
        started_s = int(_fields(b"/proc/self")[_STARTED]) / os.sysconf("SC_CLK_TCK")
        ago_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
        now_s = time.time() - ago_s - _COARSE_S
        began_s = _began()
        if began_s is None:
            return
        fd = os.open(_RUN, _DIRECTORY)
        removed = _remove_older(fd, _RUN, kept, (began_s, now_s), _LEVELS)
    except (OSError, ValueError, IndexError):
        return
    if removed:
        files = b"1 file" if removed == 1 else b"%d files" % removed
        _say(_logged(b"removed %s from /run, which the container's last run left" % files))


def _is_anonymous(root: bytes) -> bool:
    """Tell whether a mount's *root* is a volume that an engine made without being given a name.

    It does for a ``VOLUME /run`` of the image, as the freeipa-container project's has it.
    """
    name = root.removesuffix(b"/_data").rpartition(b"/volumes/")[2]
    return root.endswith(b"/_data") and len(name) == _ID and not name.strip(b"0123456789abcdef")


def _began() -> float | None:
    """Return when this container was first started, by a note in it; ``None``: this is that start.

    The note has the container's host name: that of another one came with an image made of it, or
    is of who shares this ``/run`` and may be running.

    Raises:
        OSError: If it cannot be noted, as in a read-only container, where nothing is left either.
    """
    own = os.fsencode(os.uname().nodename)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(_BEGAN, flags, 0o600)
    try:
        if os.read(fd, _LIMIT) == own:
            return os.fstat(fd).st_mtime
        os.ftruncate(fd, 0)
        os.pwrite(fd, own, 0)
    finally:
        os.close(fd)
    return None


def _remove_older(
    directory: int, path: bytes, kept: set[bytes], between: tuple[float, float], levels: int
) -> int:
    """Remove what is of a time *between* from an open directory, which is closed; count it."""
    removed = 0
    try:
        for name in os.listdir(directory):
            below = path + b"/" + _as_mounted(os.fsencode(name))
            if below in kept:
                continue
            try:
                st = os.stat(name, dir_fd=directory, follow_symlinks=False)
                # Where times are whole seconds it is of any moment of that one.
                whole = 0 if st.st_ctime_ns % 1_000_000_000 else 1
                if not stat.S_ISDIR(st.st_mode) and (between[0] < st.st_ctime < between[1] - whole):
                    os.unlink(name, dir_fd=directory)
                    removed += 1
                elif stat.S_ISDIR(st.st_mode) and levels:
                    inside = os.open(name, _DIRECTORY, dir_fd=directory)
                    removed += _remove_older(inside, below, kept, between, levels - 1)
            except OSError:
                # A read-only root, or what nobody can remove: it stays.
                continue
    finally:
        os.close(directory)
    return removed


def _as_mounted(name: bytes) -> bytes:
    """Return a name as mountinfo has it, see ``proc_pid_mountinfo(5)``."""
    for letter in (b"\\", b" ", b"\t", b"\n"):
        name = name.replace(letter, b"\\%03o" % letter[0])
    return name


NOT_STARTED = b"the volume is fine; only what it is for did not start"
OTHER_COMMAND = (
    b"Give the container another command, or an image that has this one (exec of [start] in "
    b"/etc/ipavolume.toml)."
)


def is_logged_as_json() -> bool:
    """Tell whether what is said of the work is an object a line."""
    return os.environ.get(LOG_FORMAT) == "json"


def _logged(text: bytes, code: bytes = b"", *, state: bytes = b"", hint: bytes = b"") -> bytes:
    """Return what is said of the work, or an error where it has a *code*, as it is logged."""
    stamp = os.fsencode(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    if is_logged_as_json():
        level = b"error" if code else b"info"
        fields = ((b"time", stamp), (b"level", level), (b"text", text), (b"code", code))
        said = [
            b'"%s": "%s"' % (name, b"".join(map(_escaped, os.fsdecode(value))))
            for name, value in (*fields, (b"state", state), (b"hint", hint))
            if value
        ]
        return b"{%s}\n" % b", ".join(said)
    if not code:
        return b"ipavolume: %s%s\n" % (b"" if os.isatty(2) else stamp + b" ", text)
    lines = [b"error: %s [%s]" % (text, code), b"state: " + state, b"hint: " + hint]
    return b"".join(b"ipavolume: %s\n" % line for line in lines if line[-1:] != b" ")


def _escaped(letter: str) -> bytes:
    """Return a letter as a string of JSON has it; the module that knows takes too long to load."""
    if " " <= letter <= "~" and letter not in '"\\':
        return letter.encode("ascii")
    number = ord(letter)
    if number < 1 << 16:
        return b"\\u%04x" % number
    high, low = divmod(number - (1 << 16), 1 << 10)
    return b"\\u%04x\\u%04x" % (0xD800 + high, 0xDC00 + low)


def _say(text: bytes) -> None:
    try:
        os.write(2, text)
    except OSError:
        # Who cannot be told does not end a start.
        return


def execute(command: list[bytes], locks: list[Held], keeper: int = 0) -> None:
    """Execute the container's command as if the interpreter had not run before it.

    It inherits none of our descriptors: a service that has one of the volume leaves by it the
    directory it was locked into, and one that has the lock's can give that up.

    Args:
        command: Its words.
        locks: Those of the volumes.
        keeper: The process that :func:`keep` has left for this command, if it was called.

    Raises:
        OSError: If it cannot be executed.
    """
    keeper = keeper or keep(command, locks)
    # Python ignores these, and what is executed would go on ignoring them.
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)
    _restore_locale()
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is what is wanted
    finally:
        os.kill(keeper, _signal.SIGKILL)


# -- the keeper --------------------------------------------------------------------------


def keep(
    command: list[bytes],
    locks: list[Held],
    *,
    watched: list[bytes] | None = None,
    ends: bool = False,
) -> int:
    """Leave a process that keeps the locks while the container lives.

    It also keeps what this process's standard output and error lead to, which is what the engine
    shows of the container. It ends with this process, which is the container's command from now
    on, and with what that has left running and has a volume open. Where *command* is the
    container's first process the kernel sees to that.

    systemd and its systemd-shutdown spare it because it ignores what asks for an end, belongs to
    root and is called ``@...``, see https://systemd.io/ROOT_STORAGE_DAEMONS.

    Args:
        command: What is going to be executed.
        locks: Those of the volumes.
        watched: Where a lock can be lost, as on NFS: what each holder has written into it, see
            :func:`what_is_lost`. It is looked at every ten seconds.
        ends: The container is ended when one is lost.

    Returns:
        Its number.

    Raises:
        OSError: If there is none that keeps them.
    """
    parent = os.getpid()
    is_systemd = parent == 1 and os.path.realpath(command[0]).endswith(SYSTEMD)
    told = _pidfd(parent) if parent != 1 else -1
    heard, holds = os.pipe()
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _SPARED)
    try:
        keeper = os.fork() if is_systemd else _fork_unseen()
        if keeper:
            os.close(holds)
            _hear(heard)
            return keeper
    finally:
        if os.getpid() == parent:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
            for fd in (heard, told):
                if fd >= 0:
                    os.close(fd)
    try:
        _be_keeper(locks, told, holds)
        _keep(locks, told, parent, holds, watched=watched, ends=ends)
    finally:
        os._exit(1)


def _hear(heard: int) -> None:
    """Wait until the keeper says that it holds; the end of the pipe is its own."""
    if not os.read(heard, 1):
        raise OSError(errno.ECHILD, "the process that is to keep the lock of the volume has ended")


def _descriptors(locks: list[Held]) -> list[int]:
    return [fd for held in locks for fd in held if fd >= 0]


def _pidfd(pid: int) -> int:
    """Return a descriptor that tells of the end of a process; -1: the kernel has no such."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _fork_unseen() -> int:
    """Fork; who waits for any child does not wait for this one.

    That is a child that sends another signal than SIGCHLD when it ends, or none, see ``wait(2)``,
    ``__WCLONE``: many a server waits until it has no child any more, and the keeper does not end
    before the server. Where such a child cannot be had it is one that is seen.
    """
    number = _CLONE.get(os.uname().machine, 0) if sys.maxsize > 1 << 32 else 0
    if not number:
        return os.fork()
    try:
        import _ctypes

        call = _ctypes.dlsym(_ctypes.dlopen(None, os.RTLD_NOW), "syscall")  # type: ignore[arg-type]
        forked: int = _ctypes.call_function(call, (number, 0, 0, 0, 0, 0))
    except (ImportError, AttributeError, OSError):
        return os.fork()
    return os.fork() if forked < 0 else forked


def _be_keeper(locks: list[Held], told: int, holds: int) -> None:
    """Let go of all that the keeper does not need, and take another name."""
    os.chdir("/")
    os.setsid()
    needed = {1, 2, told, holds, *_descriptors(locks)}
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        if fd not in needed:
            try:
                os.close(fd)
            except OSError:
                # The one by which the directory was read.
                continue
    try:
        start, end = map(int, _fields(b"/proc/self")[_ARGUMENTS])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(KEEPER.ljust(end - start, b"\0")[: end - start])
    except (OSError, ValueError):
        return


def _keep(
    locks: list[Held],
    told: int,
    parent: int,
    holds: int,
    *,
    watched: list[bytes] | None,
    ends: bool,
) -> None:
    import select

    waiting = select.poll()
    if told >= 0:
        waiting.register(told, select.POLLIN)
    asking = told < 0 and parent != 1
    patience = _LOOK_S * 1000 if asking else None if watched is None else _WATCH_S * 1000
    places = [os.readlink(b"/proc/self/fd/%d" % volume) for volume, _ in locks]
    os.write(holds, b"\n")
    os.close(holds)
    while not waiting.poll(patience) and not (asking and os.getppid() != parent):
        looked = zip(locks, watched or (), strict=False)
        lost = "".join(what_is_lost(*held, line) for held, line in looked)
        if lost:
            _tell(_logged(b"the lock is lost: %s" % lost.encode(), b"lock-lost"), locks)
            if ends:
                _end_container(told, is_first=parent == 1)
            return
    while True:
        # Asked once without: others of the container are not kept off by who only looks.
        work = _take_work() if not _is_used(places) else None
        if work is not None and not _is_used(places):
            break
        if work is not None and work >= 0:
            os.close(work)
        # Who reads what the command printed is not kept waiting.
        os.closerange(1, 3)
        time.sleep(_LOOK_S)
    for fd in _descriptors(locks):
        os.close(fd)


def _tell(line: bytes, locks: list[Held]) -> None:
    """Say it, but wait no longer than a second for who does not read."""
    import select

    # What follows matters more than what cannot be said.
    try:
        heard, said = os.pipe()
    except OSError:
        return
    try:
        child = os.fork()
    except OSError:
        child = -1
    if child:
        os.close(said)
        waiting = select.poll()
        waiting.register(heard, select.POLLIN)
        waiting.poll(_LOOK_S * 1000)
        os.close(heard)
        return
    try:
        for fd in _descriptors(locks):
            os.close(fd)
        os.write(2, line)
    finally:
        os._exit(0)


def _take_work() -> int | None:
    """Keep others in the container from joining what ends; ``None``: one of them works now.

    Returns:
        A descriptor, or -1 outside of a container.
    """
    try:
        fd = os.open(WORK_LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _is_used(places: list[bytes]) -> bool:
    """Tell whether the command left a process, in its cgroup, that has one of *places* open.

    Another keeper of this container is such a process, too: what it is for was started under the
    lock of this one.
    """
    own = _read(b"/proc/self/cgroup").splitlines()
    since = int(_fields(b"/proc/self")[_STARTED])
    for name in os.listdir(b"/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        process = b"/proc/" + name
        try:
            fields = _fields(process)
            # What is older than this process was not left by the command.
            if fields[0] in b"ZX" or int(fields[_STARTED]) < since:
                continue
            # One of ours waits for this one, or works under a lock that _take_work asked for.
            words = _read(process + b"/cmdline").split(SEPARATOR)[:4]
            if any(word.rpartition(b"/")[2] == b"ipavolume" for word in words):
                continue
            theirs = _read(process + b"/cgroup").splitlines()
            if any(one.startswith(mine) for mine in own for one in theirs) and _has_open(
                process, places
            ):
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            # What a service has open is not for everybody to see.
            return True
    return False


def _fields(process: bytes) -> list[bytes]:
    """Return what follows the name in ``proc_pid_stat(5)``."""
    return _read(process + b"/stat").rpartition(b")")[2].split()


def _has_open(process: bytes, places: list[bytes]) -> bool:
    links = [process + b"/" + name for name in (b"cwd", b"root")]
    links += [process + b"/fd/" + name for name in os.listdir(process + b"/fd")]
    for link in links:
        try:
            target = os.readlink(link)
        except FileNotFoundError:
            continue
        if any(target == place or target.startswith(place + b"/") for place in places):
            return True
    with open(process + b"/maps", "rb") as stream:
        return any(b" " + place + b"/" in line for line in stream for place in places)


def what_is_lost(volume: int, file: int, line: bytes) -> str:
    """Say why a lock is not ours any more, as can happen on a network; "" when it is.

    Args:
        volume: Descriptor of the volume's root directory.
        file: That which has the lock; -1: there is none.
        line: What its holder has written into it; empty: not known, or not to be looked at. A
            server of NFS 3 that has forgotten the lock gives it to who asks for it, and says
            nothing to who had it: the line is then the other one's.
    """
    if file < 0:
        return ""
    try:
        # Or it would be read from memory.
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(file, 1, 0)
        fd = os.open(LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=volume)
    except OSError as err:
        if err.errno in _LACK:
            return ""
        return f"{LOCK} cannot be read: {err.strerror}"
    try:
        st, there = os.fstat(file), os.fstat(fd)
        # Only opening asks the server whether what is in memory is still so.
        found = os.pread(fd, len(line) + 1, 0) if line else line
    except OSError as err:
        return f"{LOCK} cannot be read: {err.strerror}"
    finally:
        os.close(fd)
    if (st.st_dev, st.st_ino) != (there.st_dev, there.st_ino):
        return f"another file is in the place of {LOCK}"
    if found != line:
        return f"somebody else has written into {LOCK} that it is theirs"
    return ""


def _end_container(told: int, *, is_first: bool) -> None:
    """End the command, and the container's first process: at first as an engine does."""
    own = os.readlink("/proc/self/ns/mnt")
    try:
        # Where containers share the host's processes, its first one is the host's.
        is_ours = os.readlink("/proc/1/ns/mnt") == own
        is_systemd = os.readlink("/proc/1/exe").endswith(SYSTEMD.decode())
    except OSError:
        is_ours, is_systemd = is_first, False
    for number in (_signal.SIGTERM, _signal.SIGKILL):
        try:
            if told >= 0:
                _signal.pidfd_send_signal(told, number)
        except OSError:
            # It has ended; what it left has not.
            pass
        try:
            if is_ours and number == _signal.SIGTERM:
                os.kill(1, _signal.SIGRTMIN + 3 if is_systemd else number)
            elif is_ours:
                # All but the first process, which nobody in its container can kill, and this one.
                os.kill(-1, number)
        except OSError:
            pass
        time.sleep(_WATCH_S)


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
    root: bytes, arguments: list[str], locks: list[Held]
) -> tuple[list[bytes], bytes] | None:
    """Return what to execute and what to say before, if every volume is current and locked."""
    build_id, first_run, mounts, words, sources, config = load(_read(root + START_DATA))
    if not build_id or _read(root + BUILD_ID).strip() != build_id:
        return None
    if config != _read(root + CONFIG, missing=b"") or not mounts:
        return None
    if not _are_those(root, sources):
        return None
    command = words or [os.fsencode(word) for word in arguments]
    if not command:
        return None
    for mount in mounts:
        volume = os.open(root + mount, _DIRECTORY)
        locks.append((volume, -1))
        locks[-1] = (volume, _lock(volume))
        fcntl.flock(volume, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_current(volume, build_id):
            return None
    if _is_refused(locks[0][0], build_id) or _is_unverified(locks[0][0]):
        return None
    if first_run != NONE and not _is_configured(locks[0][0], first_run):
        return None
    for _, file in locks:
        name_holder(file)
    return command, (
        b"the volume at %s is current (%s); handing over to %s. If nothing follows, that could not "
        b"start; the volume is fine." % (root + mounts[0], build_id, command[0])
    )


def _are_those(root: bytes, sources: list[bytes]) -> bool:
    """Tell whether path lists and own steps are those that ``prepare`` has read."""
    *known, count = sources
    for path, content in zip(known[::2], known[1::2], strict=True):
        if sum_of(_read(root + path)) != content:
            return False
    try:
        names = os.listdir(root + OWN_STEPS)
    except FileNotFoundError:
        names = []
    return len(names) == int(count)


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


def name_holder(fd: int) -> bytes:
    """Write into the locked file *fd* that it is this container that has it now.

    One line: host, container and since when. What cannot be written is not said, the lock is held
    all the same.

    Returns:
        The line; nothing where it could not be written.
    """
    host, container = this_container()
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f"{host} {container} {since}\n".encode("ascii")
    try:
        os.ftruncate(fd, os.pwrite(fd, line, 0))
    except OSError:
        return b""
    return line


def this_container() -> tuple[str, str]:
    """Return the host name, and the id of this container as engines show it, or "-"."""
    host = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_"
        for letter in os.uname().nodename[:64]
    )
    return host or "-", _container()


def _container() -> str:
    """Return the id of this container as engines show it, or "-"."""
    try:
        with open("/proc/self/mountinfo", "rb") as stream:
            # What is mounted, not where: a host has its containers' directories as mount points.
            data = b"\n".join(line.split(b" ", 4)[3] for line in stream)
    except OSError:
        return "-"
    for folder, digits, shown in ((b"containers/", _ID, _SHORT_ID), (b"/pods/", _UUID, _UUID)):
        for part in data.split(folder)[1:]:
            name = part[: digits + 1].decode("ascii", "replace")
            if name.endswith("/") and name[:-1].replace("-", "").isalnum() and name.isascii():
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
    for leftover in ("transaction", "staging", "trash", "rehearsal.json"):
        try:
            os.stat(f"{STATE_DIRECTORY}/{leftover}", dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        return False
    recorded = os.stat("build-id", dir_fd=fd, follow_symlinks=False)
    if not stat.S_ISREG(recorded.st_mode) or recorded.st_size > _LIMIT:
        return False
    return _read(b"build-id", directory=fd).strip() == build_id


def _is_refused(fd: int, build_id: bytes) -> bool:
    """Tell whether the volume may have been taken back from the image; the whole program knows."""
    data = _read(REFUSED, directory=fd, missing=b"")
    # As JSON has such an id is more than is known here.
    if data and (not build_id.isascii() or b'"' in build_id or b"\\" in build_id):
        return True
    named = b'"image":"%s"' % build_id
    return any(named in line and b'"tried":""' in line for line in data.splitlines())


def _is_unverified(fd: int) -> bool:
    """Tell whether somebody has still to ask whether the last run went well."""
    return b'"result":"pending"' in _read(VERIFIED, directory=fd, missing=b"")


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
