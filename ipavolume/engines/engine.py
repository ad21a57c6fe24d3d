"""Container engines of the host, docker and podman, asked through their own commands.

An image is read through a container that is created from it and never started: no process
of it runs, no network is made for it, and it is removed again, with the anonymous volumes
that its image declares. Nothing is ever pulled.

Sources: ``docker create``, ``docker cp``, ``docker diff`` and their namesakes of podman; for
what differs between them, docker 20.10 and 28 and podman 4.3 as they behave.
"""

from __future__ import annotations

import contextlib
import json
import re
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from ipavolume.errors import CommandFailedError, IpaVolumeError, StoppedError, VolumeIOError
from ipavolume.linux import capture, signals
from ipavolume.model.progress import Progress, say_nothing
from ipavolume.model.values import dataclass

NAMES: Final = ("docker", "podman")
LABEL: Final = "ipavolume.reads-image"
"""Every container that is created here has it, so that a leftover can be told and removed."""
IMAGE_LABEL: Final = "ipavolume.image"
"""By it whoever makes a volume can say which image it is for."""

_ANSWER_S: Final = 60.0
_VERSION_S: Final = 5.0
_LONG_S: Final = 900.0
"""For what takes the longer the more there is: copying, comparing, removing."""
_ANSWER_BYTES: Final = 512 << 20
_PARENT_BYTES: Final = 1 << 40
_NEVER_STARTED: Final = "/ipavolume-never-starts-this"
_UNKNOWN: Final = re.compile(
    r"no such (image|container|volume|object|network)|image not known"
    r"|no (container|volume) with name|network (\S+ )?not found"
)
_NOT_THERE: Final = re.compile(
    # docker 20.10 has one sentence for a container and for a path in it: see :meth:`_removed`.
    r"could not find the file|not a directory|no such container:path"
    # podman says so of whatever kept it from looking: what that was comes behind.
    r"|could not be found on container \S+: "
    r".*(no such file or directory|too many levels of symbolic links)"
)
_GOING: Final = re.compile(r"removal of container .* is already in progress|already been removed")
_SAYS_NOTHING: Final = re.compile(
    r"\s*|exit status [0-9]+|Usage: .*|(?:Run|See) '[a-z]+ .*--help'.*"
)
"""Last lines beside what happened: the status of what the command runs, and where its help is."""
_LISTINGS: Final = 5
_PAUSES: Final = 3
_NOT_FROZEN: Final = "unable to freeze"
"""What runc says, with control groups of version 1, of processes that begin or end just then."""
_ENDING: Final = "stopped"
"""What podman calls it; docker has no such state, and calls one that ended ``exited`` at once."""
STOPPING: Final = "stopping"
"""podman has asked its processes to end, and waits for that."""
_UNMOUNTED_S: Final = 10.0
_POLL_S: Final = 0.1
_NOT_ALLOWED: Final = "permission denied while trying to connect"
_BY_SSH: Final = "failed to connect: "
"""What podman says where it does not come to the engine by ssh; it does not name the address."""
_NOT_RUNNING: Final = ("cannot connect to", "failed to connect to", _BY_SSH, "error during connect")
_NOWHERE: Final = (
    *("unable to resolve docker endpoint", "unable to create connection"),
    *("failed to resolve active destination", "failed to read identity"),
)
"""What the commands say before they ask, of an address, a context or a certificate."""
_ELSEWHERE: Final = re.compile(r"\b(tcp|ssh|https?)://(?!%2f)", re.IGNORECASE)
"""How the address of an engine begins that is not asked by a socket of this host."""
_OF_A_USER: Final = "/run/user/"
LED_BY: Final = {
    "docker": "DOCKER_HOST, with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, or a context "
    "(docker context ls),",
    "podman": "CONTAINER_HOST, or a connection (podman system connection list),",
}
"""What says which engine a command asks."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container as its engine describes it.

    Attributes:
        id: Its id.
        name: Its name.
        image_id: Id of its image.
        image_name: What its image was called when it was made, or "".
        mounts: Where something is mounted in it, as it sees that.
        is_systemd: podman mounts in it what systemd needs.
        state: What it does, as the engine calls it, and when it last ended.
    """

    id: str
    name: str
    image_id: str
    image_name: str
    mounts: tuple[str, ...]
    is_systemd: bool = False
    state: tuple[str, str] = ("", "")

    @property
    def is_ending(self) -> bool:
        """Its process has ended, and podman has yet to unmount its files."""
        return self.state[0] == _ENDING


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedVolume:
    """A named volume as its engine describes it.

    Attributes:
        name: Its name.
        directory: Where the host sees it, when it is mounted there.
        is_directory: It is a plain directory of the engine's, there at any time.
        image: The image that it is for, by its label :data:`IMAGE_LABEL`, or "".
        fault: What the engine says instead of where it is, as of one whose driver is gone; or "".
    """

    name: str
    directory: str
    is_directory: bool
    image: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A container as one that uses volumes.

    Attributes:
        name: Its name.
        image_id: Id of its image.
        is_running: It runs.
        volumes: By the place in the container, what is mounted there: the name of a volume, or a
            directory of the host.
    """

    name: str
    image_id: str
    is_running: bool
    volumes: tuple[tuple[str, str], ...]


class _UnknownError(Exception):
    """The engine answers that it does not have what it was asked for."""


class _Archive(tarfile.TarFile):
    """An archive that is read as it comes.

    What ends between two members looks complete; whether it is, only its writer knows.

    Attributes:
        has_ended: There was nothing after what was read last.
    """

    has_ended = False

    def next(self) -> tarfile.TarInfo | None:
        """Return the next member, or ``None`` at the end."""
        member = super().next()
        self.has_ended = member is None
        return member


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine.

    Attributes:
        name: Its command.
    """

    name: str

    @property
    def follows_links(self) -> bool:
        """The engine's ``cp`` gives what a link leads to; docker's gives the link."""
        return self.name == "podman"

    # -- asking --------------------------------------------------------------------------

    def version(self) -> str:
        """Return what its command says of itself; the engine need not run."""
        said = self._ask("--version", timeout_s=_VERSION_S).decode("utf-8", "replace").strip()
        return said.partition("\n")[0]

    def host_name(self) -> str:
        """Return what the host of the engine is called; "" where it is no service, or tells none.

        Raises:
            CommandFailedError: If the engine does not answer.
        """
        try:
            said = json.loads(self._ask("info", "--format", "{{json .}}"))
            # By docker's name there may be podman's command.
            host = said.get("host")
            if host is None:
                return _text(said["Name"])
            return _text(host["hostname"]) if host["serviceIsRemote"] is True else ""
        except (_UnknownError, ValueError, KeyError, TypeError, AttributeError):
            return ""
        except CommandFailedError as err:
            if err.code != "engine":
                raise
            # A proxy in front of it lets some questions through, and others not.
            return ""

    def address(self) -> str:
        """Return where docker's command asks the engine; "" where it does not tell."""
        if self.name != "docker":
            return ""
        try:
            said = self._ask("context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
        except (_UnknownError, CommandFailedError):
            return ""
        return said.decode("utf-8", "replace").strip()

    def image_id(self, reference: str) -> str:
        """Return the id of an image that is on this host.

        Raises:
            _UnknownError: If it does not have it.
            CommandFailedError: If it does not answer.
        """
        said = self._ask("image", "inspect", "--format", "{{.Id}}", "--", reference)
        return said.decode("ascii", "replace").strip()

    def container(self, name: str) -> Container:
        """Return what the engine says of a container, running or not.

        Raises:
            _UnknownError: If it does not have it.
            CommandFailedError: If it does not answer, or not so that it is understood.
        """
        said = self._ask("container", "inspect", "--", name)
        try:
            (found,) = json.loads(said)
            mounts = [_text(item["Destination"]) for item in found.get("Mounts") or ()]
            tmpfs = found.get("HostConfig", {}).get("Tmpfs") or {}
            mounts += map(_text, tmpfs)
            config = found.get("Config", {})
            state = found.get("State", {})
            return Container(
                id=_text(found["Id"]),
                name=_text(found["Name"]).lstrip("/"),
                image_id=_text(found["Image"]),
                image_name=_text(found.get("ImageName") or config.get("Image") or ""),
                mounts=tuple(mounts),
                is_systemd=config.get("SystemdMode") is True,
                state=(_text(state.get("Status") or ""), _text(state.get("FinishedAt") or "")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise self._not_understood(f"the container {name!r}") from err

    def settled(
        self,
        container: str,
        *,
        in_vain: tuple[str, str] = ("", ""),
        say: Progress = say_nothing,
    ) -> Container:
        """Return what the engine says of a container, once it has unmounted one that ended.

        podman does so in a process of its own that may come late, and without regard to who
        reads the files: they are not there amid the reading (seen with 4.3.1). Where that
        process does not come within some seconds, it will not.

        Args:
            container: Its id.
            in_vain: A state in which it was waited for already.
            say: Told of what is waited for.

        Raises:
            VolumeIOError: If the container was removed.
        """
        deadline = time.monotonic() + _UNMOUNTED_S
        with self._being_there(container):
            while (found := self.container(container)).is_ending and found.state != in_vain:
                if time.monotonic() >= deadline:
                    break
                say(
                    f"waiting until {self.name} has unmounted {found.name}, which has ended, "
                    f"{_UNMOUNTED_S:.0f} s at most"
                )
                say = say_nothing
                signals.check()
                time.sleep(_POLL_S)
        return found

    @contextlib.contextmanager
    def _being_there(self, container: str) -> Iterator[None]:
        try:
            yield
        except _UnknownError as err:
            raise VolumeIOError(
                f"{self.name} does not have the container {container!r} any more",
                code="no-container",
                hint=f"See what there is: {self.name} ps --all",
            ) from err

    def volume(self, name: str) -> NamedVolume:
        """Return what the engine says of a named volume.

        Raises:
            _UnknownError: If it does not have it.
            CommandFailedError: If it does not answer, or not so that it is understood.
        """
        said = self._ask("volume", "inspect", "--", name)
        try:
            (found,) = json.loads(said)
            return _volume(found)
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise self._not_understood(f"the volume {name!r}") from err

    def volumes(self) -> list[NamedVolume]:
        """Return every named volume; one that goes meanwhile may be missing."""
        names = self.listed("volume", "ls", "--quiet")
        words = ("volume", "inspect")
        try:
            return self._of_each(names, words, _volume)
        except CommandFailedError as err:
            if err.code != "engine":
                raise
        found = []
        for name in names:
            # One that it cannot look at, as its driver is gone, does not stop the others.
            try:
                found += self._of_each([name], words, _volume)
            except CommandFailedError as err:
                if err.code != "engine":
                    raise
                found.append(
                    NamedVolume(name=name, directory="", is_directory=False, fault=str(err))
                )
        return found

    def users(self) -> list[User]:
        """Return every container that uses something, running or not."""
        ids = self.listed("ps", "--all", "--quiet", "--no-trunc")
        return self._of_each(ids, ("container", "inspect"), _user)

    def containers(self) -> list[Mapping[str, Any]]:
        """Return all that the engine says of every container; one that goes may be missing."""
        ids = self.listed("ps", "--all", "--quiet", "--no-trunc")
        return self._of_each(ids, ("container", "inspect"), _as_data)

    def _of_each(
        self, names: Sequence[str], words: Sequence[str], parse: Callable[[Mapping[str, Any]], _T]
    ) -> list[_T]:
        """Return what *words* say of each of *names*, asked all at once where all are there."""
        if not names:
            return []
        try:
            said = json.loads(self._ask(*words, "--", *names))
            return [parse(one) for one in said]
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise self._not_understood(f"{words[0]}s") from err
        except _UnknownError:
            if len(names) == 1:
                return []
            half = len(names) // 2
            return [
                *self._of_each(names[:half], words, parse),
                *self._of_each(names[half:], words, parse),
            ]

    def inspected(self, kind: str, name: str, *, to_the_end: bool = False) -> dict[str, Any] | None:
        """Return all that the engine says of something, or ``None`` when it does not have it.

        Args:
            kind: ``container``, ``image`` or ``network``.
            name: Its name or id.
            to_the_end: Go on although a signal asked for an end.

        Raises:
            CommandFailedError: If it does not answer, or not so that it is understood.
        """
        try:
            said = self._ask(kind, "inspect", "--", name, to_the_end=to_the_end)
            (found,) = json.loads(said)
        except _UnknownError:
            return None
        except (ValueError, TypeError) as err:
            raise self._not_understood(f"the {kind} {name!r}") from err
        return found if isinstance(found, dict) else None

    def listed(self, *words: str) -> list[str]:
        """Return the lines of a list, of ids or names: ``ps --quiet``, ``network ls --quiet``.

        podman before 5.3 ends with an error where one of a list goes while it makes that.

        Raises:
            CommandFailedError: If it fails, or things go again and again.
        """
        for attempt in range(_LISTINGS):
            if attempt:
                time.sleep(_POLL_S)
                signals.check()
            with contextlib.suppress(_UnknownError):
                return self._ask(*words).decode("utf-8", "surrogateescape").split()
        raise CommandFailedError(
            f"{self.name} {words[0]}: things go while they are listed, {_LISTINGS} times in a row",
            code="engine",
            hint=f"Try again once what removes them is done: {self.name} {' '.join(words)}",
        )

    def order(
        self,
        *words: str,
        about: str = "",
        to_the_end: bool = False,
        kept_open: Sequence[int] = (),
    ) -> None:
        """Have the engine do something.

        Args:
            words: The command's arguments.
            about: What it is about, as people know it.
            to_the_end: Go on although a signal asked for an end.
            kept_open: Descriptors that its command has open as long as it lives.

        Raises:
            CommandFailedError: If it fails.
            VolumeIOError: If the engine does not have what it is about.
        """
        try:
            self._ask(*words, timeout_s=_LONG_S, to_the_end=to_the_end, kept_open=kept_open)
        except _UnknownError as err:
            about = about or "what it is about"
            message = f"{self.name} {words[0]}: {about} is not there any more"
            hint = "Look at what removes things there, a prune or somebody, then try again."
            raise VolumeIOError(message, code="engine", hint=hint) from err

    def pause(self, container: str, *, kept_open: int) -> bool:
        """Pause a container; return ``False`` where somebody else has done so.

        Args:
            container: Its id.
            kept_open: A descriptor that the engine's command has open as long as it lives.

        Raises:
            CommandFailedError: If it fails; whether the container is paused is not known then.
            VolumeIOError: If the engine does not have it.
        """
        for attempt in range(_PAUSES):
            try:
                self.order("pause", container, to_the_end=True, kept_open=(kept_open,))
            except CommandFailedError as err:
                said = _said_by(err)
                # docker: "Container ... is already paused"; podman: "... is already paused".
                if "already paused" in said:
                    return False
                if attempt + 1 == _PAUSES or _NOT_FROZEN not in said:
                    raise
            else:
                return True
        raise AssertionError

    def remove(self, kind: str, name: str) -> None:
        """Remove a container, with its anonymous volumes, or a network; none of that name is fine.

        Args:
            kind: ``container`` or ``network``.
            name: Its name.
        """
        with contextlib.suppress(_UnknownError):
            if kind == "container":
                self._remove(name)
            else:
                self._ask(kind, "rm", name, timeout_s=_LONG_S, to_the_end=True)

    @contextlib.contextmanager
    def attached(self, container: str, *, timeout_s: float) -> Iterator[capture.Output]:
        """Start a container and give what it prints until it ends.

        Args:
            container: Its name.
            timeout_s: Seconds that it may run.

        Raises:
            CommandFailedError: While it is read, if it runs longer.
            StoppedError: If a signal asked for an end. It goes on running in both cases.
        """
        with capture.output_of(
            [self.name, "start", "--attach", container],
            timeout_s=timeout_s,
            limit_bytes=_ANSWER_BYTES,
            merged=True,
        ) as output:
            yield output

    def diff(self, container: str) -> list[tuple[str, str]]:
        """Return what a container changed in its own layer: ``A``, ``C`` or ``D``, and a path.

        docker prints a path as it is, so that a newline in it can only be guessed at: what does
        not begin as a line of this list does goes on with the path before. Both engines put
        U+FFFD in the place of bytes that are not UTF-8.

        Raises:
            VolumeIOError: If the container was removed.
        """
        with self._being_there(container):
            if self.name == "podman":
                return self._diff_as_data(container)
            said = self._ask("diff", "--", container, timeout_s=_LONG_S)
        return parse_diff(said.decode("utf-8", "surrogateescape"))

    def _diff_as_data(self, container: str) -> list[tuple[str, str]]:
        said = self._ask("diff", "--format", "json", "--", container, timeout_s=_LONG_S)
        try:
            data = json.loads(said)
            return [
                (letter, _text(path))
                for letter, word in (("A", "added"), ("C", "changed"), ("D", "deleted"))
                for path in data.get(word) or ()
            ]
        except (ValueError, TypeError, AttributeError) as err:
            raise self._not_understood(f"the changes of {container!r}") from err

    def _ask(
        self,
        *words: str,
        timeout_s: float = _ANSWER_S,
        to_the_end: bool = False,
        kept_open: Sequence[int] = (),
    ) -> bytes:
        """Return what the engine answers.

        Args:
            words: The command's arguments.
            timeout_s: Seconds that it may take.
            to_the_end: Go on although a signal asked for an end.
            kept_open: Descriptors that its command has open.

        Raises:
            _UnknownError: If it does not have what it is asked for.
            CommandFailedError: If it does not answer.
        """
        command = [self.name, *words]
        with capture.output_of(
            command,
            timeout_s=timeout_s,
            limit_bytes=_ANSWER_BYTES,
            to_the_end=to_the_end,
            kept_open=kept_open,
        ) as output:
            said = output.stream.read()
            status = output.finish()
            if status == 0:
                return said
            lines = output.complaints()
            if _UNKNOWN.search(" ".join(lines).lower()):
                raise _UnknownError
            raise self._failed(words, status, lines)

    def _failed(self, words: Sequence[str], status: int, lines: Sequence[str]) -> IpaVolumeError:
        lines = list(lines)
        while lines and _SAYS_NOTHING.fullmatch(lines[-1]):
            lines.pop()
        said = lines[-1] if lines else f"it ended with status {status}"
        text = " ".join(lines).lower()
        if _NOT_ALLOWED in text:
            return CommandFailedError(
                f"{self.name} does not let this user in: {said}",
                code="no-engine",
                hint=f"Run it as root, or as a user in the group {self.name}.",
            )
        if any(words in text for words in _NOT_RUNNING):
            return CommandFailedError(
                f"the engine of {self.name} does not answer: {said}",
                code="no-engine",
                hint=self._how_to_start(said),
            )
        if any(words in text for words in _NOWHERE):
            return CommandFailedError(
                f"{self.name} does not know what engine to ask: {said}",
                code="no-engine",
                hint=f"{LED_BY[self.name]} says what it cannot use: correct that.",
            )
        return CommandFailedError(
            f"{self.name} {words[0]}: {said}",
            code="engine",
            hint=f"Look at what {self.name} info says.",
            details=lines[:-1],
        )

    def _how_to_start(self, said: str) -> str:
        if _ELSEWHERE.search(said) or _BY_SSH in said.lower():
            what = "the one that does not answer"
            return f"{LED_BY[self.name]} leads to {what}: correct that, or start it there."
        user = "--user " if _OF_A_USER in said else ""
        return f"Start it: systemctl {user}start {self.name}"

    def _not_understood(self, what: str) -> CommandFailedError:
        return CommandFailedError(
            f"what {self.name} says of {what} cannot be understood",
            code="engine",
            hint=f"Look at what {self.name} version says: docker 20.10 and podman 4 are known.",
        )

    # -- reading -------------------------------------------------------------------------

    @contextlib.contextmanager
    def created(self, image_id: str) -> Iterator[str]:
        """Create a container of an image, never to be started, and remove it at the end.

        Args:
            image_id: Its id; a name could lead elsewhere meanwhile.

        Yields:
            Its name.

        Raises:
            CommandFailedError: If it cannot be created.
            VolumeIOError: If it was removed by somebody else.
            StoppedError: If a signal asked for an end; it is removed all the same.
        """
        name = f"ipavolume-{uuid.uuid4()}"
        with signals.looking(), contextlib.ExitStack() as stack:
            signals.check()
            stack.callback(self._remove, name)
            try:
                # To its end: cut off, the engine might make it after it was removed here.
                self._ask(
                    *("create", "--name", name, "--label", f"{LABEL}=", "--network", "none"),
                    *("--pull", "never", image_id, _NEVER_STARTED),
                    timeout_s=_LONG_S,
                    to_the_end=True,
                )
            except _UnknownError as err:
                raise VolumeIOError(
                    f"{self.name} has no image {image_id!r} any more", code="no-image"
                ) from err
            signals.check()
            stack.pop_all()
            with self._removed(name):
                yield name

    @contextlib.contextmanager
    def _removed(self, name: str) -> Iterator[None]:
        """Have the container by which an image is read removed at the end; by nobody else before.

        Without it the engine may say of what is in the image that it is not there.
        """
        failure: IpaVolumeError | None = None
        try:
            yield
        except IpaVolumeError as err:
            failure = err
        finally:
            was_there = self._remove(name)
        if isinstance(failure, StoppedError) or (failure is not None and was_there):
            raise failure
        if not was_there:
            raise VolumeIOError(
                f"the container {name} of {self.name}, by which the image was read, was removed "
                "meanwhile",
                code="no-container",
                hint="Look at what removes containers there, a prune or somebody, then try again.",
            ) from failure

    def _remove(self, name: str) -> bool:
        """Remove a container; return ``False`` where there was none, or somebody else removes it.

        Raises:
            CommandFailedError: If it fails.
        """
        # docker kills it at once; podman asks it to stop first, and waits.
        patience = ("--time", "0") if self.name == "podman" else ()
        words = ("rm", "--force", "--volumes", *patience, "--", name)
        try:
            # Both print what they removed, and either may be content with nothing.
            return bool(self._ask(*words, timeout_s=_LONG_S, to_the_end=True).strip())
        except _UnknownError:
            return False
        except CommandFailedError as err:
            # Somebody else does it, a prune: it goes all the same.
            if not _GOING.search(_said_by(err)):
                raise
            return False

    @contextlib.contextmanager
    def archive(
        self, container: str, path: str, *, limit_bytes: int, whole: bool = True
    ) -> Iterator[_Archive | None]:
        """Give what is at *path* in a container as an archive, as it comes.

        The names in it begin with the last component of *path*, or of what that leads to.

        Args:
            container: Name of the container.
            path: Absolute path in it.
            limit_bytes: What the archive may have at most.
            whole: It is read to its end, whoever reads it or not, and has to be complete. Else
                it has to be complete where who reads it comes to its end.

        Yields:
            The archive, or ``None`` when there is nothing at *path*.

        Raises:
            CommandFailedError: If the engine fails, or the archive is cut short.
            StoppedError: If a signal asked for an end.
        """
        words = ("cp", f"{container}:{path}", "-")
        with capture.output_of(
            [self.name, *words], timeout_s=_LONG_S, limit_bytes=limit_bytes
        ) as output:
            try:
                archive = _Archive.open(
                    fileobj=output.stream, mode="r|", encoding="utf-8", errors="surrogateescape"
                )
            except tarfile.TarError as err:
                status = output.finish()
                lines = output.complaints()
                if _NOT_THERE.search(" ".join(lines).lower()):
                    yield None
                    return
                raise self._failed(words, status, lines) from err
            with archive:
                try:
                    yield archive
                    status = output.finish() if whole or archive.has_ended else 0
                except tarfile.TarError as err:
                    raise self._cut_short(path) from err
            if status != 0:
                raise self._failed(words, status, output.complaints())

    def _cut_short(self, path: str) -> CommandFailedError:
        return CommandFailedError(
            f"what {self.name} cp gives of {path!r} is cut short or damaged",
            code="engine",
            path=path,
            hint=f"Try again; look at what {self.name} info says.",
        )

    def look(self, container: str, path: str) -> tarfile.TarInfo | None:
        """Return what is at *path* in a container, or ``None`` when there is nothing.

        With podman a link is only seen where the whole of its directory is read.
        """
        if not self.follows_links:
            with self.archive(container, path, limit_bytes=_ANSWER_BYTES, whole=False) as archive:
                return None if archive is None else archive.next()
        parent, _, name = path.rpartition("/")
        with self.archive(
            container, parent or "/", limit_bytes=_PARENT_BYTES, whole=False
        ) as archive:
            for member in archive or ():
                if member.name.rstrip("/").split("/")[1:] == [name]:
                    return member
        return None

    def kind(self, container: str, path: str) -> tarfile.TarInfo | None:
        """Return what *path* leads to with podman, and what is there with docker."""
        with self.archive(container, path, limit_bytes=_ANSWER_BYTES, whole=False) as archive:
            return None if archive is None else archive.next()


def parse_diff(text: str) -> list[tuple[str, str]]:
    """Return the letters and paths of what ``docker diff`` printed."""
    result: list[tuple[str, str]] = []
    for line in text.removesuffix("\n").split("\n"):
        if line[:1] in ("A", "C", "D") and line[1:3] == " /":
            result.append((line[0], line[2:]))
        elif result:
            letter, path = result[-1]
            result[-1] = letter, f"{path}\n{line}"
    return result


def _volume(found: Mapping[str, Any]) -> NamedVolume:
    options = found.get("Options") or {}
    labels = found.get("Labels") or {}
    return NamedVolume(
        name=_text(found["Name"]),
        directory=_text(found["Mountpoint"]),
        is_directory=found["Driver"] == "local" and not {"type", "device"} & set(options),
        image=_text(labels.get(IMAGE_LABEL) or ""),
    )


def _user(found: Mapping[str, Any]) -> User:
    return User(
        name=_text(found["Name"]).lstrip("/"),
        image_id=_text(found["Image"]),
        is_running=runs(found),
        volumes=tuple(
            (_text(item["Destination"]), _text(item.get("Name") or item.get("Source") or ""))
            for item in found.get("Mounts") or ()
            if item.get("Type") in ("volume", "bind")
        ),
    )


def state_of(found: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what an engine says of a container's state; empty: nothing."""
    state = (found or {}).get("State")
    return state if isinstance(state, Mapping) else {}


def runs(found: Mapping[str, Any] | None) -> bool:
    """Tell whether there are processes of a container, paused or not."""
    state = state_of(found)
    # podman says of one that is paused, or is being stopped, that it does not run.
    return True in (state.get("Running"), state.get("Paused")) or state.get("Status") == STOPPING


def _as_data(found: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise TypeError
    return found


def _said_by(err: CommandFailedError) -> str:
    return "\n".join((str(err), *err.details)).lower()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


# -- choosing ----------------------------------------------------------------------------


def find_image(choice: str, reference: str) -> tuple[Engine, str]:
    """Return the engine that has an image, and the image's id.

    Args:
        choice: Name of the engine, or "" for the first that has it.
        reference: Name or id of the image.

    Raises:
        VolumeIOError: If none has it; it is not pulled.
        CommandFailedError: If no engine answers.
    """
    return _find(
        choice,
        lambda engine: engine.image_id(reference),
        lambda engines: VolumeIOError(
            f"{_nobody(engines)} the image {reference!r}",
            code="no-image",
            hint=f"Nothing is pulled by this command: {engines[0]} pull {reference}",
        ),
    )


def find_container(choice: str, name: str) -> tuple[Engine, Container]:
    """Return the engine that has a container, and what it says of it.

    Raises:
        VolumeIOError: If none has it.
        CommandFailedError: If no engine answers.
    """
    return _find(
        choice,
        lambda engine: engine.container(name),
        lambda engines: VolumeIOError(
            f"{_nobody(engines)} the container {name!r}",
            code="no-container",
            hint=f"See what there is: {engines[0]} ps --all",
        ),
    )


def find_volume(choice: str, name: str) -> tuple[Engine, NamedVolume]:
    """Return the engine that has a named volume, and what it says of it.

    Raises:
        VolumeIOError: If none has it.
        CommandFailedError: If no engine answers.
    """
    return _find(
        choice,
        lambda engine: engine.volume(name),
        lambda engines: VolumeIOError(
            f"{_nobody(engines)} the volume {name!r}",
            code="no-volume",
            hint=f"See what there is: {engines[0]} volume ls",
        ),
    )


def _find(
    choice: str, ask: Callable[[Engine], _T], unknown: Callable[[list[str]], IpaVolumeError]
) -> tuple[Engine, _T]:
    """Return the first engine that knows what it is asked for, with its answer."""
    without: list[str] = []
    failed: dict[str, IpaVolumeError] = {}
    for name in (choice,) if choice else NAMES:
        engine = Engine(name)
        try:
            return engine, ask(engine)
        except _UnknownError:
            without.append(name)
        except CommandFailedError as err:
            if err.code != "no-command" or choice:
                failed[name] = err
    if failed and not without:
        raise next(iter(failed.values()))
    if without:
        error = unknown(without)
        error.details = tuple(map(str, failed.values()))
        others = (f"If {name} has it: {err.hint.rstrip('.')}." for name, err in failed.items())
        error.hint = " ".join((*others, error.hint))
        raise error
    raise CommandFailedError(
        "there is no container engine: neither docker nor podman is installed",
        code="no-engine",
        hint="Install one; or unpack the image's root file system and give it with --root DIR.",
    )


def _nobody(engines: Sequence[str]) -> str:
    if len(engines) == 1:
        return f"{engines[0]} does not have"
    return f"neither {' nor '.join(engines)} has"
