"""The first run: the command that configures a fresh volume, once.

Whether it has to run is recorded on the volume and told from what the command leaves there,
never guessed from whether the volume looks empty: an installation that was interrupted is
refused instead of being run over, and one that is done is never run again.

Source: for what FreeIPA's installers leave, ``ipaserver/install/server/install.py`` and
``ipaserver/install/cainstance.py`` of FreeIPA; for what the existing images make of it,
``init-data`` and ``ipa-server-configure-first`` of the freeipa-container project.
"""

from __future__ import annotations

import enum
import json
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from ipavolume.apply import area as workspace
from ipavolume.config.reading import FirstRunConfig
from ipavolume.context import Session
from ipavolume.errors import (
    IpaVolumeError,
    RefusedError,
    UnsafeVolumeError,
)
from ipavolume.firstrun import request
from ipavolume.firstrun.request import FirstRunCommand, Request
from ipavolume.linux import files as fsops
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.steps import views
from ipavolume.volume import facts as state
from ipavolume.volume.facts import Volume
from ipavolume.volume.tree import Tree

OVERRIDES: Final = frozenset({"hostname", "partial"})
"""Refusals of this module that can be overridden."""

STARTED: Final = "started"
WAITING: Final = "waiting"
DONE: Final = "done"
_STATES: Final = (STARTED, WAITING, DONE)

HOSTNAME: Final = "hostname"
HOSTS: Final = "/etc/hosts"
REQUEST_TO_SIGN: Final = "/root/ipa.csr"
_INSTALLATION: Final = "/var/lib/ipa/sysrestore/sysrestore.state"

_MAX_RECORD_BYTES: Final = 64 << 10
MAX_FILE_BYTES: Final = 1 << 20
_MAX_TEXT_CHARACTERS: Final = 1024
_MAX_NAME_CHARACTERS: Final = 255

Say = Callable[[str], None]


class Standing(enum.StrEnum):
    """How far the first run of a volume is."""

    UNCONFIGURED = "unconfigured"
    WAITING = "waiting"
    PARTIAL = "partial"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRunRecord:
    """What is recorded of the first run; a start that has nothing to do reads the first two.

    Attributes:
        state: ``started``, ``waiting`` or ``done``.
        host: Name of the server that the volume is, or was to become; "" when not known.
        image: Id of the image whose command it is; "" when it ran before ipavolume came.
        started: When the command was last started, ISO 8601 in UTC, or "".
        finished: When it ended, or "" while it runs and when it was interrupted.
        exit_status: How it ended, negative for a signal; ``None`` when that is not known.
        attempts: How often it was started.
    """

    state: str
    host: str = ""
    image: str = ""
    started: str = ""
    finished: str = ""
    exit_status: int | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How far the first run is, and why.

    Attributes:
        standing: How far.
        reason: Why, in an operator's words.
        error: What a start raises for it, or ``None``.
    """

    standing: Standing
    reason: str
    error: IpaVolumeError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found on the volume.

    Attributes:
        judgement: How far the first run is.
        record: What is recorded of it.
        host: Name of the server that the volume is, or "".
        complete: What ``done-when`` names is there.
    """

    judgement: Judgement
    record: FirstRunRecord | None
    host: str
    complete: bool


# -- deciding ----------------------------------------------------------------------------


def judge(
    config: FirstRunConfig,
    record: FirstRunRecord | None,
    exists: Callable[[str], bool],
    *,
    says: bool | None = None,
    adopted: bool = False,
) -> Judgement:
    """Say how far the first run is.

    What ``done-when`` names makes it done, unless the command is known to have failed: a file
    that an installer writes in the middle does not say that it came to its end.

    Args:
        config: What is configured.
        record: What is recorded.
        exists: Tells whether a path of the application is there.
        says: What the application itself says of its installation; ``None``: nothing.
        adopted: The volume was in use before ipavolume came to it.
    """
    done = bool(config.done_when) and exists(config.done_when)
    if record is not None and record.state == DONE:
        if done or not config.done_when:
            when = f" since {record.finished}" if record.finished else ""
            return Judgement(standing=Standing.DONE, reason=f"configured{when}")
        return _lost(config, record)
    failed = says is False or (
        says is None and record is not None and record.exit_status not in (None, 0)
    )
    if done and not failed:
        return Judgement(standing=Standing.DONE, reason=f"{config.done_when!r} is there")
    if done:
        return _partial(config, record, config.done_when, says=says)
    recorded_as_waiting = record is not None and record.state == WAITING
    waiting = bool(config.waiting_when) and exists(config.waiting_when)
    waiting = waiting or (request.is_freeipa(config) and exists(REQUEST_TO_SIGN))
    if recorded_as_waiting or waiting:
        what = config.waiting_when or "an answer from outside"
        return Judgement(standing=Standing.WAITING, reason=f"the first run waits for {what!r}")
    if config.ruins_when and exists(config.ruins_when):
        return _partial(config, record, config.ruins_when, says=says)
    if not config.done_when:
        if record is None and adopted:
            # Nothing on it can say so, and to run an installer over it would be worse.
            return Judgement(standing=Standing.DONE, reason="in use before ipavolume came to it")
        if record is not None and record.exit_status == 0:
            return Judgement(standing=Standing.DONE, reason="the command ended with status 0")
    if record is None:
        reason = "the first run was never started"
    else:
        reason = f"the first run was started {_times(record)} and left nothing behind"
    return Judgement(standing=Standing.UNCONFIGURED, reason=reason)


def _lost(config: FirstRunConfig, record: FirstRunRecord) -> Judgement:
    when = f" on {record.finished}" if record.finished else ""
    error = UnsafeVolumeError(
        f"the volume was configured{when}, but {config.done_when!r} is not there any more",
        code="configuration-lost",
        path=config.done_when,
        hint="Find out who removed it, and restore it or the volume from a backup. The first "
        "run is not run again over what is there.",
    )
    return Judgement(standing=Standing.DONE, reason=str(error), error=error)


def _partial(
    config: FirstRunConfig, record: FirstRunRecord | None, what: str, *, says: bool | None
) -> Judgement:
    known = "an installation that ipavolume did not start"
    if record is not None:
        known = f"the first run, started {_times(record)},"
        if record.exit_status is not None:
            known += f" {how_it_ended(record.exit_status)} and"
    text = f"{known} left {what!r}"
    text += ", and says of itself that it is not complete" if says is False else ""
    then = "it runs the command over what is there"
    if what == config.done_when:
        then = "the volume is taken for configured"
    error = UnsafeVolumeError(
        f"the volume is only partly configured: {text}",
        code="partial-install",
        path=what,
        hint="Keep the volume to find out what failed, from the logs on it; to start again, "
        "wipe it or mount an empty one. To go on with it all the same (dangerous: "
        f"{then}): --allow partial.",
    )
    return Judgement(standing=Standing.PARTIAL, reason=str(error), error=error)


def _times(record: FirstRunRecord) -> str:
    when = record.started or "at an unknown time"
    return when if record.attempts <= 1 else f"{when} (attempt {record.attempts})"


def how_it_ended(exit_status: int) -> str:
    """Return in words how a command ended; a negative status is a signal's number."""
    if exit_status < 0:
        return f"was killed by signal {-exit_status}"
    return f"ended with status {exit_status}"


def check_host(
    stored: str, asked: Request, *, own: str, allow: frozenset[str] = frozenset()
) -> None:
    """Make sure that a configured volume is started under its own name.

    Args:
        stored: The name that the volume has, or "" when it is not known.
        asked: What the container was started with.
        own: The container's name.
        allow: Codes of refusals that are overridden.

    Raises:
        RefusedError: If the names differ.
    """
    given = asked.environment.get("IPA_SERVER_HOSTNAME", "")
    if not stored or "hostname" in allow or plain(stored) in (plain(own), plain(given)):
        return
    also = f" (IPA_SERVER_HOSTNAME={given})" if given else ""
    raise RefusedError(
        f"the volume is that of the server {stored!r}, but this container is {own!r}{also}",
        code="hostname",
        hint=f"Start the container with -h {stored}, or mount the right volume. Where its name "
        f"cannot be set, but leads to the server: IPA_SERVER_HOSTNAME={stored}. To go on under "
        "the other name: --allow hostname.",
    )


def plain(name: str) -> str:
    """Return a host name in the form in which names are compared."""
    return name.rstrip(".").lower()


def new_host(command: FirstRunCommand, *, own: str) -> str:
    """Return the name of the server that the first run is to make.

    Nothing is resolved: before the volume is populated nothing could be.

    Raises:
        RefusedError: If it is not fully qualified.
    """
    name = command.host or own
    if "." in name.strip("."):
        return name.rstrip(".")
    asked = "IPA_SERVER_HOSTNAME or --hostname" if command.host else "the container"
    raise RefusedError(
        f"the name {name!r} of {asked} is not fully qualified: a server needs one with a domain",
        code="unqualified-hostname",
        hint="Start the container with -h NAME.DOMAIN, or set IPA_SERVER_HOSTNAME=NAME.DOMAIN.",
    )


def hosts_with(text: str, *, own: str, server: str) -> str:
    """Return the text of ``/etc/hosts`` in which the container's addresses are the server's.

    The first name of a line is what a name in it is resolved to, so the server's comes first
    wherever the container's own is.
    """
    lines = []
    for line in text.splitlines(keepends=True):
        entry, mark, comment = line.partition("#")
        words = entry.split()
        if own in words[1:] and words[1] != server:
            names = [server, *(word for word in words[1:] if word != server)]
            ending = f" {mark}{comment}" if mark else "\n"
            line = f"{words[0]}\t{' '.join(names)}{ending}"
        lines.append(line)
    return "".join(lines)


# -- the record --------------------------------------------------------------------------


def parse_record(value: object) -> FirstRunRecord:
    """Return the record in *value*.

    Raises:
        ValueError: If it is not what is recorded.
    """
    if not isinstance(value, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - it is data, not a caller's mistake
    fields = {name: value[name] for name in FirstRunRecord.__dataclass_fields__ if name in value}
    record = FirstRunRecord(**{"state": "", **fields})
    texts = (record.state, record.host, record.image, record.started, record.finished)
    numbers = (record.attempts, 0 if record.exit_status is None else record.exit_status)
    if (
        any(type(text) is not str for text in texts)
        or any(type(number) is not int for number in numbers)
        or any(len(text) > _MAX_TEXT_CHARACTERS or not text.isprintable() for text in texts)
        or record.state not in _STATES
        or len(record.host) > _MAX_NAME_CHARACTERS
        or record.attempts < 0
    ):
        raise ValueError("a field is not what it has to be")
    return record


def dump_record(record: FirstRunRecord) -> bytes:
    """Return *record* as bytes; state and name come first, as a start looks for them."""
    return json.dumps(asdict(record), separators=(",", ":")).encode("ascii") + b"\n"


def read_record(volume: Volume) -> FirstRunRecord | None:
    """Return what is recorded on the primary volume, or ``None``.

    Raises:
        UnsafeVolumeError: If it is cut short or was altered.
    """
    fd = state.open_state(volume)
    if fd is None:
        return None
    try:
        data = state.read_small(fd, state.FIRST_RUN, volume, limit_bytes=_MAX_RECORD_BYTES)
    finally:
        os.close(fd)
    if data is None:
        return None
    try:
        return parse_record(json.loads(data))
    except (ValueError, TypeError, RecursionError) as err:
        path = _record_path(volume)
        raise UnsafeVolumeError(
            f"{path!r} is cut short or was altered",
            code="damaged-state",
            path=path,
            hint="Find out who did that, and restore it from a backup. Without one, remove it: "
            "what is on the volume then says how far the first run is.",
        ) from err


def _record_path(volume: Volume) -> str:
    return f"{volume.directory.rstrip('/')}/{STATE_DIRECTORY}/{state.FIRST_RUN}"


def write_record(volume: Volume, record: FirstRunRecord) -> None:
    """Record it durably."""
    with workspace.attempt("write", _record_path(volume)):
        fd = os.open(STATE_DIRECTORY, fsops.DIRECTORY_FLAGS, dir_fd=volume.fd)
        try:
            fsops.write_file(fd, state.FIRST_RUN, dump_record(record))
        finally:
            os.close(fd)


# -- looking -----------------------------------------------------------------------------


def look(session: Session) -> Found | None:
    """Say how far the first run is; ``None`` when none is configured. Changes nothing.

    Raises:
        UnsafeVolumeError: If what has to be looked at is not what it can be.
    """
    config = session.image.config.first_run
    if config is None:
        return None
    volume = session.primary
    state.check_trust(volume)
    record = read_record(volume)
    freeipa = request.is_freeipa(config)
    with session.tree() as tree:
        there = There(session, tree, configured=record is not None and record.state == DONE)
        says = _what_freeipa_says(there.read(_INSTALLATION)) if freeipa else None
        judgement = judge(
            config, record, there, says=says, adopted=record is None and _is_adopted(volume)
        )
        complete = bool(config.done_when) and there(config.done_when)
    host = record.host if record is not None else ""
    if not host and freeipa:
        host = _stored_host(volume)
    return Found(judgement=judgement, record=record, host=host, complete=complete)


def standing(session: Session) -> Standing:
    """Return how far the first run is; done where none is configured.

    Raises:
        UnsafeVolumeError: If what has to be looked at is not what it can be.
    """
    found = look(session)
    return Standing.DONE if found is None else found.judgement.standing


class There:
    """Tells whether a path of the application is on the volumes; nothing is followed.

    An empty file is there as well: many programs mark their end by one. Anything else than
    a file or a directory was put there by somebody else.
    """

    def __init__(self, session: Session, tree: Tree, *, configured: bool) -> None:
        """Look at the volumes of *session* in *tree*."""
        self._mounts = session.image.header.volumes
        self._tree = tree
        self._is_inside = session.is_inside
        self._configured = configured

    def __call__(self, path: str) -> bool:
        """Tell whether something is at *path*, as the command would see it."""
        place = views.place(path, self._mounts)
        with workspace.attempt("look at", place):
            st = self._stat(place)
        if st is None:
            return False
        if not (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
            raise _misplaced(place, "a link" if stat.S_ISLNK(st.st_mode) else "no file")
        return True

    def _stat(self, place: str) -> os.stat_result | None:
        st = self._tree.stat(place)
        above = self._link_above(place) if st is None else ""
        if not above:
            return st
        if not self._tree.is_trusted_link(above):
            raise _misplaced(above, "a link that others than root can have put there")
        # Root has moved a directory elsewhere. On a host what lies there is not looked at, and
        # what is recorded is believed.
        if not self._is_inside:
            return os.stat("/") if self._configured else None
        try:
            return os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _link_above(self, place: str) -> str:
        """Return the first link among the directories above *place*, or ""."""
        path = ""
        for name in place.split("/")[1:-1]:
            path += f"/{name}"
            if self._tree.target(path):
                return path
        return ""

    def read(self, path: str) -> bytes | None:
        """Return the beginning of a file of the application, or ``None`` when it is none."""
        place = views.place(path, self._mounts)
        directory, _, name = place.rpartition("/")
        with workspace.attempt("read", place):
            parent = self._tree.directory(directory)
            fd = None if parent is None else fsops.open_regular(parent, name)
        if fd is None:
            return None
        with open(fd, "rb") as stream:
            return stream.read(MAX_FILE_BYTES)


def _misplaced(place: str, what: str) -> UnsafeVolumeError:
    return UnsafeVolumeError(
        f"{place!r} is {what}: it cannot tell how far the first run is",
        code="unsafe-path",
        path=place,
        hint="Look at who put it there, and remove it or restore what was there.",
    )


def _what_freeipa_says(data: bytes | None) -> bool | None:
    """Return whether FreeIPA's installation is complete by its own record, where it has one.

    Source: ``is_ipa_configured`` in FreeIPA's ``ipaserver/install/installutils.py``, later
    ``ipalib/facts.py``; ``ipactl`` starts nothing where it says no.
    """
    section = ""
    for line in (data or b"").decode("utf-8", "replace").splitlines():
        if line.startswith("["):
            section = line.strip()
        key, _, value = line.partition("=")
        if section == "[installation]" and key.strip() == "complete":
            return value.strip() == "True"
    return None


def _is_adopted(volume: Volume) -> bool:
    runs = state.read_history(volume)
    return bool(runs) and runs[0].get("kind") != "populate"


def _stored_host(volume: Volume) -> str:
    """Return the name that the FreeIPA images keep on the volume, or ""."""
    text = (read_top(volume, HOSTNAME) or b"").decode("utf-8", "replace").strip()
    if len(text) > _MAX_NAME_CHARACTERS or not text.isprintable() or " " in text:
        path = f"{volume.mount}/{HOSTNAME}"
        raise UnsafeVolumeError(
            f"{path!r} does not hold one host name",
            path=path,
            hint="Write the server's name into it, alone on one line.",
        )
    return text


def read_top(volume: Volume, name: str) -> bytes | None:
    """Return the content of a file right below the primary volume's mount, or ``None``.

    Raises:
        UnsafeVolumeError: If others than root can have written it, or it is no file.
    """
    path = f"{volume.mount}/{name}"
    with workspace.attempt("read", path):
        st = fsops.lstat(volume.fd, name)
        if st is None:
            return None
        fd = fsops.open_regular(volume.fd, name)
    if fd is None:
        raise UnsafeVolumeError(
            f"{path!r} is not a regular file",
            path=path,
            hint="Put the file itself there, not a link to it.",
        )
    with open(fd, "rb") as stream:
        st = os.fstat(fd)
        data = stream.read(MAX_FILE_BYTES + 1)
    if st.st_uid != 0 or st.st_mode & 0o022:
        raise UnsafeVolumeError(
            f"{path!r} can be written by others than root, and it decides on what root does",
            path=path,
            hint="After a look at what is in it: "
            f"chown root {path} && chmod u=rw,go= {path} (as root of the container).",
        )
    if len(data) > MAX_FILE_BYTES:
        raise UnsafeVolumeError(
            f"{path!r} is larger than {MAX_FILE_BYTES} bytes",
            path=path,
            hint="Look at what it is.",
        )
    return data
