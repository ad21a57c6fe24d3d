"""The power fails: a finished run is on the disk, an unfinished one can be finished.

The volumes' file systems lie in files on an xfs. A reflink of such a file is an atomic
picture of what has reached the disk at that moment; mounted, its journal is replayed as
after a power failure. What a file system writes on its own account after some seconds is
brought about by an fsync of the volume's root: it commits the journal, and with it all
that was renamed, but not the content of files that nobody has synced.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest
from support import tracing
from support.filesystems import Filesystems
from support.requirements import need_tool, unavailable
from support.tracing import Call
from support.worlds import (
    MOUNTS,
    RUNS,
    Run,
    Undisturbed,
    World,
    broken_promises,
    content,
    differences,
    exposed,
    look,
    lost,
    make_world,
    phases,
    tell,
)

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem, pytest.mark.crash]

MKFS: Final = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
SIZE_MB: Final = {"ext4": 64, "xfs": 300}
REGIONS: Final = ("data/etc/app", "data/var/lib/app", "logs/var/log/app")
EVERY: Final = int(os.environ.get("IPAVOLUME_CRASH_EVERY", "3"))
"""With regions each file is synced for itself; all of them take longer than a suite may."""
OPTIONS: Final = {"ext4": "loop", "xfs": "loop,nouuid"}
"""A picture has the id of the file system it shows, which xfs mounts only once."""


class Disks:
    """File systems for the volumes, in files of which pictures can be taken."""

    def __init__(self, directory: Path, mount_points: Path, kind: str) -> None:
        """Keep the files in *directory*, which can reflink."""
        self._directory = directory
        self._mount_points = mount_points
        self._kind = kind
        self._pictures = 0

    def make(self) -> Path:
        """Make file systems without anything on them; return where their files are."""
        files = self._new_directory()
        program, *options = MKFS[self._kind]
        for mount in MOUNTS:
            with (files / mount).open("wb") as file:
                file.truncate(SIZE_MB[self._kind] << 20)
            _do([need_tool(program), *options, str(files / mount)])
        return files

    def picture(self, files: Path) -> Path:
        """Take a picture of what is on the disks now."""
        taken = self._new_directory()
        for mount in MOUNTS:
            _do(["cp", "--reflink=always", str(files / mount), str(taken / mount)])
        return taken

    def _new_directory(self) -> Path:
        # Never the same name again: the kernel may still hold what was there.
        self._pictures += 1
        files = self._directory / f"{self._pictures}"
        files.mkdir()
        return files

    @contextmanager
    def mounted(self, files: Path) -> Iterator[Path]:
        """Mount the volumes; the directory that is given has a place for each."""
        place = self._mount_points / files.name
        with ExitStack() as stack:
            for mount in MOUNTS:
                (place / mount).mkdir(parents=True)
                command = [need_tool("mount"), "-t", self._kind, "-o", OPTIONS[self._kind]]
                _do([*command, str(files / mount), str(place / mount)])
                stack.callback(_do, [need_tool("umount"), str(place / mount)])
            yield place

    @contextmanager
    def mounted_once(self, files: Path) -> Iterator[Path]:
        """Mount the volumes for the last time."""
        with self.mounted(files) as place:
            yield place
        for mount in MOUNTS:
            (files / mount).unlink()


def _do(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    if result.returncode != 0:
        unavailable(f"{' '.join(command)} does not work here: {result.stderr.strip()}")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images and volumes, made once a worker."""
    return make_world(tmp_path_factory.getbasetemp())


@pytest.fixture(params=["ext4", "xfs"])
def disks(
    request: pytest.FixtureRequest, filesystem: Filesystems, tmp_path: Path
) -> Iterator[Disks]:
    """Disks with the file system under test.

    The xfs is in memory, of which it takes some 100 MB: what reaches a disk is what reaches it.
    """
    in_memory = Filesystems(filesystem("tmpfs", 2200))
    yield Disks(in_memory("xfs", 2048), tmp_path / "mounted", request.param)
    in_memory.unmount_all()


def begin(
    world: World, disks: Disks, run: Run, *, regions: bool = False
) -> tuple[Path, Undisturbed]:
    """Make disks with the volumes on them, and do the run on a copy once undisturbed.

    With *regions* directories have project ids, so that nothing can be renamed into them.
    """
    base = disks.make()
    with disks.mounted(base) as place:
        for mount in MOUNTS:
            _do(["cp", "-a", f"{world.volumes(run.volumes) / mount}/.", str(place / mount)])
            for number, path in enumerate(REGIONS if regions else ()):
                if path.startswith(f"{mount}/"):
                    _do(["chattr", "+P", "-p", f"{70 + number}", str(place / path)])
            _do(["sync", "-f", str(place / mount)])
        before = content(place)
    with disks.mounted_once(disks.picture(base)) as place:
        assert content(place) == before
        done, calls = tracing.trace(
            world.command(run.image, place), env=world.environment, log=place / "log"
        )
        assert done.returncode == 0, done.stderr
        return base, Undisturbed(
            calls=tuple(calls), before=before, after=content(place), result=look(place)
        )


@pytest.mark.parametrize("kind", RUNS)
def test_a_finished_run_is_on_the_disk_when_the_power_fails_at_once(
    world: World, disks: Disks, kind: str
) -> None:
    run = RUNS[kind]
    base, expected = begin(world, disks, run)
    live = disks.picture(base)
    with disks.mounted_once(live) as place:
        world.run(run.image, place)
        picture = disks.picture(live)
        with disks.mounted_once(picture) as found:
            # What the run threw away at its end may be there again until the next start.
            rest = [item for item in look(found).items() if "/.ipavolume/trash" not in item[0]]
            assert differences(dict(rest), expected.result) == []
            again = world.run(run.image, found)
            assert "putting" not in again.stderr
            assert differences(look(found), expected.result) == []


@pytest.mark.slow
@pytest.mark.parametrize("flushed", ["what the run syncs", "the journal as well"])
@pytest.mark.parametrize("kind", RUNS)
def test_after_a_power_failure_in_the_middle_the_next_start_finishes_and_nothing_is_lost(
    world: World,
    disks: Disks,
    kind: str,
    flushed: str,
    record_property: Callable[[str, object], None],
) -> None:
    cut_power(world, disks, RUNS[kind], flushed, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("disks", ["xfs"], indirect=True)
@pytest.mark.parametrize("flushed", ["what the run syncs"])
def test_after_a_power_failure_in_a_run_with_regions_the_next_start_finishes(
    world: World,
    disks: Disks,
    flushed: str,
    record_property: Callable[[str, object], None],
) -> None:
    """F3; at every sync with IPAVOLUME_CRASH_EVERY=1."""
    cut_power(world, disks, RUNS["upgrade"], flushed, record_property, regions=True)


def cut_power(
    world: World,
    disks: Disks,
    run: Run,
    flushed: str,
    record_property: Callable[[str, object], None],
    *,
    regions: bool = False,
) -> None:
    """Let the power fail at many points of a run, each time of a fresh one."""
    base, expected = begin(world, disks, run, regions=regions)
    commits = flushed == "the journal as well"
    points = changes_of_note(expected) if commits else syncs(expected)
    assert len(points) > 10
    points = points[::EVERY] if regions else points
    record_property("points", len(points))
    wrong: list[tuple[object, object]] = []
    for call in points:
        live = disks.picture(base)
        with disks.mounted_once(live) as place:
            command = world.command(run.image, place)
            with world.forked.stopped(command, call, env=world.environment):
                if commits:
                    commit_journals(place)
                picture = disks.picture(live)
            # Both are mounted, so the picture is on another device: only inode numbers stay.
            with disks.mounted_once(picture) as found:
                wrong += [(call, problem) for problem in problems_of(found, run, expected)]
                again = world.run(run.image, found, status=None)
                if again.returncode != 0:
                    wrong.append((call, again.stderr))
                elif differ := differences(look(found), expected.result):
                    wrong.append((call, differ))
    assert not wrong, tell(wrong)


def problems_of(place: Path, run: Run, expected: Undisturbed) -> list[str]:
    """Return what is not as it must be at every instant."""
    return [
        *broken_promises(
            place, before=expected.before, after=expected.after, old=run.old, new=run.new
        ),
        *lost(place, before=run.written),
        *exposed(place),
    ]


def syncs(expected: Undisturbed) -> list[Call]:
    """Return the calls after which more is on the disk than before."""
    return [call for call in expected.calls if call.name in tracing.SYNCING]


def changes_of_note(expected: Undisturbed) -> list[Call]:
    """Return the changes that end a phase, and many of those that put files in place."""
    changes = expected.changes
    ends = phases(expected)
    swapping = range(ends["marked"], ends["swapped"])
    positions = {*ends.values(), *swapping[::4]}
    # A further name before what it saves is replaced, and copies that replace the original.
    positions |= {
        position
        for position in swapping
        if changes[position].name == "linkat" or re.search('"m[0-9]+"', changes[position].text)
    }
    return [changes[position] for position in sorted(positions)]


def commit_journals(place: Path) -> None:
    """Do what the file systems do themselves every few seconds."""
    for mount in MOUNTS:
        fd = os.open(place / mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
