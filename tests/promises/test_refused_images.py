"""An image that the volume was taken back from is not started again before its time."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.command import run_ipavolume, volume_of
from support.images import GROUPS, USERS, Packaged, build_rpm
from support.requirements import need_root
from support.taskworlds import World, build_packages, logs, step
from support.upgrades import Site

from ipavolume.apply.refused import note_refused
from ipavolume.cli.text import card_lines
from ipavolume.commands.status import Card
from ipavolume.volume.members import open_volume
from ipavolume.volume.refused import UNDONE, UNVERIFIED, read_refused, write_refused

pytestmark = [pytest.mark.root, pytest.mark.rpm]


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A package in three versions."""
    need_root()
    return build_packages(tmp_path_factory.mktemp("rpms"))


def test_a_refused_image_starts_when_it_is_asked_for_or_when_its_time_has_come(
    tmp_path: Path, rpms: Mapping[str, Path]
) -> None:
    world = World(tmp_path, rpms)
    one = world.image("1", {})
    world.run(one, "start", "--", "true")
    volume = open_volume("/data", str(world.volume))
    note_refused(volume, "v2", "", UNDONE, "0002-v2", "step s5010_fails: no room")
    two = world.image("2", {"s5010_logs": step(logs("done"))})
    start = ("start", "--", "true")

    said = world.run(two, *start, status=77).stderr
    for word in ("[refused]", "s5010_fails: no room", "with -e IPAVOLUME_RETRY=0002-v2"):
        assert word in said
    checked = volume_of(world.run(two, "check", "--json", "/data", status=77).stdout)
    assert (checked["state"], checked["findings"][0]["code"]) == ("outdated", "refused")
    said = world.run(two, *start, status=77, env={"IPAVOLUME_RETRY": "0001-v1"}).stderr
    assert "IPAVOLUME_RETRY is '0001-v1' now, which is another one." in said
    assert world.build_id() == "v1"
    # The one that the volume is of starts, and tells who asks of the other one.
    assert "(v1); handing over" in world.run(one, *start).stderr
    assert "the image v2 is refused until" in world.run(one, "check", "/data").stdout
    assert "refused   v2: run 0002-v2 undone at" in world.run(one, "status", "/data").stdout

    # A corrected one is another.
    (record,) = read_refused(volume)
    write_refused(volume, [replace(record, fingerprint="of what was in it then")])
    world.run(two, "upgrade", "--dry-run", status=100)
    # A command that goes back has no cause to tell.
    write_refused(volume, [replace(record, cause="")])
    said = world.run(one, "status", "/data").stdout
    (line,) = [one for one in said.splitlines() if one.startswith("refused ")]
    assert line.rpartition("before ")[2].endswith("Z")
    write_refused(volume, [record])

    world.run(two, *start, env={"IPAVOLUME_RETRY": "0002-v2"})
    assert world.build_id() == "v2"
    assert world.log() == ["done"]
    (now,) = read_refused(volume)
    assert now == replace(record, tried=world.last_run()["run"])
    world.run(two, *start)
    assert "refused" not in world.run(two, "status", "/data").stdout

    # Gone back from for the second time: the short way does not start it either.
    note_refused(volume, "v2", "", UNVERIFIED, now.tried, "nobody answers")
    assert "[refused]" in world.run(two, *start, status=77).stderr
    (again,) = read_refused(volume)
    assert again.count == 2
    write_refused(volume, [replace(again, at="2020-01-01T00:00:00Z")])
    world.run(two, *start)
    os.close(volume.fd)


def test_what_is_gone_back_to_is_refused_no_more_and_what_ships_the_same_neither(
    tmp_path: Path,
) -> None:
    """Two images with the same content, in which a service has other numbers; there and back."""
    rpm = build_rpm(tmp_path, "app", [Packaged(path="/etc/app/a.conf", content="a")])
    site = Site(top=tmp_path)
    one, two = (
        site.image(
            name,
            [rpm],
            lists={"/data": ["/etc/app/"]},
            passwd=f"{USERS}extra:x:{number}:{number}::/:/bin/false\n",
            group=f"{GROUPS}extra:x:{number}:\n",
        )
        for name, number in (("one", 777), ("two", 778))
    )
    assert one.header().fingerprint == two.header().fingerprint
    site.upgrade(one)
    extra = site.volume() / "etc/app/extra"
    extra.touch()
    os.chown(extra, 777, 777)
    site.upgrade(two, env={"IPAVOLUME_SNAPSHOT": "always"})
    by_hand = "0003-hand"
    site.run("snapshot", two, "create")
    site.run("rollback", two)
    assert extra.stat().st_uid == 777
    metrics = site.run("status", two, "--format", "metrics").stdout.splitlines()
    assert [line[-2:] for line in metrics if line.startswith("ipavolume_last_run_done")] == [" 1"]
    assert "[refused]" in site.run("upgrade", two, status=77).stderr
    assert "current" in site.run("check", one).stdout
    site.upgrade(one)
    site.run("rollback", one, by_hand)
    assert extra.stat().st_uid == 778
    assert "current" in site.run("check", two).stdout
    site.upgrade(two)
    assert "[refused]" in site.run("upgrade", one, status=77).stderr


def test_images_are_called_what_people_call_them(tmp_path: Path) -> None:
    """Of two ids nobody knows which of his tags he has to start."""
    site = Site(top=tmp_path)
    images = []
    for number, name in (("1", "first"), ("2", "second")):
        files = [Packaged(path="/etc/app/app.conf", words="%config", content=number)]
        rpm = build_rpm(tmp_path, "app", files, version=number)
        lists = {"/data": ["/etc/app/"]}
        images.append(site.image(name, [rpm], lists=lists, image_name=f"app:{number}"))
    one, two = images
    site.upgrade(one)
    done = site.run("upgrade", two, env={"IPAVOLUME_SNAPSHOT": "always"})
    assert "upgrade app:1 (first) -> app:2 (second)\n" in done.stdout
    assert "of app:1 (first): " in site.run("snapshot", two, "list").stdout
    said = site.run("upgrade", one, status=77).stderr
    assert "Start the image app:2 (second) or a newer one, or undo that" in said
    assert "of the image app:1 (first): ipavolume rollback" in said
    undone = site.run("rollback", two)
    assert "is what app:1 (first) left\n" in undone.stdout
    now_on = "the image app:2 (second) is refused from now on; it is tried again from "
    assert now_on in undone.stderr
    # The time that check says as well, and the image itself when it is started.
    until = undone.stderr.partition(now_on)[2].partition(" on, ")[0]
    assert f"the image app:2 (second) is refused until {until}:" in site.run("check", one).stdout
    assert f"tried again from {until} on" in site.run("upgrade", two, status=77).stderr
    card = run_ipavolume("status", site.volume()).stdout
    assert "refused   app:2 (second): run 0002-second undone at" in card
    assert re.search(r"created   .* by image app:1 \(first\)\n", card)


def test_the_card_of_an_open_run_calls_images_what_people_call_them() -> None:
    run: dict[str, Any] = {"run": "0002-second", "kind": "upgrade", "from": "first", "to": "second"}
    run |= {"phase": "swapped", "since": "2026-11-28T12:00:00Z", "tasks": [], "failures": []}
    card = Card(
        volume="/data",
        recorded={"id": None, "name": "app:1", "baseline": "first", "os": None, "transaction": run},
        last_run=None,
        open=True,
        attempts={
            "image": "second",
            "count": 3,
            "at": "2026-11-28T12:00:01Z",
            "message": "broken",
            "next": "",
        },
        names={"first": "app:1", "second": "app:2"},
    )
    told = "\n".join(card_lines(card))
    assert "image     none recorded; before: app:1 (first)\n" in told
    assert "failures  3 in a row of app:2 (second), last at" in told
    assert "open run  0002-second to app:2 (second), swapped, since" in told


def test_an_image_that_ships_the_same_is_told_what_makes_it_another(tmp_path: Path) -> None:
    """Its program was corrected, under the same version: another one was gone back from."""
    site = Site(top=tmp_path)
    rpms = [
        build_rpm(
            tmp_path,
            "app",
            [Packaged(path="/etc/app/app.conf", words="%config", content=number)],
            version=number,
        )
        for number in ("1", "2")
    ]
    one, two, corrected = (
        site.image(name, [rpm], lists={"/data": ["/etc/app/"]}, image_name=f"app:{name}")
        for name, rpm in (("one", rpms[0]), ("two", rpms[1]), ("corrected", rpms[1]))
    )
    site.upgrade(one)
    site.upgrade(two, env={"IPAVOLUME_SNAPSHOT": "always"})
    site.run("rollback", two)
    (said,) = [
        line
        for line in site.run("upgrade", corrected, status=77).stderr.splitlines()
        if "[refused]" in line
    ]
    which = "taken back from app:two (two), which ships the same as this image, app:corrected"
    assert f"{which} (corrected): it went back to the snapshot of run 0002-two" in said
    hint = site.run("upgrade", corrected, status=77).stderr
    assert "counts by another version of its package" in hint
    hint = site.run("upgrade", two, status=77).stderr
    assert "taken back from this image, app:two (two)" in hint
    assert "another version of its package" not in hint
