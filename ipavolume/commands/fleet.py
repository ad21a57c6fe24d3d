"""``list``: many volumes, each in a line; what each says of itself, and what its image says of it.

Nothing is changed, no volume is locked, and an engine is only asked what it has. With an image
its state is judged as a start would; a plan is made by ``check``.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Final

from ipavolume.commands import check, conflicts, status
from ipavolume.commands.named import is_there
from ipavolume.commands.places import alone
from ipavolume.context import Context, Options
from ipavolume.engines.copy import ImageCopy, opened_image
from ipavolume.engines.engine import NAMES, Engine, NamedVolume, User
from ipavolume.engines.host import Sight
from ipavolume.engines.quadlet import Quadlet, directories_of_user, read_quadlets
from ipavolume.errors import (
    EXIT_IO,
    CannotCreateError,
    IpaVolumeError,
    StoppedError,
    VolumeIOError,
    told_as,
    unforeseen,
)
from ipavolume.image.image import Image
from ipavolume.linux import files, signals
from ipavolume.model.files import STATE_DIRECTORY, VERSION_NAME
from ipavolume.model.values import dataclass
from ipavolume.plan.verdict import further_of
from ipavolume.volume import members, snapshots
from ipavolume.volume.facts import mark_of_kept, read_facts
from ipavolume.volume.members import Volume
from ipavolume.volume.tree import walk

_MOUNT: Final = "/data"
_WITH_QUADLETS: Final = "podman"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A volume of the list, before it is looked at.

    Attributes:
        name: What people call it.
        directory: Where it is on this host.
        engine: The engine that has it, or "".
        container: A container that uses it, or "".
        image: The image that it is to be judged by, or "".
        quadlet: The file that says which image that is, or "".
        others: The further volumes of that container, by mount.
        volume: What the engine says of it, or ``None``.
    """

    name: str
    directory: str
    engine: str = ""
    container: str = ""
    image: str = ""
    quadlet: str = ""
    others: Mapping[str, str] = field(default_factory=dict)
    volume: NamedVolume | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A volume of the list.

    Attributes:
        place: Which it is.
        application: Whose state it keeps, or "".
        uuid: Its id, or "".
        primary: Of a further volume of an application the id of its first one; otherwise "".
        recorded: The recorded image: its id and its name, each or "".
        state: Its state, as ``check`` has it; "" where no image is known to judge it by.
        reason: Why, or why there is none.
        last_run: The last run of its history, or ``None``.
        open: A run is open.
        failures: How often in a row an image failed to bring it up.
        verified: The last run was verified; ``None``: there was nothing to verify.
        conflicts: Number of copies that wait for somebody.
        snapshots: Number of snapshots.
        bytes: What its content takes on the disk, in allocated blocks; ``None``: not counted.
        code: Why it cannot be looked at or not be started, as a code, or "".
    """

    place: Place
    application: str = ""
    uuid: str = ""
    primary: str = ""
    recorded: tuple[str, str] = ("", "")
    state: str = ""
    reason: str = ""
    last_run: Mapping[str, Any] | None = None
    open: bool = False
    failures: int = 0
    verified: bool | None = None
    conflicts: int = 0
    snapshots: int = 0
    bytes: int | None = None
    code: str = ""


# -- which there are ---------------------------------------------------------------------


def places(choice: str, directories: Sequence[str], *, image: str = "") -> list[Place]:
    """Return what is to be listed: the directories, or all volumes of the engines.

    Args:
        choice: Name of the engine, "" for every one that answers.
        directories: Given directories; with some no engine is asked.
        image: The image to judge all of them by, or "".

    Raises:
        CommandFailedError: If an engine does not answer, or none is installed.
        VolumeIOError: If the volumes of an engine are on another host.
    """
    quadlets = read_quadlets(directories_of_user())
    if directories:
        given = [Place(name=one, directory=one, image=image) for one in directories]
        return [_by_quadlet(place, os.path.realpath(place.directory), quadlets) for place in given]
    found: list[Place] = []
    absent: list[IpaVolumeError] = []
    names = (choice,) if choice else NAMES
    for name in names:
        engine = Engine(name)
        try:
            users = engine.users()
            volumes = engine.volumes()
            _check_host(engine, volumes)
            for one in volumes:
                place = _place(engine, one, users, image)
                if engine.name == _WITH_QUADLETS and not (place.container or image):
                    # What its label says counts where no quadlet says anything.
                    told = _by_quadlet(replace(place, image=""), place.name, quadlets)
                    place = told if told.quadlet else place
                found.append(place)
        except IpaVolumeError as err:
            # One that is there and does not answer has volumes that would just be missing.
            if err.code != "no-command" or choice:
                others = [one for one in names if one != name]
                if others and err.code in ("no-engine", "no-volume"):
                    err.hint = f"{err.hint.rstrip('.')}. Without its volumes: --engine {others[0]}"
                raise
            absent.append(err)
    if len(absent) == len(names):
        raise absent[0]
    return found


def _check_host(engine: Engine, volumes: Sequence[NamedVolume]) -> None:
    """Make sure that the directories of an engine's volumes are on this host: there at any time.

    Raises:
        VolumeIOError: If none is here, or something else is in the place of one.
    """
    sight = Sight.of(engine)
    plain = [one for one in volumes if one.is_directory]
    if sight.elsewhere:
        raise _elsewhere(engine, sight.elsewhere, next(iter(plain or volumes), None))
    gone = {one.name for one in plain if _is_absent(one.directory)}
    for one in plain:
        if one.name not in gone and (why := sight.why_not(one.directory)):
            raise _elsewhere(engine, why, one)
    if not gone or len(gone) < len(plain):
        return
    # All that there were may have been removed just now.
    for one in engine.volumes():
        if one.name in gone:
            why = "it is on another one, or sees other directories than this command"
            raise _elsewhere(engine, why, one)


def _elsewhere(engine: Engine, why: str, one: NamedVolume | None) -> VolumeIOError:
    place = f" ({one.directory!r})" if one is not None else ""
    name = shlex.quote(one.name) if one is not None else "VOLUME"
    return VolumeIOError(
        f"the volumes of {engine.name} are not on this host{place}: {why}",
        code="no-volume",
        path=one.directory if one is not None else "",
        hint="Run it on the engine's host and not in a container. One of them says what it "
        f"is from inside: {engine.name} run --rm -v {name}:/data:ro IMAGE ipavolume status",
    )


def _place(engine: Engine, volume: NamedVolume, users: Sequence[User], image: str) -> Place:
    using = [user for user in users if volume.name in dict(user.volumes).values()]
    # Who only has it, too, as a backup, does not have it where its images have a volume.
    user = max(using, key=lambda one: (_is_at(one, volume.name), one.is_running), default=None)
    place = Place(name=volume.name, directory=volume.directory, engine=engine.name, volume=volume)
    if user is None:
        return replace(place, image=image or volume.image)
    return replace(
        place,
        container=user.name,
        image=image or user.image_id or volume.image,
        others=dict(user.volumes),
    )


def _by_quadlet(place: Place, name: str, quadlets: Sequence[Quadlet]) -> Place:
    """Return *place* to be judged by the image of a quadlet that has it, where nothing else says.

    Args:
        place: The volume.
        name: What a quadlet calls it: its name, or its directory.
        quadlets: Those that there are.
    """
    using = [one for one in quadlets if name in one.volumes.values()]
    if place.image or not using:
        return place
    # As with containers: who only has it, too, as a backup, does not have it there.
    one = max(using, key=lambda quadlet: quadlet.volumes.get(_MOUNT) == name)
    return replace(place, image=one.image, quadlet=one.path, others=one.volumes)


def _is_ours(volume: Volume) -> bool:
    """Tell whether a volume of an engine has our mark, or a legacy one.

    Where the engine maps users they are not root's here: what that means is said of each volume.
    """
    if mark_of_kept(volume):
        return True
    owner = files.fstat(volume.fd).st_uid
    marks = (files.lstat(volume.fd, name) for name in (STATE_DIRECTORY, VERSION_NAME))
    return owner != 0 and any(mark is not None and mark.st_uid == owner for mark in marks)


def _is_at(user: User, name: str) -> bool:
    """Tell whether a container has a volume where volumes of images mostly are."""
    return any(place == _MOUNT and one == name for place, one in user.volumes)


# -- looking -----------------------------------------------------------------------------


class Fleet:
    """Looks at volumes; an image is read once, however many volumes are judged by it."""

    def __init__(self, *, count_bytes: bool, all_: bool) -> None:
        """Begin.

        Args:
            count_bytes: Count what each takes, which reads every directory of it.
            all_: Volumes that nothing says to be ours are listed as well.
        """
        self._count_bytes = count_bytes
        self._all = all_
        self._copies: dict[tuple[str, str], tuple[ImageCopy, tuple[str, ...]] | IpaVolumeError] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Fleet:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the copies of images."""
        self._stack.close()

    def rows(self, places_: Sequence[Place]) -> list[Row]:
        """Return a row for each volume; what is wrong with one does not stop the others.

        Raises:
            StoppedError: If a signal asked for an end.
        """
        rows = list(self._rows(places_))
        # A further volume has no more than an id; its first one has the name.
        names = {(row.uuid, row.recorded[0]): row.recorded[1] for row in rows}
        return [
            replace(row, recorded=(row.recorded[0], names.get((row.primary, row.recorded[0]), "")))
            if row.primary
            else row
            for row in rows
        ]

    def _rows(self, places_: Sequence[Place]) -> Iterator[Row]:
        directories = {(place.engine, place.name): place.directory for place in places_}
        for place in places_:
            signals.check()
            try:
                with told_as(unforeseen):
                    identity = self._looked_at(place)
                    if identity is None:
                        continue
                    row = self._row(place)
                    row = self._judged(row, directories) if place.image else row
                    if _identity(place) != identity:
                        # What is not mounted any more looks like an empty one.
                        raise _gone(place, "was unmounted or removed meanwhile")
                    yield row
            except StoppedError:
                raise
            except IpaVolumeError as err:
                yield Row(place=place, code=err.code, reason=str(err))

    def _looked_at(self, place: Place) -> tuple[int, int] | None:
        """Return device and inode of a volume's directory; ``None``: it is none of ours.

        Raises:
            IpaVolumeError: If it cannot be looked at.
        """
        if place.volume is not None and place.volume.fault:
            raise VolumeIOError(place.volume.fault, code="engine")
        try:
            volume = members.open_volume(_MOUNT, place.directory)
        except VolumeIOError:
            if place.engine and not self._all and _is_absent(place.directory):
                # One that is only mounted while a container uses it; whose it is nobody can tell.
                return None
            raise
        try:
            if place.engine and not self._all and not _is_ours(volume):
                return None
            st = files.fstat(volume.fd)
        finally:
            os.close(volume.fd)
        if place.volume is not None and not is_there(place.volume):
            raise _gone(place, "is only mounted while a container uses it")
        return st.st_dev, st.st_ino

    def _row(self, place: Place) -> Row:
        """Return what a volume says of itself."""
        card = status.read_card(place.directory)
        recorded, last = card.recorded or {}, card.last_run
        verified = None
        if card.verified is not None and last and card.verified["run"] == last["run"]:
            result = card.verified["result"]
            # One that is not answered yet is neither.
            answers = {"passed": True, "failed": False, "pending": None}
            verified = answers[result] if result else not card.verified["failed"]
        with alone(place.directory) as volumes:
            waiting = len(conflicts.conflicts(volumes))
            facts = read_facts(volumes.primary)
            uuid, identity = snapshots.uuid_of(facts), facts.identity
            primary = ""
            if identity is not None and identity.primary != identity.uuid:
                primary = identity.primary
            kept = sum(snapshots.is_of(one, uuid) for one in snapshots.read_snapshots(volumes))
            size = _bytes(volumes.primary) if self._count_bytes else None
        return Row(
            place=place,
            application=recorded.get("application", ""),
            uuid=recorded.get("volume", {}).get("uuid", ""),
            primary=primary,
            recorded=(recorded.get("id") or "", recorded.get("name", "")),
            last_run=last,
            open=card.open,
            failures=0 if card.attempts is None else card.attempts["count"],
            verified=verified,
            conflicts=waiting,
            snapshots=kept,
            bytes=size,
            reason="" if place.image else "no image is known to judge it by",
        )

    def _judged(self, row: Row, directories: Mapping[tuple[str, str], str]) -> Row:
        place = row.place
        try:
            copy, mounts = self._copy(place)
        except IpaVolumeError as err:
            return replace(row, reason=str(err), code=err.code)
        where = {
            mount: directories.get((place.engine, name), name)
            for mount, name in place.others.items()
            if mount in mounts and (name.startswith("/") or (place.engine, name) in directories)
        }
        primary = mounts[0]
        if place.others and _real(where.get(primary)) != _real(place.directory):
            # Of a container with several volumes it is the first one that says what they are.
            whose = place.container or place.quadlet
            return replace(row, reason=f"belongs to the volume at {primary} of {whose}")
        with alone(place.directory) as volumes:
            uuid = further_of(read_facts(volumes.primary))
        if uuid:
            return replace(row, reason=f"a further one, which belongs to the primary volume {uuid}")
        options = Options(
            root=copy.root,
            called=copy.reference,
            volumes={**where, primary: place.directory} if where else {"": place.directory},
        )
        with Context(options) as context:
            state, reason, code = check.state_of(context)
        return replace(row, state=str(state), reason=reason, code=code)

    def _copy(self, place: Place) -> tuple[ImageCopy, tuple[str, ...]]:
        """Return the copy of a volume's image, and the mounts of its volumes that are kept.

        Raises:
            IpaVolumeError: If it cannot be had, or has no manifest.
        """
        key = (place.engine, place.image)
        if key not in self._copies:
            try:
                _, copy = self._stack.enter_context(opened_image(place.engine, place.image))
                with Image(copy.root, called=copy.reference) as image:
                    specs = (one.mount for one in image.header.volumes if not one.volatile)
                    self._copies[key] = copy, tuple(specs)
            except StoppedError:
                raise
            except IpaVolumeError as err:
                self._copies[key] = err
        found = self._copies[key]
        if isinstance(found, IpaVolumeError):
            raise found
        return found


def _real(directory: str | None) -> str:
    return "" if directory is None else os.path.realpath(directory)


def _identity(place: Place) -> tuple[int, int] | None:
    """Return device and inode of what is now where a volume is, or ``None``."""
    try:
        st = os.stat(place.directory)
    except OSError:
        return None
    return st.st_dev, st.st_ino


def _gone(place: Place, what: str) -> VolumeIOError:
    whose = f" of {place.engine}" if place.engine else ""
    return VolumeIOError(
        f"the volume {place.name!r}{whose} {what}",
        code="not-mounted",
        path=place.directory,
        hint="Try again while a container uses it, or look at what happens to it.",
    )


def _is_absent(directory: str) -> bool:
    try:
        os.lstat(directory)
    except FileNotFoundError:
        return True
    except OSError:
        # Where this user cannot look, there may be one.
        return False
    return False


def _bytes(volume: members.Volume) -> int:
    """Return the allocated bytes of all that is on a volume but ours."""
    looked = walk(volume.fd, volume.mount, mounted=(), unreadable=lambda *_: None)
    # Each name of a file has its share.
    return sum(st.st_blocks * 512 // _names(st) for _, _, _, st in looked)


def _names(st: os.stat_result) -> int:
    return 1 if stat.S_ISDIR(st.st_mode) else max(st.st_nlink, 1)


def status_of(rows: Sequence[Row]) -> int:
    """Return the exit status: not 0 where a volume could not be looked at."""
    return EXIT_IO if any(row.code and not row.state for row in rows) else 0


def write(path: str, content: str) -> None:
    """Put *content* into the file *path*, complete or not at all: others read it at any time.

    Raises:
        CannotCreateError: If that fails.
    """
    above, name = os.path.split(path)
    try:
        directory = os.open(above or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            st = files.lstat(directory, name)
            if st is not None and not stat.S_ISREG(st.st_mode):
                # /dev/stdout would be another thing from then on, for everybody.
                raise CannotCreateError(
                    f"{path!r} is no file, and would be replaced by one",
                    hint="Name a file: --output FILE; without it standard output is written to.",
                )
            files.write_file(directory, name, content.encode("utf-8", "surrogateescape"))
        finally:
            os.close(directory)
    except OSError as err:
        raise CannotCreateError(
            f"cannot write {path!r}: {err.strerror}", hint="Name another file: --output FILE."
        ) from err
