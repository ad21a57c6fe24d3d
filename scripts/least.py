"""The least that a run does, whoever does it: what ``scripts/bench --floor`` puts beside ours.

    least.py populate IMAGE VOLUME
    least.py unchanged IMAGE VOLUME
    least.py changed IMAGE VOLUME

An interpreter that loads what reads a command line; files that two processes written in C copy or
look at; and what is promised of it: config files are kept as shipped, and the manifest, what is
replaced is read once before, nothing is replaced before its successor is durable, nor is the run
over before all of it is. Nothing is decided, checked or recorded here. What takes longer than this
may be made faster; what is faster has left something out.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import click

LOADED: Final = (click, hashlib, json, re)
TOPS: Final = ("etc/bench", "var/lib/bench")
"""The first is the configuration."""
CHANGED_PERCENT: Final = 5
"""As in ``benchmark.py``, which makes the images."""


def run(commands: Iterable[Sequence[str | Path]]) -> None:
    """Run *commands* at once; all of them have to succeed."""
    running = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for words in commands]
    statuses = [one.wait() for one in running]
    if any(statuses):
        sys.exit("one of the commands failed")


def in_two(words: Sequence[str | Path], paths: Sequence[Path]) -> None:
    """Run a command on *paths*, half of them in each of two processes."""
    run([*words, *half] for half in (paths[0::2], paths[1::2]) if half)


def copy(paths: Sequence[Path], directory: Path) -> None:
    """Copy *paths* into *directory*, which is made."""
    directory.mkdir(parents=True)
    in_two(["cp", "-a", "-t", directory], paths)


def sync(volume: Path) -> None:
    """Make *volume* durable."""
    run([["sync", "-f", volume]])


def look(volume: Path) -> None:
    """Look at each file of *volume*."""
    paths = [path for top in TOPS for path in sorted((volume / top).iterdir())]
    run(
        ["find", *half, "-printf", "%s %T@ %C@ %i\n"] for half in (paths[0::2], paths[1::2]) if half
    )


def keep_manifest(image: Path, state: Path) -> None:
    """Keep the manifest of *image*, as a baseline."""
    shutil.copyfile(image / "usr/share/ipavolume/manifest.jsonl", state / "baseline.jsonl")


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
    look(volume)
    keep_manifest(image, volume / ".ipavolume")
    sync(volume)


def changed(image: Path, volume: Path) -> None:
    """Bring a volume to an image of which some files are others."""
    template, staged = image / "data-template", volume / ".ipavolume/new"
    look(volume)
    paths = [
        path.relative_to(template)
        for top in TOPS
        for path in sorted((template / top).glob("*/*"))
        if int(path.name[-2:]) < CHANGED_PERCENT
    ]
    in_two(["sha256sum"], [volume / path for path in paths])
    copy([template / path for path in paths], staged)
    keep_manifest(image, volume / ".ipavolume")
    sync(volume)
    for path in paths:
        (staged / path.name).rename(volume / path)
    sync(volume)


RUNS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "populate": populate, "unchanged": unchanged, "changed": changed,
}  # fmt: skip


if __name__ == "__main__":
    RUNS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
