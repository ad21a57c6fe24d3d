"""Owners go by name: accounts that have another number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest
from support.plans import (
    CONFIG,
    DIRECTORY,
    EDITED,
    GONE,
    GONE_EDITED,
    OF_SVC,
    REPLACED,
    A,
    P,
    accounts,
    erase,
    install,
    keep,
    metadata,
    now,
    save,
    was,
)
from support.values import Thing, World, acl, record, thing

from ipavolume.errors import IpaVolumeError
from ipavolume.model.actions import Action, Rule, SetMetadata
from ipavolume.model.files import FileType


def translated(path: str, before: Thing, **more: Any) -> SetMetadata:
    return metadata(before, path=path, rule=Rule.OWNER_TRANSLATION, **more)


B: Final = "/data/var/b"
SWAP: Final = ({"alice": 1000, "bob": 1001}, {"alice": 1001, "bob": 1000})
SHIFT: Final = ({"svc": 990}, {"svc": 980})
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
                disk={A: thing("a"), B: OF_SVC},
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
            accounts(({"gone": 990}, {"svc": 980}), disk={A: OF_SVC}), [], id="gone, not reused"
        ),
        pytest.param(
            accounts(({"gone": 990, "same": 990}, {"same": 990, "svc": 990}), disk={A: OF_SVC}),
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
            accounts(({"a": 990, "b": 990}, {"a": 970, "b": 980}), disk={A: OF_SVC}),
            [translated(A, OF_SVC, uid=970)],
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
        accounts(reused, disk={A: OF_SVC}).plan()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": 990}, {"a": 0, "c": 990}),
        ({"a": 990, "c": 991}, {"a": 0, "c": 990}),
        ({"a": 990, "b": 990}, {"a": 0, "b": 0, "c": 990}),
    ],
)
def test_what_was_an_account_s_that_is_root_s_now_is_nobody_else_s(
    old: dict[str, int], new: dict[str, int]
) -> None:
    disk = {A: thing("secret", uid=990, gid=990, mode=0o4700)}
    for world in (accounts((old, new), disk=disk), accounts(({}, {}), (old, new), disk=disk)):
        with pytest.raises(IpaVolumeError, match="makes 'a' root's and gives 990 to 'c'") as caught:
            world.plan()
        assert caught.value.code == "reused-id"
    # Where nobody has the number now, it stays nobody's.
    assert accounts((old, {"a": 0, "b": 0}), disk=disk).plan() == ()


@pytest.mark.parametrize(
    ("users", "said"),
    [
        (
            ({"a": 990, "b": 990}, {"a": 970, "b": 980}),
            "user 990 was that of 'a' (now 970) and 'b' (now 980); what has it, and is not shipped "
            f"as another's, is taken for that of 'a': {A!r} and 1 more",
        ),
        (
            ({"a": 990, "b": 990, "c": 990}, {"a": 970, "b": 990, "c": 970}),
            "user 990 was that of 'b' (now 990) and 'a' (now 970) and 'c' (now 970); what has it, "
            f"and is not shipped as another's, is taken for that of 'b': {A!r} and 1 more",
        ),
        (({"a": 990, "b": 990}, {"a": 980, "b": 980}), ""),
        (({"a": 990, "b": 990}, {"b": 980}), ""),
        (({"a": 990, "b": 990}, {"a": 0, "b": 980}), ""),
        (({"root": 0, "toor": 0}, {"root": 0, "toor": 5}), ""),
        (({"a": 991, "b": 991}, {"a": 970, "b": 980}), ""),
    ],
    ids=["part", "one keeps it", "stay together", "one is gone", "root", "of root", "owns nothing"],
)
def test_what_was_several_accounts_that_part_is_told(
    users: tuple[Mapping[str, int], Mapping[str, int]], said: str
) -> None:
    named = thing("a", xattrs=(acl(u990=4),))
    made = accounts(users, disk={A: OF_SVC, B: named, P: thing("of root")}).made()
    assert [warning.text for warning in made.warnings] == [said] * bool(said)
    assert {warning.code for warning in made.warnings} <= {"shared-id"}


def test_what_the_image_ships_as_one_s_is_not_told_as_that_of_several() -> None:
    made = accounts(
        ({"a": 990, "b": 990}, {"a": 970, "b": 980}),
        old=(was(uid=990),),
        new=(was(uid=980),),
        disk={P: thing("old", uid=990)},
    ).made()
    assert list(made.actions) == [metadata(thing("old", uid=990), uid=980, content="old")]
    assert made.warnings == ()


@pytest.mark.parametrize(
    ("users", "groups", "renumbered"),
    [
        (SWAP, ({}, {}), True),
        (({}, {}), SHIFT, True),
        (({"gone": 1}, {"new": 1}), ({}, {}), True),
        (({"a": 1, "b": 1}, {"a": 1, "b": 2}), ({}, {}), True),
        (({"same": 1, "gone": 2}, {"same": 1, "new": 3}), ({}, {}), False),
    ],
    ids=["users", "groups", "reused", "shared", "nothing"],
)
def test_everything_is_looked_at_only_where_an_account_is_another(
    users: tuple[Mapping[str, int], Mapping[str, int]],
    groups: tuple[Mapping[str, int], Mapping[str, int]],
    renumbered: bool,  # noqa: FBT001 - a column of the table
) -> None:
    looked: list[bool] = []
    accounts(users, groups).made(looked)
    assert looked == [True] * renumbered
