"""Parts of a volume that nothing can be renamed into: worked in, or refused before a write (F3)."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest
from support import forked, tracing
from support.command import clean_environment
from support.filesystems import Filesystems
from support.images import Image, Packaged, build_rpm, picture
from support.requirements import need_tool, unavailable
from support.steps import Scene
from support.upgrades import Site
from support.worlds import (
    EDITED,
    MOUNTS,
    OLD_ACCOUNTS,
    RUNS,
    World,
    broken_promises,
    content,
    content_of,
    differences,
    exposed,
    look,
    lost,
    make_world,
    tell,
)

from ipavolume.linux.cloning import clone_tree
from ipavolume.steps import MakeLink, Remove, Write

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem]

REGIONS: Final = ("data/etc/app", "data/var/lib/app", "logs/var/log/app")
CHUNKS: Final = 4
EVERY: Final = int(os.environ.get("IPAVOLUME_CRASH_EVERY", "16"))
"""Of so many changing calls one is killed at; all of them take longer than a suite may."""
Make = Callable[[Path], AbstractContextManager[None]]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images and volumes, made once a worker."""
    return make_world(tmp_path_factory.getbasetemp())


def _do(*words: str | Path) -> None:
    subprocess.run([need_tool(str(words[0])), *map(str, words[1:])], check=True, timeout=60)


@contextmanager
def _plain(place: Path) -> Iterator[None]:
    yield


@contextmanager
def _projects(place: Path) -> Iterator[None]:
    """Give directories another project id than the root's; what is in them keeps none."""
    for number, path in enumerate(REGIONS):
        if (place / path).is_dir():
            _do("chattr", "+P", "-p", f"{70 + number}", place / path)
    yield


@contextmanager
def _whole_projects(place: Path) -> Iterator[None]:
    """Give directories with all that is in them another project id than the root's."""
    for number, path in enumerate(REGIONS):
        if (place / path).is_dir():
            # It fails for links, which have no such attributes.
            words = [need_tool("chattr"), "-R", "-f", "+P", "-p", f"{70 + number}"]
            subprocess.run([*words, str(place / path)], check=False, timeout=60)
    yield


@contextmanager
def _root_project(place: Path) -> Iterator[None]:
    """Give the roots themselves a project id, but nothing below them."""
    for mount in MOUNTS:
        _do("chattr", "+P", "-p", "7", place / mount)
    yield


def _replace(place: Path, make: Callable[[Path], None]) -> None:
    """Put another directory, made by *make*, in the place of each region."""
    for path in REGIONS:
        old = place / path
        if old.is_dir():
            away = old.with_name("away")
            old.rename(away)
            make(old)
            _do("cp", "-aT", away, old)
            shutil.rmtree(away)


@contextmanager
def _subvolumes(place: Path) -> Iterator[None]:
    _replace(place, lambda path: _do("btrfs", "-q", "subvolume", "create", path))
    yield


@contextmanager
def _copied(place: Path) -> Iterator[None]:
    """Do what :func:`_subvolumes` does, with directories."""
    _replace(place, Path.mkdir)
    yield


@contextmanager
def _overlays(place: Path) -> Iterator[None]:
    """Have all that is on the volumes in the lower layer of an overlay."""
    with ExitStack() as stack:
        for mount in MOUNTS:
            layers = {name: place / f"{name}-{mount}" for name in ("lower", "upper", "work")}
            for layer in layers.values():
                shutil.rmtree(layer, ignore_errors=True)
            (place / mount).rename(layers["lower"])
            for directory in (layers["upper"], layers["work"], place / mount):
                directory.mkdir()
            shutil.copystat(layers["lower"], place / mount)
            options = ",".join(f"{name}dir={layer}" for name, layer in layers.items())
            _do("mount", "-t", "overlay", "overlay", "-o", options, place / mount)
            stack.callback(_do, "umount", place / mount)
        yield


KINDS: Final = {
    "project ids of directories": ("xfs", _projects),
    "project ids of trees": ("xfs", _whole_projects),
    "a project id of the root": ("xfs", _root_project),
    "subvolumes": ("btrfs", _subvolumes),
    "lower layers": ("tmpfs", _overlays),
}


def _staging_areas(place: Path) -> list[str]:
    """Return what is left of staging areas beside the places."""
    return [
        os.path.join(top, name)
        for mount in MOUNTS
        for top, names, _ in os.walk(place / mount)
        for name in names
        if name.startswith(".ipavolume-")
    ]


def _traced(world: World, image: str, place: Path, log: Path, *words: str) -> list[tracing.Call]:
    """Bring the volumes to *image*; return the calls that changed something or synced."""
    done, calls = tracing.trace(world.command(image, place, *words), env=world.environment, log=log)
    assert done.returncode == 0, done.stderr
    return calls


def _without_owners(value: object) -> object:
    return (value[0], *value[3:5]) if isinstance(value, tuple) else value


def _different(place: Path, expected: Mapping[str, tuple[object, ...]], kind: str) -> list[str]:
    """Return what is not as expected."""
    wrong = differences(look(place), expected)
    if kind == "lower layers":
        # An overlay itself takes hard links apart.
        wrong = [item for item in wrong if not item[0].startswith("data/own/")]
    if kind == "subvolumes":
        # Owners of what no image knows are another matter: only a walk of the volume finds them.
        wrong = [item for item in wrong if _without_owners(item[1]) != _without_owners(item[2])]
        wrong = [item for item in wrong if item[0] != "data/.ipavolume/history.jsonl"]
    return [f"{path}: {found} instead of {wanted}" for path, found, wanted in wrong]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_comes_to_the_same_as_without_regions(
    kind: str, run: str, world: World, filesystem: Filesystems
) -> None:
    """F3."""
    file_system, make = KINDS[kind]
    place = filesystem(file_system, 400)
    wanted = RUNS[run]
    if run == "populate":
        # The regions are there before the volume is filled.
        world.copy("empty", place)
        for path in REGIONS:
            (place / path).mkdir(parents=True)
            if path != REGIONS[0]:
                os.chown(place / path, *OLD_ACCOUNTS["svc"])
        for mount in MOUNTS:
            _do("chmod", "-R", "go-w", place / mount)
    else:
        world.copy(wanted.volumes, place)
    spare = place / "spare"
    spare.mkdir()
    for mount in MOUNTS:
        _do("cp", "-a", place / mount, spare)
    with _copied(place) if make is _subvolumes else _plain(place):
        world.run(wanted.image, place)
        expected = look(place)
    for mount in MOUNTS:
        shutil.rmtree(place / mount)
        (spare / mount).rename(place / mount)
    with make(place):
        world.run(wanted.image, place)
        assert _different(place, expected, kind) == []
        assert lost(place, before=wanted.written) == []
        assert exposed(place) == []
        assert _staging_areas(place) == []
        again = world.run(wanted.image, place, "check")
        assert ": current" in again.stdout


# -- interruption ------------------------------------------------------------------------


@contextmanager
def _begun(
    world: World, place: Path, make: Callable[[Path], AbstractContextManager[None]]
) -> Iterator[None]:
    """Put fresh volumes with regions in *place*."""
    world.copy("edited", place)
    with make(place):
        yield


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("kind", ["project ids of directories", "subvolumes"])
def test_killed_at_any_change_a_run_with_regions_has_lost_nothing_and_is_finished(
    kind: str, chunk: int, world: World, filesystem: Filesystems
) -> None:
    """F3: two mounts, and three regions on them."""
    file_system, make = KINDS[kind]
    place = filesystem(file_system, 400)
    run = RUNS["upgrade"]
    with _begun(world, place, make):
        before = content(place)
        calls = _traced(world, run.image, place, place / "log")
        after, result = content(place), look(place)
    points = [call for call in calls if tracing.is_change(call)]
    assert sum(".ipavolume-" in call.text for call in points) > 20
    wrong: list[tuple[object, object]] = []
    for call in points[::EVERY][chunk::CHUNKS]:
        with _begun(world, place, make):
            world.killed(run.image, place, call)
            found = [
                *broken_promises(place, before=before, after=after, old=run.old, new=run.new),
                *lost(place, before=run.written),
                *exposed(place),
            ]
            again = world.run(run.image, place, status=None)
            if again.returncode != 0:
                found.append(again.stderr)
            else:
                found += map(str, differences(look(place), result))
                found += _staging_areas(place)
            if found:
                wrong.append((call, found))
    assert not wrong, tell(wrong)


# -- what changes meanwhile --------------------------------------------------------------

LATE: Final = (
    *("data/etc/app/untouched.conf", "data/etc/app/clean.conf", "data/etc/app/to-dir"),
    *("data/etc/app/noreplace.conf", "data/etc/app/secret.conf", "data/etc/app/new.conf"),
    *(
        "data/etc/app/to-file/inside",
        "data/etc/app/gone/late",
        "data/etc/app/noreplace.conf.rpmnew",
    ),
    *("data/var/lib/app/program", "data/var/lib/app/dropped-data", "logs/var/log/app/banner"),
    *("logs/var/log/app/new.txt", "logs/var/log/app/README"),
)
"""What somebody writes when an upgrade is marked and nothing is in place yet."""


def _killed_at_the_mark_and_edited(world: World, place: Path, call: tracing.Call) -> None:
    run = RUNS["upgrade"]
    tracing.killed(world.command(run.image, place), call, env=world.environment)
    for path in LATE:
        (place / path).write_bytes(b"late, " + content_of(path))
        os.utime(place / path, (EDITED, EDITED))
    world.run(run.image, place)


@pytest.mark.crash
@pytest.mark.parametrize("kind", ["project ids of directories", "subvolumes"])
def test_what_is_edited_while_a_killed_run_waits_gets_what_it_gets_elsewhere(
    kind: str, world: World, filesystem: Filesystems, tmp_path: Path
) -> None:
    """F3: copies into and out of a region are made of what somebody wrote late, too."""
    file_system, make = KINDS[kind]
    place = filesystem(file_system, 400)
    run = RUNS["upgrade"]
    results: list[dict[str, tuple[object, ...]]] = []
    for regions in (_copied if make is _subvolumes else _plain, make):
        with _begun(world, place, regions):
            calls = _traced(world, run.image, place, tmp_path / "log")
        marks = [
            position
            for position, call in enumerate(calls)
            if call.name.startswith("rename") and '"build-id.old"' in call.text
        ]
        (call, *_) = filter(tracing.is_change, calls[marks[-1] + 1 :])
        with _begun(world, place, regions):
            _killed_at_the_mark_and_edited(world, place, call)
            if regions is make:
                assert _different(place, results[0], kind) == []
                assert _staging_areas(place) == []
            results.append(look(place))


def _last_change_before(calls: list[tracing.Call], *, source: str, name: str) -> tracing.Call:
    """Return the last change before a rename: when the copy is made that it puts in place."""
    position = tracing.find(
        calls,
        lambda call: (
            call.name.startswith("rename")
            and f'"{source}' in call.text
            and f', "{name}"' in call.text
        ),
    )
    return [call for call in calls[:position] if tracing.is_change(call)][-1]


def test_what_is_edited_while_a_copy_is_made_is_not_overwritten_by_it(
    world: World, filesystem: Filesystems, tmp_path: Path
) -> None:
    """F3, F46: a copy takes its time, so what it replaces is looked at again."""
    place = filesystem("xfs", 400)
    run = RUNS["upgrade"]
    with _begun(world, place, _projects):
        calls = _traced(world, run.image, place, tmp_path / "log")
        after = picture(place / "data")
    cases = {
        "data/etc/app/untouched.conf": ("copy", "data/etc/app/untouched.conf"),
        "data/var/lib/app/program": (
            "copy",
            "data/.ipavolume/saved/0002-buildtwo/var/lib/app/program",
        ),
        "data/etc/app/mode.conf": ("copy", "data/etc/app/mode.conf"),
        "data/own/others": ("m", "data/own/others"),
    }
    for path, (source, kept) in cases.items():
        call = _last_change_before(calls, source=source, name=Path(path).name)
        with (
            _begun(world, place, _projects),
            tracing.stopped(
                world.command(run.image, place), call.name, call.number, env=world.environment
            ) as program,
        ):
            (place / path).write_bytes(b"late\n")
            program.go_on(program.processes[0])
            assert program.wait().returncode == 0
            assert (place / kept).read_bytes() == b"late\n"
            assert _staging_areas(place) == []
            name = path.removeprefix("data")
            assert picture(place / "data")[name][:3] == after[name][:3]


# -- what cannot be done -----------------------------------------------------------------


def _refused(world: World, place: Path, image: str, code: str, *said: str) -> None:
    """See every command refuse, and the volumes stay as they are."""
    before = [picture(place / mount) for mount in MOUNTS]
    looked = world.run(image, place, "check", status=65)
    assert ": obstructed" in looked.stdout.splitlines()[0]
    planned = world.run(image, place, "upgrade", "--dry-run", status=65)
    done = world.run(image, place, status=65)
    for text in (looked.stdout, planned.stdout, done.stderr):
        assert f"[{code}]" in text or code in text
        for word in said:
            assert word in " ".join(text.split()), text
    assert [picture(place / mount) for mount in MOUNTS] == before


def test_a_read_only_subvolume_is_refused(world: World, filesystem: Filesystems) -> None:
    """F3: a snapshot in a directory's place cannot be written to."""
    place = filesystem("btrfs", 400)
    world.copy("edited", place)
    with _subvolumes(place):
        region = place / "data/etc/app"
        _do("btrfs", "property", "set", "-ts", region, "ro", "true")
        said = ("'/data/etc/app'", f"btrfs property set -ts {region} ro false")
        _refused(world, place, "two", "region", *said)
        _do("btrfs", "property", "set", "-ts", region, "ro", "false")
        world.run("two", place)


def test_a_directory_that_would_leave_its_subvolume_is_refused(
    world: World, filesystem: Filesystems
) -> None:
    """F3: with all below it, it can only be moved by copying."""
    place = filesystem("btrfs", 400)
    world.copy("edited", place)
    with _subvolumes(place):
        unknown = place / "data/etc/app/dir-to-link/unknown"
        unknown.write_text("of an administrator")
        words = ("upgrade", "--allow", "type-change")
        before = picture(place / "data")
        done = world.run("two", place, *words, status=65)
        assert "[region]" in done.stderr
        assert f"mv {unknown.parent} " in done.stderr
        assert picture(place / "data") == before
        shutil.move(unknown.parent, place / "elsewhere")
        world.run("two", place, *words)


def test_a_directory_of_a_lower_layer_that_has_to_move_is_refused(
    world: World, filesystem: Filesystems
) -> None:
    """F3: an overlay renames no directory that a lower layer has."""
    place = filesystem("tmpfs", 400)
    world.copy("edited", place)
    unknown = "data/etc/app/dir-to-link/unknown"
    (place / unknown).write_text("of an administrator")
    with _overlays(place):
        words = ("upgrade", "--allow", "type-change")
        before = picture(place / "data")
        done = world.run("two", place, *words, status=65)
        assert "[region]" in done.stderr
        assert f"mv {(place / unknown).parent} " in done.stderr
        assert picture(place / "data") == before
        shutil.move((place / unknown).parent, place / "elsewhere")
        world.run("two", place, *words)


@contextmanager
def _encrypting(top: Path) -> Iterator[Path]:
    """Mount a file system that can encrypt directories."""
    disk, place = top / "disk", top / "place"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    place.mkdir()
    _do("mkfs.ext4", "-q", "-F", "-O", "encrypt", disk)
    mounted = subprocess.run(
        [need_tool("mount"), "-o", "loop", str(disk), str(place)], check=False, timeout=60
    )
    if mounted.returncode != 0:
        unavailable("this kernel has no encryption of directories")
    try:
        yield place
    finally:
        _do("umount", place)


def _add_key(place: Path) -> bytes:
    """Add a key to a file system; return what policies call it.

    Source: ``struct fscrypt_add_key_arg`` of ``linux/fscrypt.h``.
    """
    key = bytearray(struct.pack("=II32sII8I", 2, 0, b"", 64, 0, *[0] * 8) + bytes(range(64)))
    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0xC0506617, key)
    except OSError as err:
        unavailable(f"this kernel takes no keys: {err}")
    finally:
        os.close(fd)
    return bytes(key[8:24])


def _remove_key(place: Path, name: bytes) -> None:
    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0xC0406618, bytearray(struct.pack("=II32s6I", 2, 0, name, 0, *[0] * 5)))
    finally:
        os.close(fd)


def _encrypt(directory: Path, name: bytes) -> None:
    """Make the empty *directory* an encrypted one."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x800C6613, struct.pack("=BBBB4x16s", 2, 1, 4, 0, name))
    finally:
        os.close(fd)


def test_an_encrypted_directory_is_worked_in_and_refused_while_it_is_locked(
    world: World, tmp_path: Path
) -> None:
    """F3."""
    with _encrypting(tmp_path) as place:
        world.copy("edited", place)
        with _copied(place):
            world.run("two", place)
            expected = look(place)
        world.copy("edited", place)
        name = _add_key(place)

        def make(directory: Path) -> None:
            directory.mkdir()
            _encrypt(directory, name)

        _replace(place, make)
        _do("sync", "-f", place)
        _remove_key(place, name)
        done = world.run("two", place, status=65)
        assert "[region]" in done.stderr
        assert "key" in done.stderr
        _add_key(place)
        world.run("two", place)
        assert differences(look(place), expected) == []


def test_what_is_encrypted_is_not_kept_in_the_clear(tmp_path: Path) -> None:
    """A snapshot lies in a directory that is not encrypted: it lacks that, and says so."""
    with _encrypting(tmp_path) as place:
        secret = place / "data/secret"
        secret.mkdir(parents=True)
        _encrypt(secret, _add_key(place))
        (secret / "file").write_text("secret")
        source, above = (os.open(one, os.O_RDONLY) for one in (place / "data", place))
        try:
            cloned = clone_tree(source, above, "clone")
        finally:
            os.close(source)
            os.close(above)
        assert [path for path, _ in cloned.lacks] == ["secret"]
        assert cloned.passed == ("secret",)
        assert not (place / "clone/secret").exists()


def test_a_subvolume_in_the_place_of_what_becomes_a_link_is_moved_as_it_is(
    world: World, filesystem: Filesystems
) -> None:
    """F3: a subvolume as such can be renamed into another one; an empty one is removed."""
    place = filesystem("btrfs", 400)
    world.copy("edited", place)
    for name in ("dir-to-link", "gone"):
        directory = place / "data/etc/app" / name
        for below in directory.iterdir():
            below.unlink()
        directory.rmdir()
        _do("btrfs", "-q", "subvolume", "create", directory)
    unknown = place / "data/etc/app/dir-to-link/database"
    unknown.write_text("of a service")
    _refused(world, place, "two", "type-change", "--allow type-change")
    world.run("two", place, "upgrade", "--allow", "type-change")
    assert (place / "data/etc/app/dir-to-link").is_symlink()
    assert not (place / "data/etc/app/gone").exists()
    (saved,) = (place / "data/.ipavolume/saved").glob("*/etc/app/dir-to-link")
    assert (saved / "database").read_text() == "of a service"


def test_an_open_run_in_a_lower_layer_is_finished(
    world: World, filesystem: Filesystems, tmp_path: Path
) -> None:
    """F3: of its own directories an overlay renames none, either, and what has ended is said."""
    place = filesystem("tmpfs", 400)
    run = RUNS["upgrade"]
    world.copy("edited", place)
    calls = _traced(world, run.image, place, tmp_path / "log")
    expected = look(place)
    call = calls[tracing.find(calls, lambda call: '"fresh"' in call.text)]
    closing: list[tracing.Call | None] = [None]
    for killed in closing:
        world.copy("edited", place)
        tracing.killed(world.command(run.image, place), call, env=world.environment)
        with _overlays(place):
            if killed is not None:
                tracing.killed(world.command(run.image, place), killed, env=world.environment)
            calls = _traced(world, run.image, place, tmp_path / "log")
            if killed is None:
                removed = [
                    one
                    for one in calls
                    if one.name == "unlinkat" and "/data/.ipavolume/transaction>" in one.text
                ]
                closing += [removed[-1], removed[len(removed) // 2]]
            assert _different(place, expected, "lower layers") == []
            assert not (place / "data/.ipavolume/transaction").exists()
            assert ": current" in world.run(run.image, place, "check").stdout


@pytest.mark.crash
def test_a_file_of_several_names_is_one_file_in_a_region_too(
    filesystem: Filesystems, tmp_path: Path
) -> None:
    """F3: also where the run is killed between the names, or when one of them is to be made."""
    place = filesystem("xfs", 400)
    site = Site(top=tmp_path, volumes={"/data": place / "volume"})

    def ship(image: Image) -> None:
        for name in ("a", "z"):
            image.write(f"/etc/app/{name} 1", name)
            for number in (2, 3):
                (image.root / f"etc/app/{name} {number}").hardlink_to(
                    image.root / f"etc/app/{name} 1"
                )

    lists = {"/data": ["/etc/app/"]}
    rpm = build_rpm(tmp_path, "app", [Packaged(path="/etc/app", directory=True)])
    one = site.image("one", [rpm], lists=lists)
    two = site.image("two", [rpm], lists=lists, edit=ship)
    app = place / "volume/etc/app"
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(two)]

    def begin() -> None:
        shutil.rmtree(place / "volume", ignore_errors=True)
        (place / "volume").mkdir()
        site.upgrade(one)
        _do("chattr", "+P", "-p", "70", app)

    def names() -> list[list[str]]:
        found: dict[int, list[str]] = {}
        for path in sorted(app.iterdir()):
            found.setdefault(path.stat().st_ino, []).append(path.name)
        return list(found.values())

    whole = [["a 1", "a 2", "a 3"], ["z 1", "z 2", "z 3"]]
    begin()
    done, calls = tracing.trace(command, env=clean_environment(), log=tmp_path / "log")
    assert done.returncode == 0, done.stderr
    assert names() == whole
    changes = [call for call in calls if tracing.is_change(call)]
    renames = [
        number
        for number, call in enumerate(changes)
        if call.name.startswith("rename") and "/.ipavolume-" in call.text.partition(", ")[0]
    ]
    assert len(renames) == 6
    for number in renames:
        for call in changes[number : number + 2]:
            begin()
            forked.loaded().killed(command, call, env=clean_environment())
            site.upgrade(two)
            assert names() == whole
            assert not list(place.glob("**/.ipavolume-*"))


# -- who owns the directory around is hostile --------------------------------------------


def test_what_is_put_in_the_place_of_a_staging_area_is_not_removed(
    world: World, filesystem: Filesystems, tmp_path: Path
) -> None:
    """F3: a staging area is known by its inode, not by its name."""
    place = filesystem("xfs", 400)
    run = RUNS["upgrade"]
    with _begun(world, place, _projects):
        calls = _traced(world, run.image, place, tmp_path / "log")
        expected = look(place)
    points = [
        call
        for call in calls
        if call.name.startswith("rename") and "/.ipavolume-" in call.text.partition(", ")[0]
    ]
    for call in points[:3]:
        with _begun(world, place, _projects):
            tracing.killed(world.command(run.image, place), call, env=world.environment)
            (area,) = map(Path, _staging_areas(place))
            area.rename(area.with_name("away"))
            area.mkdir(mode=0o700)
            (area / "copy").write_text("of an administrator")
            world.run(run.image, place)
            assert (area / "copy").read_text() == "of an administrator"
            shutil.rmtree(area)
            shutil.rmtree(area.with_name("away"))
            changed = differences(look(place), expected)
            # What was moved away had its new owners already, as a file of others' might have.
            assert {path for path, *_ in changed} <= {"data/.ipavolume/history.jsonl"}
            *_, last = (place / "data/.ipavolume/history.jsonl").read_text().splitlines()
            told = json.loads(last)["warnings"][1:]
            assert len(told) == len(changed)
            assert all(one.startswith("'/data/var/lib/app/away/copy': ") for one in told)


# -- steps and conflicts -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["project ids of directories", "subvolumes"])
def test_conflicts_are_settled_in_a_region(
    kind: str, world: World, filesystem: Filesystems
) -> None:
    """F3."""
    file_system, make = KINDS[kind]
    place = filesystem(file_system, 400)
    with _begun(world, place, make):
        world.run("two", place)
        program = place / "data/var/lib/app/program"
        assert program.read_text() == "version 2"
        world.run("two", place, "conflicts", "--keep", "/data/var/lib/app/program")
        assert program.read_bytes() == content_of("data/var/lib/app/program")
        assert _staging_areas(place) == []


def test_a_conflict_that_a_full_region_has_no_room_for_leaves_all_as_it_was(
    world: World, filesystem: Filesystems
) -> None:
    """F3: a copy is complete before anything leaves its place."""
    place = filesystem("btrfs", 400)
    program = place / "data/var/lib/app/program"
    yours = b"of an administrator" * (64 << 10)
    with _begun(world, place, _subvolumes):
        program.write_bytes(yours)
        world.run("two", place)
        _do("btrfs", "quota", "enable", place)
        _do("btrfs", "qgroup", "limit", "512K", program.parent)
        words = ("conflicts", "--keep", "/data/var/lib/app/program")
        done = world.run("two", place, *words, status=74)
        assert "Raise the quota" in done.stderr
        assert program.read_text() == "version 2"
        assert _staging_areas(place) == []
        assert [*(place / "data/.ipavolume/saved").glob("settled-*/**/program")] == []
        _do("btrfs", "qgroup", "limit", "none", program.parent)
        world.run("two", place, *words)
        assert program.read_bytes() == yours


@pytest.mark.crash
def test_what_a_killed_command_made_beside_a_place_is_removed_by_the_next(
    world: World, filesystem: Filesystems, tmp_path: Path
) -> None:
    """F3: there and among the saved copies it is nothing that anybody waits for."""
    place = filesystem("xfs", 400)
    program = place / "data/var/lib/app/program"
    words = ("conflicts", "--keep", "/data/var/lib/app/program")
    with _begun(world, place, _projects):
        world.run("two", place)
        spare = place / "spare"
        _do("cp", "-a", place / "data", spare)
        calls = _traced(world, "two", place, tmp_path / "log", *words)
    beside = [
        position
        for position, call in enumerate(calls)
        if tracing.is_change(call) and "/.ipavolume-" in call.text
    ]
    points = [*filter(tracing.is_change, calls[beside[0] : beside[-1] + 4])]
    assert len(points) >= 10
    left = 0
    for call in points:
        shutil.rmtree(place / "data")
        _do("cp", "-a", spare, place / "data")
        _do("chattr", "+P", "-p", "71", program.parent)
        world.killed("two", place, call, *words)
        left += len(_staging_areas(place))
        listed = world.run("two", place, "conflicts").stdout
        if "/data/var/lib/app/program" in listed:
            world.run("two", place, *words)
        else:
            world.run("two", place, "upgrade", "--again")
        assert program.read_bytes() == content_of("data/var/lib/app/program"), call
        assert _staging_areas(place) == [], call
        assert "copy" not in world.run("two", place, "conflicts").stdout
    assert left > 5


@pytest.mark.parametrize("kind", ["project ids of directories", "subvolumes"])
def test_a_step_writes_and_removes_in_a_region(
    kind: str, tmp_path: Path, filesystem: Filesystems
) -> None:
    """F3."""
    file_system, _ = KINDS[kind]
    scene = Scene(top=filesystem(file_system, 400))
    region = scene.volume() / "etc/app"
    region.parent.mkdir()
    if file_system == "btrfs":
        _do("btrfs", "-q", "subvolume", "create", region)
    else:
        region.mkdir()
    for name in ("conf", "gone", "cache"):
        (region / name).write_text("old")
    if file_system == "xfs":
        _do("chattr", "+P", "-p", "5", region)
    reason = "test"
    saved = scene.perform(
        Write(path="/etc/app/conf", content=b"new", reason=reason),
        Write(path="/etc/app/made", content=b"new", reason=reason),
        MakeLink(path="/etc/app/link", target="conf", reason=reason),
        Remove(path="/etc/app/gone", reason=reason),
        Remove(path="/etc/app/cache", reason=reason, keep_copy=False),
    )
    assert [path is not None for path in saved] == [True, False, False, True, False]
    assert {path.name for path in region.iterdir()} == {"conf", "made", "link"}
    assert (region / "conf").read_text() == (region / "made").read_text() == "new"
    assert scene.saved("etc/app/conf").read_text() == "old"
    assert scene.saved("etc/app/gone").read_text() == "old"
