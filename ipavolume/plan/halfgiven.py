"""Owners that a run was amid changing, given back: what it has planned tells how far it got."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ipavolume.model.actions import Rule, SetMetadata
from ipavolume.model.attributes import ACL_NAMES, CAPABILITY_NAME, translate_acl
from ipavolume.model.files import DiskState, Metadata, Xattrs
from ipavolume.model.images import Accounts
from ipavolume.model.traits import traits
from ipavolume.model.values import dataclass
from ipavolume.plan.accounts import Shared, named_ids, translation
from ipavolume.volume.openplan import read_actions
from ipavolume.volume.volumes import Volumes

HAD_ANOTHER: Final = "its account had another number before"

_Tables = tuple[Mapping[int, int], Mapping[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Had:
    """Owner and group that something is to have again, and by what its ACLs are translated."""

    uid: int
    gid: int
    tables: _Tables


class HalfGiven:
    """Tells of what is there whether the open run has given it its new owner already."""

    def __init__(
        self,
        volumes: Volumes,
        before: Accounts,
        now: Accounts,
        then: Accounts,
        shared: Shared,
    ) -> None:
        """Take the volumes and what accounts there are.

        Args:
            volumes: The volumes.
            before: The accounts that the volumes had when the open run began.
            now: Those of the image that it goes to.
            then: Those that the volumes are to have again.
            shared: The numbers of several accounts among those of the image.
        """
        self._volumes = volumes
        self._shared = shared
        self._old: _Tables = (
            translation(before.users, then.users),
            translation(before.groups, then.groups),
        )
        self._new: _Tables = (
            translation(now.users, then.users),
            translation(now.groups, then.groups),
        )
        self._given = (
            set(translation(before.users, now.users).values()),
            set(translation(before.groups, now.groups).values()),
        )
        self._had = set(before.users.values()), set(before.groups.values())

    def given_back(
        self, found: Iterable[tuple[str, DiskState, Xattrs]], unclear: list[str]
    ) -> Iterator[SetMetadata]:
        """Yield what gives what was found to the numbers that its accounts had.

        The paths are added to *unclear* of which nobody knows whether they were changed.
        """
        left = {path: (state, xattrs) for path, state, xattrs in found}
        # What a service has moved meanwhile, as it does with logs.
        moved = {traits(state, (state.uid, state.gid)): path for path, (state, _) in left.items()}
        for action in read_actions(self._volumes.primary, self._volumes):
            if not isinstance(action, SetMetadata):
                continue
            before, new = action.before, action.metadata
            owners = (before.uid, before.gid), (new.uid, new.gid)
            at = [moved[seen] for owner in owners if (seen := traits(before, owner)) in moved]
            for path in dict.fromkeys((*at, action.path)):
                had = self._had_of(action, *left[path]) if path in left else None
                if had is not None:
                    yield from _changed(path, *left.pop(path), had)
        for path, (state, xattrs) in left.items():
            had = self._guess(state, xattrs)
            if had is None:
                unclear.append(path)
            else:
                yield from _changed(path, state, xattrs, had)

    def _had_of(self, action: SetMetadata, state: DiskState, xattrs: Xattrs) -> _Had | None:
        """Return what something is to have again; ``None``: it is another's by now, or may be."""
        before, new = action.before, action.metadata
        owner, had = (state.uid, state.gid), (before.uid, before.gid)
        is_given = owner == (new.uid, new.gid)
        if state.type is not before.type or not (owner == had or is_given):
            return None
        if owner != had and state.ino != before.ino:
            return None
        is_done = is_given and _acls(xattrs) == _acls(new.xattrs)
        users, groups = self._old
        return _Had(
            uid=users.get(before.uid, before.uid),
            gid=groups.get(before.gid, before.gid),
            tables=self._new if is_done else self._old,
        )

    def _guess(self, state: DiskState, xattrs: Xattrs) -> _Had | None:
        """Return the same of what came since; ``None``: its number is of more than one account."""
        users, groups = named_ids(state.uid, state.gid, xattrs)
        if users & self._given[0] & self._had[0] or groups & self._given[1] & self._had[1]:
            return None
        if self._shared.is_among(users, groups):
            return None
        user, group = (
            {**old, **{number: new[number] for number in given & new.keys()}}
            for old, new, given in zip(self._old, self._new, self._given, strict=True)
        )
        return _Had(
            uid=user.get(state.uid, state.uid),
            gid=group.get(state.gid, state.gid),
            tables=(user, group),
        )


def _changed(path: str, state: DiskState, xattrs: Xattrs, had: _Had) -> Iterator[SetMetadata]:
    translated = tuple(
        (name, translate_acl(value, *had.tables) if name in ACL_NAMES else value)
        for name, value in xattrs
        if name in (*ACL_NAMES, CAPABILITY_NAME)
    )
    if (had.uid, had.gid) != (state.uid, state.gid) or _acls(translated) != _acls(xattrs):
        yield SetMetadata(
            path=path,
            before=state,
            metadata=Metadata(uid=had.uid, gid=had.gid, mode=state.mode, xattrs=translated),
            rule=Rule.OWNER_TRANSLATION,
            reason=HAD_ANOTHER,
        )


def _acls(xattrs: Xattrs) -> Xattrs:
    return tuple(item for item in xattrs if item[0] in ACL_NAMES)
