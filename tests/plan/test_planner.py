"""What is planned, compared as values: rpm's table, and each difference from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import pytest
from support.values import MORE, RUN, Disk, Thing, World, acl, image, record, shipped, thing

from ipavolume.errors import IpaVolumeError, ManifestError
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    IfEdited,
    Install,
    Keep,
    RemoveDirectory,
    Rule,
    Save,
    SetMetadata,
)
from ipavolume.model.files import DiskState, FileFlags, FileType, LinkStanding, Metadata, Record
from ipavolume.model.images import Accounts, TopLevel, VolumeSpec
from ipavolume.model.packages import Package
from ipavolume.model.paths import numbered
from ipavolume.plan.fileplan import PlanOptions
from ipavolume.plan.planner import plan_files, plan_populate
from ipavolume.volume.candidates import Candidate

P: Final = "/data/etc/app.conf"
D: Final = "/data/etc/app"
SAVED: Final = f"/data/.ipavolume/saved/{RUN}"
CONFIG: Final = FileFlags.CONFIG
NOREPLACE: Final = FileFlags.CONFIG | FileFlags.NOREPLACE
MISSINGOK: Final = FileFlags.CONFIG | FileFlags.MISSINGOK
GHOST: Final = FileFlags.GHOST
DIRECTORY: Final = FileType.DIRECTORY
LINK: Final = FileType.SYMLINK

MISSING: Final = "missing on the volume"
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


# -- rpm's table -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        # Not in the last image.
        pytest.param(at(None, None, now()), [install(now(), MISSING)], id="new, missing"),
        pytest.param(at(None, None, now(flags=GHOST)), [], id="new ghost, missing"),
        pytest.param(at(None, OWN, now(flags=GHOST)), [], id="new ghost, there"),
        pytest.param(at(None, None, now(present=False)), [], id="new, not in the template"),
        pytest.param(at(None, NEW, now()), [], id="new, there already"),
        pytest.param(
            at(None, OWN, now()),
            [data_kept(now(), OWN)],
            id="new, another there",
        ),
        pytest.param(at(None, NEW, now(flags=CONFIG)), [], id="new config, there already"),
        pytest.param(
            at(None, OWN, now(flags=CONFIG)),
            [
                install(
                    now(flags=CONFIG), "not known, and replaced", before=OWN, save_to=P + ".rpmorig"
                )
            ],
            id="new config, another there",
        ),
        pytest.param(
            at(None, OWN, now(flags=NOREPLACE)),
            [
                install(now(flags=NOREPLACE), BESIDE, path=P + ".rpmnew"),
                keep(Rule.RPM, f"{BESIDE}; see {P}.rpmnew"),
            ],
            id="new noreplace, another there",
        ),
        # In both, never a config file.
        pytest.param(at(was(), None, now()), [install(now(), MISSING)], id="missing"),
        pytest.param(at(was(), OLD, now()), [install(now(), REPLACED, before=OLD)], id="unedited"),
        pytest.param(at(was(), NEW, now()), [], id="there already"),
        pytest.param(
            at(was(), OWN, now()),
            [data_kept(now(), OWN)],
            id="edited",
        ),
        pytest.param(at(was(), OWN, now(flags=GHOST)), [], id="now a ghost"),
        pytest.param(at(was(flags=GHOST), OWN, now(flags=GHOST)), [], id="still a ghost"),
        pytest.param(
            at(was("/a", LINK), thing("/a", LINK), now("/b", LINK)),
            [install(now("/b", LINK), REPLACED, before=thing("/a", LINK))],
            id="link, unedited",
        ),
        pytest.param(at(was("/a", LINK), thing("/b", LINK), now("/b", LINK)), [], id="link, there"),
        # In both, a config file.
        pytest.param(
            at(was(flags=CONFIG), None, now(flags=CONFIG)),
            [install(now(flags=CONFIG), MISSING)],
            id="config, missing",
        ),
        pytest.param(at(was(flags=MISSINGOK), None, now(flags=MISSINGOK)), [], id="missingok"),
        pytest.param(
            at(was(flags=CONFIG), OLD, now(flags=CONFIG)),
            [install(now(flags=CONFIG), REPLACED, before=OLD)],
            id="config, unedited",
        ),
        pytest.param(at(was(flags=CONFIG), NEW, now(flags=CONFIG)), [], id="config, there already"),
        pytest.param(
            at(was(flags=CONFIG), OWN, now("old", flags=CONFIG)),
            [keep(Rule.RPM, KEPT)],
            id="config, edited, unchanged",
        ),
        pytest.param(
            at(was(flags=NOREPLACE), OWN, now("old", flags=NOREPLACE)),
            [keep(Rule.RPM, KEPT)],
            id="noreplace, edited, unchanged",
        ),
        pytest.param(
            at(was(flags=CONFIG), OWN, now(flags=CONFIG)),
            [install(now(flags=CONFIG), EDITED, before=OWN, save_to=P + ".rpmsave")],
            id="config, edited, changed",
        ),
        pytest.param(
            at(was(flags=NOREPLACE), OWN, now(flags=NOREPLACE)),
            [
                install(now(flags=NOREPLACE), BESIDE, path=P + ".rpmnew"),
                keep(Rule.RPM, f"{BESIDE}; see {P}.rpmnew"),
            ],
            id="noreplace, edited, changed",
        ),
        pytest.param(
            at(was(flags=CONFIG), OWN, now()),
            [install(now(), EDITED, before=OWN, save_to=P + ".rpmsave")],
            id="no longer config, edited",
        ),
        pytest.param(
            at(was(flags=CONFIG), OLD, now()),
            [install(now(), REPLACED, before=OLD, late=IfEdited.RPMSAVE)],
            id="no longer config, unedited",
        ),
        # No longer in the image.
        pytest.param(at(was(), None, None), [], id="dropped, missing"),
        pytest.param(at(was(), OLD, None), [erase(OLD, GONE)], id="dropped, unedited"),
        pytest.param(
            at(was(), OWN, None),
            [save(f"{SAVED}/etc/app.conf", OWN, GONE_OTHER, rule=Rule.DATA_KEPT)],
            id="dropped, edited",
        ),
        pytest.param(
            at(was(flags=GHOST), OWN, None),
            [save(f"{SAVED}/etc/app.conf", OWN, GONE_OTHER, rule=Rule.DATA_KEPT)],
            id="dropped ghost",
        ),
        pytest.param(at(was(flags=CONFIG | GHOST), OWN, None), [], id="dropped config ghost"),
        pytest.param(
            at(was(flags=CONFIG), OLD, None),
            [erase(OLD, GONE, late=IfEdited.RPMSAVE)],
            id="dropped config, unedited",
        ),
        pytest.param(
            at(was(flags=CONFIG), OWN, None),
            [save(P + ".rpmsave", OWN, GONE_EDITED)],
            id="dropped config, edited",
        ),
        pytest.param(at(was("", DIRECTORY), FOLDER, None), [rmdir(P)], id="dropped directory"),
        pytest.param(
            at(was("", DIRECTORY), OWN, None),
            [save(f"{SAVED}/etc/app.conf", OWN, GONE_OTHER, rule=Rule.DATA_KEPT)],
            id="dropped directory, a file there",
        ),
        pytest.param(
            at(was(package=""), OLD, None),
            [keep(Rule.LEFT, "no package owns it; the image no longer has it")],
            id="dropped, of no package: stays as it is",
        ),
        pytest.param(
            at(was(package=""), OWN, None), [], id="dropped, of no package, edited: yours"
        ),
        pytest.param(
            at(was("", DIRECTORY, package=""), FOLDER, None), [], id="dropped directory, of none"
        ),
        pytest.param(at(was(flags=GHOST), OLD, now()), [data_kept(now(), OLD)], id="was a ghost"),
        pytest.param(
            at(was(flags=GHOST), OLD, None),
            [save(f"{SAVED}/etc/app.conf", OLD, GONE_OTHER, rule=Rule.DATA_KEPT)],
            id="dropped ghost, as the image had it",
        ),
        pytest.param(
            at(was(), OLD, now(package="")),
            [install(now(package=""), REPLACED, before=OLD, late=IfEdited.SAVED)],
            id="no longer of a package",
        ),
    ],
)
def test_rpms_table(world: World, expected: list[Action]) -> None:
    assert world.plan() == tuple(expected)


@pytest.mark.parametrize(
    ("world", "late"),
    [
        pytest.param(at(None, None, now()), IfEdited.SAVED, id="new"),
        pytest.param(at(None, None, now(flags=CONFIG)), IfEdited.RPMORIG, id="new config"),
        pytest.param(at(None, None, now(flags=NOREPLACE)), IfEdited.RPMNEW, id="new noreplace"),
        pytest.param(at(None, None, now(package="")), IfEdited.KEPT, id="new, of no package"),
        pytest.param(
            at(None, None, now(flags=GHOST), populate=True), IfEdited.KEPT, id="populated ghost"
        ),
        pytest.param(at(was(), None, now()), IfEdited.SAVED, id="missing"),
        pytest.param(
            at(was(flags=CONFIG), None, now("old", flags=CONFIG)),
            IfEdited.KEPT,
            id="missing, the package did not change it",
        ),
        pytest.param(
            at(was(flags=NOREPLACE), None, now(flags=NOREPLACE)),
            IfEdited.RPMNEW,
            id="missing noreplace",
        ),
        pytest.param(at(was(), OLD, now()), IfEdited.SAVED, id="replaced"),
        pytest.param(
            at(was(flags=CONFIG), OLD, now(flags=CONFIG)), IfEdited.RPMSAVE, id="replaced config"
        ),
        pytest.param(
            at(was(flags=NOREPLACE), OLD, now(flags=NOREPLACE)),
            IfEdited.RPMNEW,
            id="replaced noreplace",
        ),
        pytest.param(at(was(flags=NOREPLACE), OLD, now()), IfEdited.RPMSAVE, id="config no more"),
        pytest.param(at(was(), OWN, now()), IfEdited.SAVED, id="data kept"),
        pytest.param(at(was(flags=CONFIG), OWN, now(flags=CONFIG)), IfEdited.RPMSAVE, id="rpmsave"),
        pytest.param(at(None, OWN, now(flags=CONFIG)), IfEdited.RPMORIG, id="rpmorig"),
        pytest.param(
            at(was(package=""), OLD, now(package="", refresh=True)), IfEdited.KEPT, id="refreshed"
        ),
        pytest.param(
            at(None, None, now(flags=CONFIG), unknown_old=True), IfEdited.RPMNEW, id="unknown old"
        ),
        pytest.param(
            at(None, None, now(), unknown_old=True), IfEdited.KEPT, id="unknown old, no config"
        ),
        pytest.param(at(was(), OLD, None), IfEdited.SAVED, id="erased"),
        pytest.param(at(was(flags=NOREPLACE), OLD, None), IfEdited.RPMSAVE, id="erased config"),
        pytest.param(
            at(was(flags=CONFIG), OLD, now("", DIRECTORY)),
            IfEdited.RPMSAVE,
            id="config file whose place a directory takes",
        ),
    ],
)
def test_what_an_edit_gets_that_comes_after_the_plan(world: World, late: IfEdited) -> None:
    """F46: it gets what it would have got before, by rpm's table and our differences."""
    action = next(one for one in world.plan() if isinstance(one, Install | Erase))
    assert action.if_edited is late


# -- one case for each rule --------------------------------------------------------------

ALIAS: Final = "/data/etc/systemd/system/dbus.service"
BROKER: Final = "/usr/lib/systemd/system/dbus-broker.service"
NO_UNIT: Final = "it leads to a unit that the image does not have"
_LINKED: Final = World(
    old=(record(D, kind=DIRECTORY), record(f"{D}/x", "old")),
    new=(record(D, kind=DIRECTORY), record(f"{D}/x", "new")),
    disk={D: MOVED_BY_ROOT},
)
RULES: Final[Mapping[Rule, tuple[World, list[Action]]]] = {
    Rule.CREATE: (at(None, None, now("", DIRECTORY)), [CreateTree(path=P, entries=1, bytes=0)]),
    Rule.RPM: (at(was(), OLD, None), [erase(OLD, GONE)]),
    Rule.METADATA: (
        at(was(), OLD, now("old", mode=0o600)),
        [metadata(OLD, mode=0o600, content="old")],
    ),
    Rule.COPIES: (
        World(
            old=(was(flags=CONFIG),),
            new=(now(flags=CONFIG),),
            disk={P: OWN, P + ".rpmsave": thing("edited before")},
        ),
        [
            install(
                now(flags=CONFIG), EDITED, before=OWN, save_to=P + ".rpmsave.1", rule=Rule.COPIES
            )
        ],
    ),
    Rule.DATA_KEPT: (
        at(was(), OWN, None),
        [save(f"{SAVED}/etc/app.conf", OWN, GONE_OTHER, rule=Rule.DATA_KEPT)],
    ),
    Rule.LIST_LOST: (
        at(record("/data/opt/x", "old"), OLD, None),
        [keep(Rule.LIST_LOST, "no longer on the path list of the image", path="/data/opt/x")],
    ),
    Rule.TYPE_CHANGE: (
        at(was("", DIRECTORY), FOLDER, now()),
        [
            rmdir(P, required=True),
            install(now(), "takes the directory's place", rule=Rule.TYPE_CHANGE),
        ],
    ),
    Rule.UNOWNED: (
        at(None, OWN, now(package="")),
        [keep(Rule.UNOWNED, "no package owns it; the image has another")],
    ),
    Rule.LEFT: (
        at(was(package=""), OLD, now(package="")),
        [keep(Rule.LEFT, "no package owns it; the image has another")],
    ),
    Rule.UNIT_LINK: (
        World(
            old=(record(ALIAS, BROKER, LINK, package=""),),
            disk={ALIAS: thing(BROKER, LINK)},
            after=image(units=("system/dbus.service",)),
        ),
        [
            erase(
                thing(BROKER, LINK),
                NO_UNIT,
                rule=Rule.UNIT_LINK,
                path=ALIAS,
                late=IfEdited.KEPT,
            )
        ],
    ),
    Rule.REFRESH: (
        at(was(package="", refresh=True), OLD, now(package="", refresh=True)),
        [
            install(
                now(package="", refresh=True),
                "not edited, and the configuration lets the image refresh it",
                before=OLD,
                rule=Rule.REFRESH,
            )
        ],
    ),
    Rule.OWNER_TRANSLATION: (
        World(
            before=image(accounts=Accounts(users={"svc": 990})),
            after=image(accounts=Accounts(users={"svc": 980})),
            disk={"/data/var/known-to-nobody": thing("x", uid=990)},
            walked=True,
        ),
        [
            metadata(
                thing("x", uid=990),
                uid=980,
                path="/data/var/known-to-nobody",
                rule=Rule.OWNER_TRANSLATION,
            )
        ],
    ),
    Rule.RELOCATED_OUTSIDE: (
        replace(_LINKED, disk={D: thing("/big", LINK, standing=LinkStanding.OUTSIDE)}),
        [
            keep(
                Rule.RELOCATED_OUTSIDE,
                "moved elsewhere by a symbolic link to '/big': whether that is mounted in the "
                "container cannot be told here; what lies behind it is not managed",
                path=D,
            )
        ],
    ),
    Rule.RELOCATED: (_LINKED, [keep(Rule.RELOCATED, MOVED, path=D)]),
    Rule.PACKAGE_UNCHANGED: (
        same_package(at(was(), thing("/elsewhere", LINK), was())),
        [keep(Rule.PACKAGE_UNCHANGED, "its package did not change")],
    ),
    Rule.UNKNOWN_OLD: (
        at(None, OWN, now(), unknown_old=True),
        [keep(Rule.UNKNOWN_OLD, f"differs; {UNTOLD}")],
    ),
    Rule.MOUNTED_OVER: (
        at(was(), OLD, now(), mounted=[P], allow=["mounted-over"]),
        [keep(Rule.MOUNTED_OVER, OVER)],
    ),
}


def test_every_rule_has_a_case() -> None:
    assert set(RULES) == set(Rule)


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule) for rule in RULES])
def test_each_rule(rule: Rule) -> None:
    world, expected = RULES[rule]
    assert world.plan() == tuple(expected)
    assert rule in {action.rule for action in expected}


# -- directories, and what is missing below them -----------------------------------------


def test_a_directory_that_is_missing_comes_with_all_below_it_but_what_is_left_out() -> None:
    new = (
        record(D, kind=DIRECTORY),
        record(f"{D}/a", "12345"),
        record(f"{D}/b", "1", flags=GHOST),
        record(f"{D}/sub", kind=DIRECTORY),
        record(f"{D}/sub/c", "123"),
        record(f"{D}/sub/run", kind=DIRECTORY, flags=GHOST),
        record(f"{D}x", "beside it, and sorted after it"),
    )
    assert World(new=new).plan() == (
        CreateTree(path=D, entries=5, bytes=8, omit=(f"{D}/b",)),
        install(new[-1], MISSING),
    )
    everything = (CreateTree(path=D, entries=6, bytes=9), install(new[-1], MISSING))
    assert World(new=new, options={"populate": True}).plan() == everything


@pytest.mark.parametrize(
    ("world", "omit"),
    [
        pytest.param(
            World(
                old=(record(f"{D}/x", "old", package=""),),
                new=(record(D, kind=DIRECTORY), record(f"{D}/x", package="")),
            ),
            (f"{D}/x",),
            id="deleted, and of no package",
        ),
        pytest.param(
            World(
                old=(record(f"{D}/x", "old", flags=MISSINGOK),),
                new=(record(D, kind=DIRECTORY), record(f"{D}/x", flags=MISSINGOK)),
            ),
            (f"{D}/x",),
            id="deleted, and missingok",
        ),
    ],
)
def test_what_was_deleted_stays_deleted_also_where_its_directory_is_made_anew(
    world: World, omit: tuple[str, ...]
) -> None:
    assert world.plan() == (CreateTree(path=D, entries=1, bytes=0, omit=omit),)


def test_filling_empty_volumes_is_one_action_for_each_directory() -> None:
    assert plan_populate(
        [
            TopLevel(path="/data/etc", is_directory=True, entries=3, bytes=17),
            TopLevel(path="/data/var", is_directory=True, entries=1, bytes=0),
        ]
    ) == (
        CreateTree(path="/data/etc", entries=3, bytes=17),
        CreateTree(path="/data/var", entries=1, bytes=0),
    )


def test_what_goes_goes_from_below_and_before_what_comes() -> None:
    world = World(
        old=(record(D, kind=DIRECTORY), record(f"{D}/a", "old"), record(f"{D}/b", "old")),
        new=(record("/data/etc/a", "new"), was(mode=0o600)),
        disk={D: FOLDER, f"{D}/a": OLD, f"{D}/b": OWN},
    )
    assert world.plan() == (
        save(f"{SAVED}/etc/app/b", OWN, GONE_OTHER, rule=Rule.DATA_KEPT, path=f"{D}/b"),
        erase(OLD, GONE, path=f"{D}/a"),
        rmdir(D),
        install(record("/data/etc/a", "new"), MISSING),
        install(was(mode=0o600), MISSING),
    )


# -- the type changes --------------------------------------------------------------------

_CHILD: Final = f"{P}/x"
_TREE: Final = CreateTree(path=P, entries=1, bytes=0)


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        pytest.param(
            World(
                old=(was("", DIRECTORY), record(_CHILD, "old")),
                new=(now(),),
                disk={P: FOLDER, _CHILD: OLD},
            ),
            [
                erase(OLD, GONE, path=_CHILD),
                rmdir(P, required=True),
                install(now(), "takes the directory's place", rule=Rule.TYPE_CHANGE),
            ],
            id="directory with known content to file",
        ),
        pytest.param(
            World(
                old=(was("", DIRECTORY), record(_CHILD, "old", flags=CONFIG)),
                new=(now(),),
                disk={P: FOLDER, _CHILD: OWN},
            ),
            [
                save(f"{SAVED}/etc/app.conf/x", OWN, GONE_EDITED, path=_CHILD),
                rmdir(P, required=True),
                install(now(), "takes the directory's place", rule=Rule.TYPE_CHANGE),
            ],
            id="directory with an edited config file to file",
        ),
        pytest.param(
            at(None, FOLDER, now()),
            [
                rmdir(P, required=True),
                install(now(), "takes the directory's place", rule=Rule.TYPE_CHANGE),
            ],
            id="empty directory of nobody to file",
        ),
        pytest.param(
            World(
                old=(was("", DIRECTORY), record(_CHILD, "old")),
                new=(now(),),
                disk={P: FOLDER, _CHILD: OLD, f"{P}/mine": OWN},
                options={"allow": ["type-change"]},
            ),
            [
                save(
                    f"{SAVED}/etc/app.conf",
                    FOLDER,
                    "the image has a file there",
                    rule=Rule.TYPE_CHANGE,
                ),
                install(now(), "takes the directory's place", rule=Rule.TYPE_CHANGE),
            ],
            id="directory with unknown content to file, allowed",
        ),
        pytest.param(
            at(was(), OLD, now("", DIRECTORY)),
            [erase(OLD, "a directory takes its place", rule=Rule.TYPE_CHANGE), _TREE],
            id="unedited file to directory",
        ),
        pytest.param(
            at(was(), OWN, now("", DIRECTORY)),
            [save(f"{SAVED}/etc/app.conf", OWN, CHANGED, rule=Rule.DATA_KEPT), _TREE],
            id="edited file to directory",
        ),
        pytest.param(
            at(was(flags=CONFIG), OWN, now("", DIRECTORY)),
            [save(P + ".rpmsave", OWN, EDITED), _TREE],
            id="edited config file to directory",
        ),
        pytest.param(
            World(
                old=(was(flags=CONFIG),),
                new=(now("", DIRECTORY),),
                disk={P: OWN, f"{P}.rpmsave": OWN},
            ),
            [save(P + ".rpmsave.1", OWN, EDITED, rule=Rule.COPIES), _TREE],
            id="edited config file to directory, with a copy that is the same",
        ),
        pytest.param(
            World(
                old=(was(flags=CONFIG),),
                new=(now("", DIRECTORY), record(_CHILD, "new")),
                disk={P: FOLDER, _CHILD: OWN},
            ),
            [save(P + ".rpmsave", FOLDER, EDITED), CreateTree(path=P, entries=2, bytes=3)],
            id="config file that became a directory by hand to directory",
        ),
        pytest.param(
            at(was("/a", LINK), thing("/a", LINK), now("", DIRECTORY)),
            [
                erase(
                    thing("/a", LINK),
                    "a directory takes its place",
                    rule=Rule.TYPE_CHANGE,
                ),
                _TREE,
            ],
            id="the package's own link to directory",
        ),
        pytest.param(
            at(was(), OLD, now("/a", LINK)),
            [install(now("/a", LINK), REPLACED, before=OLD)],
            id="unedited file to link",
        ),
        pytest.param(
            at(was(), thing("", FileType.OTHER), now("", FileType.FIFO)),
            [
                install(
                    now("", FileType.FIFO),
                    CHANGED,
                    before=thing("", FileType.OTHER),
                    save_to=f"{SAVED}/etc/app.conf",
                    rule=Rule.DATA_KEPT,
                )
            ],
            id="socket to FIFO",
        ),
        pytest.param(
            World(
                old=(was("", DIRECTORY), record(_CHILD, kind=DIRECTORY)),
                new=(now(),),
                disk={P: FOLDER, _CHILD: FOLDER},
            ),
            [
                rmdir(_CHILD),
                rmdir(P, required=True),
                install(now(), "takes the directory's place", rule=Rule.TYPE_CHANGE),
            ],
            id="directory with a known one to file",
        ),
        pytest.param(
            at(was(flags=CONFIG), FOLDER, now(flags=CONFIG)),
            [
                save(P + ".rpmsave", FOLDER, EDITED),
                install(now(flags=CONFIG), "takes its place"),
            ],
            id="config file that became a directory by hand to file",
        ),
        pytest.param(
            at(was("", DIRECTORY), ELSEWHERE, now()),
            [data_kept(now(), ELSEWHERE)],
            id="directory that became a link by hand to file",
        ),
    ],
)
def test_a_change_of_type(world: World, expected: list[Action]) -> None:
    assert world.plan() == tuple(expected)


# -- links in a directory's place --------------------------------------------------------


@pytest.mark.parametrize("standing", LinkStanding)
def test_a_directory_that_is_no_longer_shipped_is_left_where_a_link_took_its_place(
    standing: LinkStanding,
) -> None:
    link = thing("/big", LINK, standing=standing)
    world = at(record(D, kind=DIRECTORY), link, None)
    assert world.plan() == (keep(Rule.RELOCATED, MOVED, path=D),)


# -- owner, mode, ACL --------------------------------------------------------------------

_NAMED: Final = (acl(u1000=6),)
_OPEN: Final = thing("edited", mode=0o640, planted=True)
_REFUSED: Final = (
    "the package changed owner or mode, but this is not the package's content, and not root "
    "alone could have put it there"
)
_DROPPED: Final = "the package changed owner or mode; the ACL set here is dropped"


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        pytest.param(
            at(was(), thing("old", mode=0o600), was()), [], id="only the administrator's side"
        ),
        pytest.param(
            at(was(), thing("old", mode=0o600), now()),
            [
                install(
                    now(),
                    REPLACED,
                    before=thing("old", mode=0o600),
                    metadata=Metadata(uid=0, gid=0, mode=0o600),
                )
            ],
            id="the administrator's mode on the package's new content",
        ),
        pytest.param(
            at(was("", DIRECTORY), FOLDER, now("", DIRECTORY, mode=0o700, gid=5)),
            [metadata(FOLDER, mode=0o700, gid=5)],
            id="a directory",
        ),
        pytest.param(
            at(was("/a", LINK), thing("/a", LINK), now("/a", LINK, uid=5, mode=0o700)),
            [metadata(thing("/a", LINK), uid=5, mode=0o700, content="")],
            id="a link",
        ),
        pytest.param(
            at(was("/a", LINK), thing("/a", LINK), now("/a", LINK, mode=0o700)),
            [],
            id="the mode of a link",
        ),
        pytest.param(
            at(was(flags=CONFIG), OWN, now("old", flags=CONFIG, uid=5)),
            [metadata(OWN, uid=5), keep(Rule.RPM, KEPT)],
            id="edited content, changes hands",
        ),
        pytest.param(
            at(was(flags=CONFIG), _OPEN, now("old", flags=CONFIG, uid=5)),
            [keep(Rule.METADATA, _REFUSED), keep(Rule.RPM, KEPT)],
            id="planted content never changes hands",
        ),
        pytest.param(
            at(was(flags=CONFIG, mode=0o640), _OPEN, now("old", flags=CONFIG, mode=0o600)),
            [metadata(_OPEN, mode=0o600), keep(Rule.RPM, KEPT)],
            id="planted content may become narrower",
        ),
        pytest.param(
            at(was(), thing("old", mode=0o664, xattrs=_NAMED), now(mode=0o640)),
            [
                install(
                    now(mode=0o640),
                    REPLACED,
                    before=thing("old", mode=0o664, xattrs=_NAMED),
                    metadata=Metadata(uid=0, gid=0, mode=0o640),
                ),
                keep(Rule.METADATA, _DROPPED),
            ],
            id="an ACL of the administrator is dropped and said",
        ),
        pytest.param(
            at(was(), OLD, now(xattrs=(("user.x", b"1"), ("security.capability", b"c")))),
            [
                install(
                    now(xattrs=(("user.x", b"1"), ("security.capability", b"c"))),
                    REPLACED,
                    before=OLD,
                )
            ],
            id="other attributes of a new file",
        ),
        pytest.param(
            at(was(flags=NOREPLACE), OWN, now(flags=NOREPLACE, mode=0o600)),
            [
                install(now(flags=NOREPLACE, mode=0o600), BESIDE, path=P + ".rpmnew"),
                metadata(OWN, mode=0o600),
                keep(Rule.RPM, f"{BESIDE}; see {P}.rpmnew"),
            ],
            id="beside a .rpmnew",
        ),
        pytest.param(
            at(
                was(flags=CONFIG),
                thing("edited", mode=0o664, xattrs=_NAMED),
                now("old", flags=CONFIG, mode=0o640),
            ),
            [
                metadata(thing("edited", mode=0o664, xattrs=_NAMED), mode=0o640, xattrs=()),
                keep(Rule.METADATA, _DROPPED),
                keep(Rule.RPM, KEPT),
            ],
            id="an ACL of the administrator is dropped from edited content",
        ),
        pytest.param(
            at(was(), OLD, now(mode=0o4755, xattrs=(*_NAMED, ("security.capability", b"c")))),
            [
                install(
                    now(mode=0o4755, xattrs=(*_NAMED, ("security.capability", b"c"))),
                    REPLACED,
                    before=OLD,
                )
            ],
            id="set-id, ACL and capability of a new file",
        ),
        pytest.param(
            at(was(), thing("old", planted=True), was(uid=5)),
            [metadata(thing("old", planted=True), uid=5, content="old")],
            id="the package's own content changes hands wherever it is",
        ),
        pytest.param(
            at(was("", DIRECTORY, package=""), FOLDER, now("", DIRECTORY, package="", mode=0o700)),
            [metadata(FOLDER, mode=0o700)],
            id="a directory of no package",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, mode=0o700, uid=5)),
            [metadata(FOLDER, mode=0o700, uid=5, reason=WAS_THERE)],
            id="a directory that was there",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, mode=0o777)),
            [metadata(FOLDER, mode=0o777, reason=WAS_THERE)],
            id="a directory that was there, opened as rpm does",
        ),
        pytest.param(at(None, FOLDER, now("", DIRECTORY)), [], id="a directory that was right"),
        pytest.param(
            at(None, thing("", DIRECTORY, xattrs=(acl(u7=7),)), now("", DIRECTORY)),
            [
                metadata(thing("", DIRECTORY, xattrs=(acl(u7=7),)), xattrs=(), reason=WAS_THERE),
                keep(
                    Rule.METADATA,
                    "the package changed owner or mode; the ACL set here is dropped",
                ),
            ],
            id="a directory that was there with an ACL",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, mode=0o700), mounted=[P]),
            [keep(Rule.MOUNTED_OVER, OVER)],
            id="a directory that is a mount point",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, mode=0o700), mounted=[f"{P}/inside"]),
            [metadata(FOLDER, mode=0o700, reason=WAS_THERE)],
            id="a directory above a mount point",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, mode=0o700, flags=GHOST)),
            [],
            id="a ghost that was there",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, mode=0o700), unknown_old=True),
            [],
            id="a directory that may have been shipped",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, package="", mode=0o700), populate=True),
            [metadata(FOLDER, mode=0o700, reason=WAS_THERE)],
            id="populated: a directory of no package that was there",
        ),
        pytest.param(
            at(None, FOLDER, now("", DIRECTORY, package="", mode=0o700)),
            [keep(Rule.UNOWNED, "no package owns it; the image has another owner or mode")],
            id="a directory of no package that was there",
        ),
    ],
)
def test_owner_mode_and_acl(world: World, expected: list[Action]) -> None:
    assert world.plan() == tuple(expected)


# -- owners ------------------------------------------------------------------------------


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


def translated(path: str, before: Thing, **more: Any) -> SetMetadata:
    return metadata(before, path=path, rule=Rule.OWNER_TRANSLATION, **more)


A: Final = "/data/var/a"
B: Final = "/data/var/b"
SWAP: Final = ({"alice": 1000, "bob": 1001}, {"alice": 1001, "bob": 1000})
SHIFT: Final = ({"svc": 990}, {"svc": 980})
_OF_SVC: Final = thing("x", uid=990)
_TWICE: Final = thing("x", uid=990, nlink=2)
_SOCKET: Final = thing("", FileType.OTHER, uid=990, nlink=2)
_ONE_SOCKET: Final = thing("", FileType.OTHER, uid=990)


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        pytest.param(
            accounts(SWAP, disk={A: thing("a", uid=1000), B: thing("b", uid=1001)}),
            [
                translated(A, thing("a", uid=1000), uid=1001),
                translated(B, thing("b", uid=1001), uid=1000),
            ],
            id="alice and bob change numbers",
        ),
        pytest.param(
            accounts(
                ({}, {}), SWAP, disk={A: thing("a", gid=1000, mode=0o2755), B: thing("b", uid=1000)}
            ),
            [translated(A, thing("a", gid=1000, mode=0o2755), gid=1001)],
            id="only groups, the set-gid bit stays",
        ),
        pytest.param(
            accounts(
                SWAP,
                SHIFT,
                disk={A: thing("a", xattrs=(acl(u1000=7, u1001=4, g990=1), ("user.x", b"1")))},
            ),
            [
                translated(
                    A,
                    thing("a", xattrs=(acl(u1000=7, u1001=4, g990=1), ("user.x", b"1"))),
                    xattrs=(acl(u1000=4, u1001=7, g980=1),),
                )
            ],
            id="names in an ACL",
        ),
        pytest.param(
            accounts(
                ({"root": 0, "svc": 990, "x": 7}, {"root": 5, "svc": 0, "x": 7}),
                disk={A: thing("a"), B: _OF_SVC},
            ),
            [],
            id="never from or to 0",
        ),
        pytest.param(
            accounts(SHIFT, disk={A: thing("a", uid=980), B: thing("b", uid=5)}),
            [],
            id="others keep theirs",
        ),
        pytest.param(
            accounts(
                SHIFT,
                old=(was(uid=990),),
                new=(was(uid=980),),
                disk={P: thing("old", uid=990)},
            ),
            [translated(P, thing("old", uid=990), uid=980)],
            id="no change by the package",
        ),
        pytest.param(
            accounts(
                SHIFT,
                old=(was(uid=990),),
                new=(now("old", uid=980, mode=0o600),),
                disk={P: thing("old", uid=990)},
            ),
            [metadata(thing("old", uid=990), uid=980, mode=0o600, content="old")],
            id="what gets other metadata anyhow changes once",
        ),
        pytest.param(
            accounts(
                SHIFT,
                old=(was(uid=990),),
                new=(now(uid=980),),
                disk={P: thing("old", uid=990)},
            ),
            [install(now(uid=980), REPLACED, before=thing("old", uid=990))],
            id="what is replaced does not change before",
        ),
        pytest.param(
            accounts(SHIFT, old=(was(uid=990),), disk={P: thing("old", uid=990)}),
            [erase(thing("old", uid=990), GONE)],
            id="what is erased does not change before",
        ),
        pytest.param(
            accounts(
                SHIFT,
                old=(was(uid=990, flags=CONFIG),),
                new=(now(uid=980, flags=CONFIG),),
                disk={P: thing("mine", uid=990)},
            ),
            [
                translated(P, thing("mine", uid=990), uid=980),
                install(
                    now(uid=980, flags=CONFIG),
                    EDITED,
                    before=thing("mine", uid=990),
                    save_to=P + ".rpmsave",
                ),
            ],
            id="what stays as a copy changes before",
        ),
        pytest.param(
            accounts(SHIFT, disk={A: _TWICE, B: _TWICE}),
            [translated(A, _TWICE, uid=980), translated(B, _TWICE, uid=980)],
            id="both names of an inode",
        ),
        pytest.param(
            accounts(SHIFT, disk={A: _TWICE}),
            [translated(A, _TWICE, uid=980, private=True)],
            id="a name elsewhere: on a copy",
        ),
        pytest.param(
            accounts(SHIFT, disk={A: _SOCKET}),
            [keep(Rule.OWNER_TRANSLATION, "a socket or device with further names", path=A)],
            id="a socket with a name elsewhere",
        ),
        pytest.param(
            accounts(SHIFT, options={"mounted": ["/data/var/lib"]}),
            [
                keep(
                    Rule.MOUNTED_OVER,
                    "accounts have other numbers now; what is mounted here keeps its owners",
                    path="/data/var/lib",
                )
            ],
            id="what is mounted keeps its owners",
        ),
        pytest.param(
            accounts(({"gone": 990}, {"svc": 980}), disk={A: _OF_SVC}), [], id="gone, not reused"
        ),
        pytest.param(
            accounts(({"gone": 990, "same": 990}, {"same": 990, "svc": 990}), disk={A: _OF_SVC}),
            [],
            id="gone, but another had the number as well and has it still",
        ),
        pytest.param(
            accounts(SHIFT, old=(was(uid=990, flags=CONFIG),), disk={P: thing("mine", uid=990)}),
            [
                translated(P, thing("mine", uid=990), uid=980),
                save(P + ".rpmsave", thing("mine", uid=990), GONE_EDITED),
            ],
            id="what is moved aside changes before",
        ),
        pytest.param(
            accounts(SHIFT, disk={A: _ONE_SOCKET}),
            [translated(A, _ONE_SOCKET, uid=980)],
            id="a socket",
        ),
        pytest.param(
            accounts(SHIFT, disk={A: thing("", DIRECTORY, uid=990, nlink=5)}),
            [translated(A, thing("", DIRECTORY, uid=990, nlink=5), uid=980)],
            id="the links of a directory are those of its own",
        ),
        pytest.param(
            accounts(({"a": 990, "b": 990}, {"a": 970, "b": 980}), disk={A: _OF_SVC}),
            [translated(A, _OF_SVC, uid=970)],
            id="of two names of a number the first counts",
        ),
        pytest.param(
            accounts(({"toor": 0}, {"root": 0}), disk={A: thing("a")}),
            [],
            id="root by another name",
        ),
    ],
)
def test_owners_are_translated_by_name(world: World, expected: list[Action]) -> None:
    assert world.plan() == tuple(expected)


def test_two_names_of_an_inode_that_become_different_are_changed_on_copies() -> None:
    names, modes = (P, f"{P}.2"), (0o600, 0o640)
    both = thing("old", nlink=2)
    world = World(
        old=[record(path, "old") for path in names],
        new=[record(path, "old", mode=mode) for path, mode in zip(names, modes, strict=True)],
        disk=dict.fromkeys(names, both),
    )
    assert world.plan() == tuple(
        metadata(both, path=path, mode=mode, content="old", private=True)
        for path, mode in zip(names, modes, strict=True)
    )


def test_who_a_number_belonged_to_and_belongs_to_is_said_by_the_first_of_their_names() -> None:
    reused = ({"carol": 990, "zoe": 990}, {"dave": 990, "yann": 990})
    with pytest.raises(IpaVolumeError, match=r"was 'carol'.*no 'carol'.*990 to 'dave'"):
        accounts(reused, disk={A: _OF_SVC}).plan()


@pytest.mark.parametrize(
    ("users", "groups", "renumbered"),
    [
        (SWAP, ({}, {}), True),
        (({}, {}), SHIFT, True),
        (({"gone": 1}, {"new": 1}), ({}, {}), True),
        (({"same": 1, "gone": 2}, {"same": 1, "new": 3}), ({}, {}), False),
    ],
    ids=["users", "groups", "reused", "nothing"],
)
def test_everything_is_looked_at_only_where_an_account_is_another(
    users: tuple[Mapping[str, int], Mapping[str, int]],
    groups: tuple[Mapping[str, int], Mapping[str, int]],
    renumbered: bool,  # noqa: FBT001 - a column of the table
) -> None:
    looked: list[bool] = []
    accounts(users, groups).made(looked)
    assert looked == [True] * renumbered


# -- populated, fresh and unknown volumes ------------------------------------------------

_GHOST: Final = now(flags=GHOST)
_OTHER: Final = record("/more/srv/x", "new", flags=GHOST)


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        pytest.param(
            at(None, None, _GHOST, populate=True), [install(_GHOST, MISSING)], id="populated: ghost"
        ),
        pytest.param(at(None, OWN, _GHOST, populate=True), [], id="populated: ghost that is there"),
        pytest.param(
            at(None, None, now(package=""), populate=True),
            [install(now(package=""), MISSING)],
            id="populated: of no package",
        ),
        pytest.param(
            at(None, OWN, now(flags=NOREPLACE), populate=True),
            [
                install(now(flags=NOREPLACE), BESIDE, path=P + ".rpmnew"),
                keep(Rule.RPM, f"{BESIDE}; see {P}.rpmnew"),
            ],
            id="populated: what somebody put there before",
        ),
        pytest.param(
            World(new=(_GHOST, _OTHER), options={"fresh": [MORE.mount]}),
            [install(_OTHER, MISSING)],
            id="fresh: a ghost there, and only there",
        ),
        pytest.param(
            at(
                replace(_OTHER, flags=MISSINGOK, content="old"),
                None,
                replace(_OTHER, flags=MISSINGOK),
                fresh=[MORE.mount],
            ),
            [install(replace(_OTHER, flags=MISSINGOK), MISSING, late=IfEdited.RPMORIG)],
            id="fresh: the baseline does not count",
        ),
        pytest.param(
            at(replace(_OTHER, flags=FileFlags.NONE), NEW, None, fresh=[MORE.mount]),
            [],
            id="fresh: nothing is erased",
        ),
        pytest.param(
            World(
                old=(record("/more/srv/x", "old"), was()),
                new=(record("/more/srv/x", "new"), now()),
                disk={"/more/srv/x": OLD, P: OLD},
                options={"unknown": [MORE.mount]},
            ),
            [
                install(now(), REPLACED, before=OLD),
                keep(Rule.UNKNOWN_OLD, f"differs; {UNTOLD}", path="/more/srv/x"),
            ],
            id="unknown: the baseline does not count there, and only there",
        ),
        pytest.param(
            at(None, OWN, now(flags=CONFIG), unknown_old=True),
            [
                install(now(flags=CONFIG), UNTOLD, path=P + ".rpmnew", rule=Rule.UNKNOWN_OLD),
                keep(Rule.UNKNOWN_OLD, f"{UNTOLD}; see {P}.rpmnew"),
            ],
            id="unknown old: config",
        ),
        pytest.param(at(None, NEW, now(), unknown_old=True), [], id="unknown old: the same"),
        pytest.param(
            at(None, thing(kind=DIRECTORY, mode=0o700), now("", DIRECTORY), unknown_old=True),
            [],
            id="unknown old: a directory keeps its mode",
        ),
        pytest.param(
            at(was(flags=CONFIG), OWN, now(flags=CONFIG), unknown_old=True),
            [install(now(flags=CONFIG), EDITED, before=OWN, save_to=P + ".rpmsave")],
            id="unknown old: what is known all the same",
        ),
        pytest.param(
            at(None, OWN, now("", DIRECTORY), unknown_old=True),
            [keep(Rule.UNKNOWN_OLD, f"differs; {UNTOLD}")],
            id="unknown old: a file where a directory belongs",
        ),
        pytest.param(
            at(None, FOLDER, now(), unknown_old=True),
            [keep(Rule.UNKNOWN_OLD, f"differs; {UNTOLD}")],
            id="unknown old: a directory where a file belongs",
        ),
    ],
)
def test_volumes_without_a_baseline(world: World, expected: list[Action]) -> None:
    assert world.plan() == tuple(expected)


# -- files of no package -----------------------------------------------------------------

_ANYONES: Final[Mapping[str, Any]] = {"package": ""}
_FRESHENED: Final[Mapping[str, Any]] = {"package": "", "refresh": True}
_UNOWNED: Final = keep(Rule.UNOWNED, "no package owns it; the image has another")
_REFRESHED: Final = "not edited, and the configuration lets the image refresh it"


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        pytest.param(
            at(None, None, now(**_ANYONES)),
            [install(now(**_ANYONES), MISSING)],
            id="first shipped",
        ),
        pytest.param(at(None, NEW, now(**_ANYONES)), [], id="there already"),
        pytest.param(at(None, FOLDER, now(**_ANYONES)), [_UNOWNED], id="a directory is there"),
        pytest.param(
            at(None, OWN, now("", DIRECTORY, **_ANYONES)), [_UNOWNED], id="a file is there"
        ),
        pytest.param(at(was(**_ANYONES), None, now(**_ANYONES)), [], id="deleted stays deleted"),
        pytest.param(
            at(was(**_ANYONES), OLD, now(**_ANYONES)),
            [keep(Rule.LEFT, UNOWNED_ANOTHER)],
            id="changed by the image: left",
        ),
        pytest.param(
            at(was(**_ANYONES), OWN, now(**_ANYONES)),
            [_UNOWNED],
            id="edited, and changed by the image: left",
        ),
        pytest.param(
            at(was(**_ANYONES), OWN, now("old", **_ANYONES)),
            [],
            id="edited, the image has the same",
        ),
        pytest.param(
            at(was(**_FRESHENED), OWN, now(**_FRESHENED)),
            [_UNOWNED],
            id="refreshed, but edited: left",
        ),
        pytest.param(
            at(was(**_FRESHENED), OLD, now("old", **_FRESHENED)), [], id="refreshed, the same"
        ),
        pytest.param(
            at(was(**_FRESHENED), OLD, now("/a", LINK, **_FRESHENED)),
            [keep(Rule.LEFT, UNOWNED_ANOTHER)],
            id="refreshed by a link",
        ),
        pytest.param(
            at(was(**_FRESHENED), thing("old", mode=0o600), now(**_FRESHENED)),
            [
                install(
                    now(**_FRESHENED),
                    _REFRESHED,
                    before=thing("old", mode=0o600),
                    metadata=Metadata(uid=0, gid=0, mode=0o600),
                    rule=Rule.REFRESH,
                )
            ],
            id="refreshed, the administrator's mode stays",
        ),
    ],
)
def test_files_that_no_package_owns(world: World, expected: list[Action]) -> None:
    assert world.plan() == tuple(expected)


def test_a_package_takes_over_a_file_of_nobody_as_rpm_would() -> None:
    world = at(was(package=""), OLD, now())
    assert world.plan() == (install(now(), REPLACED, before=OLD),)


# -- names of copies ---------------------------------------------------------------------

_LONG: Final = "/data/etc/" + "é" * 125
_LONGEST: Final = "/data/etc/" + "x" * 255


def copies(path: str, suffix: str, *, disk: Mapping[str, Thing], flags: FileFlags) -> World:
    """Return a world in which *path* is edited, and copies lie beside it."""
    return World(
        old=(record(path, "old", flags=flags),),
        new=(record(path, "new", flags=flags),),
        disk={path: OWN, **{f"{path}{suffix}{tail}": item for tail, item in disk.items()}},
    )


@pytest.mark.parametrize(
    ("disk", "save_to", "rule"),
    [
        pytest.param({}, P + ".rpmsave", Rule.RPM, id="none"),
        pytest.param({"": OLD, ".1": OLD}, P + ".rpmsave.2", Rule.COPIES, id="others"),
        pytest.param({"": OWN}, "", Rule.RPM, id="the very same"),
        pytest.param({"": OLD, ".1": OWN}, "", Rule.COPIES, id="others and the very same"),
        pytest.param(
            {"": thing("edited", mode=0o600)}, P + ".rpmsave.1", Rule.COPIES, id="another mode"
        ),
        pytest.param(
            {"": thing("edited", uid=1)}, P + ".rpmsave.1", Rule.COPIES, id="another owner"
        ),
        pytest.param({"": FOLDER}, P + ".rpmsave.1", Rule.COPIES, id="a directory"),
        pytest.param(
            {"": thing("detide")}, P + ".rpmsave.1", Rule.COPIES, id="another of the same size"
        ),
    ],
)
def test_a_saved_copy_is_never_overwritten_nor_made_twice(
    disk: Mapping[str, Thing], save_to: str, rule: Rule
) -> None:
    world = copies(P, ".rpmsave", disk=disk, flags=CONFIG)
    new = now(flags=CONFIG)
    assert world.plan() == (install(new, EDITED, before=OWN, save_to=save_to, rule=rule),)


@pytest.mark.parametrize(
    ("disk", "name", "is_new"),
    [
        pytest.param({}, ".rpmnew", True, id="none"),
        pytest.param({"": NEW}, ".rpmnew", False, id="the very same"),
        pytest.param({"": OLD}, ".rpmnew.1", True, id="another"),
        pytest.param({"": OLD, ".1": NEW}, ".rpmnew.1", False, id="another and the very same"),
        pytest.param({"": thing("new", mode=0o600)}, ".rpmnew.1", True, id="another mode"),
        pytest.param({"": thing("new", uid=5)}, ".rpmnew.1", True, id="another owner"),
    ],
)
def test_what_is_put_beside_an_edited_file_is_never_put_twice(
    disk: Mapping[str, Thing],
    name: str,
    is_new: bool,  # noqa: FBT001 - a column of the table
) -> None:
    world = copies(P, ".rpmnew", disk=disk, flags=NOREPLACE)
    rule = Rule.RPM if name == ".rpmnew" else Rule.COPIES
    beside = install(now(flags=NOREPLACE), BESIDE, path=P + name, rule=rule)
    kept = keep(Rule.RPM, f"{BESIDE}; see {P}{name}")
    assert world.plan() == ((beside, kept) if is_new else (kept,))


@pytest.mark.parametrize(("suffix", "flags"), [(".rpmsave", CONFIG), (".rpmnew", NOREPLACE)])
def test_however_many_copies_lie_beside_a_file_few_are_read(
    suffix: str, flags: FileFlags, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F51: a service can plant a thousand that have size, owner and mode of what is compared."""
    read: list[str] = []
    digest = Disk.digest

    def counted(disk: Disk, path: str, state: DiskState) -> str:
        read.append(path)
        return digest(disk, path, state)

    monkeypatch.setattr(Disk, "digest", counted)
    planted = thing("wen") if suffix == ".rpmnew" else thing("detide")
    tails = ("", *(f".{number}" for number in range(1, 999)))
    made = copies(P, suffix, disk=dict.fromkeys(tails, planted), flags=flags).plan()
    assert f"{P}{suffix}.999" in {getattr(made[0], "save_to", ""), made[0].path}
    assert len(read) < 10


def test_a_name_that_would_be_too_long_goes_to_our_directory() -> None:
    for path in (_LONG, _LONGEST):
        new = record(path, "new", flags=CONFIG)
        to = SAVED + path.removeprefix("/data")
        late = IfEdited.RPMSAVE
        expected = install(new, EDITED, before=OWN, save_to=to, rule=Rule.COPIES, late=late)
        assert copies(path, "", disk={}, flags=CONFIG).plan() == (expected,)


def test_a_name_beside_a_file_is_not_free_while_another_file_has_it() -> None:
    other = f"{P}.rpmsave"
    world = World(
        old=(was(flags=CONFIG), record(other, "old", flags=CONFIG)),
        new=(now(flags=CONFIG),),
        disk={P: OWN, other: OLD},
    )
    assert world.plan() == (
        erase(OLD, GONE, path=other, late=IfEdited.RPMSAVE),
        install(now(flags=CONFIG), EDITED, before=OWN, save_to=f"{P}.rpmsave.1", rule=Rule.COPIES),
    )


def test_copies_have_the_path_of_what_they_are_copies_of() -> None:
    """F53: a second copy of ``x`` is no copy of ``x.1``."""
    world = World(
        old=(was(), record(f"{P}.1", "old")),
        disk={P: OWN, f"{P}.1": OWN, f"{SAVED}/etc/app.conf": OLD},
    )
    assert world.plan() == (
        save(f"{SAVED}/etc/app.conf.1", OWN, GONE_OTHER, rule=Rule.DATA_KEPT, path=f"{P}.1"),
        save(f"{SAVED}.1/etc/app.conf", OWN, GONE_OTHER, rule=Rule.DATA_KEPT),
    )


@pytest.mark.parametrize(
    ("flags", "taken", "to"),
    [
        (FileFlags.NONE, f"{SAVED}/etc/app.conf", f"{SAVED}.1/etc/app.conf"),
        (CONFIG, P + ".rpmsave", P + ".rpmsave.1"),
    ],
    ids=["data", "config"],
)
def test_what_is_moved_aside_takes_a_name_of_its_own_even_where_the_same_is_kept(
    flags: FileFlags, taken: str, to: str
) -> None:
    world = World(old=(was(flags=flags),), disk={P: OWN, taken: OWN})
    rule, reason = (Rule.COPIES, GONE_EDITED) if flags else (Rule.DATA_KEPT, GONE_OTHER)
    assert world.plan() == (save(to, OWN, reason, rule=rule),)
    becomes_directory = replace(world, new=(now("", DIRECTORY),))
    moved = [action.to for action in becomes_directory.plan() if isinstance(action, Save)]
    assert moved == [to]


def test_what_is_large_is_not_compared_with_an_earlier_copy_but_saved_again() -> None:
    large = thing("edited", size=65 << 20)
    world = World(
        old=(was(flags=CONFIG),),
        new=(now(flags=CONFIG),),
        disk={P: large, P + ".rpmsave": large},
    )
    to = P + ".rpmsave.1"
    new = now(flags=CONFIG)
    assert world.plan() == (install(new, EDITED, before=large, save_to=to, rule=Rule.COPIES),)


def test_our_directory_may_be_there_already() -> None:
    world = World(old=(was(),), disk={P: OWN, "/data/.ipavolume/saved": FOLDER})
    to = f"{SAVED}/etc/app.conf"
    assert world.plan() == (save(to, OWN, GONE_OTHER, rule=Rule.DATA_KEPT),)


def test_a_copy_on_another_volume_stays_on_it() -> None:
    path = "/more/srv/x"
    world = at(record(path, "old"), OWN, None)
    to = f"/more/.ipavolume/saved/{RUN}/srv/x"
    assert world.plan() == (save(to, OWN, GONE_OTHER, rule=Rule.DATA_KEPT, path=path),)


# -- what is in the way of a directory -----------------------------------------------------

BROUGHT: Final = record(D, kind=DIRECTORY)
INSIDE: Final = record(f"{D}/x", "new", flags=NOREPLACE)
DANGLING: Final = thing("/gone", LINK, standing=LinkStanding.NOWHERE)
IN_THE_WAY: Final = "it is where the image has a directory with files in it"
STAYS: Final = "leads elsewhere by a symbolic link; what lies behind it is not managed"


def moved_for(
    before: Thing,
    reason: str,
    *,
    entries: int,
    to: str = f"{SAVED}/etc/app",
    rule: Rule | None = None,
) -> list[Action]:
    """Return the actions by which *before* makes way for a directory with *entries* paths."""
    return [
        save(to, before, reason, rule=rule or Rule.DATA_KEPT, path=D),
        CreateTree(path=D, entries=entries, bytes=3 * (entries - 1)),
    ]


@pytest.mark.parametrize(
    ("old", "disk", "new", "expected"),
    [
        pytest.param(
            (), DANGLING, (BROUGHT,), moved_for(DANGLING, CHANGED, entries=1), id="dangling, alone"
        ),
        pytest.param(
            (),
            DANGLING,
            (BROUGHT, INSIDE),
            moved_for(DANGLING, CHANGED, entries=2),
            id="dangling, with a file",
        ),
        pytest.param(
            (),
            ELSEWHERE,
            (BROUGHT, INSIDE),
            moved_for(ELSEWHERE, CHANGED, entries=2),
            id="others can have put it there",
        ),
        pytest.param(
            (),
            MOVED_BY_ROOT,
            (BROUGHT,),
            [keep(Rule.RELOCATED, STAYS, path=D)],
            id="of root, alone: stays",
        ),
        pytest.param(
            (),
            MOVED_BY_ROOT,
            (BROUGHT, INSIDE),
            moved_for(MOVED_BY_ROOT, IN_THE_WAY, entries=2),
            id="of root, with a file",
        ),
        pytest.param(
            (),
            MOVED_BY_ROOT,
            (BROUGHT, record(f"{D}/a", flags=GHOST), record(f"{D}/b", package="")),
            [keep(Rule.RELOCATED, STAYS, path=D)],
            id="of root, with what no package puts: stays",
        ),
        pytest.param(
            (),
            MOVED_BY_ROOT,
            (BROUGHT, record(f"{D}/b", "new", package=""), INSIDE),
            moved_for(MOVED_BY_ROOT, IN_THE_WAY, entries=3),
            id="of root, with a file and what no package owns",
        ),
        pytest.param(
            (),
            DANGLING,
            (record(D, kind=DIRECTORY, flags=GHOST),),
            [keep(Rule.RELOCATED, "a symbolic link where the image may have a directory", path=D)],
            id="dangling, a ghost",
        ),
        pytest.param(
            (),
            DANGLING,
            (record(D, kind=DIRECTORY, package=""), INSIDE),
            moved_for(DANGLING, IN_THE_WAY, entries=2),
            id="a file in a directory that no package owns",
        ),
        pytest.param(
            (),
            DANGLING,
            (record(D, kind=DIRECTORY, package=""), record(f"{D}/b", "new", package="")),
            [keep(Rule.UNOWNED, UNOWNED_ANOTHER, path=D)],
            id="a directory of no package: stays",
        ),
        pytest.param(
            (record(D, "old"),),
            MOVED_BY_ROOT,
            (BROUGHT, INSIDE),
            moved_for(MOVED_BY_ROOT, IN_THE_WAY, entries=2),
            id="it was a file",
        ),
        pytest.param(
            (record(D, "old", flags=CONFIG),),
            DANGLING,
            (BROUGHT, INSIDE),
            moved_for(DANGLING, EDITED, entries=2, to=f"{D}.rpmsave", rule=Rule.RPM),
            id="it was a config file",
        ),
        pytest.param(
            (record(D, "/a", LINK),),
            ELSEWHERE,
            (BROUGHT,),
            moved_for(ELSEWHERE, CHANGED, entries=1),
            id="it was a link, which was edited",
        ),
        pytest.param(
            (record(D, kind=DIRECTORY, package=""), INSIDE),
            thing("mine"),
            (record(D, kind=DIRECTORY, package=""), INSIDE),
            moved_for(thing("mine"), IN_THE_WAY, entries=2),
            id="a file where both have a directory of no package",
        ),
    ],
)
def test_what_is_in_the_way_of_a_directory_that_the_last_image_had_not(
    old: tuple[Record, ...], disk: Thing, new: tuple[Record, ...], expected: list[Action]
) -> None:
    """F8: rule 6 is about directories that were there; otherwise it is as with files."""
    assert World(old=old, new=new, disk={D: disk}).plan() == tuple(expected)


def test_what_is_in_the_way_of_a_directory_of_an_unchanged_package_goes_for_what_is_put_back() -> (
    None
):
    """F8: what is missing is put back, and cannot be put below a file."""
    world = World(
        old=(BROUGHT, INSIDE),
        new=(BROUGHT, INSIDE),
        disk={D: thing("mine")},
        before=image(packages=package("1")),
        after=image(packages=package("1")),
    )
    assert world.plan() == tuple(moved_for(thing("mine"), IN_THE_WAY, entries=2))
    assert replace(world, old=(BROUGHT,), new=(BROUGHT,)).plan() == (
        keep(Rule.PACKAGE_UNCHANGED, "its package did not change", path=D),
    )


# -- links to units ----------------------------------------------------------------------

SYSTEM: Final = "/data/etc/systemd/system"
WANTS: Final = f"{SYSTEM}/multi-user.target.wants"
UNITS: Final = "/usr/lib/systemd/system"


@pytest.mark.parametrize(
    ("path", "target", "units", "own", "gone"),
    [
        pytest.param(ALIAS, BROKER, ("dbus.service",), {}, True, id="an alias"),
        pytest.param(
            f"{SYSTEM}/sshd.service",
            "/lib/systemd/system/ssh.service",
            ("sshd.service",),
            {},
            True,
            id="it hides the new unit",
        ),
        pytest.param(
            f"{WANTS}/old.service", f"{UNITS}/old.service", ("a.service",), {}, True, id="wanted"
        ),
        pytest.param(
            f"{WANTS}/old.service", "../old.service", ("a.service",), {}, True, id="relative"
        ),
        pytest.param(
            "/data/etc/systemd/user/default.target.wants/old.service",
            "/usr/lib/systemd/user/old.service",
            ("old.service",),
            {},
            True,
            id="a user's",
        ),
        pytest.param(
            f"{WANTS}/old@one.service",
            f"{UNITS}/old@.service",
            ("a.service",),
            {},
            True,
            id="an instance",
        ),
        pytest.param(
            f"{WANTS}/tty@one.service", f"{UNITS}/tty@.service", ("tty@.service",), {}, False
        ),
        pytest.param(
            f"{WANTS}/new.service", "/lib/systemd/system/x.service", ("new.service",), {}, False
        ),
        pytest.param(f"{WANTS}/a.service", f"{UNITS}/a.service", ("a.service",), {}, False),
        pytest.param(ALIAS, "/dev/null", ("a.service",), {}, False, id="a mask"),
        pytest.param(ALIAS, "/opt/dbus-broker.service", ("a.service",), {}, False, id="elsewhere"),
        pytest.param(ALIAS, BROKER, (), {}, False, id="an image without systemd"),
        pytest.param(
            "/data/etc/app/x.service",
            f"{UNITS}/x.service",
            ("a.service",),
            {},
            False,
            id="no place",
        ),
        pytest.param(
            f"{WANTS}/mine.service",
            "/etc/systemd/system/mine.service",
            ("a.service",),
            {f"{SYSTEM}/mine.service": OWN},
            False,
            id="a unit on the volume",
        ),
        pytest.param(
            f"{WANTS}/old.service",
            f"{UNITS}/old.service",
            ("a.service",),
            {f"{SYSTEM}/old.service": thing("/dev/null", LINK)},
            False,
            id="masked by the administrator",
        ),
        pytest.param(
            f"{WANTS}/dbus.service",
            f"{UNITS}/dbus.service",
            ("a.service",),
            {ALIAS: thing(BROKER, LINK)},
            True,
            id="an alias that leads nowhere",
        ),
    ],
)
def test_a_link_of_the_last_image_to_a_unit_that_is_nowhere_goes(
    path: str,
    target: str,
    units: tuple[str, ...],
    own: Mapping[str, Thing],
    gone: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """F28: it led nowhere, and hid the unit that the image has under that name."""
    world = World(
        old=(record(path, target, LINK, package=""),),
        disk={path: thing(target, LINK), **own},
        after=image(units=tuple(f"system/{name}" for name in units)),
    )
    (action,) = world.plan()
    assert isinstance(action, Erase if gone else Keep)
    assert action.rule == (Rule.UNIT_LINK if gone else Rule.LEFT)
    assert replace(world, disk={path: thing("/mine", LINK), **own}).plan() == ()
    assert replace(world, old=()).plan() == ()
    other = record(path, f"{UNITS}/another.service", LINK, package="")
    (action,) = replace(world, new=(other,)).plan()
    assert isinstance(action, Install if gone else Keep)


# -- refusals and their overrides --------------------------------------------------------

_FULL: Final = {
    name: FOLDER for where in (P + ".rpmsave", f"{SAVED}/etc/app.conf") for name in numbered(where)
}
_UNKNOWN_INSIDE: Final = World(
    old=(was("", DIRECTORY),), new=(now(),), disk={P: FOLDER, f"{P}/mine": OWN}
)
_REUSED: Final = ({"carol": 990}, {"dave": 990})


def over(world: World, mounted: str) -> World:
    return replace(world, options={"mounted": [mounted]})


@pytest.mark.parametrize(
    ("world", "code", "path", "allowed"),
    [
        pytest.param(
            at(was("", DIRECTORY), ELSEWHERE, now("", DIRECTORY)),
            "unsafe-link",
            P,
            None,
            id="a link that others can have put there",
        ),
        pytest.param(
            at(
                was("", DIRECTORY),
                thing("/gone", LINK, standing=LinkStanding.NOWHERE),
                now("", DIRECTORY),
            ),
            "unsafe-link",
            P,
            None,
            id="a link to nowhere",
        ),
        pytest.param(
            _UNKNOWN_INSIDE,
            "type-change",
            P,
            [
                save(
                    f"{SAVED}/etc/app.conf",
                    FOLDER,
                    "the image has a file there",
                    rule=Rule.TYPE_CHANGE,
                ),
                install(now(), "takes the directory's place", rule=Rule.TYPE_CHANGE),
            ],
            id="unknown content in the way",
        ),
        pytest.param(
            over(at(was(), OLD, now()), "/data/etc"),
            "mounted-over",
            P,
            [keep(Rule.MOUNTED_OVER, OVER)],
            id="replaced below a mount",
        ),
        pytest.param(
            over(at(was(), OLD, None), P),
            "mounted-over",
            P,
            [keep(Rule.MOUNTED_OVER, OVER)],
            id="erased where a mount is",
        ),
        pytest.param(
            over(at(was(flags=CONFIG), OWN, None), P),
            "mounted-over",
            P,
            [keep(Rule.MOUNTED_OVER, OVER)],
            id="saved where a mount is",
        ),
        pytest.param(
            over(at(None, None, now("", DIRECTORY)), f"{P}/deep/inside"),
            "mounted-over",
            P,
            [keep(Rule.MOUNTED_OVER, OVER)],
            id="created above a mount",
        ),
        pytest.param(
            over(at(was(), OLD, now("", DIRECTORY)), P),
            "mounted-over",
            P,
            [keep(Rule.MOUNTED_OVER, OVER)],
            id="a directory in a file's place where a mount is",
        ),
        pytest.param(
            over(at(was(flags=CONFIG), OWN, now("", DIRECTORY)), P),
            "mounted-over",
            P,
            [keep(Rule.MOUNTED_OVER, OVER)],
            id="a directory in an edited file's place where a mount is",
        ),
        pytest.param(
            over(at(was("/a", LINK), OWN, now("/b", LINK)), "/data/etc"),
            "mounted-over",
            P,
            [keep(Rule.MOUNTED_OVER, OVER)],
            id="a link in a file's place below a mount",
        ),
        pytest.param(
            over(at(was(flags=NOREPLACE), OWN, now(flags=NOREPLACE)), "/data/etc"),
            "mounted-over",
            f"{P}.rpmnew",
            [keep(Rule.MOUNTED_OVER, OVER)],
            id="a copy beside a file below a mount",
        ),
        pytest.param(
            over(at(was(), OLD, was(mode=0o600)), P),
            "mounted-over",
            P,
            [keep(Rule.MOUNTED_OVER, OVER)],
            id="other metadata where a mount is",
        ),
        pytest.param(
            accounts(_REUSED, disk={A: _OF_SVC}), "reused-id", A, [], id="an id of somebody else"
        ),
        pytest.param(
            accounts(({}, {}), _REUSED, disk={A: thing("a", gid=990)}),
            "reused-id",
            A,
            [],
            id="a group id of somebody else",
        ),
        pytest.param(
            accounts(_REUSED, disk={A: thing("a", xattrs=(acl(u990=7),))}),
            "reused-id",
            A,
            [],
            id="an id of somebody else in an ACL",
        ),
        pytest.param(
            World(old=(was(flags=CONFIG),), new=(now(flags=CONFIG),), disk={P: OWN, **_FULL}),
            "no-free-name",
            P,
            None,
            id="no free name",
        ),
        pytest.param(
            World(
                old=(was(),),
                disk={P: OWN, "/data/.ipavolume/saved": ELSEWHERE},
            ),
            "unsafe-volume",
            "",
            None,
            id="a link where copies go",
        ),
        pytest.param(
            World(
                old=(record(_LONGEST, "old", flags=NOREPLACE),),
                new=(record(_LONGEST, "new", flags=NOREPLACE),),
                disk={_LONGEST: OWN, "/data/.ipavolume/saved": ELSEWHERE},
            ),
            "unsafe-volume",
            "",
            None,
            id="a link where what has too long a name goes",
        ),
    ],
)
def test_what_is_refused_and_what_an_override_makes_of_it(
    world: World, code: str, path: str, allowed: list[Action] | None
) -> None:
    with pytest.raises(IpaVolumeError) as caught:
        world.plan()
    assert (caught.value.code, caught.value.exit_status, caught.value.path) == (code, 65, path)
    assert caught.value.hint
    assert ("--allow " + code in caught.value.hint) == (allowed is not None)
    overriding = replace(world, options={**world.options, "allow": [code]})
    if allowed is None:
        with pytest.raises(IpaVolumeError):
            overriding.plan()
        return
    made = overriding.made()
    assert made.actions == tuple(allowed)
    assert made.overridden == {code}


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(at(was(), OLD, was()), id="nothing to do"),
        pytest.param(at(was(flags=CONFIG), OWN, was(flags=CONFIG)), id="edited"),
        pytest.param(at(was("", DIRECTORY), FOLDER, now("", DIRECTORY)), id="a directory"),
    ],
)
def test_a_mount_on_what_need_not_change_is_in_nobodys_way(world: World) -> None:
    assert over(world, P).plan() == world.plan()


def test_a_mount_elsewhere_is_in_nobodys_way() -> None:
    world = at(was(), OLD, now(), mounted=["/data/var", f"{P}x"])
    assert world.plan() == (install(now(), REPLACED, before=OLD),)


def test_metadata_of_a_directory_above_a_mount_may_change() -> None:
    world = at(was("", DIRECTORY), FOLDER, now("", DIRECTORY, mode=0o700), mounted=[f"{P}/inside"])
    assert world.plan() == (metadata(FOLDER, mode=0o700),)


@pytest.mark.parametrize("path", ["/data/.ipavolume/x", "/data/.ipavolume", "/data/build-id"])
def test_an_image_that_ships_our_own_state_is_wrong(path: str) -> None:
    with pytest.raises(ManifestError) as caught:
        at(None, None, record(path, "x")).plan()
    assert caught.value.exit_status == 78


# -- what an image still covers ----------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "entries", "lost"),
    [
        ("/data/etc/app.conf", ("/etc",), False),
        ("/data/etc/app.conf", ("/etc/app",), True),
        ("/data/etc/app.conf", (), True),
        ("/data/etc/app.conf", ("/etc/app.conf",), True),
    ],
    ids=["below an entry", "beside an entry", "no entry", "the entry itself"],
)
def test_only_what_the_lists_still_cover_is_erased(
    path: str,
    entries: tuple[str, ...],
    lost: bool,  # noqa: FBT001 - a column of the table
) -> None:
    volume = VolumeSpec(mount="/data", template="/data-template", entries=entries)
    world = replace(at(record(path, "old"), OLD, None), after=image(volumes=(volume,)))
    kept = keep(Rule.LIST_LOST, "no longer on the path list of the image", path=path)
    assert world.plan() == ((kept,) if lost else (erase(OLD, GONE, path=path),))


# -- what is known to be as shipped ------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "position"),
    [
        pytest.param(trusted(at(was(), OWN, was())), 0, id="trusted: not even read"),
        pytest.param(trusted(at(was(), OLD, now())), None, id="trusted, replaced"),
        pytest.param(trusted(at(was(), OLD, was(uid=5))), None, id="trusted, changes hands"),
        pytest.param(
            same_package(trusted(at(was(), OWN, was()))), 0, id="trusted, package unchanged"
        ),
        pytest.param(
            same_package(at(was("/a", LINK), thing("/a", LINK), was("/a", LINK))),
            None,
            id="a link is not in the index",
        ),
        pytest.param(
            at(was(), thing("new", mode=0o600), now(mode=0o600)), 0, id="has the metadata already"
        ),
        pytest.param(at(was(), NEW, now()), 0, id="there already"),
        pytest.param(at(None, NEW, now()), 0, id="there before it was shipped"),
        pytest.param(at(was(flags=CONFIG), NEW, now(flags=CONFIG)), 0, id="config, there already"),
        pytest.param(
            same_package(at(was(), OLD, was())),
            0,
            id="package unchanged",
        ),
        pytest.param(
            same_package(at(was(), OWN, was())),
            None,
            id="package unchanged, edited",
        ),
        pytest.param(at(was(), OLD, now()), None, id="replaced"),
        pytest.param(at(was(), NEW, now(mode=0o600)), None, id="metadata changes"),
        pytest.param(at(was(flags=CONFIG), OWN, was(flags=CONFIG)), None, id="edited"),
    ],
)
def test_the_index_learns_what_is_as_shipped(world: World, position: int | None) -> None:
    expected = {} if position is None else {position: world.disk[P].state}
    assert world.made().verified == expected


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        pytest.param(trusted(at(was(), OWN, was())), [], id="trusted"),
        pytest.param(
            trusted(at(was(), OLD, now())), [install(now(), REPLACED, before=OLD)], id="replaced"
        ),
        pytest.param(
            trusted(at(was(), OLD, was(uid=5))),
            [metadata(OLD, uid=5, content="old")],
            id="changes hands",
        ),
        pytest.param(same_package(at(was(), OWN, was())), [], id="package unchanged, edited"),
        pytest.param(
            same_package(at(was(), OWN, now())),
            [data_kept(now(), OWN)],
            id="package unchanged, but the image has another",
        ),
        pytest.param(
            replace(same_package(at(was(), OWN, was())), after=image(packages=package("2"))),
            [data_kept(was(), OWN)],
            id="package updated, edited",
        ),
    ],
)
def test_what_is_known_of_index_and_packages_spares_a_look(
    world: World, expected: list[Action]
) -> None:
    assert world.plan() == tuple(expected)


class _Closed(Disk):
    """A volume whose files cannot be read."""

    def digest(self, path: str, state: DiskState) -> str:
        raise PermissionError(path, state)


def test_what_cannot_be_read_is_told_in_the_order_of_the_paths_and_left_out() -> None:
    told: list[str] = []
    paths = [f"/data/etc/{name}" for name in "abcd"]

    def candidates() -> Iterator[Candidate]:
        for position, path in enumerate(paths):
            if path in paths[1::2]:
                # What cannot even be looked at, candidates tell of themselves.
                told.append(path)
                continue
            yield Candidate(
                path=path,
                old=record(path, "before", flags=CONFIG),
                new=record(path, "behind", flags=CONFIG),
                disk=OWN.state,
                trusted=False,
                position=position,
            )

    made = plan_files(
        _Closed(dict.fromkeys(paths, OWN)),
        candidates(),
        None,
        image(),
        PlanOptions(run=RUN),
        unreadable=lambda path, _: told.append(path),
    )
    assert told == paths
    assert (made.actions, made.considered, made.pristine) == ((), {}, ())


def test_below_what_stays_because_of_a_mount_nothing_is_replaced_either() -> None:
    """A directory in a config file's place, which the image replaces by one of its own."""
    world = World(
        old=(record(D, "old", flags=CONFIG),),
        new=(record(D, kind=DIRECTORY), record(f"{D}/x", "theirs"), record(f"{D}/new", "theirs")),
        disk={D: thing("", DIRECTORY), f"{D}/x": OWN},
        options={"mounted": [f"{D}/mount"], "allow": ["mounted-over"]},
    )
    assert {action.path for action in world.plan() if not isinstance(action, Keep)} == set()
