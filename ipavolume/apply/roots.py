"""Giving the root directory of a volume with nothing on it to root before it is populated."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from typing import Final

from ipavolume.errors import IpaVolumeError
from ipavolume.linux import files
from ipavolume.model.files import STATE_DIRECTORY, Metadata
from ipavolume.volume import members
from ipavolume.volume.facts import Facts
from ipavolume.volume.failures import STATE_UNTOUCHED, attempt
from ipavolume.volume.layout import PUBLIC_MODE
from ipavolume.volume.members import Volume
from ipavolume.volume.roots import TOO_MUCH, OddRoot, look_over

_MAX_NAMED: Final = 5
_CLOSED: Final = 0o1700
"""Root's alone until everything is in place. The sticky bit, of no effect here, tells a later start
that it is a mode of ours: a directory of mode 0700 stays as somebody made it."""


def take(volumes: Mapping[str, Volume], facts: Mapping[str, Facts]) -> bool:
    """Give the odd root directories among *volumes* to root; tell whether there were any.

    What was found on them was judged to be nobody's. They are looked at once more when nobody else
    can write to them any longer; then the volumes are to be judged anew.

    Raises:
        UnsafeVolumeError: If something came meanwhile; they are as they were then.
        VolumeIOError: If owner or mode cannot be changed.
    """
    odd = [(volumes[mount], found.odd) for mount, found in facts.items() if found.odd]
    for number, (volume, root) in enumerate(odd):
        if _is_begun(volume):
            continue
        try:
            with attempt("take over", volume.directory, now=STATE_UNTOUCHED):
                files.set_metadata(volume.fd, Metadata(uid=0, gid=0, mode=_CLOSED), acls=True)
                seen = look_over(volume)
                new = [TOO_MUCH] if seen is None else _named(seen - root.entries)
            # A directory of ours can be there now: that of another start.
            members.check_trust(volume)
            if new and not _is_begun(volume):
                raise root.refusal(new)
        except IpaVolumeError as err:
            err.state = STATE_UNTOUCHED
            _put_back(odd[: number + 1])
            raise
    return bool(odd)


def _is_begun(volume: Volume) -> bool:
    """Tell whether another start has got further: on NFS only the file keeps others off.

    Who could write to the root directory cannot make one of root's.
    """
    st = files.lstat(volume.fd, STATE_DIRECTORY)
    return st is not None and stat.S_ISDIR(st.st_mode) and st.st_uid == 0


def _put_back(odd: Iterable[tuple[Volume, OddRoot]]) -> None:
    for volume, root in odd:
        with attempt("give back", volume.directory):
            if _is_begun(volume):
                continue
            files.set_metadata(volume.fd, root.metadata, acls=True)


def _named(new: Iterable[tuple[str, int, int, int]]) -> list[str]:
    shown = sorted(new)[:_MAX_NAMED]
    return [f"{path!r} (user {owner}), which has just come" for path, _, owner, _ in shown]


def open_up(volume: Volume) -> None:
    """Let everybody into a root directory that :func:`take` closed.

    Raises:
        VolumeIOError: If its mode cannot be changed.
    """
    with attempt("open up", volume.directory):
        st = files.fstat(volume.fd)
        if (st.st_uid, stat.S_IMODE(st.st_mode)) == (0, _CLOSED):
            root = Metadata(uid=0, gid=0, mode=PUBLIC_MODE)
            files.set_metadata(volume.fd, root)
