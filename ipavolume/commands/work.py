"""What every command that works on volumes does first, and in which order."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, Self

from ipavolume.commands import hold as on_hold
from ipavolume.commands.upgrade import Outcome
from ipavolume.context import Context, Options
from ipavolume.errors import (
    IpaVolumeError,
    LockedError,
    StoppedError,
    told_as,
    unforeseen,
)
from ipavolume.linux import notify, signals, umask
from ipavolume.model.progress import Progress
from ipavolume.model.redaction import Redactor
from ipavolume.model.values import dataclass
from ipavolume.volume import failures
from ipavolume.volume.facts import UNDOING, read_facts
from ipavolume.volume.lock import Lock
from ipavolume.volume.logs import Speaker
from ipavolume.volume.refused import UNVERIFIED


@contextlib.contextmanager
def works_beside(*words: str) -> Iterator[None]:
    """Have who finds the volume in use told where a command works beside the application.

    Args:
        words: The command and its arguments.
    """
    try:
        yield
    except LockedError as err:
        if err.code == LockedError.code:
            command = shlex.join(["ipavolume", *words])
            err.hint = (
                "Run it in the container that has it, whose application may go on: docker exec "
                f"CONTAINER {command}. Otherwise: {err.hint}"
            )
        raise


class Held(Protocol):
    """Told of a failure after which the container stays up and keeps the lock."""

    def __call__(self, err: IpaVolumeError, *, again: bool) -> None:
        """Say it; with *again* a command in the container tries again what failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Where a command says what happens.

    Attributes:
        say: Told of progress.
        tell: Told of what is said however quiet it is to be.
        error: Told of a failure that does not end the command.
        held: Told of one after which the container stays up and keeps the lock.
        summary: Returns the lines that sum up an outcome.
        result: Told of the outcome and of those lines.
    """

    say: Progress
    tell: Progress
    error: Callable[[IpaVolumeError], None]
    held: Held
    summary: Callable[[Outcome], Sequence[str]]
    result: Callable[[Outcome, Sequence[str]], None]


class Work:
    """An image and its volumes, opened, and the lock that is taken for working on them.

    Attributes:
        context: The image and its volumes.
        lock: The lock.
    """

    def __init__(self, options: Options) -> None:
        """Handle signals, then open everything; nothing is locked yet.

        Raises:
            IpaVolumeError: If the image is not prepared, or a volume is not there.
            UnsafeVolumeError: If others can change where the path to one leads.
        """
        signals.install()
        notify.begin()
        try:
            with contextlib.ExitStack() as stack:
                # Closed after the volumes: see the module of the lock.
                self.lock = stack.enter_context(Lock(inside=options.root == "/"))
                self.context = stack.enter_context(Context(options))
                self.context.refuse_ways()
                self._before = on_hold.standing(self.context.volumes.primary)
                self._stack = stack.pop_all()
        except IpaVolumeError as err:
            err.state = err.state or failures.STATE_UNTOUCHED
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, _: object, err: object, __: object) -> None:
        """Say of a failure what it left, close the volumes, and give up the lock."""
        if isinstance(err, IpaVolumeError):
            self.say_state(err)
        self._stack.close()

    def say_state(self, err: IpaVolumeError) -> None:
        """Have *err* say what the volumes are now, by a look, where who raised it did not."""
        # That nothing was touched is true of a round of a run, and one before may have ended well.
        if err.state in ("", failures.STATE_UNTOUCHED):
            try:
                now = on_hold.standing(self.context.volumes.primary)
            except (IpaVolumeError, OSError):
                err.state = failures.STATE_UNKNOWN
                return
            if now == self._before:
                err.state = failures.STATE_STILL_OPEN if now.is_open else failures.STATE_UNTOUCHED
            else:
                err.state = failures.STATE_OPEN if now.is_open else failures.STATE_COMPLETE
        # What every run has speaks of an upgrade.
        if err.state in (failures.STATE_OPEN, failures.STATE_STILL_OPEN):
            err.state = self._open(is_still=err.state == failures.STATE_STILL_OPEN)

    def _open(self, *, is_still: bool) -> str:
        """Return what the volumes are that have an open run; *is_still*: as they had before."""
        with contextlib.suppress(IpaVolumeError, OSError):
            open_ = read_facts(self.context.volumes.primary).transaction
            if open_ is not None and open_.phase == UNDOING:
                return failures.STATE_STILL_GOING_BACK if is_still else failures.STATE_GOING_BACK
            if open_ is not None and open_.kind == UNVERIFIED and is_still:
                return failures.STATE_STILL_TAKEN
        return failures.STATE_STILL_OPEN if is_still else failures.STATE_OPEN

    def is_tried_by_command(self) -> bool:
        """Tell whether a command, and not only a start, tries again what failed."""
        build_id = self.context.image.build_id
        return on_hold.is_tried_by_command(self.context.volumes.primary, build_id)

    def take(self, say: Progress) -> None:
        """Take the lock, and the umask of the container out of the way.

        Raises:
            LockedError: If another one holds it longer than the operator waits.
            UnsafeVolumeError: If the file system is not known to lock for everybody.
        """
        options = self.context.options
        self.lock.take(
            self.context.volumes.values(),
            notify.telling(say),
            timeout_s=options.lock_timeout_s,
            allow=options.allow,
        )
        self.context.volumes.check_lock = self.lock.check
        umask.clear_umask()

    def attempt(
        self,
        bring_up: Callable[[Speaker], Outcome],
        shown: Shown,
        redactor: Redactor,
        *,
        hold: bool = False,
    ) -> Outcome:
        """Return what *bring_up* returns, once it is in the log of the run and shown.

        Args:
            bring_up: What is to be done.
            shown: Where what happens is said.
            redactor: Takes secrets out of it.
            hold: A failure keeps the container up until somebody in it has mended things.

        Raises:
            IpaVolumeError: If it fails and is not held on.
        """
        told = notify.telling(shown.say)
        speaker = Speaker(say=told, show=told, redactor=redactor)
        outcome = None
        while outcome is None:
            try:
                with told_as(unforeseen):
                    outcome = bring_up(speaker)
            except IpaVolumeError as err:
                if not isinstance(err, LockedError | StoppedError):
                    self.lock.refuse_if_in_use()
                self.say_state(err)
                if not hold or not on_hold.is_held_on(err):
                    raise
                shown.held(err, again=self.is_tried_by_command())
                on_hold.hold(
                    tuple(self.context.volumes.values()),
                    self.lock,
                    shown.say,
                    build_id=self.context.image.build_id,
                )
        lines = shown.summary(outcome)
        if outcome.plans:
            from ipavolume.commands import carrying

            # Kept first: who cannot be told any more is to find it there.
            run = outcome.plans[-1].run
            carrying.keep_summary(self.context.image, self.context.volumes, run, lines)
        shown.result(outcome, lines)
        return outcome
