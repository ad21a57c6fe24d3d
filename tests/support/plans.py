"""What plans are compared with: records, things and actions, by a word each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ipavolume.model.actions import (
    Erase,
    IfEdited,
    Install,
    Keep,
    RemoveDirectory,
    Rule,
    Save,
    SetMetadata,
)
from ipavolume.model.files import FileFlags, FileType, LinkStanding, Metadata, Record
from ipavolume.model.images import Accounts
from ipavolume.model.packages import Package
from support.values import RUN, Thing, World, image, record, shipped, thing

P: Final = "/data/etc/app.conf"
D: Final = "/data/etc/app"
A: Final = "/data/var/a"
LONGEST: Final = "/data/etc/" + "x" * 255
SAVED: Final = f"/data/.ipavolume/saved/{RUN}"
CONFIG: Final = FileFlags.CONFIG
NOREPLACE: Final = FileFlags.CONFIG | FileFlags.NOREPLACE
MISSINGOK: Final = FileFlags.CONFIG | FileFlags.MISSINGOK
GHOST: Final = FileFlags.GHOST
DIRECTORY: Final = FileType.DIRECTORY
LINK: Final = FileType.SYMLINK

MISSING: Final = "missing on the volume"
DELETED: Final = "deleted here; the image has it"
REPLACED: Final = "not edited; the image has another"
EDITED: Final = "edited, and replaced"
CHANGED: Final = "not a config file, but it was changed"
KEPT: Final = "edited, and the package did not change it"
BESIDE: Final = "edited, and the package changed it"
GONE: Final = "no longer shipped, not edited"
GONE_EDITED: Final = "no longer shipped, edited"
GONE_OTHER: Final = "no longer shipped, but not as shipped"
GONE_DIRECTORY: Final = "no longer shipped; goes only when empty"
UNTOLD: Final = "nothing says what was shipped before"
OVER: Final = "something is mounted over it; left as it is"
MOVED: Final = "moved elsewhere by a symbolic link; what lies behind it is not managed"
MERGED: Final = "the package changed owner, mode or ACL"
UNOWNED_ANOTHER: Final = "no package owns it; the image has another"
WAS_THERE: Final = "it was there before the image had it, and gets what the image has"
RENUMBERED: Final = "its account has another number in this image"


def was(content: str = "old", kind: FileType = FileType.FILE, **more: Any) -> Record:
    """Return what the last image shipped at ``P``."""
    return record(P, content, kind, **more)


def now(content: str = "new", kind: FileType = FileType.FILE, **more: Any) -> Record:
    """Return what the image ships at ``P``."""
    return record(P, content, kind, **more)


def at(old: Record | None, disk: Thing | None, new: Record | None, **options: Any) -> World:
    """Return a world in which there is one path, and nothing else."""
    path = next(item.path for item in (old, new) if item is not None)
    return World(
        old=(old,) if old else (),
        new=(new,) if new else (),
        disk={path: disk} if disk else {},
        options=options,
    )


def install(
    new: Record,
    reason: str,
    *,
    before: Thing | None = None,
    save_to: str = "",
    rule: str = Rule.RPM,
    metadata: Metadata | None = None,
    path: str = "",
    late: IfEdited | None = None,
) -> Install:
    """Return the action; *late* is left out where it is what flags and names say already."""
    return Install(
        path=path or new.path,
        record=new.path,
        metadata=metadata or shipped(new),
        bytes=new.size,
        before=before.state if before else None,
        save_to=save_to,
        if_edited=late or _late(new, save_to, path),
        rule=rule,
        reason=reason,
    )


def _late(new: Record, save_to: str, path: str) -> IfEdited:
    if not new.package or new.flags & GHOST:
        return IfEdited.KEPT
    if save_to.startswith(new.path + ".rpmorig"):
        return IfEdited.RPMORIG
    if save_to.startswith(new.path + ".rpmsave"):
        return IfEdited.RPMSAVE
    if path or save_to or not new.flags & CONFIG:
        return IfEdited.SAVED
    return IfEdited.RPMNEW if new.flags & FileFlags.NOREPLACE else IfEdited.RPMSAVE


def save(to: str, before: Thing, reason: str, *, rule: str = Rule.RPM, path: str = P) -> Save:
    return Save(path=path, to=to, before=before.state, rule=rule, reason=reason)


def erase(
    before: Thing,
    reason: str,
    *,
    rule: str = Rule.RPM,
    path: str = P,
    late: IfEdited = IfEdited.SAVED,
) -> Erase:
    return Erase(path=path, before=before.state, if_edited=late, rule=rule, reason=reason)


def keep(rule: str, reason: str, *, path: str = P) -> Keep:
    return Keep(path=path, rule=rule, reason=reason)


def data_kept(new: Record, before: Thing) -> Install:
    """Return the action that replaces *before* at ``P``, which is kept in our directory."""
    to = f"{SAVED}/etc/app.conf"
    return install(new, CHANGED, before=before, save_to=to, rule=Rule.DATA_KEPT)


def metadata(
    before: Thing, *, rule: str = Rule.METADATA, path: str = P, content: str = "", **more: Any
) -> SetMetadata:
    """Return the action that gives *before* what is in *more*."""
    state = before.state
    values = {"uid": state.uid, "gid": state.gid, "mode": state.mode, "xattrs": before.xattrs}
    private = more.pop("private", False)
    usual = RENUMBERED if rule == Rule.OWNER_TRANSLATION else MERGED
    reason = more.pop("reason", usual)
    return SetMetadata(
        path=path,
        before=state,
        metadata=Metadata(**{**values, **more}),
        private=private,
        content=content,
        rule=rule,
        reason=reason,
    )


def rmdir(path: str, *, required: bool = False) -> RemoveDirectory:
    return RemoveDirectory(
        path=path,
        required=required,
        rule=Rule.TYPE_CHANGE if required else Rule.RPM,
        reason="the image has a file there" if required else GONE_DIRECTORY,
    )


def package(version: str) -> tuple[Package, ...]:
    return (Package(name="app", epoch=0, version=version, release="1", arch="noarch"),)


def trusted(world: World) -> World:
    """Return *world* with an index that vouches for what is at ``P``."""
    return replace(world, trusted={P})


def same_package(world: World) -> World:
    """Return *world* with the package of the last image in this one."""
    return replace(world, before=image(packages=package("1")), after=image(packages=package("1")))


OLD: Final = thing("old")
NEW: Final = thing("new")
OWN: Final = thing("edited")
FOLDER: Final = thing(kind=DIRECTORY)
ELSEWHERE: Final = thing("/big", LINK)
MOVED_BY_ROOT: Final = thing("/big", LINK, standing=LinkStanding.TRUSTED)
OF_SVC: Final = thing("x", uid=990)

ALIAS: Final = "/data/etc/systemd/system/dbus.service"
BROKER: Final = "/usr/lib/systemd/system/dbus-broker.service"
NO_UNIT: Final = "it leads to a unit that the image does not have"


def accounts(
    users: tuple[Mapping[str, int], Mapping[str, int]],
    groups: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {}),
    **more: Any,
) -> World:
    """Return a world with the accounts of the last image and of this one."""
    return World(
        before=image(accounts=Accounts(users=users[0], groups=groups[0])),
        after=image(accounts=Accounts(users=users[1], groups=groups[1])),
        walked=True,
        **more,
    )
