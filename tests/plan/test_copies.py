"""The names of copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import pytest
from support.plans import (
    BESIDE,
    CONFIG,
    DIRECTORY,
    EDITED,
    FOLDER,
    GONE,
    GONE_EDITED,
    GONE_OTHER,
    LONGEST,
    NEW,
    NOREPLACE,
    OLD,
    OWN,
    SAVED,
    P,
    at,
    erase,
    install,
    keep,
    now,
    save,
    was,
)
from support.values import RUN, Disk, Thing, World, record, thing

from ipavolume.model.actions import IfEdited, Rule, Save
from ipavolume.model.files import DiskState, FileFlags

_LONG: Final = "/data/etc/" + "é" * 125


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
    for path in (_LONG, LONGEST):
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
