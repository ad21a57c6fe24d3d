"""Owners that were lost: what the baseline says of them, held against what is on the volumes.

A copy without owners (``cp -r``, a restore by another user), an engine that gives a volume to
one user (``podman -v ...:U``) or a mapping that is not the volume's changes the owners of
nearly everything, or of nearly all that an account has. An administrator changes those of some
files, or gives a directory to somebody; that is none of it.

It costs one ``lstat`` for each file that is looked at: the first ones of each account in the
order of the baseline, then every so many, a thousand at most.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from ipavolume.errors import UnsafeVolumeError
from ipavolume.formats import manifest
from ipavolume.linux import files
from ipavolume.model.images import ImageHeader
from ipavolume.model.paths import mount_of
from ipavolume.model.values import dataclass
from ipavolume.volume import ownership
from ipavolume.volume.facts import Facts
from ipavolume.volume.index import Applied
from ipavolume.volume.members import Volume
from ipavolume.volume.ownership import OVERFLOW_ID
from ipavolume.volume.tree import Tree
from ipavolume.volume.volumes import Volumes

CODE: Final = "lost-owners"
_NEARLY_ALL: Final = 0.9
_LEAST: Final = 3
"""Fewer files of an account may well have been given to somebody."""
_ALL_OF_THE_FIRST: Final = 100
_ONE_OF: Final = 50
_AT_MOST: Final = 1000
_SHOWN: Final = 3

_OWNER: Final = rb'"uid":([0-9]{1,10}),"gid":([0-9]{1,10})'
_ABSENT: Final = b',"present":false}\n'
_ABSENT_FROM: Final = -len(_ABSENT)
_IS_FILE: Final = b'"type":"file"'
_IS_DIRECTORY: Final = b'"type":"directory"'


@dataclass(frozen=True, slots=True)
class _Seen:
    """One file: its recorded owner (or group), and the one that was found."""

    path: str
    recorded: int
    found: int
    is_directory: bool

    @property
    def is_off(self) -> bool:
        return self.found != self.recorded


def find_lost(
    volumes: Volumes, facts: Mapping[str, Facts], applied: Applied
) -> UnsafeVolumeError | None:
    """Tell whether owners on the volumes were lost since the baseline was applied.

    Args:
        volumes: The volumes.
        facts: What was found on them; no transaction is open.
        applied: The baseline.

    Returns:
        What to raise, or ``None``.
    """
    header = applied.header
    # A further volume of another id was restored from elsewhere: the baseline is not its own.
    mounts = [mount for mount in volumes if facts[mount].build_id == header.build_id]
    looked: dict[str, list[tuple[str, bool, os.stat_result, int, int]]] = defaultdict(list)
    with Tree({mount: volumes[mount].fd for mount in mounts}) as tree:
        for path, is_directory, uid, gid in _chosen(applied.lines()):
            st = _look(tree, path) if tree.covers(path) else None
            if st is not None and _is_that(st, is_directory=is_directory):
                looked[mount_of(path, volumes)].append((path, is_directory, st, uid, gid))
    ways = {path for spec in header.volumes for path in spec.above_entries()}
    has_user, has_group = _mapped("uid"), _mapped("gid")
    for mount, found in looked.items():
        # What this user namespace does not have is nobody's to see: a right that is missing.
        users = [
            _Seen(path, uid, st.st_uid, kind) for path, kind, st, uid, _ in found if has_user(uid)
        ]
        groups = [
            _Seen(path, gid, st.st_gid, kind) for path, kind, st, _, gid in found if has_group(gid)
        ]
        if _is_lost(users, header.accounts.users, ways, volumes[mount]):
            return _error(volumes[mount], users, "user", header)
        if _is_lost(groups, header.accounts.groups, ways, None):
            return _error(volumes[mount], groups, "group", header)
    return None


def _mapped(kind: str) -> Callable[[int], bool]:
    """Return what tells whether this user namespace has an id."""
    ranges = ownership.id_map(kind)
    return lambda number: any(here <= number < here + count for here, _, count in ranges)


def _chosen(lines: Iterable[bytes]) -> Iterator[tuple[str, bool, int, int]]:
    """Yield path, whether it is a directory, and owner of the records that are looked at."""
    # Few texts say it of many records, mostly that of the record before: each is parsed once.
    said: dict[bytes, tuple[bool, int, int] | None] = {}
    counts: Counter[tuple[bool, int, int]] = Counter()
    owned: tuple[bool, int, int] | None = None
    text, width, number = manifest.IN_NO_LINE, 0, 0
    begin = end = 0
    for line in lines:
        # Mostly it is as far from the end as in the line before. Both places are counted from
        # there, where what the text has of a mode is not.
        if line[begin:end] != text:
            mode = line.rfind(b',"mode":"')
            begin = mode - width - len(line)
            end = begin + len(text)
            if line[begin:end] != text:
                if owned is not None:
                    counts[owned] = number
                start = line.rfind(b',"type":"', 0, max(mode, 0))
                end = line.find(b",", line.find(b',"gid":', mode) + 1)
                text, width = line[start : end + 1 or -1] or manifest.IN_NO_LINE, mode - start
                if text not in said:
                    said[text] = _owned(text)
                owned = said[text]
                number = counts[owned] if owned is not None else 0
        if owned is None or line[_ABSENT_FROM:] == _ABSENT:
            continue
        number += 1
        if number <= _ALL_OF_THE_FIRST or (number % _ONE_OF == 0 and number <= _ONE_OF * _AT_MOST):
            yield manifest.path_of(line), *owned


def _owned(text: bytes) -> tuple[bool, int, int] | None:
    """Return whether it is a directory, and its owner, of which *text* speaks, or a file."""
    is_directory = _IS_DIRECTORY in text
    owner = re.search(_OWNER, text)
    if owner is None or not (is_directory or _IS_FILE in text):
        return None
    return is_directory, int(owner[1]), int(owner[2])


def _look(tree: Tree, path: str) -> os.stat_result | None:
    try:
        return tree.stat(path)
    except OSError:
        return None


def _is_that(st: os.stat_result, *, is_directory: bool) -> bool:
    return stat.S_ISDIR(st.st_mode) if is_directory else stat.S_ISREG(st.st_mode)


# -- what is lost, and what was given away -----------------------------------------------


def _is_lost(
    seen: Sequence[_Seen],
    names: Mapping[str, int],
    ways: Collection[str],
    volume: Volume | None,
) -> bool:
    """Tell whether so many files have other owners that nobody can have meant it.

    Args:
        seen: The files that were looked at.
        names: Numbers by the names of the accounts.
        ways: The directories above what is listed.
        volume: The volume, for owners; ``None`` for groups.
    """
    if not any(one.is_off for one in seen):
        return False
    if volume is not None and _is_sole(seen, volume):
        return True
    named = set(names.values())
    directories = {one.path for one in seen if one.is_off and one.is_directory}
    # A copy gives away all alike, the ways to what is listed as well; who means it, what is listed.
    listed_alone = directories.isdisjoint(ways)
    ways_stay = any(one.path in ways and not one.is_off for one in seen)

    def is_given(off: Sequence[_Seen]) -> bool:
        owners = {one.found for one in off}
        if owners & {0, OVERFLOW_ID}:
            return False
        was_roots = not any(one.recorded for one in off)
        if listed_alone and (was_roots and owners <= named):
            return True
        if len(owners) != 1:
            return False
        if listed_alone and (owners <= named or was_roots):
            return True
        return len({_top(one.path, directories) for one in off}) == 1

    # All, directories alone, files alone.
    for kinds in ((True, False), (True,), (False,)):
        stratum = [one for one in seen if one.is_directory in kinds]
        off = [one for one in stratum if one.is_off]
        if not off:
            continue
        given = is_given(off)
        # A service may own all of its volume in the end, where root had it first.
        whose = {one.found for one in off}
        given_away = ways_stay and listed_alone and not any(one.recorded for one in off)
        if _is_nearly_all(off, stratum) and not (given and (whose <= named or given_away)):
            return True
        if len(off) > 1 and _is_uniform(stratum) and not (given and listed_alone):
            return True
        for account in {one.recorded for one in off}:
            theirs = [one for one in stratum if one.recorded == account]
            away = [one for one in theirs if one.is_off]
            if _is_nearly_all(away, theirs) and not is_given(away):
                return True
    return False


def _is_nearly_all(off: Sequence[_Seen], of: Sequence[_Seen]) -> bool:
    return len(off) >= _LEAST and len(off) >= _NEARLY_ALL * len(of)


def _is_uniform(seen: Sequence[_Seen]) -> bool:
    """Tell whether all have one owner, and had several."""
    return len({one.found for one in seen}) == 1 < len({one.recorded for one in seen})


def _is_sole(seen: Sequence[_Seen], volume: Volume) -> bool:
    """Tell whether the only directory that was not root's is now, with all that is in it.

    A single directory could have been given to somebody, but then it has content of its
    account, or none.
    """
    off = [one for one in seen if one.is_off]
    if len(off) != 1 or not off[0].is_directory or not _is_uniform(seen):
        return False
    inside = off[0].path[len(volume.mount) + 1 :]
    try:
        fd = files.open_directory(volume.fd, inside)
    except OSError:
        return False
    try:
        names = files.listdir(fd)[:_AT_MOST]
        owners = {st.st_uid for name in names if (st := files.lstat(fd, name)) is not None}
    finally:
        os.close(fd)
    return owners == {off[0].found}


def _top(path: str, directories: Collection[str]) -> str:
    """Return the uppermost of *directories* that *path* lies in, or itself."""
    top = above = path
    while above := above.rpartition("/")[0]:
        if above in directories:
            top = above
    return top


# -- how it is said ----------------------------------------------------------------------


def _error(
    volume: Volume, seen: Sequence[_Seen], kind: str, header: ImageHeader
) -> UnsafeVolumeError:
    lost = [one for one in seen if one.is_off]
    table = header.accounts.users if kind == "user" else header.accounts.groups
    names = {number: name for name, number in sorted(table.items(), reverse=True)}

    def called(number: int) -> str:
        if number == OVERFLOW_ID:
            return f"nobody ({number})"
        return f"{names[number]} ({number})" if number in names else str(number)

    shifts = {one.found - one.recorded for one in lost}
    if len(shifts) == 1 and len({one.recorded for one in lost}) > 1:
        (shift,) = shifts
        by = f"{abs(shift)} too {'high' if shift > 0 else 'low'}"
        what = f"the {kind}s on the volume {volume.directory!r} are {by}"
    else:
        became = Counter((one.recorded, one.found) for one in lost).most_common()
        parts = [
            f"{times} of {kind} {called(recorded)} belong to {called(found)}"
            for (recorded, found), times in became[:_SHOWN]
        ]
        more = f" and {len(became) - _SHOWN} more" if len(became) > _SHOWN else ""
        lead = "owners" if kind == "user" else "groups"
        what = f"{lead} on the volume {volume.directory!r} were lost: {', '.join(parts)}{more}"
    first = lost[0]
    option = "chown -h" if kind == "user" else "chgrp -h"
    where = volume.directory.rstrip("/") + first.path[len(volume.mount) :]
    return UnsafeVolumeError(
        f"{what}; the first is {first.path!r}",
        code=CODE,
        path=first.path,
        hint="Copy it once more from the original, as root and with everything, which also mends "
        "what is there: rsync -aHAX --numeric-ids ORIGINAL/ VOLUME/ (and no podman -v ...:U, no "
        "fsGroup, and the user mapping that it had). For a single file: "
        f"{option} {first.recorded} {shlex.quote(where)}. If it is meant: --allow {CODE}.",
    )
