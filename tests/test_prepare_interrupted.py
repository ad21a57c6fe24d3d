"""prepare is stopped at every system call that changes a file, and run again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from support.command import clean_environment
from support.filesystems import Filesystems
from support.images import LONG_AGO, MANIFEST, Image, Packaged, age, build_rpm, make_image, picture
from support.requirements import need_tool

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.crash]

CHANGING: Final = (
    "mkdirat,mkdir,mknodat,mknod,symlinkat,symlink,linkat,link,renameat,renameat2,rename,"
    "unlinkat,unlink,rmdir,fchmodat,fchmod,chmod,fchownat,fchown,chown,lchown,utimensat,"
    "setxattr,fsetxattr,removexattr,write,pwrite64,copy_file_range,ftruncate,fsync,syncfs"
)
PROGRAM: Final = (
    "import sys\n"
    "from ipavolume.errors import IpaVolumeError\n"
    "from ipavolume.prepare import prepare\n"
    "try:\n"
    "    prepare(sys.argv[1], lists=(), mount=None, template=None, rpms=sys.argv[2:],\n"
    "            build_id='the-build', image_name=None, progress=lambda text: None)\n"
    "except IpaVolumeError as err:\n"
    "    sys.stderr.write(f'{err}\\n')\n"
    "    sys.exit(err.exit_status)\n"
)
CONFIGURATION: Final = (
    '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\nlists = ["/etc/volume-logs-list"]\n'
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that owns a config file and a ghost."""
    return build_rpm(
        tmp_path_factory.mktemp("package"),
        "app",
        [
            Packaged(path="/etc/app.conf", words="%config(noreplace)", content="conf\n"),
            Packaged(path="/var/lib/app/inner", words="%ghost", directory=True),
        ],
    )


@pytest.fixture
def place(filesystem: Filesystems) -> Iterator[Path]:
    """A small and fast file system."""
    yield filesystem("tmpfs", 64)


def _run(root: Path, package: Path, *strace: str) -> subprocess.CompletedProcess[str]:
    environment = clean_environment({"SOURCE_DATE_EPOCH": "1000000000"})
    return subprocess.run(
        [*strace, sys.executable, "-I", "-c", _program(), str(root), str(package)],
        check=False,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        env=environment,
        timeout=120,
    )


def _program() -> str:
    project = Path(__file__).resolve().parents[1]
    return f"import sys; sys.path.insert(0, {str(project)!r}); sys.dont_write_bytecode = True\n" + (
        PROGRAM
    )


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


def _picture(root: Path, expected: dict[str, tuple[object, ...]] | None) -> dict[str, object]:
    """Return the tree; times count where they were kept from long ago."""
    result: dict[str, object] = {}
    for path, value in picture(root).items():
        kept = value[-1] == LONG_AGO * 10**9
        if expected is not None and path in expected and not expected[path][-1]:
            kept = False
        result[path] = (*value[:-1], kept)
    return result


def _calls(trace: Path, root: Path) -> list[tuple[str, int]]:
    """Return the changing calls that a run made below *root*, with their number by name."""
    counts: dict[str, int] = {}
    calls = []
    for line in trace.read_text(errors="surrogateescape").splitlines():
        match = re.match(r"(?:\d+ +)?([a-z_0-9]+)\(", line)
        if match is None:
            continue
        name = match.group(1)
        counts[name] = counts.get(name, 0) + 1
        if f"<{root}" in line or f'"{root}' in line or f"{root}/" in line:
            calls.append((name, counts[name]))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fresh", "derived"])
def test_killed_at_every_change_and_run_again(place: Path, package: Path, kind: str) -> None:
    strace = need_tool("strace")
    make = _make if kind == "fresh" else _prepared
    shutil.copy(package, place / "app.rpm")
    root = place / "root"
    make(root)
    pristine = place / "pristine"
    root.rename(pristine)
    points, expected = _trace(strace, place, pristine, package, root)
    assert len(points) > (100 if kind == "fresh" else 60)
    wrong = []
    for name, number in points:
        shutil.rmtree(root)
        subprocess.run(["cp", "-a", str(pristine), str(root)], check=True)
        inject = f"inject={name}:signal=KILL:when={number}"
        killed = _run(root, package, strace, "-qq", "-o", os.devnull, "-e", inject)
        if killed.returncode == 0:
            wrong.append((name, number, "not killed"))
        again = _run(root, package)
        if again.returncode != 0:
            wrong.append((name, number, again.stderr))
        elif (found := _picture(root, expected)) != _picture_of(expected):
            wrong.append((name, number, _difference(found, _picture_of(expected))))
    assert wrong == []


def _trace(
    strace: str, place: Path, pristine: Path, package: Path, root: Path
) -> tuple[list[tuple[str, int]], dict[str, tuple[object, ...]]]:
    """Run undisturbed; return the calls that change something, and the tree afterwards."""
    subprocess.run(["cp", "-a", str(pristine), str(root)], check=True)
    trace = place / "trace"
    done = _run(
        root, package, strace, "-qq", "-y", "-o", str(trace), "-e", f"trace={CHANGING}"
    )
    assert done.returncode == 0, done.stderr
    expected = {
        path: (*value[:-1], value[-1] == LONG_AGO * 10**9)
        for path, value in picture(root).items()
    }
    assert Path(root / MANIFEST).is_file()
    return _calls(trace, root), expected


def _picture_of(expected: dict[str, tuple[object, ...]]) -> dict[str, object]:
    return dict(expected)


def _difference(found: dict[str, object], expected: dict[str, object]) -> list[object]:
    return [
        (path, found.get(path), expected.get(path))
        for path in sorted(found.keys() | expected.keys())
        if found.get(path) != expected.get(path)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("error", "status"), [("ENOSPC", 74), ("EIO", 74), ("EROFS", 74)])
def test_an_error_at_every_change_and_run_again(
    place: Path, package: Path, error: str, status: int
) -> None:
    strace = need_tool("strace")
    shutil.copy(package, place / "app.rpm")
    root = place / "root"
    _make(root)
    pristine = place / "pristine"
    root.rename(pristine)
    points, expected = _trace(strace, place, pristine, package, root)
    wrong = []
    for name, number in points:
        shutil.rmtree(root)
        subprocess.run(["cp", "-a", str(pristine), str(root)], check=True)
        inject = f"inject={name}:error={error}:when={number}"
        failed = _run(root, package, strace, "-qq", "-o", os.devnull, "-e", inject)
        if failed.returncode != status or error == "ENOSPC" and "No space" not in failed.stderr:
            wrong.append((name, number, failed.returncode, failed.stderr))
        again = _run(root, package)
        if again.returncode != 0:
            wrong.append((name, number, again.returncode, again.stderr))
        elif (found := _picture(root, expected)) != _picture_of(expected):
            wrong.append((name, number, 0, str(_difference(found, _picture_of(expected)))))
    assert wrong == []
