"""Files that no package owns, and links to units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pytest
from support.plans import (
    ALIAS,
    BROKER,
    DIRECTORY,
    FOLDER,
    LINK,
    MISSING,
    NEW,
    OLD,
    OWN,
    REPLACED,
    UNOWNED_ANOTHER,
    at,
    install,
    keep,
    now,
    was,
)
from support.values import Thing, World, image, record, thing

from ipavolume.model.actions import Action, Erase, Install, Keep, Rule
from ipavolume.model.files import Metadata

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


@pytest.mark.parametrize(
    ("path", "before", "after", "same"),
    [
        (f"{WANTS}/a.service", "/lib/systemd/system/a.service", f"{UNITS}/a.service", True),
        (ALIAS, "/lib/systemd/system/a.service", f"{UNITS}/a.service", True),
        (f"{WANTS}/a.service", "../a.service", f"{UNITS}/a.service", True),
        (ALIAS, "/lib/systemd/system/a.service", f"{UNITS}/b.service", False),
        (ALIAS, "/dev/null", f"{UNITS}/a.service", False),
        ("/data/etc/app/a", "/lib/systemd/system/a.service", f"{UNITS}/a.service", False),
    ],
)
def test_links_to_one_unit_are_one_wherever_they_say_that_it_is(
    path: str,
    before: str,
    after: str,
    same: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """Debian 12 enables what is in ``/lib``, Debian 13 what is in ``/usr/lib``."""
    units = ("system/a.service", "system/b.service")
    old, new = (record(path, target, LINK, package="") for target in (before, after))
    world = World(
        old=(old,), disk={path: thing(before, LINK)}, new=(new,), after=image(units=units)
    )
    left = Keep(path=path, rule=Rule.LEFT, reason="no package owns it; the image has another")
    assert world.plan() == (() if same else (left,))
    unknown = replace(left, rule=Rule.UNOWNED)
    assert replace(world, old=()).plan() == (() if same else (unknown,))
    # It is the image's still once that drops it, and its unit.
    gone = replace(world, old=(new,), new=(), after=image(units=("system/c.service",)))
    assert [type(action) for action in gone.plan()] == ([Erase] if same else [])


_INSTANCE: Final = f"{WANTS}/cache@one.service"
CACHE: Final = "system/cache@.service"


@pytest.mark.parametrize(
    ("path", "target", "more", "told"),
    [
        pytest.param(_INSTANCE, f"{UNITS}/cache@.service", {}, True, id="an instance"),
        pytest.param(
            f"{SYSTEM}/own.service", "/lib/systemd/system/cache.service", {}, True, id="an alias"
        ),
        pytest.param(_INSTANCE, f"{UNITS}/other@.service", {}, True, id="by its own name"),
        pytest.param(f"{WANTS}/a.service", f"{UNITS}/a.service", {}, False, id="still there"),
        pytest.param(f"{WANTS}/b.service", f"{UNITS}/b.service", {}, False, id="never there"),
        pytest.param(f"{SYSTEM}/cache.service", "/dev/null", {}, False, id="a mask"),
        pytest.param(
            _INSTANCE,
            f"{UNITS}/cache@.service",
            {f"{SYSTEM}/cache@.service": OWN},
            False,
            id="a unit on the volume",
        ),
    ],
)
def test_an_administrators_link_to_a_unit_that_went_with_the_last_image_is_named(
    path: str,
    target: str,
    more: Mapping[str, Thing],
    told: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """What was enabled would not come up any more, and nothing would say so."""
    old = image("old", units=("system/a.service", "system/cache.service", CACHE))
    world = World(
        disk={SYSTEM: FOLDER, WANTS: FOLDER, path: thing(target, LINK), **more},
        before=old,
        after=image(units=("system/a.service",)),
    )
    named = Keep(
        path=path, rule=Rule.LEFT, reason="it leads to a unit that the image no longer has"
    )
    assert world.plan() == ((named,) if told else ())
    assert replace(world, after=image()).plan() == ()
    assert replace(world, before=None).plan() == ()
    assert replace(world, after=old).plan() == ()


@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        pytest.param("cache.service.d/more.conf", {}, True, id="of a unit"),
        pytest.param("cache@one.service.d/more.conf", {}, True, id="of an instance"),
        pytest.param("cache.service.d/more.conf~", {}, False, id="nothing that is read"),
        pytest.param("a.service.d/more.conf", {}, False, id="still there"),
        pytest.param("service.d/more.conf", {}, False, id="of all services"),
        pytest.param(
            "cache.service.d/more.conf", {f"{SYSTEM}/cache.service": OWN}, False, id="an own unit"
        ),
    ],
)
def test_an_administrators_drop_in_for_a_unit_that_went_with_the_last_image_is_named(
    name: str,
    more: Mapping[str, Thing],
    told: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """What it limits, or has started after something, would do so no more without a word."""
    old = image("old", units=("system/a.service", "system/cache.service", CACHE))
    path = f"{SYSTEM}/{name}"
    world = World(
        disk={SYSTEM: FOLDER, path.rpartition("/")[0]: FOLDER, path: OWN, **more},
        before=old,
        after=image(units=("system/a.service",)),
    )
    named = Keep(path=path, rule=Rule.LEFT, reason="it is for a unit that the image no longer has")
    assert world.plan() == ((named,) if told else ())
    assert replace(world, after=old).plan() == ()


def test_a_link_of_the_last_image_to_a_unit_that_went_with_it_is_named_once() -> None:
    link = record(_INSTANCE, f"{UNITS}/cache@.service", LINK, package="")
    world = World(
        old=(link,),
        disk={SYSTEM: FOLDER, WANTS: FOLDER, _INSTANCE: thing(link.content, LINK)},
        before=image("old", units=(CACHE,)),
        after=image(units=("system/a.service",)),
    )
    (action,) = world.plan()
    assert isinstance(action, Erase)
