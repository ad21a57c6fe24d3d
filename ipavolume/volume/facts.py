"""What a volume says of itself: its state directory, its recorded id, its open transaction.

The state directory is trusted only if it and the volume's root are real directories of
root that nobody else can write; even so, everything read from it is validated, and what is
cut short or altered makes the volume unsafe instead of being guessed at.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from ipavolume.errors import ManifestError, UnsafeVolumeError, VolumeIOError
from ipavolume.formats import manifest
from ipavolume.linux import files as fsops
from ipavolume.model.files import BUILD_ID_NAME, STATE_DIRECTORY, FileType, ImageHeader
from ipavolume.model.tasks import NOTHING, TaskLog, parse_log
from ipavolume.volume import ownership

BASELINE: Final = "baseline.jsonl"
INDEX: Final = "index"
IDENTITY: Final = "identity.json"
HISTORY: Final = "history.jsonl"
FIRST_RUN: Final = "first-run.json"
PRISTINE: Final = "pristine"
SAVED: Final = "saved"
STAGING: Final = "staging"
TRANSACTION: Final = "transaction"
TRASH: Final = "trash"
PROGRESS: Final = "progress.json"
PLAN: Final = "plan.jsonl"
TASKS: Final = "tasks.json"
PENDING: Final = "pending.jsonl"
LOGS: Final = "logs"
VERIFIED: Final = "verified.json"

MARKED: Final = "marked"
SWAPPED: Final = "swapped"
COMMITTING: Final = "committing"
_PHASES: Final = (MARKED, SWAPPED, COMMITTING)

_MAX_ID_BYTES: Final = 1024
_MAX_JSON_BYTES: Final = 16 << 20
_MAX_HISTORY_BYTES: Final = 256 << 20
INDEX_ENTRY_BYTES: Final = 32
_INDEX_MAGIC: Final = b"ipavolume-index-1\n"
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """An open transaction.

    Attributes:
        run: Id of the run.
        kind: ``populate``, ``upgrade`` or ``adopt``.
        phase: How far it got: ``marked``, ``swapped`` or ``committing``.
        from_build: Recorded id before it, or "".
        to_build: Id of the image it leads to.
        fingerprint: Fingerprint of that image.
        primary: Uuid of the primary volume.
        holder: Host name of the container that opened it.
        started: Time, ISO 8601 in UTC.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a volume is.

    Attributes:
        uuid: Its own id.
        primary: Uuid of the primary volume; its own where it is the primary one.
        created: Time of its creation, ISO 8601 in UTC.
        image: Id of the image that created it.
        image_name: Name of that image, or "".
    """

    uuid: str
    primary: str
    created: str
    image: str
    image_name: str = ""


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
        pending: Header of the last image whose steps all ran, where files of a later one
            were applied without its steps; ``None`` when steps and files agree.
        tasks: How far the tasks of the open transaction got.
    """

    build_id: str | None
    identity: Identity | None
    baseline: ImageHeader | None
    transaction: Transaction | None
    target: ImageHeader | None
    legacy: bool
    pending: ImageHeader | None = None
    tasks: TaskLog = NOTHING

    @property
    def stepped(self) -> ImageHeader | None:
        """Header of the last image whose steps all ran on the volume."""
        return self.pending or self.baseline


def open_volume(mount: str, directory: str, *, file_system: str = "", options: str = "") -> Volume:
    """Open the root directory of a volume.

    Raises:
        VolumeIOError: If it is no directory or cannot be opened.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as err:
        raise _unreadable(directory, err) from err
    except OSError as err:
        raise VolumeIOError(
            f"cannot open the volume {mount!r} at {directory!r}: {err.strerror}",
            code="no-volume",
            hint=f"Mount a volume at {mount}, or say where it is with --volume {mount}=DIR.",
        ) from err
    return Volume(mount=mount, directory=directory, fd=fd, file_system=file_system, options=options)


def _unreadable(path: str, err: PermissionError) -> VolumeIOError:
    message = f"cannot read {path!r}: {err.strerror}"
    return VolumeIOError(message, code="unreadable", hint="Run it as root.", path=path)


def check_trust(volume: Volume) -> None:
    """Make sure that only root can have written the state directory.

    Raises:
        UnsafeVolumeError: If the volume's root or the state directory is not a real
            directory of root that nobody else can write.
    """
    root = os.fstat(volume.fd)
    if root.st_uid != 0 and (moved := ownership.explain(volume.fd, volume.directory)):
        raise moved
    _check_directory(volume.directory, root)
    state = fsops.lstat(volume.fd, STATE_DIRECTORY)
    if state is None:
        return
    path = f"{volume.directory.rstrip('/')}/{STATE_DIRECTORY}"
    if not stat.S_ISDIR(state.st_mode):
        raise UnsafeVolumeError(
            f"{path!r} is {_KIND_WORDS[fsops.type_of(state.st_mode)]}, not a directory",
            hint="Look at who put it there, and remove it or restore the directory.",
        )
    _check_directory(path, state)
    _check_members(volume, path)


def _check_members(volume: Volume, path: str) -> None:
    try:
        fd = os.open(STATE_DIRECTORY, fsops.DIRECTORY_FLAGS, dir_fd=volume.fd)
    except PermissionError as err:
        raise _unreadable(path, err) from err
    try:
        for name in sorted(os.listdir(fd)):
            st = fsops.lstat(fd, name)
            if st is None:
                continue
            expected = (
                FileType.FILE
                if name in (BASELINE, INDEX, IDENTITY, HISTORY, FIRST_RUN, PENDING, VERIFIED)
                else FileType.DIRECTORY
                if name in (PRISTINE, SAVED, STAGING, TRANSACTION, TRASH, LOGS)
                else None
            )
            found = fsops.type_of(st.st_mode)
            if expected is not None and found is not expected:
                raise UnsafeVolumeError(
                    f"{path + '/' + name!r} is {_KIND_WORDS[found]}, not {_KIND_WORDS[expected]}",
                    hint="Look at who put it there, and restore it from a backup.",
                )
            if expected is not None:
                _check_directory(f"{path}/{name}", st)
    finally:
        os.close(fd)


def _check_directory(path: str, st: os.stat_result) -> None:
    # The group bits of the mode are the mask of an ACL, so they say no when nobody can write.
    if st.st_uid != 0:
        raise UnsafeVolumeError(
            f"{path!r} belongs to user {st.st_uid}, not to root",
            path=path,
            hint=f"After making sure that nothing on it was planted: chown root {path}",
        )
    if st.st_mode & 0o022:
        raise UnsafeVolumeError(
            f"{path!r} can be written by others than root (mode {stat.S_IMODE(st.st_mode):04o})",
            path=path,
            hint=f"After making sure that nothing on it was planted: chmod go-w {path}",
        )


def open_state(volume: Volume) -> int | None:
    """Open the state directory, or return ``None`` when there is none."""
    try:
        return os.open(STATE_DIRECTORY, fsops.DIRECTORY_FLAGS, dir_fd=volume.fd)
    except FileNotFoundError:
        return None


def read_facts(volume: Volume) -> Facts:
    """Read what *volume* says of itself.

    Raises:
        UnsafeVolumeError: If it is not trustworthy or not understandable.
        VolumeIOError: If it cannot be read.
    """
    check_trust(volume)
    build_id = read_build_id(volume)
    legacy = any(
        fsops.lstat(volume.fd, name) is not None
        for name in ("volume-version", ".configfiles", ".configfiles-noreplace")
    )
    fd = open_state(volume)
    if fd is None:
        return Facts(
            build_id=build_id,
            identity=None,
            baseline=None,
            transaction=None,
            target=None,
            legacy=legacy,
        )
    try:
        identity = _read_identity(fd, volume)
        transaction = target = None
        tasks = NOTHING
        if fsops.lstat(fd, TRANSACTION) is not None:
            transaction, target, tasks = _read_transaction(fd, volume)
        baseline = _read_header(fd, BASELINE, volume)
        pending = _read_header(fd, PENDING, volume)
        if transaction is not None and target is None and baseline is not None:
            # Its manifest has become the baseline already.
            target = baseline if baseline.build_id == transaction.to_build else None
    finally:
        os.close(fd)
    if transaction is None and (identity is None) != (baseline is None) and is_primary(identity):
        missing = IDENTITY if identity is None else BASELINE
        raise _damaged(volume.fd, f"{STATE_DIRECTORY}/{missing}", "is missing")
    return Facts(
        build_id=build_id,
        identity=identity,
        baseline=baseline,
        transaction=transaction,
        target=target,
        legacy=legacy,
        pending=pending,
        tasks=tasks,
    )


def is_primary(identity: Identity | None) -> bool:
    """Tell whether a volume is not known to follow another one."""
    return identity is None or identity.uuid == identity.primary


def read_build_id(volume: Volume) -> str | None:
    """Return the recorded id, or ``None`` when there is none.

    Raises:
        UnsafeVolumeError: If there is something else than a file with one line.
    """
    st = fsops.lstat(volume.fd, BUILD_ID_NAME)
    if st is None:
        return None
    path = f"{volume.directory.rstrip('/')}/{BUILD_ID_NAME}"
    try:
        fd = fsops.open_regular(volume.fd, BUILD_ID_NAME)
    except PermissionError as err:
        raise _unreadable(path, err) from err
    if fd is None:
        raise UnsafeVolumeError(
            f"{path!r} is {_KIND_WORDS[fsops.type_of(st.st_mode)]}, not a file",
            path=path,
            hint="Look at who put it there, and restore the file.",
        )
    with open(fd, "rb") as stream:
        data = stream.read(_MAX_ID_BYTES + 1)
    text = data.decode("utf-8", "replace").strip()
    if len(data) > _MAX_ID_BYTES or "\n" in text or not text.isprintable():
        raise _damaged(volume.fd, BUILD_ID_NAME, "does not hold one short line")
    return text


def read_json(fd: int, name: str, volume: Volume) -> dict[str, Any] | None:
    """Return the object in a small file of a directory of ours, or ``None``.

    Raises:
        UnsafeVolumeError: If the file is not a JSON object.
    """
    data = read_small(fd, name, volume, limit_bytes=_MAX_JSON_BYTES)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise _damaged(fd, name, "is cut short or was altered") from err
    if not isinstance(value, dict):
        raise _damaged(fd, name, "is cut short or was altered")
    return value


def read_small(fd: int, name: str, volume: Volume, *, limit_bytes: int) -> bytes | None:
    """Return the bytes of a file in a directory of ours, or ``None`` when there is none."""
    stream = open_member(fd, name, volume)
    if stream is None:
        return None
    with stream:
        data = stream.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise _damaged(fd, name, f"is larger than {limit_bytes} bytes")
    return data


def open_member(fd: int, name: str, volume: Volume) -> BinaryIO | None:
    """Open a regular file in a directory of ours for reading, or return ``None``.

    Raises:
        UnsafeVolumeError: If it is not a file of root.
    """
    st = fsops.lstat(fd, name)
    if st is None:
        return None
    try:
        opened = fsops.open_regular(fd, name)
    except PermissionError as err:
        raise _unreadable(_path_of(fd, name), err) from err
    if opened is None:
        raise _damaged(fd, name, f"is {_KIND_WORDS[fsops.type_of(st.st_mode)]}, not a file")
    stream = open(opened, "rb")  # noqa: SIM115 - the caller closes it
    try:
        _check_directory(_path_of(fd, name), os.fstat(opened))
    except UnsafeVolumeError:
        stream.close()
        raise
    return stream


_KIND_WORDS: Final = {
    FileType.FILE: "a file",
    FileType.DIRECTORY: "a directory",
    FileType.SYMLINK: "a symbolic link",
    FileType.FIFO: "a FIFO",
    FileType.OTHER: "a socket or device",
}


def _path_of(fd: int, name: str) -> str:
    """Return where *name* in the directory *fd* is, for messages."""
    return f"{os.readlink(fsops.proc_path(fd)).rstrip('/')}/{name}"


_RESTORE: Final = (
    "Restore the volume from a backup. Without one, move the state directory away: the volume "
    "can then be taken over with --allow stateless."
)


def _damaged(fd: int, name: str, what: str, *, hint: str = _RESTORE) -> UnsafeVolumeError:
    path = _path_of(fd, name)
    return UnsafeVolumeError(f"{path!r} {what}", code="damaged-state", hint=hint, path=path)


def _read_identity(fd: int, volume: Volume) -> Identity | None:
    data = read_json(fd, IDENTITY, volume)
    if data is None:
        return None
    try:
        return Identity(**{key: _text(data[key]) for key in Identity.__dataclass_fields__})
    except (KeyError, TypeError) as err:
        raise _damaged(fd, IDENTITY, "is cut short or was altered") from err


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _read_transaction(fd: int, volume: Volume) -> tuple[Transaction, ImageHeader | None, TaskLog]:
    try:
        inside = os.open(TRANSACTION, fsops.DIRECTORY_FLAGS, dir_fd=fd)
    except PermissionError as err:
        raise _unreadable(_path_of(fd, TRANSACTION), err) from err
    try:
        data = read_json(inside, PROGRESS, volume)
        if data is None:
            raise _damaged(inside, PROGRESS, "is missing")
        try:
            transaction = Transaction(
                **{key: _text(data[key]) for key in Transaction.__dataclass_fields__}
            )
        except (KeyError, TypeError) as err:
            raise _damaged(inside, PROGRESS, "was altered") from err
        if transaction.phase not in _PHASES:
            raise _damaged(inside, PROGRESS, "was altered")
        return (
            transaction,
            _read_header(inside, BASELINE, volume),
            _read_tasks(inside, volume),
        )
    finally:
        os.close(inside)


def _read_tasks(fd: int, volume: Volume) -> TaskLog:
    data = read_json(fd, TASKS, volume)
    if data is None:
        return NOTHING
    try:
        return parse_log(data)
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise _damaged(fd, TASKS, "was altered") from err


def _read_header(fd: int, name: str, volume: Volume) -> ImageHeader | None:
    stream = open_member(fd, name, volume)
    if stream is None:
        return None
    with stream:
        try:
            return manifest.read_header(stream)
        except ManifestError as err:
            raise _damaged(fd, name, f"is not readable: {err}") from err


def read_baseline(volume: Volume) -> tuple[ImageHeader, BinaryIO]:
    """Open the baseline; return its header and the stream, just behind the header.

    Raises:
        UnsafeVolumeError: If it is missing, cut short or was altered.
    """
    fd = open_state(volume)
    if fd is None:
        raise _damaged(volume.fd, f"{STATE_DIRECTORY}/{BASELINE}", "is missing")
    try:
        stream = open_member(fd, BASELINE, volume)
        if stream is None:
            raise _damaged(fd, BASELINE, "is missing")
        return _verified(fd, stream), stream
    finally:
        os.close(fd)


def read_index(volume: Volume, baseline: ImageHeader) -> bytes:
    """Return the entries of the index that belongs to *baseline*; b"" when there is none.

    An index only saves work: one that belongs to another baseline is not used.

    Raises:
        UnsafeVolumeError: If it is cut short or was altered.
    """
    fd = open_state(volume)
    if fd is None:
        return b""
    try:
        return _read_index(fd, volume, baseline)
    finally:
        os.close(fd)


def check_records(volume: Volume, facts: Facts) -> None:
    """Make sure that what the last run recorded on the primary volume is whole.

    A start reads of it only what it needs.

    Raises:
        UnsafeVolumeError: If baseline, index or history is cut short or altered.
    """
    read_history(volume)
    if facts.baseline is not None:
        header, stream = read_baseline(volume)
        stream.close()
        read_index(volume, header)


def check_transaction(volume: Volume, facts: Facts) -> None:
    """Make sure that what the open transaction of the primary volume will record is whole.

    Raises:
        UnsafeVolumeError: If its manifest or its index is missing, cut short or altered.
    """
    fd = os.open(f"{STATE_DIRECTORY}/{TRANSACTION}", fsops.DIRECTORY_FLAGS, dir_fd=volume.fd)
    try:
        stream = open_member(fd, BASELINE, volume)
        if stream is not None:
            header = _verified(fd, stream)
        elif facts.target is not None:
            # It has become the baseline already.
            header, stream = read_baseline(volume)
        else:
            raise _damaged(fd, BASELINE, "is missing")
        stream.close()
        _read_index(fd, volume, header)
    finally:
        os.close(fd)


def _verified(fd: int, stream: BinaryIO) -> ImageHeader:
    """Return the header of the manifest; the stream is just behind it then.

    Raises:
        UnsafeVolumeError: If it is cut short or was altered; the stream is closed.
    """
    try:
        header = manifest.read_header(stream)
        start = stream.tell()
        manifest.verify(stream, header)
        stream.seek(start)
    except ManifestError as err:
        stream.close()
        raise _damaged(fd, BASELINE, f"is not readable: {err}") from err
    return header


def _read_index(fd: int, volume: Volume, baseline: ImageHeader) -> bytes:
    try:
        stream = open_member(fd, INDEX, volume)
        if stream is None:
            return b""
        with stream:
            magic = stream.read(len(_INDEX_MAGIC))
            belongs_to = stream.read(_DIGEST_BYTES)
            if magic == _INDEX_MAGIC and belongs_to.hex() != baseline.records_digest:
                return b""
            digest = stream.read(_DIGEST_BYTES)
            body = stream.read(baseline.records * INDEX_ENTRY_BYTES + 1)
    except VolumeIOError as err:
        if err.code != "unreadable":
            raise
        # Not root, who looks at a volume: everything is read then, as far as that can be.
        return b""
    sound = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
    if magic != _INDEX_MAGIC or digest != sound:
        raise _damaged(
            fd,
            INDEX,
            "is cut short or was altered",
            hint="Find out who did that. It only saves work: without it every file is read.",
        )
    return body


def dump_index(body: bytes | bytearray | memoryview, header: ImageHeader) -> bytes:
    """Return the bytes of an index file for the manifest with *header*."""
    digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
    belongs_to = bytes.fromhex(header.records_digest).ljust(_DIGEST_BYTES, b"\0")[:_DIGEST_BYTES]
    return b"".join((_INDEX_MAGIC, belongs_to, digest, body))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What is recorded of a run's verification.

    Attributes:
        run: Id of the run.
        passed: Names of the steps that found everything right.
        failed: Names of those that did not, the last time they were asked.
        at: When, ISO 8601 in UTC.
    """

    run: str
    passed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    at: str = ""


def read_verified(volume: Volume) -> Verified | None:
    """Return what is recorded of the last verification, or ``None``.

    Raises:
        UnsafeVolumeError: If it was altered.
    """
    fd = open_state(volume)
    if fd is None:
        return None
    try:
        data = read_json(fd, VERIFIED, volume)
        if data is None:
            return None
        try:
            return Verified(
                run=_text(data["run"]),
                passed=tuple(map(_text, data["passed"])),
                failed=tuple(map(_text, data["failed"])),
                at=_text(data["at"]),
            )
        except (KeyError, TypeError) as err:
            hint = "Find out who did that, and remove it: what it records is asked again."
            raise _damaged(fd, VERIFIED, "was altered", hint=hint) from err
    finally:
        os.close(fd)


def read_history(volume: Volume) -> list[Mapping[str, Any]]:
    """Return the recorded runs, oldest first.

    Raises:
        UnsafeVolumeError: If the file is cut short or was altered.
    """
    fd = open_state(volume)
    if fd is None:
        return []
    try:
        data = read_small(fd, HISTORY, volume, limit_bytes=_MAX_HISTORY_BYTES)
    finally:
        os.close(fd)
    if data is None:
        return []
    runs: list[Mapping[str, Any]] = []
    sound = data.endswith(b"\n")
    try:
        for line in data.splitlines():
            runs.append(json.loads(line))
            sound = sound and _is_run(runs[-1])
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise _damaged(
            volume.fd,
            f"{STATE_DIRECTORY}/{HISTORY}",
            "is cut short or was altered",
            hint="Find out who did that, and move it away: no upgrade depends on it.",
        )
    return runs


def _is_run(value: object) -> bool:
    """Tell whether a line of the history has the types that everything in it must have."""
    if not isinstance(value, dict):
        return False
    texts = (
        *("run", "kind", "from", "from_name", "to", "to_name", "started", "finished", "result"),
        "holder",
    )
    tables = {"packages": 3, "copies": 3, "tasks": 5, "failures": 2}
    counts = value.get("counts", {})
    return (
        isinstance(value.get("run"), str)
        and all(isinstance(value.get(key, ""), str) for key in texts)
        and isinstance(counts, dict)
        and all(isinstance(number, int) for number in counts.values())
        and all(_are_texts(value.get(key, [])) for key in ("overrides", "kept", "warnings"))
        and all(
            isinstance(value.get(key, []), list)
            and all(_are_texts(row) and len(row) == width for row in value.get(key, []))
            for key, width in tables.items()
        )
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
