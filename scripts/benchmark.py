"""Side-by-side measurements: what scripts/bench runs.

Each contestant of a row runs in turn, several rounds, each time in new directories on a
file system made for the row: ext4 does not reuse the inodes of what was just deleted, and
the first touch of memory costs on a virtual machine, so a round that is not counted comes
first. What is printed are medians, and ratios of medians of one run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROUNDS = 5
CHANGED_PERCENT = 5


@dataclass
class Contestant:
    """A command that is measured.

    Attributes:
        name: What the table calls it.
        prepare: Makes ready a round's directory and returns the command.
        seconds: Measured times.
        peak_kib: Largest resident set, in KiB.
    """

    name: str
    prepare: Callable[[Path], Sequence[str]]
    seconds: list[float] = field(default_factory=list)
    peak_kib: int = 0

    def run(self, directory: Path, *, count: bool) -> None:
        """Run it once in *directory*."""
        command = list(self.prepare(directory))
        os.sync()
        begin = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            said = process.stderr.read() if process.stderr else b""
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - begin
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"{self.name}: {command} ended with {process.returncode}: {said.decode()}")
        if count:
            self.seconds.append(seconds)
            self.peak_kib = max(self.peak_kib, usage.ru_maxrss)

    def median(self) -> float:
        """Return the median of the measured times, in seconds."""
        return statistics.median(self.seconds)


def race(where: Path, contestants: Sequence[Contestant], rounds: int = ROUNDS) -> None:
    """Run every contestant in turn, *rounds* times and once more that is not counted."""
    for number in range(rounds + 1):
        order = contestants if number % 2 else list(reversed(contestants))
        for contestant in order:
            directory = where / f"{contestant.name.replace(' ', '-').replace('/', '-')}-{number}"
            directory.mkdir()
            contestant.run(directory, count=number > 0)


MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-i", "4096"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
}


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


def run(*command: str) -> None:
    """Run a command that has to succeed."""
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.decode()}")


SPEC = """
Name: bench
Version: {version}
Release: 1
Summary: Files to measure with
License: Apache-2.0
BuildArch: noarch
%define _binary_payload w0.ufdio
%define _source_payload w0.ufdio
%define __os_install_post %{{nil}}
%define _build_id_links none
AutoReqProv: no
%description
Files to measure with.
%install
cp -a {tree}/. %{{buildroot}}/
%files
%config(noreplace) /etc/bench
/var/lib/bench
"""


def make_tree(tree: Path, count: int, version: int) -> None:
    """Make *count* files, a tenth of them configuration; version 2 changes some."""
    for number in range(count):
        top = "etc/bench" if number % 10 == 0 else "var/lib/bench"
        directory = tree / top / f"d{number // 200:04d}"
        if number % 200 < 10:
            directory.mkdir(parents=True, exist_ok=True)
        changed = version > 1 and number % 100 < CHANGED_PERCENT
        line = f"{number} {'changed' if changed else 'shipped'}\n"
        # From a line to some tens of KiB, 2 KiB in the middle, as configuration is.
        size = 64 << (number * 7 % 10)
        (directory / f"file{number:06d}").write_text((line * (size // len(line) + 1))[:size])


def make_image(directory: Path, command: str, packages: Path, count: int, version: int) -> Path:
    """Make a prepared image tree with *count* files of a real package."""
    tree = packages / f"tree-{version}"
    make_tree(tree, count, version)
    spec = packages / f"bench-{version}.spec"
    spec.write_text(SPEC.format(version=version, tree=tree))
    run("rpmbuild", "-bb", "--quiet", "--define", f"_topdir {packages}", str(spec))
    root = directory / f"image-{version}"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/os-release").write_text("ID=bench\nVERSION_ID=1\n")
    (root / "etc/volume-data-list").write_text("/etc/bench/\n/var/lib/bench/\n")
    package = packages / f"RPMS/noarch/bench-{version}-1.noarch.rpm"
    run(
        "rpm", "--root", str(root), "--dbpath", "/var/lib/rpm", "-i", "--nodeps", "--noscripts",
        "--ignoreos", "--ignorearch", str(package),
    )  # fmt: skip
    run(command, "prepare", "-q", "--root", str(root))
    return root


def rows(command: str, interpreter: str, directory: Path, count: int) -> list[tuple[str, ...]]:
    """Measure everything for one number of files; return the lines of the table."""
    megabytes = 600 + count * 14 * (ROUNDS + 3) * 5 // 1024
    result: list[tuple[str, ...]] = []
    with FileSystem(directory, megabytes) as mount:
        packages = directory / "packages"
        run("rm", "-rf", str(packages))
        packages.mkdir()
        first = make_image(mount, command, packages, count, 1)
        second = make_image(mount, command, packages, count, 2)
        rebuilt = mount / "image-rebuilt"
        run("cp", "-a", str(first), str(rebuilt))
        # The configuration counts in the fingerprint, its comment changes nothing.
        (rebuilt / "etc/ipavolume.toml").write_text("# another build\n")
        run(command, "prepare", "-q", "--root", str(rebuilt))
        run("rm", "-rf", str(packages))
        template = first / "data-template"

        def copy(where: Path) -> Sequence[str]:
            return ["cp", "-a", f"{template}/.", str(where)]

        def copy_sync(where: Path) -> Sequence[str]:
            return ["sh", "-c", f"cp -a {template}/. {where} && sync -f {where}"]

        def rsync(where: Path) -> Sequence[str]:
            return ["rsync", "-a", f"{template}/", f"{where}/"]

        def populate(where: Path) -> Sequence[str]:
            return [command, "upgrade", "-q", "--root", str(first), "--volume", str(where)]

        race_ = [
            Contestant("cp -a", copy),
            Contestant("cp -a + sync -f", copy_sync),
            Contestant("rsync -a", rsync),
            Contestant("populate", populate),
        ]
        area = mount / "populate"
        area.mkdir()
        race(area, race_)
        result += table(f"populate {count}", race_, "cp -a + sync -f", "populate")

        volume = mount / "volume"
        volume.mkdir()
        run(*populate(volume))

        def dry_rsync(_where: Path) -> Sequence[str]:
            return ["rsync", "-a", "--dry-run", f"{template}/", f"{volume}/"]

        def unchanged(where: Path) -> Sequence[str]:
            # The very inodes, since the index knows them: the volume goes to and fro between
            # two images that ship the same files.
            root = (first, rebuilt)[int(where.name.rpartition("-")[2]) % 2 == 0]
            return [command, "upgrade", "-q", "--root", str(root), "--volume", str(volume)]

        race_ = [Contestant("rsync -a --dry-run", dry_rsync), Contestant("unchanged", unchanged)]
        area = mount / "unchanged"
        area.mkdir()
        # The round that is not counted brings the volume to the other image.
        race(area, race_)
        row = f"upgrade, nothing changed {count}"
        result += table(row, race_, "rsync -a --dry-run", "unchanged")

        def rsync_changed(where: Path) -> Sequence[str]:
            run("cp", "-a", f"{template}/.", str(where))
            return ["rsync", "-a", f"{second}/data-template/", f"{where}/"]

        def changed(where: Path) -> Sequence[str]:
            run(*populate(where))
            return [command, "upgrade", "-q", "--root", str(second), "--volume", str(where)]

        race_ = [Contestant("rsync -a", rsync_changed), Contestant("5 % changed", changed)]
        area = mount / "changed"
        area.mkdir()
        race(area, race_, rounds=3)
        result += table(f"upgrade, 5 % changed {count}", race_, "rsync -a", "5 % changed")

        def bare(_where: Path) -> Sequence[str]:
            return [interpreter, "-I", "-S", "-c", "pass"]

        current = rebuilt if ROUNDS % 2 == 0 else first
        run(command, "upgrade", "-q", "--root", str(current), "--volume", str(volume))
        run("rm", "-rf", str(current / "data"))
        run("mv", str(volume), str(current / "data"))

        def start(_where: Path) -> Sequence[str]:
            return [command, "start", "--root", str(current), "--", "/bin/true"]

        def true(_where: Path) -> Sequence[str]:
            return ["/bin/true"]

        race_ = [
            Contestant("/bin/true", true),
            Contestant("python3 -I -S", bare),
            Contestant("start", start),
        ]
        area = mount / "start"
        area.mkdir()
        race(area, race_, rounds=25)
        result += table(f"start, current {count}", race_, "python3 -I -S", "start")
    return result


def snapshots(command: str, directory: Path, count: int) -> list[tuple[str, ...]]:
    """Measure what a snapshot costs on each file system, beside a copy as large."""
    packages = directory / "packages"
    run("rm", "-rf", str(packages), str(directory / "image-1"))
    packages.mkdir(parents=True)
    image = make_image(directory, command, packages, count, 1)
    result: list[tuple[str, ...]] = []
    for kind in MAKE:
        megabytes = 3000 + count * 14 * (ROUNDS + 3) * 2 // 1024
        with FileSystem(directory, megabytes, kind) as mount:
            volume = mount / "volume"
            volume.mkdir()
            where = ("--root", str(image), "--volume", str(volume))
            run(command, "upgrade", "-q", *where)

            def copy(area: Path, volume: Path = volume) -> Sequence[str]:
                made = "cp -a --reflink=auto --"
                return ["sh", "-c", f"{made} {volume} {area}/copy && sync -f {area}"]

            def create(_area: Path, where: Sequence[str] = where) -> Sequence[str]:
                run(command, "snapshot", "drop", "--all", *where)
                return [command, "snapshot", "create", *where]

            race_ = [
                Contestant("cp -a --reflink=auto + sync -f", copy),
                Contestant("snapshot", create),
            ]
            area = mount / "area"
            area.mkdir()
            race(area, race_)
            row = f"snapshot, {kind} {count}"
            result += table(row, race_, race_[0].name, race_[1].name)
    run("rm", "-rf", str(packages), str(image))
    return result


def table(
    row: str, contestants: Sequence[Contestant], reference: str, ours: str
) -> list[tuple[str, ...]]:
    """Return the lines for one race; the ratio is against *reference*."""
    base = next(one for one in contestants if one.name == reference).median()
    lines = []
    for one in contestants:
        spread = f"{min(one.seconds):.4f}..{max(one.seconds):.4f}"
        mark = "<--" if one.name == ours else ""
        lines.append(
            (row, one.name, f"{one.median():.4f}", spread, f"{one.median() / base:.2f}",
             f"{one.peak_kib >> 10}", mark)
        )  # fmt: skip
        row = ""
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", required=True)
    parser.add_argument("--interpreter", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("sizes", type=int, nargs="*", default=[1000, 5000, 20000, 100000])
    options = parser.parse_args()
    # No other contestant keeps what it replaces.
    os.environ["IPAVOLUME_SNAPSHOT"] = "never"
    options.directory.mkdir(parents=True, exist_ok=True)
    head = ("what", "contestant", "median s", "min..max s", "ratio", "MiB", "")
    lines = []
    # The memory a run will need, touched once, by a process of its own.
    run(sys.executable, "-c", "bytearray(1 << 30)")
    for count in options.sizes:
        print(f"measuring {count} files ...", file=sys.stderr, flush=True)
        lines += rows(
            str(Path(options.command).absolute()),
            str(Path(options.interpreter).absolute()),
            options.directory.absolute(),
            count,
        )
        lines += snapshots(
            str(Path(options.command).absolute()), options.directory.absolute(), count
        )
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    for line in (head, *lines):
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    main()
