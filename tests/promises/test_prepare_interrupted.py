"""prepare is stopped at every system call that changes a file, and run again."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from support import forked, tracing
from support.command import clean_environment
from support.filesystems import Filesystems
from support.images import LONG_AGO, MANIFEST, Image, Packaged, age, build_rpm, make_image, picture
from support.tracing import Call

from ipavolume.errors import EXIT_IO, IpaVolumeError
from ipavolume.steps import declaration

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.crash]

EVERY: Final = int(os.environ.get("IPAVOLUME_CRASH_EVERY", "3"))
"""Of so many changing calls one fails. It is killed at each of them."""
CHUNKS: Final = 3
"""So many tests share the points, for as many processes."""
ERRORS: Final = ("ENOSPC", "EIO", "EROFS", "EPERM", "EDQUOT")
CONFIGURATION: Final = (
    '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\nlists = ["/etc/volume-logs-list"]\n'
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a config file, a ghost and scriptlets."""
    return build_rpm(
        tmp_path_factory.mktemp("package"),
        "app",
        [
            Packaged(path="/etc/app.conf", words="%config(noreplace)", content="conf\n"),
            Packaged(path="/var/lib/app/inner", words="%ghost", directory=True),
        ],
        scriptlets="%post\necho post\n%triggerin -- other\necho trigger",
    )


@pytest.fixture
def place(filesystem: Filesystems) -> Path:
    """A small and fast file system."""
    return filesystem("tmpfs", 128)


def _command(root: Path, package: Path) -> list[str]:
    options = ["--root", str(root), "--rpm", str(package), "--build-id", "the-build"]
    return [sys.executable, "-m", "ipavolume", "prepare", *options]


@pytest.fixture(autouse=True)
def _same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")


@pytest.fixture(autouse=True)
def _steps_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Understand the text of a step once: that is most of a preparation, and the same each time."""
    monkeypatch.setattr(declaration, "_declare", functools.cache(declaration._declare))


def _again(root: Path, package: Path, expected: dict[str, object]) -> list[object]:
    """Prepare it once more, in this process; return what is wrong with what comes of it."""
    try:
        Image(root=root).prepare(build_id="the-build", rpms=[package])
    except IpaVolumeError as err:
        return [err]
    return _differences(root, expected)


def _make(root: Path) -> Image:
    """Make a small tree with every kind of entry, one inside another volume's among them."""
    image = make_image(root)
    image.write("/etc/ipavolume.toml", CONFIGURATION)
    image.list("/etc/app.conf", "/var/lib/app/", "/var/lib/app/new/", "/etc/none", "/no/dir/")
    image.list("/var/lib/", name="logs")
    image.write("/etc/app.conf", "conf\n")
    image.write("/var/lib/app/a", "hard")
    os.link(root / "var/lib/app/a", root / "var/lib/app/b")
    image.write("/var/lib/app/sub/x", "x", mode=0o4711)
    os.chown(root / "var/lib/app/sub", 250, 251)
    (root / "var/lib/app/link").symlink_to("a")
    image.write("/var/lib/other", "other")
    age(root)
    return image


def _prepared(root: Path) -> Image:
    """Make the tree of a derived image: prepared, then two strays and a new entry."""
    image = _make(root)
    image.prepare(build_id="the-base", rpms=_rpms(root))
    (root / "var/lib").unlink()
    image.write("/var/lib/stray", "stray")
    image.write("/var/lib/other", "changed")
    (root / "etc/app.conf").unlink()
    image.write("/etc/app.conf", "stray")
    image.write("/etc/more/x", "x")
    image.list("/etc/app.conf", "/etc/more/", "/etc/none")
    age(root)
    return image


def _rpms(root: Path) -> list[Path]:
    return [root.parent / "app.rpm"]


def _picture(root: Path, expected: dict[str, object] | None = None) -> dict[str, object]:
    """Return the tree; a time counts where it was kept from long ago."""
    result: dict[str, object] = {}
    for path, value in picture(root).items():
        kept = value[-1] == LONG_AGO * 10**9
        result[path] = (*value[:-1], kept)
        known = expected.get(path) if expected else None
        if isinstance(known, tuple) and not known[-1]:
            result[path] = (*value[:-1], False)
    return result


def _trace(place: Path, package: Path) -> tuple[list[Call], dict[str, object]]:
    """Run undisturbed; return the calls that change something, and the tree afterwards."""
    root = _fresh(place, "undisturbed")
    done, calls = tracing.trace(
        _command(root, package), env=clean_environment(), log=place / "trace"
    )
    assert done.returncode == 0, done.stderr
    assert (root / MANIFEST).is_file()
    first = calls[0].process
    points = [
        call
        for call in calls
        if call.process == first and (str(root) in call.text or '"/proc/self/fd/' in call.text)
    ]
    return points, _picture(root)


def _fresh(place: Path, name: str) -> Path:
    """Return a copy of the tree as it was before."""
    root = place / name / "root"
    if root.exists():
        shutil.rmtree(root)
    root.parent.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", str(place / "pristine"), str(root)], check=True)
    return root


def _differences(root: Path, expected: dict[str, object]) -> list[object]:
    found = _picture(root, expected)
    return [
        (path, found.get(path), expected.get(path))
        for path in sorted(found.keys() | expected.keys())
        if found.get(path) != expected.get(path)
    ]


def _at_every(points: list[Call], attempt: Callable[[Call, int], list[object]]) -> list[object]:
    """Call *attempt* for every point; return what was wrong."""
    wrong: list[object] = []
    for position, call in enumerate(points):
        try:
            found = attempt(call, position)
        except Exception as err:
            err.add_note(f"at {call}")
            raise
        wrong += [(call, found)] if found else []
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize(("make", "least"), [(_make, 150), (_prepared, 80)])
def test_killed_at_every_change_and_run_again(
    place: Path, package: Path, make: Callable[[Path], Image], least: int, chunk: int
) -> None:
    shutil.copy(package, place / "app.rpm")
    make(place / "pristine")
    points, expected = _trace(place, package)
    assert len(points) > least

    def attempt(call: Call, _: int) -> list[object]:
        root = _fresh(place, "again")
        forked.loaded().killed(_command(root, package), call, env=clean_environment())
        return _again(root, package, expected)

    assert _at_every(points[chunk::CHUNKS], attempt) == []


@pytest.mark.slow
def test_an_error_at_any_change_and_run_again(place: Path, package: Path) -> None:
    """At every change with IPAVOLUME_CRASH_EVERY=1."""
    shutil.copy(package, place / "app.rpm")
    _make(place / "pristine")
    points, expected = _trace(place, package)

    def attempt(call: Call, position: int) -> list[object]:
        root = _fresh(place, "again")
        error = ERRORS[position % len(ERRORS)]
        command = _command(root, package)
        failed = forked.loaded().failing(command, call, error, env=clean_environment())
        if failed.returncode == 0:
            # Copying by the kernel falls back to reading and writing, an attribute that is
            # not there need not be removed.
            return _differences(root, expected)
        if failed.returncode != EXIT_IO:
            return [failed.returncode, failed.stderr]
        return _again(root, package, expected)

    assert _at_every(points[::EVERY], attempt) == []
