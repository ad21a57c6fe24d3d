"""Filling further volumes that were emptied amid a run, so that the run goes on.

A volume gets a transaction of the run first, with a mark in it: from then on whoever comes next
knows what it is. Each of its directories is put in place by one rename, whole: what is there is
complete, and what is missing the next start puts there, should this one be killed. Then it is
committed, before the others.
"""

from __future__ import annotations

import contextlib
import os

from ipavolume.apply import commit, journal, roots
from ipavolume.apply.area import Area, make_area, sync_area
from ipavolume.apply.notes import Notes
from ipavolume.apply.recognition import Recognition
from ipavolume.apply.stage import Index, Stage
from ipavolume.apply.swap import Swap
from ipavolume.context import Context
from ipavolume.linux import files, trees
from ipavolume.model.actions import Plan
from ipavolume.model.progress import Progress
from ipavolume.volume import layout
from ipavolume.volume.facts import Identity, Transaction
from ipavolume.volume.failures import STATE_OPEN, attempt
from ipavolume.volume.members import Volume


def join(volume: Volume, transaction: Transaction) -> None:
    """Have an empty volume take part in the open run.

    Raises:
        IpaVolumeError: If that cannot be written.
    """
    with contextlib.closing(make_area(volume)) as area:
        commit.write_transaction(area, transaction)
        with attempt("write to", volume.directory, now=STATE_OPEN):
            journal.write_bytes(area.work, layout.REFILL, b"")
        sync_area(volume, now=STATE_OPEN)
        commit.open_transaction(area)


def is_refilled(area: Area) -> bool:
    """Tell whether the volume of *area* was emptied amid the run that *area* is of."""
    with attempt("look at", area.volume.directory, now=STATE_OPEN):
        return files.lstat(area.work, layout.REFILL) is not None


def fill(
    context: Context, area: Area, plan: Plan, identity: Identity | None, say: Progress
) -> None:
    """Put in place what *plan* creates on the volume of *area*.

    Args:
        context: The volumes.
        area: The area.
        plan: The plan.
        identity: Who the volume is; ``None``: that is recorded already.
        say: Told of how far it is.

    Raises:
        IpaVolumeError: If it cannot be put there; the next start goes on with it.
    """
    volume, records = area.volume, context.image.header.records
    areas = {volume.mount: area}
    with attempt("write to", volume.directory, now=STATE_OPEN):
        for name in files.listdir(area.new):
            trees.remove_tree(area.new, name)
        # With the first file it is ours, whoever comes next.
        if identity is not None:
            journal.write_identity(area.state, identity)
    Stage(plan, context.image, areas, Index(records), say).run(pristine=())
    context.volumes.check_lock()
    sync_area(volume, now=STATE_OPEN)
    Swap(
        plan,
        areas,
        Notes(area, areas),
        known=Recognition(plan),
        installed=_note_nothing,
        check_lock=context.volumes.check_lock,
    ).run(say)
    roots.open_up(volume)
    sync_area(volume, now=STATE_OPEN)


def _note_nothing(_path: str, _st: os.stat_result) -> None:
    """The index is that of what was staged when the run began: these files are read again."""
