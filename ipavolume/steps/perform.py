"""Carrying out what an upgrade step returned, one action at a time.

What is new is written to the volume's own directory, where nobody else can write, made
durable there, and renamed into its place; what it replaces has got another name before. So
every instant is one of: as before, saved as well, done. Done again, an action finds which.

A path is reached through descriptors, one directory after the other. A symbolic link in a
directory's place is refused, as everywhere on a volume. Where root alone can have put it
there, somebody moved the directory elsewhere: what lies behind it is not managed, and the
action is left out (design, section 6; :func:`moved_elsewhere` tells, for the report).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ipavolume.context import Context
from ipavolume.errors import (
    CannotCreateError,
    CommandFailedError,
    ConfigurationError,
    StoppedError,
    UnsafeVolumeError,
)
from ipavolume.image import diagnosis
from ipavolume.image.image import Image
from ipavolume.linux import command as processes
from ipavolume.linux import crossing, files
from ipavolume.linux.command import describe_end
from ipavolume.linux.mounts import mount_points_below
from ipavolume.model.attributes import CAPABILITY_NAME, SET_ID_BITS
from ipavolume.model.files import BUILD_ID_NAME, Metadata, Xattrs
from ipavolume.model.images import ImageHeader, VolumeSpec
from ipavolume.model.paths import mount_of
from ipavolume.model.progress import count_text
from ipavolume.steps import api, declaration, views
from ipavolume.steps.api import (
    Command,
    MakeLink,
    Refuse,
    Remove,
    Step,
    StepAction,
    Warn,
    Write,
    in_a_line,
)
from ipavolume.steps.judging import PATH
from ipavolume.steps.loading import path_fault
from ipavolume.steps.saving import Saving, opened_state
from ipavolume.steps.strays import Links
from ipavolume.steps.views import is_covered, place
from ipavolume.volume import held
from ipavolume.volume.failures import attempt
from ipavolume.volume.logs import RunLog
from ipavolume.volume.members import Volume
from ipavolume.volume.tree import Tree
from ipavolume.volume.volumes import Volumes

FileAction = Write | Remove | MakeLink

IN_THE_MAKING: Final = "step-in-the-making"
"""In the state directory; the name is fixed, so that a leftover of a killed run is reused."""

_STATE: Final = "the volume is in the middle of an upgrade step; the next start goes on with it"
_SECURITY: Final = "security."


def perform_file_action(
    action: FileAction,
    volumes: Mapping[str, Volume],
    mounts: Sequence[VolumeSpec],
    *,
    run: str,
) -> str | None:
    """Carry out *action*, durably; done twice is done once.

    Args:
        action: What to do.
        volumes: The volumes by mount.
        mounts: The volumes as the image declares them.
        run: Id of the run; what is replaced or removed is saved under it.

    Returns:
        Where the saved copy is, or ``None`` when nothing had to be saved.

    Raises:
        UnsafeVolumeError: If a directory on the way is none, or a directory is in the way.
        CannotCreateError: If the directory that a file or link goes into is missing.
        VolumeIOError: If an operation fails; the next start tries it again.
        ConfigurationError: If the path is one that steps have to leave alone.
    """
    where = place(action.path, mounts)
    mount = mount_of(where, volumes)
    if fault := path_fault(where):
        raise ConfigurationError(f"an upgrade step may not change it: {fault}", path=action.path)
    if where == f"{mount}/{BUILD_ID_NAME}":
        raise ConfigurationError(f"{where!r} is not for upgrade steps to change", path=where)
    if not isinstance(action, Remove) and not is_covered(action.path, mounts):
        raise ConfigurationError(
            f"an upgrade step wants to put {action.path!r}, which no list of the image keeps on "
            "a volume",
            hint="Add the path to the image's list, or mask the step.",
            path=action.path,
        )
    _check_mounted(volumes[mount], where)
    if moved_elsewhere(action, volumes, mounts):
        return None
    return _Performance(action, volumes[mount], where, run).perform()


def _check_mounted(volume: Volume, where: str) -> None:
    """Refuse what lies below an undeclared mount, which is no part of the volume."""
    for point in mount_points_below(volume.directory):
        mounted = f"{volume.mount}/{point}"
        if where == mounted or where.startswith(mounted + "/"):
            raise UnsafeVolumeError(
                f"cannot change {where!r}: something that is no volume of the image is mounted "
                f"on {mounted!r}",
                code="mounted",
                hint="Declare the mount in the image's configuration, or start without it.",
                state=_STATE,
                path=where,
            )


def moved_elsewhere(
    action: FileAction, volumes: Mapping[str, Volume], mounts: Sequence[VolumeSpec]
) -> str:
    """Return the link by which root moved a directory above *action*'s path elsewhere, or "".

    Such an action is left out.
    """
    where = place(action.path, mounts)
    mount = mount_of(where, volumes)
    with (
        attempt("look at", where),
        Tree({name: volume.fd for name, volume in volumes.items()}) as tree,
    ):
        above = mount
        for name in where[len(mount) + 1 :].split("/")[:-1]:
            above = f"{above}/{name}"
            st = tree.stat(above)
            if st is not None and stat.S_ISLNK(st.st_mode):
                return above if tree.is_trusted_link(above) else ""
    return ""


class _Performance:
    """One action on one volume."""

    def __init__(self, action: FileAction, volume: Volume, where: str, run: str) -> None:
        self._action = action
        self._volume = volume
        self._where = where
        self._below = where[len(volume.mount) + 1 :]
        self._saving = Saving(volume, run, self._below, state=_STATE)

    def perform(self) -> str | None:
        match self._action:
            case Write() as write:
                with self._attempt("write"), self._parent() as (fd, name):
                    return self._write(write, fd, name)
            case MakeLink() as link:
                with self._attempt("link"), self._parent() as (fd, name):
                    return self._link(link, fd, name)
            case Remove() as remove:
                with self._attempt("remove"):
                    return self._remove(remove)

    def _attempt(self, doing: str) -> contextlib.AbstractContextManager[None]:
        touched = ((self._where.rpartition("/")[0], True), (self._where, True))
        volumes = {self._volume.mount: self._volume}
        return held.explained(doing, self._where, volumes, touched, now=_STATE)

    @contextlib.contextmanager
    def _parent(self) -> Iterator[tuple[int, str]]:
        try:
            directory, name = files.open_parent(self._volume.fd, self._below)
        except FileNotFoundError as err:
            raise CannotCreateError(
                f"cannot make {self._where!r}: its directory is not there",
                code="no-directory",
                hint="Make the directory, or mask the upgrade step that needs it.",
                state=_STATE,
                path=self._where,
            ) from err
        try:
            yield directory, name
        finally:
            os.close(directory)

    # -- the three actions -----------------------------------------------------------------

    def _write(self, action: Write, directory: int, name: str) -> str | None:
        metadata = Metadata(uid=0, gid=0, mode=action.mode)
        with self._held(directory, name) as (fd, st):
            if fd is not None and st is not None and stat.S_ISREG(st.st_mode):
                if _holds(directory, name, st, action.content):
                    files.sync(directory)
                    return self._saving.found()
                found = files.metadata(st, _without_rights(files.read_xattrs(fd)))
                metadata = replace(found, mode=found.mode & ~SET_ID_BITS)
            with opened_state(self._volume) as made:
                files.write_complete(made, IN_THE_MAKING, action.content, metadata)
                return self._replace(made, directory, name, fd, st, keep=action.keep_copy)

    def _link(self, action: MakeLink, directory: int, name: str) -> str | None:
        with self._held(directory, name) as (fd, st):
            is_link = st is not None and stat.S_ISLNK(st.st_mode)
            if fd is not None and is_link and os.readlink("", dir_fd=fd) == action.target:
                files.sync(directory)
                return self._saving.found()
            with opened_state(self._volume) as made:
                files.unlink(made, IN_THE_MAKING)
                files.make_symlink(made, IN_THE_MAKING, action.target, uid=0, gid=0)
                return self._replace(made, directory, name, fd, st)

    def _remove(self, action: Remove) -> str | None:
        try:
            directory, name = files.open_parent(self._volume.fd, self._below)
        except FileNotFoundError:
            return self._saving.found()
        try:
            st = files.lstat(directory, name)
            saved = None
            if st is None:
                saved = self._saving.found()
            elif stat.S_ISDIR(st.st_mode):
                # Somebody may have put something into it meanwhile; then it stays.
                files.remove_directory(directory, name)
            elif action.keep_copy:
                saved = self._saving.move(directory, name)
            else:
                files.unlink(directory, name)
            files.sync(directory)
            return saved
        finally:
            os.close(directory)

    # -- what they are made of -------------------------------------------------------------

    @contextlib.contextmanager
    def _held(
        self, directory: int, name: str
    ) -> Iterator[tuple[int | None, os.stat_result | None]]:
        """Hold what is in the place, whatever the name becomes meanwhile.

        Raises:
            UnsafeVolumeError: If a directory is there.
        """
        try:
            fd = files.open_at(directory, name, files.INODE_FLAGS)
        except FileNotFoundError:
            yield None, None
            return
        try:
            st = files.fstat(fd)
            if stat.S_ISDIR(st.st_mode):
                raise UnsafeVolumeError(
                    f"{self._where!r} is a directory, where an upgrade step wants to put a "
                    f"{'link' if isinstance(self._action, MakeLink) else 'file'}",
                    code="directory-in-the-way",
                    hint="Look at what it holds and move it away, then start again.",
                    state=_STATE,
                    path=self._where,
                )
            yield fd, st
        finally:
            os.close(fd)

    def _replace(
        self,
        made: int,
        directory: int,
        name: str,
        held: int | None,
        st: os.stat_result | None,
        *,
        keep: bool = True,
    ) -> str | None:
        """Put what is in the making in its place; what is there gets another name before."""
        saved = self._saving.keep(held) if keep and held is not None else None
        root = self._volume.fd
        crossing.move(made, IN_THE_MAKING, directory, name, replace=True, root=root, expected=st)
        files.sync(directory)
        files.sync(made)
        return saved


def _holds(directory: int, name: str, held: os.stat_result, content: bytes) -> bool:
    """Tell whether the file is the one that was looked at and has this content already."""
    if held.st_size != len(content):
        return False
    fd = files.open_regular(directory, name)
    if fd is None:
        return False
    with files.reader(fd) as stream:
        if not os.path.samestat(files.fstat(fd), held) or stream.read(len(content) + 1) != content:
            return False
        files.sync(fd)
    return True


def _without_rights(xattrs: Xattrs) -> Xattrs:
    """Return the attributes that a file with other content may have as well."""
    assert CAPABILITY_NAME.startswith(_SECURITY)
    return tuple(item for item in xattrs if not item[0].startswith(_SECURITY))


@dataclass(slots=True, kw_only=True)
class CommandOutput:
    """Passes lines of a command on, and remembers the paths that it had trouble with."""

    log: RunLog
    suspects: diagnosis.Suspects

    def __call__(self, line: str) -> None:
        """Take a line."""
        self.log.line(line)
        self.suspects.take(line)


@contextlib.contextmanager
def asked(
    image: Image, volumes: Volumes, step: Step, recorded: ImageHeader | None
) -> Iterator[Sequence[StepAction]]:
    """Give what *step* wants done on the volumes as they are."""
    with views.opened_views(image, volumes, recorded) as (template, volume):
        yield tuple(step.plan(volume, template))


def perform(
    context: Context,
    step: str,
    action: Write | Remove | MakeLink | Warn | Refuse,
    *,
    run: str,
    output: RunLog,
) -> list[str]:
    """Carry out what a step wants done that is no command; return what is to be told.

    Raises:
        IpaVolumeError: If it refuses, or something on the volume is in the way.
    """
    match action:
        case Warn():
            text = api.told(action)
            output.say(f"warning: {text}")
            return [text]
        case Refuse():
            code = declaration.check_refusal(step, action, context.options.allow)
            return [f"overridden: {code}"]
        case Write() | Remove() | MakeLink():
            mounts = context.image.header.volumes
            link = moved_elsewhere(action, context.volumes, mounts)
            if link:
                text = f"{step} left {action.path} as it is: it lies behind the link {link}"
                output.say(f"warning: {text}")
                return [text]
            output.say(api.describe(action))
            saved = perform_file_action(action, context.volumes, mounts, run=run)
            if saved:
                output.say(f"kept what was there as {saved}")
            if isinstance(action, Remove) and _is_there(
                context.volumes, place(action.path, mounts)
            ):
                text = f"{step} left {action.path}: something was put there, or into it"
                output.say(f"warning: {text}")
                return [text]
            return []


def _is_there(volumes: Volumes, where: str) -> bool:
    with volumes.tree() as tree:
        return tree.stat(where) is not None


def run_command(
    image: Image, step: str, command: Command, output: RunLog, links: Links
) -> list[str]:
    """Run a step's command; return what is to be told of it.

    That is what it put in the place of the image's links, what it could not write to although it
    ended well, and its failure where it may fail.

    Raises:
        CommandFailedError: If it fails or does not end in time, or put something in the place of a
            link that cannot be taken over.
        VolumeIOError: If what it put there cannot be taken over now.
    """
    words = shlex.join(command.words)
    output.say(f"running {in_a_line(command.words)} ({command.reason})")
    lines = CommandOutput(log=output, suspects=diagnosis.Suspects(words))
    try:
        ended = processes.run_command(
            command.words,
            timeout_s=command.timeout_s,
            output=lines,
            env={**os.environ, "PATH": PATH},
        )
    except StoppedError:
        links.take_over(failed=True)
        raise
    if ended.left:
        left = count_text(ended.left, "process", "processes")
        output.say(f"{command.words[0]} left {left} running: ended")
    succeeded = ended.status == 0 and not ended.timed_out
    taken = links.take_over(failed=not succeeded)
    messages = [f"{step}: {text}" for text in (*taken.messages, *taken.faults)]
    if succeeded:
        if taken.faults and not command.may_fail:
            raise CommandFailedError(
                output.clean(f"{step}: {words} ended well, but {taken.faults[0]}"),
                code="replaced-link",
                hint="Correct the step, or mask it; the link is there again in a new container.",
                path=command.words[0],
            )
        if missed := lines.suspects.read_only(image):
            messages.append(f"{step}: {words}: {missed.hint}")
            output.say(f"warning: {messages[-1]}")
        return messages
    message = f"{step}: {words} {describe_end(ended, command.timeout_s)}"
    if command.may_fail:
        output.say(f"warning: {message}; going on, as the step allows it")
        return [message, *messages]
    cause = lines.suspects.cause(image)
    hint = (
        cause.hint
        if cause
        else f"Read {output.path} to its end and remove the cause; the next start goes on from "
        "there. To look around in the container meanwhile, start it with "
        "IPAVOLUME_ON_FAILURE=hold."
    )
    raise CommandFailedError(
        output.clean(message),
        code=cause.code if cause else "",
        hint=hint,
        details=[output.clean(line) for line in ended.lines],
        path=cause.path if cause else command.words[0],
    )
