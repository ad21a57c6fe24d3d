"""What a volume says of itself: its state directory, its recorded id, its open transaction.

The state directory is trusted only if it and the volume's root are real directories of
root that nobody else can write; even so, everything read from it is validated, and what is
cut short or altered makes the volume unsafe instead of being guessed at.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Final

from ipavolume.errors import ManifestError, UnsafeVolumeError
from ipavolume.formats import checks, manifest
from ipavolume.formats.tasks import parse_log
from ipavolume.linux import files
from ipavolume.model.files import BUILD_ID_NAME, STATE_DIRECTORY, VERSION_NAME
from ipavolume.model.images import ImageHeader
from ipavolume.model.tasks import NOTHING, TaskLog
from ipavolume.model.values import dataclass
from ipavolume.volume.failures import attempt
from ipavolume.volume.layout import (
    ATTEMPTS,
    BASELINE,
    HELD,
    IDENTITY,
    LOCK,
    PENDING,
    PROGRESS,
    TASKS,
    TRANSACTION,
)
from ipavolume.volume.members import (
    KIND_WORDS,
    Volume,
    check_trust,
    damaged,
    not_readable,
    open_member,
    open_state,
    path_of_member,
    read_json,
    unreadable,
)
from ipavolume.volume.rehearsal import read_rehearsal
from ipavolume.volume.roots import OddRoot, odd_root

MARKED: Final = "marked"
SWAPPED: Final = "swapped"
COMMITTING: Final = "committing"
UNDOING: Final = "undoing"
"""It is on the way back to its snapshot, which whoever comes next finishes."""
CLOSED: Final = "closed"
"""Where its directory cannot be renamed, this says that it is trash."""
CLOSED_PROGRESS: Final = {"phase": CLOSED}
_PHASES: Final = (MARKED, SWAPPED, COMMITTING, UNDOING)

_LOOKS: Final = 4
_MAX_ID_BYTES: Final = 1024
_LEGACY_NAMES: Final = (VERSION_NAME, ".configfiles", ".configfiles-noreplace")
"""What the scripts of the freeipa-container project leave on a volume."""
_LEGACY_APPLICATION: Final = "freeipa"
OUR_MARK: Final = b"ipavolume"
"""Second line of the volume's version where we wrote it; their scripts read the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """An open transaction.

    Attributes:
        run: Id of the run.
        kind: ``populate``, ``upgrade``, ``adopt`` or ``rollback``; ``unverified``: its run is
            complete, and was taken from its image, as it was not found to be right.
        phase: How far it got: ``marked``, ``swapped`` or ``committing``; ``undoing``: it is being
            undone.
        from_build: Recorded id before it, or "".
        to_build: Id of the image it leads to.
        fingerprint: Fingerprint of that image.
        primary: Uuid of the primary volume.
        holder: Host name of the container that opened it.
        started: Time, ISO 8601 in UTC.
        snapshot: Run whose snapshot its chain began with, or "": it has none.
    """

    run: str
    kind: str
    phase: str
    from_build: str
    to_build: str
    fingerprint: str
    primary: str
    holder: str = ""
    started: str = ""
    snapshot: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a volume is.

    Attributes:
        uuid: Its own id.
        primary: Uuid of the primary volume; its own where it is the primary one.
        created: Time of its creation, ISO 8601 in UTC.
        image: Id of the image that created it.
        image_name: Name of that image, or "".
        application: The application whose volume it is, or "": nobody said.
    """

    uuid: str
    primary: str
    created: str
    image: str
    image_name: str = ""
    application: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found on one volume.

    Attributes:
        build_id: The recorded id, or ``None``.
        identity: Who it is, or ``None`` when it has no state of ours.
        baseline: Header of the manifest that was last applied, or ``None``.
        transaction: The open transaction, or ``None``.
        target: Header of the manifest the open transaction leads to, or ``None``.
        legacy: It was populated by the freeipa-container project's scripts.
        marked: Its version says that it is one of ours, which is seen without our state, too.
        pending: Header of the last image whose steps all ran, where files of a later one
            were applied without its steps; ``None`` when steps and files agree.
        tasks: How far the tasks of the open transaction got.
        was_held: It failed, and the container stayed up for somebody to mend things by hand.
        rehearsal_of: Uuid of the volume that it is a copy of, for a rehearsal; "" where that had
            none, ``None``: it is no such copy.
        odd: Its root directory, where that is not root's alone and nothing of ours is on it; what
            else is there decides whether it can be made so.
    """

    build_id: str | None
    identity: Identity | None
    baseline: ImageHeader | None
    transaction: Transaction | None
    target: ImageHeader | None
    legacy: bool
    marked: bool = False
    pending: ImageHeader | None = None
    tasks: TaskLog = NOTHING
    was_held: bool = False
    rehearsal_of: str | None = None
    odd: OddRoot | None = None

    @property
    def is_going_back(self) -> bool:
        """The volume is on the way back to a snapshot, which was begun and not finished."""
        return self.transaction is not None and self.transaction.phase == UNDOING

    @property
    def stepped(self) -> ImageHeader | None:
        """Header of the last image whose steps all ran on the volume."""
        return self.pending or self.baseline

    @property
    def application(self) -> str:
        """The application whose volume it is, or "": nobody said.

        That of an open run counts, because its files may be there already.
        """
        headers = (self.target if self.transaction else None, self.identity, self.baseline)
        recorded = next((one.application for one in headers if one and one.application), "")
        return recorded or (_LEGACY_APPLICATION if self.legacy or self.marked else "")


def mark_of_kept(volume: Volume) -> str:
    """Return a name on *volume* that only a volume has whose content is kept; "" for none.

    Only root's counts: a volatile volume is often one that everybody writes to. What else the
    freeipa-container project's scripts leave is on its volatile volume as well.

    Raises:
        VolumeIOError: If it cannot be looked at.
    """
    for name in (STATE_DIRECTORY, BUILD_ID_NAME, _LEGACY_NAMES[0]):
        with attempt("look at", f"{volume.directory.rstrip('/')}/{name}"):
            st = files.lstat(volume.fd, name)
            # Whose it is is asked first: what a service puts there is not looked into.
            if st is None or st.st_uid != 0:
                continue
            is_ours = name == STATE_DIRECTORY and stat.S_ISDIR(st.st_mode)
            if is_ours and has_only_a_lock(volume):
                continue
        return name
    return ""


def has_only_a_lock(volume: Volume) -> bool:
    """Tell whether nothing of a populate that was killed, or failed, is in the state directory."""
    fd = open_state(volume)
    if fd is None:
        return False
    try:
        return set(files.listdir(fd)) <= {LOCK, ATTEMPTS}
    finally:
        os.close(fd)


def read_facts(volume: Volume) -> Facts:
    """Read what *volume* says of itself, which another command may be about to change.

    Raises:
        UnsafeVolumeError: If it is not trustworthy or not understandable.
        VolumeIOError: If it cannot be read.
    """
    for _ in range(_LOOKS - 1):
        # Who only looks takes no lock: what seems damaged, or belongs to no run, may be of one that
        # has just begun or ended.
        with contextlib.suppress(UnsafeVolumeError, FileNotFoundError):
            found = _read_facts(volume)
            if _is_open(volume) is (found.transaction is not None):
                return found
    return _read_facts(volume)


def _is_open(volume: Volume) -> bool:
    fd = open_state(volume)
    if fd is None:
        return False
    try:
        return _has_open(fd)
    finally:
        os.close(fd)


def _has_open(fd: int) -> bool:
    return files.lstat(fd, TRANSACTION) is not None and not is_closed(fd)


def _read_facts(volume: Volume) -> Facts:
    names = (STATE_DIRECTORY, BUILD_ID_NAME, *_LEGACY_NAMES)
    odd = None
    if all(files.lstat(volume.fd, name) is None for name in names):
        odd = odd_root(volume)
    if odd is None:
        check_trust(volume)
    version = read_version(volume)
    marked = version is not None and version.split(b"\n")[1:2] == [OUR_MARK]
    # Restored without the directories whose names begin with a dot, it is not one of theirs.
    legacy = not marked and any(files.lstat(volume.fd, one) is not None for one in _LEGACY_NAMES)
    fd = open_state(volume)
    if fd is None:
        return Facts(
            build_id=read_build_id(volume),
            identity=None,
            baseline=None,
            transaction=None,
            target=None,
            legacy=legacy,
            marked=marked,
            odd=odd,
        )
    try:
        # First: it is closed last, when all else is as it leaves it.
        transaction = target = None
        tasks = NOTHING
        was_held = False
        if _has_open(fd):
            transaction, target, tasks = _read_transaction(fd)
            was_held = files.lstat(fd, f"{TRANSACTION}/{HELD}") is not None
        identity = read_identity(fd)
        rehearsal_of = read_rehearsal(fd)
        baseline = _read_header(fd, BASELINE)
        pending = _read_header(fd, PENDING)
        if transaction is not None and target is None and baseline is not None:
            # Its manifest has become the baseline already.
            target = baseline if baseline.build_id == transaction.to_build else None
        build_id = read_build_id(volume)
    finally:
        os.close(fd)
    if transaction is None and (identity is None) != (baseline is None) and is_primary(identity):
        missing = IDENTITY if identity is None else BASELINE
        raise damaged(volume.fd, f"{STATE_DIRECTORY}/{missing}", "is missing")
    return Facts(
        build_id=build_id,
        identity=identity,
        baseline=baseline,
        transaction=transaction,
        target=target,
        legacy=legacy,
        marked=marked,
        pending=pending,
        tasks=tasks,
        was_held=was_held,
        rehearsal_of=rehearsal_of,
    )


def is_primary(identity: Identity | None) -> bool:
    """Tell whether a volume is not known to follow another one."""
    return identity is None or identity.uuid == identity.primary


def read_build_id(volume: Volume) -> str | None:
    """Return the recorded id, or ``None`` when there is none.

    Raises:
        UnsafeVolumeError: If there is something else than a file with one line.
        VolumeIOError: If it may not be read.
    """
    st = files.lstat(volume.fd, BUILD_ID_NAME)
    if st is None:
        return None
    path = f"{volume.directory.rstrip('/')}/{BUILD_ID_NAME}"
    try:
        fd = files.open_regular(volume.fd, BUILD_ID_NAME)
    except PermissionError as err:
        raise unreadable(path, err) from err
    if fd is None:
        raise UnsafeVolumeError(
            f"{path!r} is {KIND_WORDS[files.type_of(st.st_mode)]}, not a file",
            path=path,
            hint="Look at who put it there, and restore the file.",
        )
    with files.reader(fd) as stream:
        data = stream.read(_MAX_ID_BYTES + 1)
    text = data.decode("utf-8", "replace").strip()
    if len(data) > _MAX_ID_BYTES or "\n" in text or not text.isprintable():
        raise damaged(volume.fd, BUILD_ID_NAME, "does not hold one short line")
    return text


def read_version(volume: Volume) -> bytes | None:
    """Return what the volume's version says; ``None``: it has none, or no readable file."""
    try:
        fd = files.open_regular(volume.fd, VERSION_NAME)
    except PermissionError:
        return None
    if fd is None:
        return None
    with files.reader(fd) as stream:
        return stream.read(_MAX_ID_BYTES)


def read_identity(fd: int) -> Identity | None:
    """Return who a volume is, by its state directory *fd*; ``None``: nothing says so.

    Raises:
        UnsafeVolumeError: If that is cut short or was altered.
    """
    data = read_json(fd, IDENTITY)
    if data is None:
        return None
    try:
        # Of before volumes were of an application, it does not say.
        return checks.load(Identity, {"application": "", **data})
    except checks.MalformedError as err:
        raise damaged(fd, IDENTITY, "is cut short or was altered") from err


def is_closed(fd: int) -> bool:
    """Tell whether the transaction in the state directory *fd* is one that ended, to be removed.

    Raises:
        UnsafeVolumeError: If how far it got is not understandable.
        VolumeIOError: If it cannot be read.
    """
    try:
        inside = files.open_at(fd, TRANSACTION, files.DIRECTORY_FLAGS)
    except FileNotFoundError:
        return False
    except PermissionError as err:
        raise unreadable(path_of_member(fd, TRANSACTION), err) from err
    try:
        # One begins with all that it has: an empty one has only to be removed itself.
        return not files.listdir(inside) or read_json(inside, PROGRESS) == CLOSED_PROGRESS
    finally:
        os.close(inside)


def _read_transaction(fd: int) -> tuple[Transaction, ImageHeader | None, TaskLog]:
    try:
        inside = files.open_at(fd, TRANSACTION, files.DIRECTORY_FLAGS)
    except PermissionError as err:
        raise unreadable(path_of_member(fd, TRANSACTION), err) from err
    try:
        data = read_json(inside, PROGRESS)
        if data is None:
            raise damaged(inside, PROGRESS, "is missing")
        try:
            transaction = checks.load(Transaction, {"snapshot": "", **data}, {"phase": _phase})
        except checks.MalformedError as err:
            raise damaged(inside, PROGRESS, "was altered") from err
        return (
            transaction,
            _read_header(inside, BASELINE),
            _read_tasks(inside),
        )
    finally:
        os.close(inside)


def _phase(value: object) -> str:
    return checks.one_of(value, _PHASES)


def _read_tasks(fd: int) -> TaskLog:
    data = read_json(fd, TASKS)
    if data is None:
        return NOTHING
    try:
        return parse_log(data)
    except checks.MalformedError as err:
        raise damaged(fd, TASKS, "was altered") from err


def _read_header(fd: int, name: str) -> ImageHeader | None:
    stream = open_member(fd, name)
    if stream is None:
        return None
    with stream:
        try:
            return manifest.read_header(stream)
        except ManifestError as err:
            raise not_readable(fd, name, err) from err
