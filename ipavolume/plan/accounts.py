"""Accounts that have another number in the new image: everything that is theirs follows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from ipavolume.errors import UnsafeVolumeError
from ipavolume.model.actions import Action, Rule, SetMetadata
from ipavolume.model.attributes import ACL_NAMES, acl_ids, from_parts, translate_acl
from ipavolume.model.files import DiskState, FileType, Metadata, Xattrs
from ipavolume.model.images import Accounts
from ipavolume.plan.attributes import Owners
from ipavolume.plan.collected import Collected
from ipavolume.steps.api import Warn


class Renumbering:
    """Changes of owner over whole volumes."""

    def __init__(self, collected: Collected, owners: Owners, old: Accounts, new: Accounts) -> None:
        """Take the plan so far, what files get, and the accounts of both images."""
        self._collected = collected
        self._owners = owners
        self._old = old
        self._new = new
        self._shared = Shared(old, new)

    @property
    def renumbered(self) -> bool:
        """Some account has another number in the new image, so everything must be looked at."""
        has_others = self._owners.users or self._owners.groups or self._orphans()
        return bool(has_others or self._shared)

    @property
    def warnings(self) -> tuple[Warn, ...]:
        """What is to be told of what was given away."""
        return self._shared.warnings()

    def _orphans(self) -> tuple[dict[int, tuple[str, str]], dict[int, tuple[str, str]]] | None:
        users = reused(self._old.users, self._new.users)
        groups = reused(self._old.groups, self._new.groups)
        return (users, groups) if users or groups else None

    def translate(
        self, everything: Iterable[tuple[str, DiskState, Xattrs]], overtaken: Collection[str]
    ) -> None:
        """Plan new owners for all that belongs to an account with another number now.

        Args:
            everything: Every path of the volumes with its state and extended attributes.
            overtaken: Paths whose owner something else of the plan takes care of.

        Raises:
            UnsafeVolumeError: If something belongs to a number whose old account is gone
                and which another account has now.
        """
        orphans = self._orphans()
        for path, state, xattrs in everything:
            if orphans is not None:
                self._check_orphan(path, state, xattrs, *orphans)
            if path not in overtaken:
                self._shared.note(path, state, xattrs)
            action = renumbered(
                path,
                state,
                xattrs,
                self._owners.users,
                self._owners.groups,
                reason="its account has another number in this image",
            )
            if action is not None:
                self._collected.translations.append(action)

    def _check_orphan(
        self,
        path: str,
        state: DiskState,
        xattrs: Xattrs,
        users: Mapping[int, tuple[str, str]],
        groups: Mapping[int, tuple[str, str]],
    ) -> None:
        named_users, named_groups = named_ids(state.uid, state.gid, xattrs)
        for kind, numbers, table in (
            ("user", named_users, users),
            ("group", named_groups, groups),
        ):
            for number in sorted(numbers):
                if number in table:
                    if "reused-id" in self._collected.allow:
                        self._collected.overridden.add("reused-id")
                        return
                    gone, now = table[number]
                    is_root = gone in (self._new.users if kind == "user" else self._new.groups)
                    lost = f"makes {gone!r} root's" if is_root else f"has no {gone!r}"
                    raise UnsafeVolumeError(
                        f"{path!r} belongs to {kind} {number}, which was {gone!r}; this image "
                        f"{lost} and gives {number} to {now!r}",
                        code="reused-id",
                        path=path,
                        hint=f"Build the image with an account {gone!r}, or leave such files to "
                        f"{now!r} with --allow reused-id.",
                    )


class Shared:
    """Numbers of several accounts that have different ones now: nobody knows whose a file is."""

    def __init__(self, old: Accounts, new: Accounts) -> None:
        """Take the accounts before and now."""
        self._tables = {
            "user": _parted(old.users, new.users),
            "group": _parted(old.groups, new.groups),
        }
        self._new = {"user": new.users, "group": new.groups}
        self._found: dict[tuple[str, int], tuple[str, int]] = {}

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return any(self._tables.values())

    def names(self, kind: str, number: int) -> tuple[str, ...]:
        """Return the accounts that *number* had, the one that gets what had it first; or none.

        Args:
            kind: ``user`` or ``group``.
            number: The number of before.
        """
        return self._tables[kind].get(number, ())

    def is_among(self, users: Collection[int], groups: Collection[int]) -> bool:
        """Tell whether one of *users* or *groups* is such a number."""
        return bool(
            self._tables["user"].keys() & set(users) or self._tables["group"].keys() & set(groups)
        )

    def note(self, path: str, state: DiskState, xattrs: Xattrs) -> None:
        """Have it told of, if it has such a number."""
        if not self:
            return
        for kind, numbers in zip(
            self._tables, named_ids(state.uid, state.gid, xattrs), strict=True
        ):
            for number in numbers & self._tables[kind].keys():
                first, count = self._found.get((kind, number), (path, 0))
                self._found[kind, number] = first, count + 1

    def warnings(self) -> tuple[Warn, ...]:
        """Return what is told of all that was noted."""
        return tuple(self._warning(*key, *found) for key, found in sorted(self._found.items()))

    def _warning(self, kind: str, number: int, path: str, count: int) -> Warn:
        names = self.names(kind, number)
        who = " and ".join(f"{name!r} (now {self._new[kind][name]})" for name in names)
        more = f" and {count - 1} more" if count > 1 else ""
        return Warn(
            code="shared-id",
            text=f"{kind} {number} was that of {who}; what has it, and is not shipped as "
            f"another's, is taken for that of {names[0]!r}: {path!r}{more}",
            hint="Then give the others what is theirs: "
            f"{'chown' if kind == 'user' else 'chgrp'} -h, and setfacl.",
        )


def named_ids(uid: int, gid: int, xattrs: Xattrs) -> tuple[set[int], set[int]]:
    """Return the users and the groups to whom something belongs, or whom its ACLs name."""
    users, groups = {uid}, {gid}
    for name, value in xattrs:
        if name in ACL_NAMES:
            more_users, more_groups = acl_ids(value)
            users |= more_users
            groups |= more_groups
    return users, groups


def renumbered(
    path: str,
    state: DiskState,
    xattrs: Xattrs,
    users: Mapping[int, int],
    groups: Mapping[int, int],
    *,
    reason: str,
) -> SetMetadata | None:
    """Return what gives *path* to the accounts that had it, by their new numbers.

    ``None``: it has them already. Every path has its attributes: an ACL can name an account that
    owns nothing.
    """
    uid, gid = users.get(state.uid, state.uid), groups.get(state.gid, state.gid)
    translated = tuple(
        (name, translate_acl(value, users, groups) if name in ACL_NAMES else value)
        for name, value in xattrs
    )
    if (uid, gid) == (state.uid, state.gid) and translated == xattrs:
        return None
    attributes = from_parts(uid, gid, state.mode, translated)
    return SetMetadata(
        path=path,
        before=state,
        metadata=Metadata(uid=uid, gid=gid, mode=state.mode, xattrs=attributes.xattrs()),
        rule=Rule.OWNER_TRANSLATION,
        reason=reason,
    )


def is_renumbered(old: Accounts, new: Accounts) -> bool:
    """Tell whether some account has another number in the new image."""
    return bool(translation(old.users, new.users) or translation(old.groups, new.groups))


def _parted(old: Mapping[str, int], new: Mapping[str, int]) -> dict[int, tuple[str, ...]]:
    """Return by number the accounts that had it and have different ones now; never 0.

    First comes the one to which :func:`translation` gives what had it.
    """
    names: dict[int, list[str]] = {}
    for name in sorted(old):
        if old[name] and new.get(name):
            names.setdefault(old[name], []).append(name)
    return {
        number: tuple(sorted(those, key=lambda name: new[name] != number))
        for number, those in names.items()
        if len({new[name] for name in those}) > 1
    }


def translation(old: Mapping[str, int], new: Mapping[str, int]) -> dict[int, int]:
    """Return the new number by old number of the accounts whose number changed; never 0.

    Several names can have one number: it stays while one of them still has it.
    """
    result: dict[int, int] = {}
    for name in sorted(old, reverse=True):
        if name in new and old[name] and new[name]:
            result[old[name]] = new[name]
    kept = {number for name, number in old.items() if new.get(name) == number}
    return {number: now for number, now in result.items() if number not in kept}


def reused(old: Mapping[str, int], new: Mapping[str, int]) -> dict[int, tuple[str, str]]:
    """Return by number: the account that is gone, and the one that has the number now.

    Gone is one that is root's by now as well: root gets nothing by a translation.
    """
    names_now = {number: name for name, number in sorted(new.items(), reverse=True)}
    kept = {number for name, number in old.items() if new.get(name)}
    return {
        number: (name, names_now[number])
        for name, number in sorted(old.items(), reverse=True)
        if not new.get(name) and number in names_now and number not in kept and number
    }


class Remaining:
    """Changes of owner whose paths nothing else of the plan takes care of; gone over repeatedly."""

    def __init__(self, translations: Iterable[Action], overtaken: Collection[str]) -> None:
        """Take all of them, and the paths of what is left out."""
        self._translations = translations
        self._overtaken = overtaken

    def __iter__(self) -> Iterator[SetMetadata]:
        """Yield what remains."""
        for action in self._translations:
            if isinstance(action, SetMetadata) and action.path not in self._overtaken:
                yield action


_COUNT_BITS: Final = 40


def mark_private(actions: Iterable[SetMetadata]) -> Iterator[SetMetadata]:
    """Mark the changes of inodes that have names outside of the plan.

    A service could have linked a file of somebody else to a name where it expects the
    owner to be changed. Where every name of an inode is in the plan, nothing is given away.

    Args:
        actions: The changes; gone over twice, because there can be many.
    """
    # Two numbers an inode, because there can be a million: which metadata, and how many names.
    kinds: dict[Metadata, int] = {}
    seen: dict[int, int] = {}
    for item in actions:
        if item.before.nlink > 1 and item.before.type is not FileType.DIRECTORY:
            kind = kinds.setdefault(item.metadata, len(kinds)) << _COUNT_BITS
            key = _inode(item)
            found = seen.get(key, kind)
            same = found >= 0 and found >> _COUNT_BITS << _COUNT_BITS == kind
            seen[key] = found + 1 if same else -1
    for item in actions:
        found = seen.get(_inode(item), 0)
        if found < 0 or (found and found & (1 << _COUNT_BITS) - 1 != item.before.nlink):
            yield replace(item, private=True)
        else:
            yield item


def _inode(item: SetMetadata) -> int:
    return item.before.dev << 64 | item.before.ino
