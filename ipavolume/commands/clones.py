"""The directories of this host in which rehearsals have their copies of volumes.

Each is root's alone and locked by who rehearses, for as long as that lives. What has our name and
is not locked was left by one that was killed, and is removed by the next, with the container and
the network that belong to it: they have labels by which their directory is found.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ipavolume.engines.engine import Engine, runs
from ipavolume.errors import CannotCreateError, CommandFailedError, IpaVolumeError
from ipavolume.linux import files, locking, trees
from ipavolume.model.progress import Progress
from ipavolume.model.values import dataclass
from ipavolume.systemd import handover
from ipavolume.volume.failures import attempt

LABEL: Final = "ipavolume.rehearsal"
"""Every container and network of a rehearsal has it; its value is the name of the directory."""
PLACE: Final = "ipavolume.rehearsal.directory"
_PREFIX: Final = ".ipavolume-rehearsal-"
_NAME: Final = "ipavolume-rehearsal-"
_KEPT: Final = "ipavolume-rehearsed-"
_ROUNDS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Clones:
    """The directory of one rehearsal.

    Attributes:
        number: What tells it from others.
        above: Directory that it is in.
        fd: Its descriptor, which has the lock.
    """

    number: str
    above: str
    fd: int

    @property
    def path(self) -> str:
        """Where it is."""
        return f"{self.above.rstrip('/')}/{_PREFIX}{self.number}"

    @property
    def name(self) -> str:
        """What container, network and directory in memory of this rehearsal are called."""
        return f"{_NAME}{self.number}"

    @property
    def labels(self) -> tuple[str, ...]:
        """The options that give a container or a network its labels."""
        return ("--label", f"{LABEL}={self.number}", "--label", f"{PLACE}={self.path}")


class Keep:
    """Whether the copies are kept.

    Attributes:
        wanted: Somebody wants to look at them.
        marked: They say that they are copies: no others are kept.
        path: Where they are then, once they are.
    """

    def __init__(self, *, wanted: bool) -> None:
        """Take what is wanted."""
        self.wanted = wanted
        self.marked = False
        self.path = ""


@contextlib.contextmanager
def made(above: str, keep: Keep) -> Iterator[Clones]:
    """Make the directory of a rehearsal in the directory *above*; it is removed at the end.

    Raises:
        CannotCreateError: If it cannot be made.
        VolumeIOError: If it cannot be removed.
    """
    with contextlib.ExitStack() as stack:
        try:
            parent = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, parent)
            number, fd = _make(parent)
        except OSError as err:
            raise CannotCreateError(
                f"cannot make a directory for the copies in {above!r}: {err.strerror}",
                hint="Run it as root, or name another directory: --directory DIR.",
                path=above,
            ) from err
        stack.callback(os.close, fd)
        clones = Clones(number=number, above=above, fd=fd)
        try:
            yield clones
        finally:
            with attempt("remove", clones.path):
                if keep.wanted and keep.marked:
                    files.rename(parent, f"{_PREFIX}{number}", parent, f"{_KEPT}{number}")
                    keep.path = f"{above.rstrip('/')}/{_KEPT}{number}"
                else:
                    trees.remove_tree(parent, f"{_PREFIX}{number}")


def _make(parent: int) -> tuple[str, int]:
    number = uuid.uuid4().hex[:12]
    return number, _made_locked(parent, f"{_PREFIX}{number}")


def _made_locked(parent: int, name: str) -> int:
    """Make a directory and lock it; who cleans may remove it in between."""
    for _ in range(_ROUNDS):
        files.make_directory(parent, name)
        with contextlib.suppress(FileNotFoundError):
            fd = _locked(parent, name)
            if fd is not None:
                return fd
    raise OSError(errno.EBUSY, "it is removed again and again")


def _locked(parent: int, name: str) -> int | None:
    """Lock a directory of ours; ``None``: somebody has it, it is another one's, or it is gone."""
    fd = os.open(name, files.DIRECTORY_FLAGS, dir_fd=parent)
    try:
        st = files.fstat(fd)
        is_ours = st.st_uid == os.geteuid() and not stat.S_IMODE(st.st_mode) & 0o077
        there = files.lstat(parent, name) if is_ours and locking.try_flock(fd) else None
        if there is not None and (there.st_dev, there.st_ino) == (st.st_dev, st.st_ino):
            fd, taken = -1, fd
            return taken
        return None
    finally:
        if fd >= 0:
            os.close(fd)


# -- what only the container is to know --------------------------------------------------


@contextlib.contextmanager
def in_memory(clones: Clones) -> Iterator[str]:
    """Make a directory of root's alone in this host's memory; yield its path, remove it at the end.

    Raises:
        CannotCreateError: If this host has no such place.
    """
    place = next(iter(handover.places()), "")
    try:
        parent = os.open(place, files.DIRECTORY_FLAGS)
    except OSError as err:
        raise CannotCreateError(
            "there is no file system in memory for the container's environment",
            code="no-memory-file-system",
            hint="Mount a tmpfs at /run or /dev/shm of this host.",
        ) from err
    try:
        with attempt("write to", place):
            # As long as it is locked nobody takes it for one that was left.
            fd = _made_locked(parent, clones.name)
        try:
            yield f"{place}/{clones.name}"
        finally:
            with contextlib.suppress(OSError):
                trees.remove_tree(parent, clones.name)
            os.close(fd)
    finally:
        os.close(parent)


# -- what others have left ---------------------------------------------------------------


def clean(engine: Engine, above: str, say: Progress) -> None:
    """Remove what rehearsals that were killed have left: with this engine, and in *above*."""
    working: set[str] = set()
    for kind, command in (
        ("container", ("ps", "--all", "--quiet")),
        ("network", ("network", "ls", "--quiet")),
    ):
        for one in engine.listed(*command, "--filter", f"label={LABEL}"):
            found = engine.inspected(kind, one)
            labels = _labels(found)
            number, path = labels.get(LABEL, ""), labels.get(PLACE, "")
            if runs(found) and not os.path.lexists(path):
                # It ends by itself; who rehearses may see other directories than this process.
                working.add(number)
            if path.endswith(f"/{_PREFIX}{number}") and number.isalnum() and number not in working:
                with _left(path) as is_left:
                    if is_left:
                        say(f"removing the {kind} that a rehearsal has left: {_NAME}{number}")
                        try:
                            engine.remove(kind, one)
                        except CommandFailedError as err:
                            say(f"it cannot be removed: {err}")
    for place, prefix in ((above, _PREFIX), *((one, _NAME) for one in handover.places())):
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(place)):
                if name.startswith(prefix):
                    _remove_left(f"{place.rstrip('/')}/{name}", say)


def _labels(found: Mapping[str, Any] | None) -> Mapping[str, str]:
    data = found or {}
    config = data.get("Config")
    if isinstance(config, Mapping):
        data = config
    labels = data.get("Labels") or data.get("labels")
    return labels if isinstance(labels, Mapping) else {}


@contextlib.contextmanager
def _left(path: str) -> Iterator[bool]:
    """Yield whether nobody has the directory of a rehearsal locked, which is so meanwhile."""
    above, _, name = path.rpartition("/")
    try:
        parent = os.open(above or "/", files.DIRECTORY_FLAGS)
    except FileNotFoundError:
        yield True
        return
    except OSError:
        yield False
        return
    fd = None
    try:
        try:
            fd = _locked(parent, name)
            is_left = fd is not None
        except FileNotFoundError:
            is_left = True
        except OSError:
            is_left = False
        yield is_left
    finally:
        if fd is not None:
            os.close(fd)
        os.close(parent)


def _remove_left(path: str, say: Progress) -> None:
    above, _, name = path.rpartition("/")
    with _left(path) as is_left:
        if not is_left:
            return
        say(f"removing what a rehearsal has left: {path}")
        try:
            _remove(above, name)
        except OSError as err:
            say(f"it cannot be removed: {err.strerror or err}")


def _remove(above: str, name: str) -> None:
    parent = os.open(above or "/", files.DIRECTORY_FLAGS)
    try:
        trees.remove_tree(parent, name)
    finally:
        os.close(parent)


@contextlib.contextmanager
def removed(engine: Engine, clones: Clones, say: Progress) -> Iterator[None]:
    """Have container and network of a rehearsal removed at the end, where they are there."""
    try:
        yield
    finally:
        for kind in ("container", "network"):
            try:
                engine.remove(kind, clones.name)
            except IpaVolumeError as err:
                say(f"the {kind} {clones.name} cannot be removed, the next rehearsal tries: {err}")
