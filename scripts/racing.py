"""Commands that run in turn and are measured, and the file systems that they run on.

Each contestant of a race runs several rounds, each time in a new directory on a file system made
for it: ext4 does not reuse the inodes of what was just deleted, and the first touch of memory costs
on a virtual machine, so a round that is not counted comes first.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

USUAL = "ext4"
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-i", "4096"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
}


@dataclass(frozen=True)
class Measured:
    """What one command cost.

    Attributes:
        seconds: From its start to its end.
        cpu_s: Of the processor, by it and by what it started.
        peak_kib: Largest resident set of one of its processes, in KiB.
    """

    seconds: float
    cpu_s: float
    peak_kib: int


def measure(*command: str, success: Sequence[int] = (0,)) -> Measured:
    """Run *command* once, which has to end with a status of *success*."""
    os.sync()
    begin = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        # What is said, if anything, is less than a pipe takes.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        # Its end comes with that of the last process: who keeps the lock of a start has it, too.
        said = process.stderr.read() if process.stderr else b""
    if process.returncode not in success:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}: {said.decode()}")
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)


@dataclass
class Contestant:
    """A command that is measured.

    Attributes:
        name: What the table calls it.
        prepare: Makes ready a round's directory and returns the command.
        success: How the command may end.
        runs: What the runs that count cost.
    """

    name: str
    prepare: Callable[[Path], Sequence[str]]
    success: Sequence[int] = (0,)
    runs: list[Measured] = field(default_factory=list)

    def run(self, directory: Path, *, count: bool) -> None:
        """Run it once in *directory*."""
        measured = measure(*self.prepare(directory), success=self.success)
        if count:
            self.runs.append(measured)

    def seconds(self) -> float:
        """Return the median of the measured times."""
        return statistics.median(one.seconds for one in self.runs)

    def cpu_s(self) -> float:
        """Return the median of the processor's seconds."""
        return statistics.median(one.cpu_s for one in self.runs)

    def peak_kib(self) -> int:
        """Return the largest resident set."""
        return max(one.peak_kib for one in self.runs)


def race(where: Path, contestants: Sequence[Contestant], rounds: int) -> None:
    """Run every contestant in turn, *rounds* times and once more that is not counted.

    Each run has a new directory below *where*, which is made where it is missing.
    """
    for number in range(rounds + 1):
        order = contestants if number % 2 else list(reversed(contestants))
        for contestant in order:
            directory = where / f"{contestant.name.replace(' ', '-').replace('/', '-')}-{number}"
            directory.mkdir(parents=True)
            contestant.run(directory, count=number > 0)


class FileSystem:
    """A file system in a sparse file, mounted for one row."""

    def __init__(self, directory: Path, megabytes: int, kind: str = "ext4") -> None:
        """Make and mount it below *directory*."""
        self.image = directory / f"{kind}.img"
        self.mount = directory / "mnt"
        self.mount.mkdir(parents=True, exist_ok=True)
        self.image.unlink(missing_ok=True)
        with self.image.open("wb") as stream:
            stream.truncate(megabytes << 20)
        run(*MAKE[kind], str(self.image))
        run("mount", "-o", "loop", str(self.image), str(self.mount))

    def __enter__(self) -> Path:
        """Return the mount point."""
        return self.mount

    def __exit__(self, *_: object) -> None:
        """Unmount and remove it."""
        run("umount", str(self.mount))
        self.image.unlink()


@contextmanager
def overlay(mount: Path, image: Path) -> Iterator[Path]:
    """Mount *image* as the lower layer of an overlay, as an engine gives it to a container.

    The volume lies on the file system of the layer, but neither reflinks nor ``copy_file_range``
    lead from an overlay to it.
    """
    area = mount / "overlay"
    upper, work, merged = area / "upper", area / "work", area / "merged"
    for directory in (upper, work, merged):
        directory.mkdir(parents=True)
    layers = f"lowerdir={image},upperdir={upper},workdir={work}"
    run("mount", "-t", "overlay", "overlay", "-o", layers, str(merged))
    try:
        yield merged
    finally:
        run("umount", str(merged))


def run(*command: str) -> None:
    """Run a command that has to succeed."""
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.decode()}")
