"""The least that a run does, whoever does it: what ``scripts/bench --floor`` puts beside ours.

    least.py populate IMAGE VOLUME
    least.py unchanged IMAGE VOLUME
    least.py changed IMAGE VOLUME

An interpreter that loads what reads a command line; each record read and its file looked at in an
open directory, each file copied, by two processes; and what is promised of it: config files are
kept as shipped, and the manifest, what is replaced is read once before, nothing is replaced before
its successor is durable, nor is the run over before all of it is. Nothing is decided, checked or
recorded here. What takes longer than this may be made faster, what is faster has left something
out: a fresh volume is copied by ``cp``, single files by this process, whichever is sooner.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import click

LOADED: Final = (click, json)
TOPS: Final = ("etc/bench", "var/lib/bench")
"""The first is the configuration."""
MANIFEST: Final = "usr/share/ipavolume/manifest.jsonl"
BASELINE: Final = ".ipavolume/baseline.jsonl"
MOUNT: Final = b"/data"
PATH: Final = re.compile(rb'\{"path":"([^"]+)"')
DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


def run(commands: Iterable[Sequence[str | Path]]) -> None:
    """Run *commands* at once; all of them have to succeed."""
    running = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for words in commands]
    statuses = [one.wait() for one in running]
    if any(statuses):
        sys.exit("one of the commands failed")


def in_two(act: Callable[[int], None]) -> None:
    """Call *act* with 0 in this process and with 1 in another one."""
    child = os.fork()
    if not child:
        act(1)
        os._exit(0)
    act(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("the second process failed")


def copy(paths: Sequence[Path], directory: Path) -> None:
    """Copy *paths* into *directory*, which is made."""
    directory.mkdir(parents=True)
    halves = (paths[0::2], paths[1::2])
    run(["cp", "-a", "-t", directory, *half] for half in halves if half)


def copy_file(source: Path, target: Path) -> None:
    """Copy one file with its metadata."""
    from_fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    st = os.fstat(from_fd)
    to_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.copy_file_range(from_fd, to_fd, st.st_size)
    os.fchown(to_fd, st.st_uid, st.st_gid)
    os.fchmod(to_fd, st.st_mode & 0o7777)
    os.listxattr(from_fd)
    os.utime(to_fd, ns=(st.st_atime_ns, st.st_mtime_ns))
    os.close(from_fd)
    os.close(to_fd)


def sync(volume: Path) -> None:
    """Make *volume* durable."""
    run([["sync", "-f", volume]])


def records(manifest: Path) -> Iterator[bytes]:
    """Yield the records of *manifest*."""
    with manifest.open("rb", 1 << 18) as stream:
        return iter(stream.readlines()[1:])


def look(image: Path, volume: Path) -> list[str]:
    """Look at each file of *volume*; return those that are others in *image*."""
    pairs = list(zip(records(volume / BASELINE), records(image / MANIFEST), strict=True))
    border = len(pairs) // 2
    top = os.fsencode(volume)

    def act(half: int) -> None:
        here, directory = b"", -1
        for old, _ in itertools.islice(pairs, half * border, None if half else border):
            found = PATH.match(old)
            assert found is not None
            parent, _, name = found[1].removeprefix(MOUNT).rpartition(b"/")
            if parent != here or directory < 0:
                if directory >= 0:
                    os.close(directory)
                here, directory = parent, os.open(top + parent, DIRECTORY)
            os.stat(name, dir_fd=directory, follow_symlinks=False)

    in_two(act)
    return [
        os.fsdecode(found[1].removeprefix(MOUNT + b"/"))
        for old, new in pairs
        if old != new and (found := PATH.match(new)) is not None
    ]


def keep_manifest(image: Path, state: Path) -> None:
    """Keep the manifest of *image*, as a baseline."""
    state.mkdir(exist_ok=True)
    shutil.copyfile(image / MANIFEST, state / "next.jsonl")
    (state / "next.jsonl").rename(state / "least.jsonl")


def populate(image: Path, volume: Path) -> None:
    """Fill an empty volume."""
    template = image / "data-template"
    for top in TOPS:
        copy(sorted((template / top).iterdir()), volume / top)
    copy(sorted((template / TOPS[0]).glob("*/*")), volume / ".ipavolume/pristine")
    keep_manifest(image, volume / ".ipavolume")
    sync(volume)


def unchanged(image: Path, volume: Path) -> None:
    """Bring a volume to an image that has the same files."""
    look(image, volume)
    keep_manifest(image, volume / ".ipavolume")
    sync(volume)


def changed(image: Path, volume: Path) -> None:
    """Bring a volume to an image of which some files are others."""
    template, staged = image / "data-template", volume / ".ipavolume/new"
    paths = look(image, volume)
    for path in paths:
        hashlib.sha256((volume / path).read_bytes()).hexdigest()
    staged.mkdir()

    def stage(half: int) -> None:
        for number, path in itertools.islice(enumerate(paths), half, None, 2):
            copy_file(template / path, staged / str(number))

    in_two(stage)
    keep_manifest(image, volume / ".ipavolume")
    sync(volume)
    for number, path in enumerate(paths):
        (staged / str(number)).rename(volume / path)
    sync(volume)


RUNS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "populate": populate, "unchanged": unchanged, "changed": changed,
}  # fmt: skip


if __name__ == "__main__":
    RUNS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
