"""The containers that use volumes, and a pause of them while those are copied.

An engine tells what was so a moment ago. Who copies looks before and after, and what it says of the
copy holds only where nobody came, went or went on in between.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from ipavolume.engines.engine import STOPPING, Engine, runs, state_of
from ipavolume.engines.host import own_files
from ipavolume.errors import CommandFailedError, IpaVolumeError, LockedError, VolumeIOError
from ipavolume.linux import watching
from ipavolume.model.progress import Progress
from ipavolume.model.values import dataclass

_GUARD_S: Final = 15.0
"""Then it is let go on by another process, whatever has become of this one."""
_LET_GO_S: Final = 10.0
"""An engine that is started anew answers again within that time."""
_AGAIN_S: Final = 0.5
_NEVER: Final = "0001-01-01T"


def has_started(state: Mapping[str, Any]) -> bool:
    """Tell whether a container that is in this state has ever run."""
    return not str(state.get("StartedAt", "")).startswith(_NEVER)


def mounted_in(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what of the host is mounted in a container."""
    return [
        one
        for one in found.get("Mounts") or ()
        if isinstance(one, Mapping)
        and isinstance(one.get("Source"), str)
        and isinstance(one.get("Destination"), str)
        and one["Source"].startswith("/")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A container that can write to the volumes.

    Attributes:
        id: Its id.
        name: What it is called.
        image_id: Id of its image.
        since: When it was started last, as the engine writes it; "" where it never was.
        runs: It runs, paused or not.
        is_paused: It is paused.
        is_ending: It was asked to end.
        at_place: It has one of them where the image has that.
    """

    id: str
    name: str
    image_id: str = ""
    since: str = ""
    runs: bool = False
    is_paused: bool = False
    is_ending: bool = False
    at_place: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Users:
    """The containers that use the volumes.

    Attributes:
        found: What the engine says of the one that the rehearsal is to be like; empty: none.
        uses: Those that can write to them, running or not.
    """

    found: Mapping[str, Any]
    uses: tuple[Use, ...] = ()

    @property
    def name(self) -> str:
        """What that one is called, or ""."""
        return _name(self.found)

    @property
    def running(self) -> tuple[Use, ...]:
        """Those that run and can write to them."""
        return tuple(one for one in self.uses if one.runs)

    @classmethod
    def of(
        cls, engine: Engine, given: Mapping[str, str], places: Mapping[str, str] | None = None
    ) -> Users:
        """Return the containers that use volumes, without the one that this process is in.

        Args:
            engine: The engine.
            given: Directories by mount: who uses them is who the rehearsal is to be like.
            places: All directories by mount, or ``None`` where those are all.
        """
        own = own_files()
        users = []
        uses = []
        for found in engine.containers():
            if any(f"/{found.get('Id')}/" in one for one in own):
                # Paused, this process could never let it go on.
                continue
            mounted = mounted_in(found)
            used = _used_at_its_place(mounted, given)
            if used:
                # A backup has the volume as well, and mounts it elsewhere.
                users.append((any(used), found))
            if _can_write(mounted, places or given):
                at_place = any(_used_at_its_place(mounted, places or given))
                uses.append(_use(found, at_place=at_place))
        # One that runs before one that was used last.
        users.sort(key=lambda one: (one[0], runs(one[1]), str(one[1].get("Created", ""))))
        return cls(found=users[-1][1] if users else {}, uses=tuple(uses))


def _used_at_its_place(
    mounted: Iterable[Mapping[str, Any]], places: Mapping[str, str]
) -> list[bool]:
    """Return for each of the directories that is mounted whether it is where an image has it."""
    return [
        one["Destination"] == mount
        for one in mounted
        for mount, place in places.items()
        if _is_same(one["Source"], place)
    ]


def _can_write(mounted: Iterable[Mapping[str, Any]], places: Mapping[str, str]) -> bool:
    # One that has a part of it writes there as well.
    return any(
        _is_same(one["Source"], place)
        or f"{os.path.realpath(one['Source'])}/".startswith(f"{place}/")
        for one in mounted
        for place in places.values()
        if one.get("RW") is not False
    )


def _name(found: Mapping[str, Any]) -> str:
    name = found.get("Name")
    return name.lstrip("/") if isinstance(name, str) else ""


def _use(found: Mapping[str, Any], *, at_place: bool) -> Use:
    state = state_of(found)
    return Use(
        id=str(found.get("Id", "")),
        name=_name(found),
        image_id=str(found.get("Image", "")),
        since=str(state.get("StartedAt", "")) if has_started(state) else "",
        runs=runs(found),
        is_paused=state.get("Paused") is True,
        is_ending=state.get("Status") == STOPPING,
        at_place=at_place,
    )


def _is_same(source: str, place: str) -> bool:
    """Tell whether two paths lead to one directory, by a bind mount or not."""
    if os.path.realpath(source) == place:
        return True
    with contextlib.suppress(OSError):
        return os.path.samefile(source, place)
    return False


def changed(before: Users, after: Users, *, paused: bool) -> list[tuple[Use, str]]:
    """Return which containers came, went or went on between two looks, and what they did.

    One that was made, started and removed in between is not seen.

    Args:
        before: The first look.
        after: The second one.
        paused: Those that run were paused all the time.
    """
    found = []
    there = {one.id: one for one in after.uses}
    was = {one.id: one for one in before.uses}
    for one in before.uses:
        if one.runs and one.id not in there:
            found.append((one, "was removed"))
    for one in after.uses:
        old = was.get(one.id)
        if one.since and (old is None or one.since != old.since):
            found.append((one, "was started"))
        elif old is not None and old.runs and not one.runs:
            found.append((one, "ended"))
        elif old is not None and old.runs and paused and not one.is_paused:
            found.append((one, "did not stay paused"))
    return found


# -- the pause ---------------------------------------------------------------------------


@contextlib.contextmanager
def all_paused(
    engine: Engine, first: Users, places: Mapping[str, str], say: Progress
) -> Iterator[Users]:
    """Have every container paused meanwhile that runs and can write to the volumes.

    Args:
        engine: The engine.
        first: What was seen of them just before.
        places: The directories, by mount.
        say: Told of it.

    Yields:
        What was seen of them once all were paused. Nobody runs where they ended before that.

    Raises:
        LockedError: If somebody else pauses one or lets it go on, or it cannot be paused just now.
        IpaVolumeError: If one cannot be paused, or stays paused.
    """
    with contextlib.ExitStack() as stack:
        held: set[str] = set()
        seen = first
        while new := [one for one in seen.running if one.id not in held]:
            for one in new:
                try:
                    stack.enter_context(paused(engine, one.id, one.name, say))
                except (CommandFailedError, VolumeIOError) as err:
                    _refuse_who_runs(engine, places, one, err)
                else:
                    held.add(one.id)
            seen = Users.of(engine, places)
        yield seen


def _refuse_who_runs(
    engine: Engine, places: Mapping[str, str], one: Use, err: IpaVolumeError
) -> None:
    """Raise why a container was not paused, unless it does not run any more.

    Raises:
        LockedError: If it ends or starts just now.
        IpaVolumeError: What the engine said, with what else can be done.
    """
    now = None
    with contextlib.suppress(IpaVolumeError):
        now = Users.of(engine, places)
    if now is None:
        raise err
    found = next((also for also in now.running if also.id == one.id), None)
    if found is None:
        return
    if found.is_ending or found.since != one.since:
        what = "is ending" if found.is_ending else "is started again and again"
        raise LockedError(
            f"the volume is in use by {one.name}, which {what}",
            code="in-use",
            hint="Rehearse again once it runs or has ended.",
            state="the volume was not touched",
        ) from err
    if not found.is_paused:
        err.hint = "Stop it first; or copy the volume while it is written to: --live."
    raise err


@contextlib.contextmanager
def paused(engine: Engine, container: str, name: str, say: Progress) -> Iterator[None]:
    """Have a container paused meanwhile, and go on afterwards whatever becomes of this process.

    Args:
        engine: Its engine.
        container: Its id.
        name: What it is called.
        say: Told of it.

    Raises:
        LockedError: If somebody else pauses it or lets it go on.
        IpaVolumeError: If it cannot be paused, or stays paused.
    """
    if _is_paused(engine, container):
        raise _others(name, "somebody else has paused")
    say(f"pausing {name} for the copy")
    guard = watching.guard(lambda: _let_go(engine, container), within_s=_GUARD_S, again_s=_AGAIN_S)
    with contextlib.ExitStack() as stack:
        stack.callback(watching.dismiss, guard)

        def unpause() -> bool:
            try:
                return _unpause(engine, container, name)
            except CommandFailedError:
                stack.pop_all()
                watching.leave_to(guard)
                raise

        try:
            # Killed amid, it is let go on once the engine's command has ended, too.
            is_ours = engine.pause(container, kept_open=guard[1])
        except BaseException:
            # It may have been done all the same.
            unpause()
            raise
        if not is_ours:
            raise _others(name, "somebody else has paused")
        try:
            yield
        except BaseException:
            unpause()
            raise
        if not unpause():
            found = engine.inspected("container", container)
            what = "did not stay paused" if runs(found) else "ended" if found else "was removed"
            raise _others(name, f"{what} while it was copied")


def _unpause(engine: Engine, container: str, name: str) -> bool:
    """Let a container go on; return whether it was paused until now.

    Raises:
        CommandFailedError: If it stays paused, or nobody knows.
    """
    deadline = time.monotonic() + _LET_GO_S
    while True:
        try:
            return _let_go(engine, container)
        except IpaVolumeError as err:
            failure = err
        if time.monotonic() >= deadline:
            raise CommandFailedError(
                f"{name} may have stayed paused after the copy: {failure}",
                code="engine",
                hint=f"Let it go on: {engine.name} unpause {name}",
            ) from failure
        time.sleep(_AGAIN_S)


def _let_go(engine: Engine, container: str) -> bool:
    """Let a container go on; return whether it was paused until now.

    Raises:
        IpaVolumeError: If it stays paused, or nobody knows.
    """
    try:
        engine.order("unpause", container, to_the_end=True)
    except IpaVolumeError:
        # The guard may have been first, or somebody; whether it goes on is what matters.
        with contextlib.suppress(IpaVolumeError):
            if not _is_paused(engine, container):
                return False
        raise
    return True


def _is_paused(engine: Engine, container: str) -> bool:
    found = engine.inspected("container", container, to_the_end=True)
    return state_of(found).get("Paused") is True


def _others(name: str, what: str) -> LockedError:
    return LockedError(
        f"the volume is in use by {name}, which {what}",
        code="in-use",
        hint="Is there another rehearsal, or a backup, or who stops it? Try again once that is "
        "done, or copy without a pause: --live.",
        state="the volume was not touched",
    )
