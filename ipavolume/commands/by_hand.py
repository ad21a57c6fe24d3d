"""``ipavolume upgrade``: the volumes are brought to the image, and nothing is executed then."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from ipavolume.commands.upgrade import Outcome, bring_up
from ipavolume.commands.work import Shown, Work
from ipavolume.context import Context, Options
from ipavolume.errors import IpaVolumeError
from ipavolume.firstrun.request import redactor
from ipavolume.volume.logs import Speaker


def upgrade(options: Options, shown: Shown, *, phases: Sequence[str]) -> tuple[Outcome, str]:
    """Bring the volumes to the image without a start, in the order of one.

    Args:
        options: What the operator asks for.
        shown: Where what happens is said.
        phases: What is done now.

    Returns:
        What it came to, and where the primary volume is mounted.

    Raises:
        IpaVolumeError: If it is refused or fails.
    """
    with Work(options) as work:
        work.take(shown.say)
        outcome = work.attempt(
            lambda speaker: bring_up(
                work.context,
                speaker,
                phases=phases,
                joined=work.lock.joined,
                secure=work.lock.secure,
                first=lambda _: _fill_volatile(work.context, speaker),
            ),
            shown,
            redactor(),
        )
        if _is_first_run_due(work.context):
            outcome = replace(outcome, first_run_left=True)
        return outcome, work.context.volumes.primary.mount


def _is_first_run_due(context: Context) -> bool:
    if context.image.config.first_run is None:
        return False
    from ipavolume.firstrun.standing import Standing, look

    # The volumes are brought to the image, whatever cannot be looked at.
    with contextlib.suppress(IpaVolumeError):
        found = look(context.image, context.volumes)
        return found is not None and found.judgement.standing is Standing.UNCONFIGURED
    return False


def _fill_volatile(context: Context, speaker: Speaker) -> None:
    if context.image.is_inside and context.volatile:
        from ipavolume.apply import volatile

        # A start that was refused has not filled them, and the commands may need them.
        volatile.fill_empty(context.image, context.volatile, speaker.say)
