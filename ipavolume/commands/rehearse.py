"""``rehearse``: the real upgrade of a copy, in a container that is cut off from everything.

The volumes themselves are only read. What the container inside does is
:mod:`ipavolume.commands.rehearsing`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Final

from ipavolume.apply import replication
from ipavolume.commands import (
    check,
    clones,
    following,
    pausing,
    rehearsing,
    status,
)
from ipavolume.commands.check import Inspection, Severity
from ipavolume.commands.clones import Clones, Keep
from ipavolume.commands.named import NamedPlace, Wanted, place_of
from ipavolume.commands.pausing import Use, Users
from ipavolume.context import Options, volumes_by_mount
from ipavolume.engines.copy import copied, opened_image
from ipavolume.engines.engine import LED_BY, Engine, runs
from ipavolume.engines.host import Sight
from ipavolume.engines.likeness import LeftOut, Place, likeness
from ipavolume.errors import (
    EXIT_IO,
    EXIT_UPGRADE_NEEDED,
    CommandFailedError,
    ConfigurationError,
    IpaVolumeError,
    LockedError,
    StoppedError,
    UnsafeVolumeError,
    UsageError,
    VolumeIOError,
)
from ipavolume.image.image import Image
from ipavolume.linux import clock, cloning, files, mounts, signals, trees
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.images import ImageHeader
from ipavolume.model.progress import Meter, Progress, count_text, size_text
from ipavolume.model.values import dataclass
from ipavolume.plan.rehearsed import Ending, Rehearsed
from ipavolume.volume import attempts, members, rehearsal, ways
from ipavolume.volume.facts import read_facts
from ipavolume.volume.failures import attempt
from ipavolume.volume.layout import REHEARSAL, SNAPSHOTS, UNDONE
from ipavolume.volume.lock import WAIT, Lock
from ipavolume.volume.members import Volume
from ipavolume.volume.tree import walk

_PAUSE_S: Final = 10.0
_PAUSED_BYTES: Final = 100 << 20
"""What is copied in that time on any disk; with reflinks it may be more."""
_SPARE: Final = 0.1
_SPARE_BYTES: Final = 64 << 20
_SELINUX: Final = "/sys/fs/selinux/enforce"
_NOT_COPIED: Final = tuple(f"{STATE_DIRECTORY}/{name}" for name in (SNAPSHOTS, UNDONE))
"""What going back is made of, which no rehearsal does; it may be as much as all else."""
NOT_SHOWN: Final = (
    "replication: what other servers make of what the upgrade writes",
    "renewal of certificates, trusts, and whatever else asks another machine",
    "snapshots and going back: none is made, and those of the volume are not copied",
    "clients, and how it does under their load",
)
"""What no rehearsal can show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be rehearsed.

    Attributes:
        image: Name or id of the image.
        engine: Name of the engine, or "" for the first that has it.
        volumes: The volumes.
        directory: Where the copies are made, or "" for beside the primary volume.
        live: Copy although somebody uses the volumes, without a pause.
        keep: Keep the copies.
        limit_s: Seconds until the application has to be ready.
        run_options: Further options for the container.
        options: What the operator asks for besides.
    """

    image: str
    engine: str
    volumes: Wanted
    directory: str = ""
    live: bool = False
    keep: bool = False
    limit_s: int = 3600
    run_options: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """How the copies were made.

    Attributes:
        files: Number of files in them.
        bytes: What they take, in allocated blocks.
        copied: Number of files that share no blocks with the original.
        consistent: What the copies can be relied on for: see :data:`HOW`.
        seconds: How long it took.
        grown_bytes: By how much what they take has grown by the upgrade.
    """

    files: int
    bytes: int
    copied: int
    consistent: str
    seconds: int
    grown_bytes: int = 0


HOW: Final = {
    "locked": "nobody used the volume",
    "paused": "taken in a pause of its container: as after a power failure",
    "live": "taken while it was in use: files may not fit each other, which alone may fail",
}
"""How copies were taken, and what that means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a rehearsal came to.

    Attributes:
        volume: The primary volume, as the operator named it.
        image: The image, as plain data.
        rehearsed: How it ended, and why.
        like: The container that it was like, or "".
        left_out: What it had not of that one.
        network: ``internal`` or ``none``; "" where it was not started.
        copies: How the copies were made; ``None`` where none were.
        runs: The runs that it recorded, as in the history.
        agreements: Replication agreements that were disabled in the copy.
        kept: Where the copies are, or "".
    """

    volume: str
    image: Mapping[str, Any]
    rehearsed: Rehearsed
    like: str = ""
    left_out: tuple[LeftOut, ...] = ()
    network: str = ""
    copies: Copied | None = None
    runs: tuple[Mapping[str, Any], ...] = ()
    agreements: tuple[str, ...] = ()
    kept: str = ""

    @property
    def not_shown(self) -> tuple[str, ...]:
        """What no rehearsal can show."""
        return NOT_SHOWN

    @property
    def how(self) -> str:
        """What the copies can be relied on for."""
        return HOW[self.copies.consistent] if self.copies is not None else ""

    @property
    def review(self) -> list[tuple[str, str]]:
        """Paths and their copies that somebody has to look at, ``.rpmnew`` and the like."""
        return [(row[0], row[1]) for run in self.runs for row in run.get("copies", ())]

    @property
    def warnings(self) -> list[str]:
        """What steps and scriptlets had to tell."""
        return [text for run in self.runs for text in run.get("warnings", ())]


def rehearse(wish: Wish, say: Progress) -> Report:
    """Rehearse an upgrade; whatever happens, nothing is left of it but what is to be kept.

    Raises:
        IpaVolumeError: If there is no rehearsal: image, engine or volume cannot be used, there is
            no room, somebody uses the volume and it cannot be copied in a pause.
        StoppedError: If a signal asked for an end.
    """
    keep = Keep(wanted=wish.keep)
    with opened_image(wish.engine, wish.image) as (engine, copy):
        _check_here(engine)
        if not copy.is_prepared:
            raise ConfigurationError(
                f"the image {wish.image!r} was not prepared by ipavolume: it cannot do a rehearsal",
                code="no-manifest",
                hint="Name another image, or run ipavolume prepare when this one is built.",
            )
        with Image(copy.root, called=wish.image) as image:
            header, profile = image.header, image.config.profile
        given, named = _places(engine, wish.volumes, header)
        users = Users.of(engine, given)
        more, more_named = _places_in(engine, users, header, given)
        named |= more_named
        everywhere = {**given, **more}
        known = [one.mount for one in header.volumes]
        places = {mount: everywhere[mount] for mount in known if mount in everywhere}
        missing = [one.mount for one in header.volumes if not one.volatile]
        missing = [mount for mount in missing if mount not in places]
        if missing:
            raise UsageError(
                f"the image has a volume at {missing[0]}, and nobody said where that is here, nor "
                "does a container that uses the others",
                hint=f"Name it: --volume {missing[0]}=DIR",
            )
        report = Report(
            volume=next(iter(given.values())) if not wish.volumes.names else wish.volumes.names[0],
            image=status.image_data(header),
            rehearsed=Rehearsed(ending=Ending.FAILED, message=""),
            like=users.name,
        )
        above = _above(wish.directory, places)
        clones.clean(engine, above, say)
        refused = _refused(wish, copy.root, places, say)
        for one in named.values():
            one.check()
        if refused is not None:
            return replace(report, rehearsed=refused)
        try:
            with clones.made(above, keep) as made:
                rehearsing_ = _Rehearsal(
                    wish,
                    engine,
                    copy.image_id,
                    header,
                    profile,
                    given,
                    places,
                    named,
                    users,
                    made,
                    say,
                )
                report = rehearsing_.run(report, keep)
        except IpaVolumeError as err:
            if keep.path:
                err.details = (*err.details, f"the copies are kept in {keep.path!r}")
            raise
        return replace(report, kept=keep.path)


def _check_here(engine: Engine) -> None:
    """Make sure that an engine can have seen this host's volumes.

    Who uses a volume is told by its path, and there is something else at it on another host.

    Raises:
        VolumeIOError: If it is on another one.
    """
    if why := Sight.of(engine).elsewhere:
        raise VolumeIOError(
            f"{engine.name} cannot rehearse with volumes of this host: {why}",
            code="no-volume",
            hint=f"Run it on the engine's host. {LED_BY[engine.name]} leads there; --engine "
            "chooses another one.",
            state="the volume was not touched",
        )


def _places(
    engine: Engine, wanted: Wanted, header: ImageHeader
) -> tuple[dict[str, str], dict[str, NamedPlace]]:
    """Return where the volumes are that the operator named, by mount, the primary one first.

    Returns:
        All of them, and those that have names.
    """
    known = [one.mount for one in header.volumes if not one.volatile]
    given = list(wanted.places)
    named = {}
    for one in wanted.names:
        mount, _, name = one.rpartition("=")
        place = place_of(engine.name, name)
        named[mount or known[0]] = place
        given.append((mount, place.directory))
    found = volumes_by_mount((mount or known[0], os.path.realpath(place)) for mount, place in given)
    unknown = set(found) - set(known)
    if unknown:
        raise UsageError(
            f"the image has no volume {sorted(unknown)[0]!r}; it has " + ", ".join(known)
        )
    return {mount: found[mount] for mount in known if mount in found}, named


def _above(directory: str, places: Mapping[str, str]) -> str:
    """Return the directory in which the copies are made.

    Raises:
        UsageError: If it is in a volume.
        UnsafeVolumeError: If others can change where its path leads to.
    """
    above = os.path.realpath(directory or os.path.dirname(next(iter(places.values()))))
    for place in places.values():
        if f"{above}/".startswith(f"{place}/"):
            raise UsageError(
                f"the copies cannot be made in the volume itself: {above!r}",
                hint="Name a directory outside of it: --directory DIR.",
            )
    if ":" in above:
        raise UsageError(f"no engine mounts what has a colon in its path: {above!r}")
    if fault := ways.changeable_by_others(above):
        raise UnsafeVolumeError(
            f"others can change where {above!r} leads to: {fault}",
            code="shared-path",
            path=above,
            hint="Name a directory of root's for the copies: --directory DIR.",
        )
    return above


def _refused(wish: Wish, root: str, places: Mapping[str, str], say: Progress) -> Rehearsed | None:
    """Return what refuses a start with the image, as far as that can be told without one.

    Raises:
        VolumeIOError: If this user, here, cannot look: a start is another one, elsewhere.
    """
    options = replace(wish.options, root=root, called=wish.image, volumes=places, rehearsal=True)
    found: Inspection = check.inspect(options, say)
    if found.exit_status in (0, EXIT_UPGRADE_NEEDED):
        return None
    wrong = [one for one in found.findings if one.severity is Severity.ERROR]
    code, hint = (wrong[-1].code, wrong[-1].hint) if wrong else ("", "")
    if found.state is None and found.exit_status == EXIT_IO:
        raise VolumeIOError(found.reason, code=code, hint=hint)
    message = f"a start is refused, the volume is {found.state or 'unknown'}: {found.reason}"
    return Rehearsed(
        ending=Ending.FAILED, code=code, message=message, lines=(hint,) if hint else ()
    )


def take(
    lock: Lock, volumes: Sequence[Volume], say: Progress, *, allow: Collection[str] = ()
) -> None:
    """Take the lock for the copy.

    Raises:
        LockedError: If another one has it: a rehearsal waits for nobody.
    """
    try:
        lock.take(volumes, say, timeout_s=0, allow=allow)
    except LockedError as err:
        err.hint = err.hint.replace(WAIT, "copy while it is written to (--live)")
        raise


# -- who uses the volumes ----------------------------------------------------------------


def _places_in(
    engine: Engine, users: Users, header: ImageHeader, given: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, NamedPlace]]:
    """Return where the volumes are that a container uses and the operator did not name, as above.

    Raises:
        VolumeIOError: If one is only mounted while the container runs, and it does not.
    """
    wanted = {one.mount for one in header.volumes if not one.volatile} - set(given)
    found = {}
    named = {}
    for one in pausing.mounted_in(users.found):
        mount, source, name = one["Destination"], one["Source"], one.get("Name")
        if mount not in wanted:
            continue
        if one.get("Type") == "volume" and isinstance(name, str) and name:
            named[mount] = place_of(engine.name, name)
            source = named[mount].directory
        found[mount] = os.path.realpath(source)
    return found, named


# -- one rehearsal -----------------------------------------------------------------------


class _Rehearsal:
    """A rehearsal, from the copies to what came of them."""

    def __init__(
        self,
        wish: Wish,
        engine: Engine,
        image_id: str,
        header: ImageHeader,
        profile: str,
        given: Mapping[str, str],
        places: Mapping[str, str],
        named: Mapping[str, NamedPlace],
        users: Users,
        made: Clones,
        say: Progress,
    ) -> None:
        self._wish = wish
        self._engine = engine
        self._image_id = image_id
        self._header = header
        self._profile = profile
        self._given = given
        self._places = places
        self._named = named
        self._first = users
        self._made = made
        self._say = say
        self._names = {mount: str(number) for number, mount in enumerate(places)}

    def run(self, report: Report, keep: Keep) -> Report:
        with contextlib.ExitStack() as stack:
            # Closed after the volumes: see its module.
            lock = stack.enter_context(Lock(inside=False))
            volumes = []
            for mount, place in self._places.items():
                volume = members.open_volume(mount, place)
                stack.callback(os.close, volume.fd)
                volumes.append(volume)
                if mount in self._named:
                    self._named[mount].check(volume.fd)
            known = self._known_runs()
            copied = self._copy(volumes, lock)
            disabled = self._prepare(volumes)
            keep.marked = True
        with (
            clones.in_memory(self._made) as secret,
            clones.removed(self._engine, self._made, self._say),
        ):
            network, left_out = self._create(secret)
            self._say(f"the rehearsal begins, in a container with network {network}")
            rehearsed = following.follow(
                self._engine, self._made.name, limit_s=self._wish.limit_s, say=self._say
            )
        taken = sum(map(self._taken, self._names.values()))
        return replace(
            report,
            rehearsed=rehearsed,
            left_out=left_out,
            network=network,
            copies=replace(copied, grown_bytes=taken - copied.bytes),
            runs=tuple(run for run in self._runs() if run["run"] not in known),
            agreements=disabled,
        )

    # -- copies ----------------------------------------------------------------------

    def _copy(self, volumes: Sequence[Volume], lock: Lock) -> Copied:
        size, shares = self._check_room(volumes)
        begun = time.monotonic()
        if self._wish.live:
            how = "live"
            found = self._clone_all(volumes, size, lambda: None)
        else:
            how, found = self._clone_at_rest(volumes, size, lock, shares=shares)
        self._say(
            f"copied {count_text(sum(one.files for one in found), 'file')}, "
            f"{size_text(sum(one.bytes for one in found))}: {HOW[how]}"
        )
        return Copied(
            files=sum(one.files for one in found),
            bytes=sum(map(self._taken, self._names.values())),
            copied=sum(one.copied for one in found),
            consistent=how,
            seconds=round(time.monotonic() - begun),
        )

    def _check_room(self, volumes: Sequence[Volume]) -> tuple[int, bool]:
        """Return how much the volumes take, and whether a copy shares that with them.

        Raises:
            VolumeIOError: If there is no room for the copies.
        """
        size = sum(map(size_of, volumes))
        shares = cloning.can_reflink(self._made.fd) is True and all(
            files.statvfs(volume.fd).f_fsid == files.statvfs(self._made.fd).f_fsid
            for volume in volumes
        )
        room = files.statvfs(self._made.fd)
        free = room.f_bavail * room.f_frsize
        needed = int(size * (_SPARE if shares else 1 + _SPARE)) + _SPARE_BYTES
        if free < needed:
            raise VolumeIOError(
                f"{self._made.above!r} has {size_text(free)} free, the copies and their upgrade "
                f"need {size_text(needed)}",
                code="no-space",
                hint="Make room there, or name another place for them: --directory DIR.",
                path=self._made.above,
                state="the volume was not touched",
            )
        return size, shares

    def _clone_at_rest(
        self, volumes: Sequence[Volume], size: int, lock: Lock, *, shares: bool
    ) -> tuple[str, list[cloning.Cloned]]:
        """Clone what nobody changes meanwhile, or not at all; return how, and the clones.

        Who uses the volumes is asked anew: since it was asked first they were judged and counted.

        Raises:
            LockedError: If somebody changes them, or those who do cannot be paused that long.
        """
        first = self._still_used_alike()
        names = " and ".join(one.name for one in first.running)
        if names and not shares and size > _PAUSED_BYTES:
            raise LockedError(
                f"the volume is in use by {names}, and a copy of "
                f"{size_text(size)} may take longer than the {_PAUSE_S:.0f} s that its container "
                "can be paused",
                code="in-use",
                hint="Stop it first; or copy it while it is written to (--live), with files that "
                "may not fit each other; or keep volumes on xfs with reflinks or btrfs.",
                state="the volume was not touched",
            )

        def hurry() -> None:
            if before.running and time.monotonic() - began > _PAUSE_S:
                raise LockedError(
                    f"the volume is in use by {names}, and could not be copied within "
                    f"the {_PAUSE_S:.0f} s that its container can be paused",
                    code="in-use",
                    hint="Stop it first; or copy it while it is written to: --live.",
                    state="the volume was not touched",
                )

        began = time.monotonic()
        with pausing.all_paused(self._engine, first, self._places, self._say) as before:
            names = " and ".join(one.name for one in before.running)
            if not before.running:
                take(lock, volumes, self._say, allow=self._wish.options.allow)
                lock.only_copy()
            self._refuse_changes(before, before)
            found = self._clone_all(volumes, size, hurry)
            hurry()
            self._refuse_changes(before, self._users())
        return "paused" if before.running else "locked", found

    def _users(self) -> Users:
        return Users.of(self._engine, self._given, self._places)

    def _still_used_alike(self) -> Users:
        """Return who uses the volumes now.

        Raises:
            LockedError: If that is another container than the one that the rehearsal is to be like.
        """
        now = self._users()
        if runs(now.found) and now.found.get("Id") != self._first.found.get("Id"):
            raise LockedError(
                f"{now.name} was started while the volume was looked at, and is who uses it now",
                code="in-use",
                hint="Rehearse again, then it will be like that one.",
                state="the volume was not touched",
            )
        return now

    def _refuse_changes(self, before: Users, after: Users) -> None:
        """Make sure that nobody changed the volumes between two looks.

        Raises:
            LockedError: If a container may have.
        """
        is_paused = bool(before.running)
        for one, what in pausing.changed(before, after, paused=is_paused):
            if not is_paused and self._waits_for_locks(one):
                self._say(f"{one.name} {what} while the volume was copied, and finds it locked")
                continue
            raise LockedError(
                f"{one.name} {what} while the volume was copied: the files of the copy may not "
                "fit each other",
                code="in-use",
                hint="Rehearse again once nobody starts or ends it; or copy the volume while it "
                "is written to: --live.",
                state="the volume was not touched",
            )

    def _waits_for_locks(self, one: Use) -> bool:
        """Tell whether a container takes the lock before it writes, as its image does."""
        if not one.at_place:
            return False
        try:
            if not self._begins_as_its_image(one):
                return False
            with copied(self._engine, one.image_id, one.image_id) as copy:
                return copy.is_prepared
        except StoppedError:
            raise
        except IpaVolumeError:
            return False

    def _begins_as_its_image(self, one: Use) -> bool:
        """Tell whether a container executes what its image begins with, and no shell or backup."""
        found = self._engine.inspected("container", one.id) or {}
        image = self._engine.inspected("image", one.image_id) or {}
        config = image.get("Config")
        if not isinstance(config, Mapping):
            return False
        words = [found.get("Path"), *(found.get("Args") or ())]
        if entrypoint := config.get("Entrypoint"):
            return bool(words[: len(entrypoint)] == entrypoint)
        return bool(words == config.get("Cmd"))

    def _clone_all(
        self, volumes: Sequence[Volume], size: int, hurry: Callable[[], None]
    ) -> list[cloning.Cloned]:
        meter = Meter(self._say, "copying the volume", total_bytes=size)

        def each(_: str, st: os.stat_result) -> None:
            signals.check()
            hurry()
            meter.add(st.st_blocks * 512)

        def amid(size: int) -> None:
            signals.check()
            hurry()
            meter.amid(size)

        found = []
        for volume in volumes:
            # What shares the device with what is around, a descriptor does not tell.
            out = {*_NOT_COPIED, *mounts.mount_points_below(volume.directory)}
            with attempt("copy", volume.directory, now="the volume was not touched"):
                found.append(
                    cloning.clone_tree(
                        volume.fd,
                        self._made.fd,
                        self._names[volume.mount],
                        is_left_out=out.__contains__,
                        each=each,
                        amid=amid,
                    )
                )
        return found

    def _prepare(self, volumes: Sequence[Volume]) -> tuple[str, ...]:
        """Make of the copies what only a rehearsal takes; return the agreements they had."""
        disabled: list[str] = []
        original = read_facts(volumes[0]).identity
        for volume in volumes:
            clone = self._open(self._names[volume.mount], volume.mount)
            try:
                rehearsal.mark(
                    clone,
                    rehearsal_of=original.uuid if original is not None else "",
                    now=clock.now(),
                )
                attempts.forget_attempts(clone)
                if self._profile == replication.PROFILE:
                    disabled += replication.disable(clone)
            finally:
                os.close(clone.fd)
        return tuple(disabled)

    def _open(self, name: str, mount: str) -> Volume:
        directory = f"{self._made.path}/{name}"
        fd = files.open_at(self._made.fd, name, files.DIRECTORY_FLAGS)
        return Volume(mount=mount, directory=directory, fd=fd)

    def _taken(self, name: str) -> int:
        volume = self._open(name, "")
        try:
            return _taken_by(volume)
        finally:
            os.close(volume.fd)

    # -- the container ---------------------------------------------------------------

    def _create(self, secret: str) -> tuple[str, tuple[LeftOut, ...]]:
        found = self._first.found
        before: Mapping[str, Any] | None = {}
        if "Image" in found:
            old = self._engine.inspected("image", str(found["Image"]))
            before = None if old is None else old.get("Config") or {}
        network = self._network()
        relabel = os.access(_SELINUX, os.F_OK)
        like = likeness(
            self._engine.name,
            found,
            before,
            Place(
                volumes={mount: f"{self._made.path}/{name}" for mount, name in self._names.items()},
                volatile=[one.mount for one in self._header.volumes if one.volatile],
                networked=network != "none",
                sockets=[
                    one["Source"] for one in pausing.mounted_in(found) if _is_socket(one["Source"])
                ],
                relabel=relabel,
            ),
        )
        self._leave_environment(secret, (*like.environment, *self._overrides()))
        self._engine.order(
            *("create", "--name", self._made.name, *self._made.labels, "--pull", "never"),
            *("--restart", "no", "--no-healthcheck", "--log-driver", "none"),
            *("--network", network, "--env", "IPAVOLUME_REHEARSAL=1"),
            *("--env", f"{rehearsing.LIMIT}={self._wish.limit_s}"),
            *("--volume", f"{secret}:{rehearsing.DIRECTORY}:ro" + ",Z" * relabel),
            *like.options,
            *self._wish.run_options,
            # The one that was read: its name may lead to another one by now.
            self._image_id,
            *like.words,
            about=f"the image {self._wish.image!r} ({self._image_id})"
            + (f", or the network {network!r}," if network != "none" else ""),
            to_the_end=True,
        )
        self._check_seen()
        given = {f"capability {name}" for name in _capabilities(self._wish.run_options)}
        left_out = tuple(one for one in like.left_out if one.what not in given)
        return "none" if network == "none" else "internal", left_out

    def _check_seen(self) -> None:
        """Make sure that the container has the copies.

        An engine makes an empty directory of a path that it does not have, and one that is on
        another host, or sees other directories than this process, does not have this one.

        Raises:
            VolumeIOError: If it does not.
        """
        for mount, name in self._names.items():
            try:
                found = self._engine.kind(self._made.name, f"{mount}/{STATE_DIRECTORY}/{REHEARSAL}")
            except CommandFailedError:
                # What is wrong with the container its start tells.
                return
            if found is None:
                raise VolumeIOError(
                    f"{self._engine.name} does not see the copy in {self._made.path}/{name}: it "
                    "is on another host, or sees other directories than this command",
                    code="no-volume",
                    path=f"{self._made.path}/{name}",
                    hint="Run it on the engine's host and not in a container, or name a directory "
                    "that both see: --directory DIR.",
                )

    def _overrides(self) -> Iterator[str]:
        """Yield the variables by which a start is asked for what this command is."""
        options = self._wish.options
        if options.allow:
            yield f"IPAVOLUME_ALLOW={','.join(sorted(options.allow))}"
        if options.came_from:
            yield f"IPAVOLUME_FROM={options.came_from}"

    def _network(self) -> str:
        """Make a network that leads nowhere; without one the container has none."""
        words = ["network", "create", "--internal", *self._made.labels]
        if self._engine.name == "docker":
            # Or the host would be reached by the address of the bridge.
            words += ("--opt", "com.docker.network.bridge.inhibit_ipv4=true")
        else:
            words += ("--disable-dns",)
        try:
            self._engine.order(*words, self._made.name, to_the_end=True)
        except CommandFailedError as err:
            self._say(f"no network of its own, so none at all: {err}")
            return "none"
        return self._made.name

    def _leave_environment(self, secret: str, variables: Sequence[str]) -> None:
        data = b"".join(os.fsencode(one) + b"\0" for one in variables)
        directory = os.open(secret, files.DIRECTORY_FLAGS)
        try:
            with attempt("write to", secret):
                files.write_file(directory, rehearsing.ENVIRONMENT, data, mode=0o600)
        finally:
            os.close(directory)

    # -- what came of it ---------------------------------------------------------------

    def _known_runs(self) -> set[str]:
        with contextlib.suppress(IpaVolumeError):
            return {run["run"] for run in status.read_runs(next(iter(self._places.values())))}
        return set()

    def _runs(self) -> list[Mapping[str, Any]]:
        with contextlib.suppress(IpaVolumeError):
            return status.read_runs(f"{self._made.path}/{next(iter(self._names.values()))}")
        return []


def _capabilities(options: Sequence[str]) -> Iterator[str]:
    """Yield the capabilities that options of the engine's ``run`` add."""
    for option, behind in itertools.pairwise((*options, "")):
        name, _, value = option.partition("=")
        if name == "--cap-add":
            yield (value or behind).removeprefix("CAP_").upper()


def size_of(volume: Volume) -> int:
    """Return about what a copy of a volume takes, in allocated blocks, while others change it."""
    below = [f"{volume.mount}/{path}" for path in mounts.mount_points_below(volume.directory)]
    looked = walk(volume.fd, volume.mount, mounted=below, unreadable=lambda *_: None)
    saved = f"{volume.mount}/{STATE_DIRECTORY}/"
    found = (st for path, _, _, st in looked if not path.startswith(saved))
    return _blocks(itertools.chain(found, _state_of(volume)))


def _state_of(volume: Volume) -> Iterator[os.stat_result]:
    """Yield what is in the state directory of a volume and copied."""
    # Somebody works there, or it is not ours: what it is about, others tell.
    with contextlib.suppress(OSError):
        fd = files.open_at(volume.fd, STATE_DIRECTORY, files.DIRECTORY_FLAGS)
        try:
            out = {path.partition("/")[2] for path in _NOT_COPIED}
            for visit in trees.walk(fd, skip=out.__contains__):
                if not visit.leaving:
                    yield visit.st
        finally:
            os.close(fd)


def _taken_by(copy: Volume) -> int:
    """Return what a copy takes, in allocated blocks."""
    return _blocks(visit.st for visit in trees.walk(copy.fd) if not visit.leaving)


def _blocks(found: Iterable[os.stat_result]) -> int:
    seen: set[tuple[int, int]] = set()
    total = 0
    for st in found:
        if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode):
            if (st.st_dev, st.st_ino) in seen:
                continue
            seen.add((st.st_dev, st.st_ino))
        total += st.st_blocks * 512
    return total


def _is_socket(path: str) -> bool:
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False
