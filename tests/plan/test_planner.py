"""What is planned, compared as values: rpm's table, and each difference from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import pytest
from support.plans import (
    ALIAS,
    BESIDE,
    BROKER,
    CONFIG,
    DELETED,
    DIRECTORY,
    EDITED,
    ELSEWHERE,
    FOLDER,
    GHOST,
    GONE,
    GONE_EDITED,
    GONE_OTHER,
    KEPT,
    LINK,
    LONGEST,
    MISSING,
    MISSINGOK,
    MOVED,
    MOVED_BY_ROOT,
    NEW,
    NO_UNIT,
    NOREPLACE,
    OF_SVC,
    OLD,
    OVER,
    OWN,
    REPLACED,
    SAVED,
    UNTOLD,
    A,
    D,
    P,
    accounts,
    at,
    data_kept,
    erase,
    install,
    keep,
    metadata,
    now,
    package,
    rmdir,
    same_package,
    save,
    trusted,
    was,
)
from support.values import MORE, RUN, Disk, World, acl, image, record, thing

from ipavolume.errors import IpaVolumeError, ManifestError
from ipavolume.model.actions import (
    Action,
    CreateTree,
    Erase,
    IfEdited,
    Install,
    Keep,
    Rule,
    describe,
)
from ipavolume.model.files import DiskState, FileFlags, LinkStanding
from ipavolume.model.images import Accounts, TopLevel, VolumeSpec
from ipavolume.model.paths import numbered
from ipavolume.plan.fileplan import PlanOptions
from ipavolume.plan.planner import plan_files, plan_populate
from ipavolume.volume.candidates import Candidate

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
        pytest.param(at(was(), None, now()), [install(now(), DELETED)], id="deleted"),
        pytest.param(
            at(was(present=False), None, now()), [install(now(), MISSING)], id="never was there"
        ),
        pytest.param(
            at(was(flags=GHOST), None, now()), [install(now(), MISSING)], id="was a ghost, missing"
        ),
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
            [install(now(flags=CONFIG), DELETED)],
            id="config, deleted",
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
    Rule.ACL_DROPPED: (
        at(was(), thing("old", mode=0o664, xattrs=(acl(u7=6),)), was(mode=0o640)),
        [
            metadata(
                thing("old", mode=0o664, xattrs=(acl(u7=6),)), mode=0o640, xattrs=(), content="old"
            ),
            keep(
                Rule.ACL_DROPPED, "the package changed owner or mode; the ACL set here is dropped"
            ),
        ],
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
    # One is of a plan whose volume was emptied since, the other of what goes back to a snapshot.
    assert set(RULES) == set(Rule) - {Rule.REFILLED, Rule.ROLLBACK}


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


def test_a_directory_that_was_deleted_is_not_told_as_a_new_one() -> None:
    """With all below it; of what is new below one that stays, nothing is said."""
    deleted, file = record(D, kind=DIRECTORY), record(f"{D}/x")
    new = (deleted, file, record(f"{D}/y", kind=DIRECTORY))
    (action,) = World(old=(deleted, file), new=new).plan()
    assert action == CreateTree(path=D, entries=3, bytes=file.size, reason=DELETED)
    assert describe(action).endswith(f"/ and 2 below it, {file.size} bytes ({DELETED})")


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
            accounts(_REUSED, disk={A: OF_SVC}), "reused-id", A, [], id="an id of somebody else"
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
                old=(record(LONGEST, "old", flags=NOREPLACE),),
                new=(record(LONGEST, "new", flags=NOREPLACE),),
                disk={LONGEST: OWN, "/data/.ipavolume/saved": ELSEWHERE},
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
    if path[len("/data") :] in entries:
        # It stays on the list, and what the list has by itself is not erased.
        kept = keep(Rule.LEFT, "no package owns it; the image no longer has it", path=path)
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
