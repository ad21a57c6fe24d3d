"""Words for a volume whose root belongs to somebody else: moved between id mappings, or copied.

Such a volume is refused in any case. What is read here is as untrusted as everything on it, so
it is bounded, and nothing but the text of the refusal depends on it.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from ipavolume.errors import IpaVolumeError, ManifestError, UnsafeVolumeError, VolumeIOError
from ipavolume.formats import manifest
from ipavolume.linux import files
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.values import dataclass

OVERFLOW_ID: Final = 65534
"""Whom the kernel shows for an owner that the user namespace does not have."""
_USUAL_RANGE: Final = 65536
"""How many ids a container usually gets, and more than accounts of an image ever need."""
_MAX_BYTES: Final = 64 << 20
_MAX_SAMPLES: Final = 1000
_MAX_ENTRIES: Final = 4000
_MAX_DEPTH: Final = 6
_NEARLY_ALL: Final = 0.9
"""What is left are files that an administrator gave to somebody else."""

_UNMAPPED: Final = ((0, 0, 0xFFFFFFFF),)

Pairs = list[tuple[int, int]]
"""Recorded and found ids of the same files."""


def id_map(kind: str = "uid") -> tuple[tuple[int, int, int], ...]:
    """Return the id mapping of this process: first id here, first id outside, how many.

    Args:
        kind: ``uid`` or ``gid``.
    """
    try:
        with open(f"/proc/self/{kind}_map", "rb") as stream:
            rows = [line.split() for line in stream]
    except OSError:
        return _UNMAPPED
    return tuple((int(here), int(outside), int(count)) for here, outside, count in rows)


def is_remapped() -> bool:
    """Tell whether ids of this process are other ones outside of its user namespace."""
    return id_map() != _UNMAPPED


def outside_of(number: int, kind: str = "uid") -> int | None:
    """Return what an id of this user namespace is outside of it; ``None``: it has none."""
    for here, outside, count in id_map(kind):
        if here <= number < here + count:
            return outside + number - here
    return None


def explain(fd: int, directory: str) -> IpaVolumeError | None:
    """Say what happened to the owners of the volume at *directory*, as far as it can be told.

    Args:
        fd: Descriptor of its root directory, which does not belong to root.
        directory: Where that is.

    Returns:
        What to raise, or ``None`` where nothing more than the owner of its root is known.
    """
    root = files.fstat(fd)
    if root.st_uid == OVERFLOW_ID and is_remapped():
        return _outside(fd, directory)
    users, groups = _compare(fd)
    if not users:
        begin = _begin_of_range(fd, root.st_uid)
        if begin is None:
            return None
        return _of_remapping_docker(directory, begin, begin) or _shifted(directory, begin, None)
    owners = _Change.of(users)
    # What was not root's shows a copy in which owners were lost.
    may_be_own = owners.rootless is not None or not any(recorded for recorded, _ in users)
    if may_be_own and (own := of_own_engine(root.st_uid, directory)):
        return own
    if owners.shift is not None:
        group = _Change.of(groups).shift
        return _of_remapping_docker(directory, owners.shift, group) or _shifted(
            directory, owners.shift, None if group == owners.shift else group
        )
    if owners.rootless is not None:
        return _rootless(directory, *owners.rootless)
    if owners.everybody is not None:
        return _lost(directory, owners.everybody)
    return _nobody(directory) if root.st_uid == OVERFLOW_ID else None


def of_own_engine(owner: int, directory: str) -> VolumeIOError | None:
    """Return what to raise where *owner* of a volume is who looks, as root of containers may be.

    Only in the user namespace of a rootless engine it shows whose the rest is.
    """
    if owner != os.geteuid() or is_remapped():
        return None
    return VolumeIOError(
        f"the volume {directory!r} belongs to this user, as one of a rootless engine does: only in "
        "that one's user namespace are its owners those that an image knows",
        code="user-namespace",
        path=directory,
        hint="Put podman unshare in front of the same command.",
    )


def _of_remapping_docker(directory: str, user: int, group: int | None) -> VolumeIOError | None:
    """Return what to raise where a volume lies where docker with ``userns-remap`` keeps its own.

    Args:
        directory: The volume's.
        user: How much higher all owners are.
        group: How much higher all groups are, where that is known.
    """
    # For each mapping it has a directory, named after what root of its containers is outside.
    above, found, below = os.path.realpath(directory).partition(f"/{user}.{group}/volumes/")
    if not found or is_remapped():
        return None
    name = below.partition("/")[0]
    return VolumeIOError(
        f"the volume {directory!r} is one of a docker with userns-remap (below {above!r}): only in "
        "its containers are the owners those that an image knows",
        code="user-namespace",
        path=directory,
        hint="Ask an image of it, from inside: "
        f"docker run --rm -v {name}:/data:ro IMAGE ipavolume check",
    )


# -- what happened -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What became of recorded ids; at most one of these is known.

    Attributes:
        shift: All are this much higher.
        rootless: What root became, and how much higher all others are, or lower in a namespace.
        everybody: All are this one now.
    """

    shift: int | None = None
    rootless: tuple[int, int] | None = None
    everybody: int | None = None

    @classmethod
    def of(cls, pairs: Pairs) -> _Change:
        root = _most(found for recorded, found in pairs if recorded == 0)
        others = [(recorded, found) for recorded, found in pairs if recorded]
        if not others:
            if root is None or root == 0:
                return cls()
            return cls(shift=root) if root >= _USUAL_RANGE else cls(everybody=root)
        owner = _most(found for _, found in others)
        if owner is not None and owner == root:
            return cls(everybody=owner) if owner else cls()
        shift = _most(found - recorded for recorded, found in others)
        if shift is None or root == 0:
            return cls()
        if shift > 0 and root in (None, shift):
            return cls(shift=shift)
        # Lower they only are in a namespace of somebody's choice: podman's --userns=keep-id.
        is_known = root is not None and (shift > 0 or (shift < 0 and is_remapped()))
        return cls(rootless=(root, shift)) if is_known and root is not None else cls()


def _most(numbers: Iterable[int]) -> int | None:
    """Return the number that nearly all of *numbers* are, if there is one."""
    counts = Counter(numbers)
    for number, times in counts.most_common(1):
        if times >= _NEARLY_ALL * counts.total():
            return number
    return None


# -- what is on the volume ---------------------------------------------------------------


def _compare(fd: int) -> tuple[Pairs, Pairs]:
    """Pair recorded and found owners, and groups, of files that the baseline knows."""
    users: Pairs = []
    groups: Pairs = []
    try:
        for path, uid, gid in _recorded(fd):
            st = _lstat(fd, path)
            if st is not None:
                users.append((uid, st.st_uid))
                groups.append((gid, st.st_gid))
    except (OSError, ManifestError):
        # Damaged or not to be read: what was seen up to there has to do.
        pass
    return users, groups


def _recorded(fd: int) -> Iterator[tuple[str, int, int]]:
    """Yield path, owner and group of files that the baseline knows, some of each kind."""
    opened = _open(fd, STATE_DIRECTORY, "baseline.jsonl")
    if opened is None:
        return
    budget = _MAX_BYTES
    left = {True: _MAX_SAMPLES, False: _MAX_SAMPLES}
    with files.reader(opened) as stream:
        header = manifest.read_header(stream)
        mounts = [volume.mount + "/" for volume in header.volumes if not volume.volatile][:1]
        for line in manifest.read_lines(stream):
            budget -= len(line)
            roots = b'"uid":0,' in line
            if budget < 0 or not any(left.values()):
                return
            if left[roots]:
                record = manifest.parse_record(line)
                for mount in mounts:
                    if record.path.startswith(mount):
                        left[roots] -= 1
                        yield record.path[len(mount) :], record.uid, record.gid


def _open(fd: int, directory: str, name: str) -> int | None:
    try:
        inside = files.open_at(fd, directory, files.DIRECTORY_FLAGS)
    except FileNotFoundError:
        return None
    try:
        return files.open_regular(inside, name)
    finally:
        os.close(inside)


def _lstat(fd: int, path: str) -> os.stat_result | None:
    try:
        parent, name = files.open_parent(fd, path)
    except OSError:
        return None
    try:
        return files.lstat(parent, name)
    finally:
        os.close(parent)


def _begin_of_range(fd: int, owner: int) -> int | None:
    """Return *owner* where it is what root became, judging by the other owners alone."""
    if owner < _USUAL_RANGE:
        return None
    found = {st.st_uid for st in _look(fd, _MAX_DEPTH, [_MAX_ENTRIES])}
    inside = all(owner <= number < owner + _USUAL_RANGE for number in found)
    return owner if inside and found - {owner} else None


def _look(fd: int, depth: int, left: list[int]) -> Iterator[os.stat_result]:
    """Yield what ``lstat`` says of at most so many entries, not deeper than *depth*."""
    try:
        names = sorted(files.listdir(fd))
    except OSError:
        return
    for name in names:
        if left[0] <= 0:
            return
        left[0] -= 1
        try:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            yield st
            if depth and stat.S_ISDIR(st.st_mode):
                below = files.open_at(fd, name, files.DIRECTORY_FLAGS)
            else:
                continue
        except OSError:
            continue
        try:
            yield from _look(below, depth - 1, left)
        finally:
            os.close(below)


# -- how it is said ----------------------------------------------------------------------


def _error(message: str, code: str, hint: str) -> UnsafeVolumeError:
    return UnsafeVolumeError(message, code=code, hint=hint)


def _shifted(directory: str, shift: int, groups: int | None) -> UnsafeVolumeError:
    begin = outside_of(shift) or shift
    first_group = begin if groups is None else outside_of(groups, "gid") or groups
    what = f"every owner on the volume {directory!r} is {shift} too high"
    if groups is not None:
        what += f", every group {groups}"
    if _is_in_rootless_engine():
        return _error(
            f"{what}: it was made under another mapping of users than the one of this engine",
            "shifted-owners",
            _start_in_rootless_engine(shift, groups or shift),
        )
    both = f"b:{begin}:0:{_USUAL_RANGE}"
    if first_group != begin:
        both = f"'u:{begin}:0:{_USUAL_RANGE} g:{first_group}:0:{_USUAL_RANGE}'"
    return _error(
        f"{what}: it was made under user-namespace remapping whose range begins at {begin}",
        "shifted-owners",
        f"Start it with the mapping it had: an engine whose /etc/subuid range begins at {begin}, "
        f"or podman run --uidmap 0:{begin}:{_USUAL_RANGE} --gidmap 0:{first_group}:{_USUAL_RANGE}. "
        "To shift it for good, copy it as root on the host through a mount that does it (mount of "
        f"util-linux 2.39): mount --bind -o X-mount.idmap={both} VOLUME MNT; cp -a MNT/. NEW. "
        "Do not use chown -R: it loses accounts, set-id bits, capabilities and ACLs.",
    )


def _is_in_rootless_engine() -> bool:
    """Tell whether root here is a user outside, and all others are that user's further ids."""
    return id_map()[0][::2] == (0, 1)


def _start_in_rootless_engine(users: int, groups: int) -> str:
    """Return how that engine, whose own namespace this is, starts a volume with owners so high."""
    words = (
        f"--{kind}map 0:{begin}:{min(_USUAL_RANGE, sum(row[2] for row in id_map(kind)) - begin)}"
        for kind, begin in (("uid", users), ("gid", groups))
    )
    return (
        "Start it with the mapping it had: with --userns=keep-id where it was made with that, and "
        f"--user 0; or podman run {' '.join(words)}."
    )


def _rootless(directory: str, root: int, shift: int) -> UnsafeVolumeError:
    if shift < 0:
        return _error(
            f"the owners on the volume {directory!r} are those of another mapping: root's files "
            f"belong to user {root}, and every other owner is {-shift} too low",
            "shifted-owners",
            "Start it with the mapping it had: a rootless engine's own without --userns=keep-id, "
            "--uidmap and --gidmap.",
        )
    begin = shift + 1
    outside = outside_of(root) or root
    return _error(
        f"the owners on the volume {directory!r} are those of a rootless engine: root's files "
        f"belong to user {outside}, and every other owner is {shift} too high",
        "shifted-owners",
        f"Start it by user {outside} with the same engine, whose /etc/subuid range begins at "
        f"{outside_of(begin) or begin}. Look at it as that user, too, with podman unshare in front "
        "of the command. To shift it for good, as that user: podman unshare tar -C "
        "VOLUME --numeric-owner --acls --xattrs --xattrs-include='*' -cf ARCHIVE . ; then unpack "
        "it as root with the same options into a new directory.",
    )


def _lost(directory: str, owner: int) -> UnsafeVolumeError:
    whom = f"user {owner}" if owner != OVERFLOW_ID else f"nobody ({OVERFLOW_ID})"
    return _error(
        f"every file on the volume {directory!r} belongs to {whom}, whoever it was made for: its "
        "owners were lost in a copy, or the file system does not keep any",
        "lost-owners",
        "Copy it once more from the original, as root and with everything: rsync -aHAX "
        "--numeric-ids, or tar with --numeric-owner --acls --xattrs. A network file system must "
        "not map owners (NFS: no_root_squash, no all_squash).",
    )


def _nobody(directory: str) -> UnsafeVolumeError:
    return _error(
        f"the volume {directory!r} belongs to nobody, the overflow id {OVERFLOW_ID}: its owner "
        "is one that this system cannot know",
        "shifted-owners",
        "Look at what maps owners in between: a user namespace, an NFS export (no_root_squash, no "
        "all_squash; idmapping of NFSv4), a mount option.",
    )


def _outside(fd: int, directory: str) -> UnsafeVolumeError:
    here, group = outside_of(0), outside_of(0, "gid")
    try:
        empty = not files.listdir(fd)
    except OSError:
        empty = False
    if empty:
        return _error(
            f"the volume {directory!r} is an empty directory whose owner is outside of this "
            f"container's user namespace, in which root is {here}",
            "shifted-owners",
            f"Give it to that one, on the host: chown {here}:{group} DIRECTORY",
        )
    return _error(
        f"the owners on the volume {directory!r} are outside of this container's user namespace, "
        f"in which root is {here}: it was made with another mapping, or with none",
        "shifted-owners",
        "Start it with the mapping it had; on the host, ls -ldn of its directory says which: 0 is "
        "none, another number is where its range in /etc/subuid begins, or the user of a rootless "
        "engine. There, the command check of ipavolume says more of the directory.",
    )
