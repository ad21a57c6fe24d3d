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
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Final

from ipavolume import diagnosis, fsops, processes, request, state, views, workspace
from ipavolume.config import FirstRunConfig
from ipavolume.errors import (
    CommandFailedError,
    IpaVolumeError,
    RefusedError,
    StoppedError,
    UnsafeVolumeError,
    UsageError,
)
from ipavolume.model import STATE_DIRECTORY
from ipavolume.processes import Ended
from ipavolume.redaction import Redactor
from ipavolume.request import FirstRunCommand, Request, make_request
from ipavolume.scan import Tree
from ipavolume.session import Session, host_name
from ipavolume.state import Volume

__all__ = [
    "OVERRIDES",
    "Request",
    "Standing",
    "check_request",
    "is_due",
    "look",
    "make_request",
    "run",
    "standing",
]

OVERRIDES: Final = frozenset({"hostname", "partial"})
"""Refusals of this module that can be overridden."""

STARTED: Final = "started"
WAITING: Final = "waiting"
DONE: Final = "done"
_STATES: Final = (STARTED, WAITING, DONE)

_HOSTNAME: Final = "hostname"
_HOSTS: Final = "/etc/hosts"
_REQUEST_TO_SIGN: Final = "/root/ipa.csr"
_INSTALLATION: Final = "/var/lib/ipa/sysrestore/sysrestore.state"

_MAX_RECORD_BYTES: Final = 64 << 10
_MAX_FILE_BYTES: Final = 1 << 20
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
    waiting = waiting or (request.is_freeipa(config) and exists(_REQUEST_TO_SIGN))
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
            known += f" {_how(record.exit_status)} and"
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


def _how(exit_status: int) -> str:
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
    if not stored or "hostname" in allow or _plain(stored) in (_plain(own), _plain(given)):
        return
    also = f" (IPA_SERVER_HOSTNAME={given})" if given else ""
    raise RefusedError(
        f"the volume is that of the server {stored!r}, but this container is {own!r}{also}",
        code="hostname",
        hint=f"Start the container with -h {stored}, or mount the right volume. Where its name "
        f"cannot be set, but leads to the server: IPA_SERVER_HOSTNAME={stored}. To go on under "
        "the other name: --allow hostname.",
    )


def _plain(name: str) -> str:
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


def _write(volume: Volume, record: FirstRunRecord) -> None:
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
        there = _There(session, tree, configured=record is not None and record.state == DONE)
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


class _There:
    """Tells whether a path of the application is on the volumes; nothing is followed.

    An empty file is there as well: many programs mark their end by one. Anything else than
    a file or a directory was put there by somebody else.
    """

    def __init__(self, session: Session, tree: Tree, *, configured: bool) -> None:
        self._mounts = session.image.header.volumes
        self._tree = tree
        self._is_inside = session.is_inside
        self._configured = configured

    def __call__(self, path: str) -> bool:
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
            return stream.read(_MAX_FILE_BYTES)


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
    text = (_read_top(volume, _HOSTNAME) or b"").decode("utf-8", "replace").strip()
    if len(text) > _MAX_NAME_CHARACTERS or not text.isprintable() or " " in text:
        path = f"{volume.mount}/{_HOSTNAME}"
        raise UnsafeVolumeError(
            f"{path!r} does not hold one host name",
            path=path,
            hint="Write the server's name into it, alone on one line.",
        )
    return text


def _read_top(volume: Volume, name: str) -> bytes | None:
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
        data = stream.read(_MAX_FILE_BYTES + 1)
    if st.st_uid != 0 or st.st_mode & 0o022:
        raise UnsafeVolumeError(
            f"{path!r} can be written by others than root, and it decides on what root does",
            path=path,
            hint="After a look at what is in it: "
            f"chown root {path} && chmod u=rw,go= {path} (as root of the container).",
        )
    if len(data) > _MAX_FILE_BYTES:
        raise UnsafeVolumeError(
            f"{path!r} is larger than {_MAX_FILE_BYTES} bytes",
            path=path,
            hint="Look at what it is.",
        )
    return data


def _read_secret(path: str) -> bytes:
    """Return the content of a file that the operator named in a variable."""
    hint = "Correct the variable, or mount the secret there."
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(fd, "rb") as stream:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UsageError(f"{path!r} is no file with a secret", hint=hint)
            data = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as err:
        raise UsageError(f"cannot read the secret {path!r}: {err.strerror}", hint=hint) from err
    if len(data) > _MAX_FILE_BYTES:
        raise UsageError(f"{path!r} is larger than any secret", hint=hint)
    return data


# -- running -----------------------------------------------------------------------------


def check_request(session: Session, asked: Request) -> None:
    """Refuse, before an empty volume is populated, what the first run would refuse after it.

    Raises:
        UsageError: If the request makes no sense, or there is no container to run it in.
        RefusedError: If the container's name is none for a server.
    """
    config = session.image.config.first_run
    if config is None:
        return
    if not session.is_inside:
        raise refuse_outside(session)
    command = _command(session, config, asked)
    if request.is_freeipa(config):
        new_host(command, own=host_name())


def is_due(session: Session, asked: Request, *, say: Say) -> bool:
    """Tell whether the first run has to run now; what is found is recorded.

    For a start whose volumes are current and locked.

    Args:
        session: The volumes.
        asked: What the container was started with.
        say: Told of what is found.

    Raises:
        IpaVolumeError: If the start is refused: the volume is partly configured, waits for an
            answer that the request does not bring, or is another server's; or if the request
            makes no sense.
    """
    return _prepare(session, asked, say=say) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """What is to be run."""

    command: FirstRunCommand
    record: FirstRunRecord


def _prepare(session: Session, asked: Request, *, say: Say) -> _Ready | None:
    config = session.image.config.first_run
    found = look(session)
    if config is None or found is None:
        return None
    standing, allow = found.judgement.standing, session.options.allow
    own = host_name()
    record = found.record or FirstRunRecord(state=STARTED, host=found.host)
    if standing is Standing.PARTIAL and "partial" in allow and found.complete:
        say(f"taken for configured (--allow partial): {found.judgement.reason}")
        standing = Standing.DONE
    elif found.judgement.error is not None and not (
        standing is Standing.PARTIAL and "partial" in allow
    ):
        raise found.judgement.error
    if request.is_freeipa(config) and standing in (Standing.DONE, Standing.WAITING):
        check_host(found.host, asked, own=own, allow=allow)
        if "hostname" not in allow:
            _go_by(session, found.host, own=own)
    if standing is Standing.DONE:
        if record.state != DONE:
            say(f"the first run is done: {found.judgement.reason}")
            _write(session.primary, replace(record, state=DONE, host=record.host or own))
        return None
    if standing is Standing.WAITING:
        _keep_request(session, config)
        if record.state != WAITING:
            record = replace(record, state=WAITING)
            _write(session.primary, record)
    command = _command(session, config, asked)
    if standing is Standing.WAITING:
        if not command.answers:
            raise _waits(config, command)
        host = record.host or own
    else:
        host = own
        if request.is_freeipa(config):
            host = new_host(command, own=own)
            if "hostname" not in allow:
                _go_by(session, host, own=own)
    return _Ready(command=command, record=replace(record, host=host))


def _go_by(session: Session, server: str, *, own: str) -> None:
    """Let the container's name lead to the server's, where the two differ.

    Source: ``init-data`` of the freeipa-container project does it for a container whose name
    cannot be set.

    Raises:
        RefusedError: If it cannot be done.
    """
    if not session.is_inside or not server or _plain(server) == _plain(own):
        return
    try:
        with open(_HOSTS, encoding="utf-8", errors="surrogateescape") as stream:
            before = stream.read(_MAX_FILE_BYTES)
        after = hosts_with(before, own=own, server=server)
        if after != before:
            fsops.overwrite_file(_HOSTS, os.fsencode(after))
    except OSError as err:
        raise RefusedError(
            f"this container is {own!r} and cannot go by the name of the server, {server!r}: "
            f"cannot change {_HOSTS}: {err.strerror}",
            code="hostname",
            hint=f"Start the container with -h {server}. Where that is cared for otherwise: "
            "--allow hostname.",
        ) from err


def _command(session: Session, config: FirstRunConfig, asked: Request) -> FirstRunCommand:
    volume = session.primary
    return request.command(
        config,
        asked,
        mount=volume.mount,
        names=os.listdir(volume.fd),
        read=lambda name: _read_top(volume, name),
        secret=_read_secret,
    )


def _waits(config: FirstRunConfig, command: FirstRunCommand) -> RefusedError:
    if request.is_freeipa(config):
        return RefusedError(
            f"the first run waits for a certificate: an external CA has to sign "
            f"{config.waiting_when or _REQUEST_TO_SIGN!r}",
            code="waiting",
            path=config.waiting_when,
            hint="Put the signed certificate and those of its CAs on the volume, then start the "
            f"container with the arguments of the first time and --external-cert-file=FILE for "
            f"each, for example: {command.name} --external-cert-file=/data/ipa.crt "
            "--external-cert-file=/data/ca.crt",
        )
    return RefusedError(
        f"the first run waits for an answer to {config.waiting_when!r}",
        code="waiting",
        path=config.waiting_when,
        hint=f"Start the container with the arguments that give {command.name} the answer.",
    )


def run(session: Session, asked: Request, *, say: Say, output: Say) -> Standing:
    """Run the first run if it has to run; say how far it is then.

    It is recorded as started, durably, before the command starts. The volumes are locked.

    Args:
        session: The volumes; of a container, nothing of an image is executed on a host.
        asked: What the container was started with.
        say: Told of what happens.
        output: Told of each line that the command prints, secrets taken out, where it has no
            terminal to print to.

    Returns:
        Done, or waiting for an answer from outside; then the application cannot start.

    Raises:
        CommandFailedError: If the command fails; says what it left.
        StoppedError: If a signal asked for an end.
        IpaVolumeError: If the start is refused, see :func:`is_due`.
    """
    config = session.image.config.first_run
    ready = _prepare(session, asked, say=say)
    if config is None or ready is None:
        return Standing.DONE
    if not session.is_inside:
        raise refuse_outside(session)
    volume, command = session.primary, ready.command
    record = replace(
        ready.record,
        state=STARTED,
        image=session.image.build_id,
        started=_now(),
        finished="",
        exit_status=None,
        attempts=ready.record.attempts + 1,
    )
    _write(volume, record)
    if request.is_freeipa(config):
        with workspace.attempt("write", f"{volume.mount}/{_HOSTNAME}"):
            fsops.write_file(volume.fd, _HOSTNAME, os.fsencode(record.host) + b"\n")
    say(f"first run: {command.name} begins, attempt {record.attempts}")
    redactor = Redactor(command.secrets)
    read_only: list[str] = []

    def told(line: str) -> None:
        output(redactor.text(line))
        read_only.extend(path for path in (diagnosis.read_only_path([line]),) if path)

    try:
        ended = processes.run_command(
            command.words,
            timeout_s=config.timeout_s,
            output=told,
            env=_environment(config, asked),
            terminal=True,
        )
    except StoppedError as err:
        err.state = "the first run was interrupted; the next start judges by what it left"
        raise
    except CommandFailedError as err:
        err.state = "the volume is unconfigured: the first run could not begin"
        raise
    try:
        return _conclude(session, config, command, record, ended, redactor, say)
    except CommandFailedError as err:
        if read_only:
            err.path = read_only[-1]
            err.hint = f"{diagnosis.read_only_hint(err.path, session.image.config)} {err.hint}"
        raise


def refuse_outside(session: Session) -> UsageError:
    """Return what to raise where the first run would have to run outside of a container."""
    config = session.image.config.first_run
    command = repr(config.command[0]) if config is not None else "a command"
    return UsageError(
        f"the first run executes {command} of the image, which is done in its container only",
        hint="Start a container of the image with this volume.",
    )


def _environment(config: FirstRunConfig, asked: Request) -> dict[str, str]:
    """Return the environment of the command.

    What a FreeIPA installer gets as arguments is not in it: an environment is inherited by
    all that a process starts.
    """
    if not request.is_freeipa(config):
        return {**os.environ, **asked.environment}
    left_out = (*request.SECRETS, *(f"{name}_FILE" for name in request.SECRETS))
    return {name: text for name, text in os.environ.items() if name not in left_out}


def _conclude(
    session: Session,
    config: FirstRunConfig,
    command: FirstRunCommand,
    record: FirstRunRecord,
    ended: Ended,
    redactor: Redactor,
    say: Say,
) -> Standing:
    """Judge by what the command left, and record it."""
    volume = session.primary
    # What it wrote is to be on the disk before it is called done.
    for one in session.volumes.values():
        workspace.sync_area(one)
    record = replace(record, finished=_now(), exit_status=ended.status)
    _write(volume, record)
    found = look(session)
    if found is None:
        raise AssertionError
    standing = found.judgement.standing
    succeeded = ended.status == 0 and not ended.timed_out
    if standing is Standing.WAITING:
        _keep_request(session, config)
        _write(volume, replace(record, state=WAITING))
        if succeeded:
            waits = _waits(config, command)
            say(f"{waits}. {waits.hint}")
            return standing
    if standing is Standing.DONE and succeeded:
        _write(volume, replace(record, state=DONE))
        say(f"first run: {command.name} is done")
        return standing
    raise _failure(config, command, ended, found, redactor)


def _failure(
    config: FirstRunConfig,
    command: FirstRunCommand,
    ended: Ended,
    found: Found,
    redactor: Redactor,
) -> CommandFailedError:
    how = _how(ended.status)
    if ended.timed_out:
        how = f"did not end within {config.timeout_s} s and was ended"
    elif ended.status == 0:
        how = f"ended with status 0, but did not leave {config.done_when!r}"
    standing = found.judgement.standing
    if standing is Standing.PARTIAL:
        now = (
            f"the volume is only partly configured: {found.judgement.error.path!r} is there"
            if found.judgement.error
            else ""
        )
        hint = (
            "Its logs are on the volume. The next start refuses to run over what is there: keep "
            "the volume to find out what failed; to start again, wipe it or mount an empty one."
        )
    elif standing is Standing.WAITING:
        now = "the first run still waits for an answer"
        hint = (
            "Correct what it complains of, then start again with the answer. If it stopped half "
            "way, go back to the copy of the volume that you made while it waited."
        )
    elif standing is Standing.DONE:
        now = "the volume is taken for configured: " + found.judgement.reason
        hint = "Look at its logs on the volume before you start again."
    else:
        now = "the volume is unconfigured: the command left nothing that is in the way"
        hint = "Correct what it complains of, then start again."
    return CommandFailedError(
        f"the first run failed: {command.name} {how}",
        code="first-run-failed",
        state=now,
        hint=hint,
        details=[redactor.text(line) for line in ended.lines],
    )


def _keep_request(session: Session, config: FirstRunConfig) -> None:
    """Put the request that the CA has to sign where the FreeIPA images have it."""
    directory, _, name = config.waiting_when.rpartition("/")
    volume = session.primary
    if not request.is_freeipa(config) or directory != volume.mount:
        return
    with session.tree() as tree:
        there = _There(session, tree, configured=False)
        data = there.read(_REQUEST_TO_SIGN)
        if data is None or there(config.waiting_when):
            return
    with workspace.attempt("write", config.waiting_when):
        fsops.write_file(volume.fd, name, data)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
