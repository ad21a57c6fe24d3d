"""What is not gone back from by itself, or not at all: a hold, a policy, a step, no room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from support import inside
from support.command import run_ipavolume, volume_of
from support.going_back import half_done, history, seen, stood_still, take_away
from support.images import Image
from support.taskworlds import World as Steps
from support.taskworlds import build_packages, step
from support.worlds import STATE, World, differences, recorded, said

from ipavolume.apply.journal import note_held
from ipavolume.volume.members import open_volume

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem, pytest.mark.crash]

LARGE_BYTES: Final = 16 << 20
JUDGES: Final = '''

def going_back(volume):
    """Refuse where a peer has seen it."""
    yield Warn(code="older", text="the database becomes an older one")
    if volume.kind("/var/lib/svc/peer"):
        yield Refuse(code="seen", text="a peer has seen it", hint="Tell the peer.")
'''
FAILS: Final = """
words = ("sh", "-c", "echo broken >/data/var/lib/svc/db; echo new >/data/var/lib/svc/peer; false")
yield Command(words=words, reason="to fail")
"""


def test_what_was_on_hold_is_not_undone_but_by_hand(world: World, place: Path) -> None:
    before = half_done(world, place)
    volume = open_volume("/data", str(place / "data"))
    note_held(volume)
    os.close(volume.fd)
    untouched = stood_still(place)
    assert "[held]" in world.run("one", place, status=77).stderr
    assert "held" in world.run("one", place, "check", status=77).stdout
    assert stood_still(place) == untouched
    world.run("one", place, "rollback")
    assert differences(seen(place), before) == []


def test_a_container_on_hold_leaves_its_mark(tmp_path: Path) -> None:
    world = Steps(tmp_path, build_packages(tmp_path / "rpms"))
    world.populate()
    two = world.image("2", {"s5010_fails": step(FAILS)})
    argv = [*inside.IPAVOLUME, "start", "--on-failure", "hold", "--", "true"]
    always = {"IPAVOLUME_SNAPSHOT": "always"}
    with inside.started(two.root, world.volume, argv, env=always) as container:
        assert container.process.stderr is not None
        assert any("on hold" in line for line in container.process.stderr)
    one = Image(root=tmp_path / "v1")
    assert "[held]" in world.run(one, "upgrade", status=77).stderr
    world.run(one, "rollback")
    assert world.build_id() == "v1"


def test_a_policy_a_first_run_and_damage_keep_it_from_going_back_by_itself(
    world: World, place: Path
) -> None:
    """Nothing is changed then; by hand it can be overridden, and the new image can finish."""
    before = half_done(world, place)
    untouched = stood_still(place, times=False)
    careful = replace(world, environment={**world.environment, "IPAVOLUME_ROLLBACK": "refuse"})
    refused = careful.run("one", place, status=77).stderr
    assert "[uncommitted]" in refused
    assert "ipavolume rollback" in said(refused, "hint")
    record = place / "data" / STATE / "first-run.json"
    record.write_text('{"state":"started","started":"2026-11-28T00:00:00Z"}\n')
    assert "[first-run-since]" in world.run("one", place, status=77).stderr
    assert "[first-run-since]" in world.run("one", place, "rollback", status=77).stderr
    record.unlink()
    (snapshot,) = (place / "data" / STATE / "snapshots").iterdir()
    data = (snapshot / "record.json").read_bytes()
    for altered in (b"{}", data[:-20], data.replace(b'"primary":"', b'"primary":"0')):
        (snapshot / "record.json").write_bytes(altered)
        failed = world.run("one", place, status=None)
        assert failed.returncode in (65, 77), failed.stderr
        assert world.run("one", place, "rollback", status=None).returncode in (65, 77)
    (snapshot / "record.json").write_bytes(data)
    content_ = snapshot / "content"
    content_.rename(snapshot / "elsewhere")
    content_.symlink_to("elsewhere")
    assert "[damaged-snapshot]" in world.run("one", place, status=65).stderr
    content_.unlink()
    (snapshot / "elsewhere").rename(content_)
    assert stood_still(place, times=False) == untouched
    # What was overridden by hand is recorded, as of any run.
    record.write_text('{"state":"started","started":"2026-11-28T00:00:00Z"}\n')
    place.chmod(0o777)
    assert "[shared-path]" in world.run("one", place, "rollback", status=65).stderr
    allow = ("--allow", "first-run-since,shared-path")
    world.run("one", place, "rollback", *allow)
    assert history(place)[-1]["overrides"] == ["shared-path", "first-run-since"]
    assert differences(seen(place), before) == []


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Path], Path]]:
    """Mount another disk for the snapshots of a volume, until the test ends."""
    mounted: list[Path] = []

    def mount(volume: Path) -> Path:
        place = volume / ".ipavolume/snapshots"
        place.mkdir(parents=True)
        options = ["-t", "tmpfs", "-o", "size=4g,mode=700", "tmpfs"]
        subprocess.run(["mount", *options, place], check=True, timeout=60)
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True, timeout=60)


def test_a_step_that_fails_is_asked_before_it_is_undone(
    tmp_path: Path, elsewhere: Callable[[Path], Path]
) -> None:
    """F6: image 2 fails in a step, image 1 is started: what it left is there, and 2 is refused.

    The snapshot is on another disk.
    """
    world = Steps(tmp_path, build_packages(tmp_path / "rpms"))
    place = elsewhere(world.volume)
    one = world.image("1", {"s5010_judges": step("return ()") + JUDGES})
    two = world.image("2", {"s5010_judges": step(FAILS) + JUDGES})
    world.run(one, "upgrade")
    database = world.volume / "var/lib/svc/db"
    database.write_text("every entry\n")
    os.chown(database, 250, 250)
    always = {"IPAVOLUME_SNAPSHOT": "always"}
    failed = world.run(two, "upgrade", status=13, env=always)
    # Who reads this at night is told that there is a way back, and which image is it.
    way = "Or start the image v1 again: it goes back to the snapshot of run 0002-v2"
    assert way in failed.stderr
    # So is who reads no more than what a start says that waits.
    world.run(two, "upgrade", status=13, env=always)
    world.run(two, "upgrade", status=13, env=always)
    waits = {"IPAVOLUME_BACKOFF": "exit"} | always
    assert way in world.run(two, "start", "--", "true", status=75, env=waits).stderr
    assert database.read_text() == "broken\n"
    assert len(os.listdir(place)) == 1
    refused = world.run(one, "upgrade", status=77)
    assert "a peer has seen it" in refused.stderr
    assert "[s5010:seen]" in refused.stderr
    assert "this image goes back" not in refused.stderr
    assert world.build_id() is None
    # What a start does is told on a host, where it cannot be asked.
    foretold = run_ipavolume("check", world.volume, "--root", one.root, status=100).stdout
    assert "going back" in foretold
    assert "the step s5010_judges had begun" in foretold
    assert "The start of this image asks it" in foretold
    # On a host it cannot be asked, with no image nor with one.
    words = ("rollback", "--dry-run", "--volume", world.volume)
    for more in ((), ("--root", one.root)):
        assert "[needs-container]" in run_ipavolume(*words, *more, status=77).stderr
        shown = run_ipavolume(*words, *more, "--allow", "needs-container").stdout
        assert "the step s5010_judges had begun" in shown
    open_ = volume_of(run_ipavolume("status", "--json", world.volume).stdout)["recorded"]
    failures = [[one["at"], one["message"]] for one in open_["transaction"]["failures"]]
    assert len(failures) == 3
    # Who goes back all the same is told what is to be done then.
    told = world.run(one, "upgrade", "--allow", "s5010:seen")
    assert "this image goes back" in told.stderr
    assert "warning: the database becomes an older one" in told.stderr
    assert "warning: a peer has seen it. Tell the peer." in told.stderr
    assert "the image v2 is refused from now on" in told.stderr
    assert database.read_text() == "every entry\n"
    assert (database.stat().st_uid, database.stat().st_gid) == (250, 250)
    assert (world.volume / "etc/svc/svc.conf").read_text() == "version 1"
    assert world.build_id() == "v1"
    last = world.last_run()
    assert "s5010_judges" in last["undone"]["cause"]
    # Of the run that was undone: going back has not failed.
    assert last["failures"] == failures
    assert last["warnings"] == [
        "the database becomes an older one",
        "a peer has seen it. Tell the peer.",
    ]
    assert last["overrides"] == ["s5010:seen"]
    aside = world.volume / ".ipavolume/undone" / last["run"] / "var/lib/svc/db"
    assert aside.read_text() == "broken\n"
    again = world.run(two, "upgrade", status=77, env=always).stderr
    assert "[refused]" in again
    assert "s5010_judges" in again


def test_a_rollback_for_whose_directories_there_are_no_inodes_is_refused_before_it_begins(
    world: World, place: Path
) -> None:
    """What is put aside lies below directories as it had, each of which is a new one."""

    def leave(inodes: int) -> None:
        room = os.statvfs(place)
        limit = f"remount,nr_inodes={room.f_files - room.f_ffree + inodes}"
        subprocess.run(["mount", "-o", limit, place], check=True, timeout=60)

    world.copy("edited", place)
    files = [place / f"data/own/{number}/file" for number in range(200)]
    for file in files:
        file.parent.mkdir()
        file.write_text("before")
    before = seen(place)
    world.run("two", place)
    for file in files:
        file.write_text("after")
    leave(300)
    untouched = stood_still(place)
    assert (
        "300 inodes free, the plan needs" in world.run("two", place, "rollback", status=74).stderr
    )
    assert stood_still(place) == untouched
    leave(600)
    world.run("two", place, "rollback")
    assert differences(seen(place), before) == []


def test_a_rollback_without_room_leaves_the_volume_as_it_was_for_who_finishes_the_upgrade(
    world: World, place: Path
) -> None:
    """Full in the middle of it; and on a volume copied to where nothing can be cloned."""
    half_done(world, place)
    (snapshot,) = (place / "data" / STATE / "snapshots").iterdir()
    (snapshot / "content/own/large").write_bytes(bytes([1]) * LARGE_BYTES)
    limited = ["sh", "-c", 'ulimit -f 1024; exec "$@"', "sh", *world.command("one", place)]
    environment = dict(world.environment)
    done = subprocess.run(limited, env=environment, capture_output=True, check=False, timeout=60)
    assert done.returncode == 74, done.stderr
    inside = place / "data" / STATE / "transaction"
    assert inside.exists()
    assert not (inside / "rollback").exists()
    for part in (place / mount / STATE / "snapshots" / snapshot.name for mount in ("data", "logs")):
        record = (part / "record.json").read_bytes()
        (part / "record.json").write_bytes(record.replace(b'"copy"', b'"reflink"'))
    _tighten(place)
    untouched = stood_still(place, times=False)
    assert "the plan needs" in world.run("one", place, status=74).stderr
    assert stood_still(place, times=False) == untouched
    world.run("two", place)
    assert recorded(place, "data") == "build-two"
    # Nor is a run taken from its image where the one before it could not go back.
    _tighten(place)
    untouched = stood_still(place, times=False)
    done = subprocess.run(
        take_away(world, place), env=environment, capture_output=True, check=False, timeout=60
    )
    assert b"the plan needs" in done.stderr
    assert stood_still(place, times=False) == untouched


def _tighten(place: Path) -> None:
    found = os.statvfs(place)
    size = (found.f_blocks - found.f_bfree) * found.f_frsize + LARGE_BYTES
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True, timeout=60)
