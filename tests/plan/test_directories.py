"""Directories: what is in their way, what becomes of them, compared as values."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from support.plans import (
    CHANGED,
    CONFIG,
    DIRECTORY,
    EDITED,
    ELSEWHERE,
    FOLDER,
    GHOST,
    GONE,
    GONE_EDITED,
    LINK,
    MOVED_BY_ROOT,
    NOREPLACE,
    OLD,
    OWN,
    REPLACED,
    SAVED,
    UNOWNED_ANOTHER,
    D,
    P,
    at,
    data_kept,
    erase,
    install,
    keep,
    now,
    package,
    rmdir,
    save,
    was,
)
from support.values import Thing, World, image, record, thing

from ipavolume.model.actions import Action, CreateTree, Rule
from ipavolume.model.files import FileType, LinkStanding, Record

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
