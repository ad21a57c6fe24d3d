"""What an administrator made immutable or append-only is found before the first write (F2)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import clean_environment
from support.filesystems import Filesystems
from support.images import GROUPS, Image, Packaged, build_rpm, picture
from support.requirements import need_tool
from support.tracing import killed, trace
from support.upgrades import Site, owner

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem]

LISTS = {"/data": ["/etc/app/", "/var/lib/app/"]}
NOREPLACE = "%config(noreplace)"


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package, and its next version."""
    top = tmp_path_factory.mktemp("unchangeable")

    def package(version: str) -> Path:
        text = f"version {version}"
        files = [
            Packaged(path="/etc/app", directory=True),
            Packaged(path="/etc/app/edited.conf", words=NOREPLACE, content=text),
            Packaged(path="/etc/app/plain.conf", words="%config", content=text),
            Packaged(path="/etc/app/program", content=text),
            Packaged(path="/etc/app/same", content="same"),
            Packaged(path="/etc/app/sub", directory=True),
            Packaged(path="/var/lib/app", directory=True, words="%attr(0750,svc,svc)"),
        ]
        if version == "1":
            files += [
                Packaged(path="/etc/app/gone", content="gone"),
                Packaged(path="/etc/app/dropped", directory=True),
            ]
        else:
            files.append(Packaged(path="/etc/app/sub/new", content="new"))
        return build_rpm(top, "app", files, version=version)

    return package("1"), package("2")


@pytest.fixture
def site(tmp_path: Path, filesystem: Filesystems) -> Iterator[Site]:
    """A machine whose volume lies on a file system that has these attributes."""
    site = Site(top=tmp_path)
    yield from _on(site, filesystem("ext4"))


def _on(site: Site, place: Path) -> Iterator[Site]:
    site.volumes = {"/data": place / "volume"}
    site.volume().mkdir(mode=0o755)
    yield site
    subprocess.run(
        [need_tool("chattr"), "-R", "-f", "-ia", str(site.volume())], check=False, timeout=60
    )


def _populated(site: Site, versions: tuple[Path, Path], *, number: int = 250) -> None:
    site.upgrade(site.image("one", versions[:1], lists=LISTS))
    (site.volume() / "etc/app/edited.conf").write_text("edited")
    (site.volume() / "etc/app/plain.conf").write_text("edited")
    job = site.volume() / "var/lib/app/spool/job"
    job.parent.mkdir()
    job.touch()
    for path in (job.parent, job):
        os.chown(path, 250, 251)


def _chattr(word: str, path: Path) -> None:
    subprocess.run([need_tool("chattr"), word, str(path)], check=True, timeout=60)


def _is_refused(site: Site, image: Image, word: str, path: str) -> None:
    """See every command refuse, with path and command, and the volume stay as it was."""
    place = site.volume() / path
    before = picture(site.volume())
    shown = f"/data/{path}".rstrip("/.")
    command = f"chattr -{word[1:]} {place}"
    said = site.refused(image, "immutable")
    assert f"'{shown}'" in said
    looked = site.run("check", image, status=65).stdout
    assert "obstructed" in looked.splitlines()[0]
    for text in (
        looked,
        site.run("upgrade", image, "--dry-run", status=65).stdout,
        site.run("start", image, "--", "true", status=65).stderr,
    ):
        assert f"'{shown}'" in text
        assert " ".join(text.split()).find(command) >= 0, text
    assert picture(site.volume()) == before


CHANGED = [
    pytest.param("+i", "etc/app/program", id="replaced"),
    pytest.param("+a", "etc/app/program", id="replaced, append-only"),
    pytest.param("+i", "etc/app/plain.conf", id="saved and replaced"),
    pytest.param("+i", "etc/app/gone", id="erased"),
    pytest.param("+i", "etc/app/dropped", id="removed directory"),
    pytest.param("+i", "etc/app", id="directory of all"),
    pytest.param("+a", "etc/app", id="directory of all, append-only"),
    pytest.param("+i", "etc/app/sub", id="directory that gets a file"),
    pytest.param("+i", "build-id", id="build id"),
    pytest.param("+i", ".", id="root"),
    pytest.param("+a", ".", id="root, append-only"),
    pytest.param("+i", ".ipavolume", id="state directory"),
    pytest.param("+i", ".ipavolume/index", id="index"),
    pytest.param("+a", ".ipavolume/history.jsonl", id="history"),
    pytest.param("+i", ".ipavolume/pristine", id="pristine"),
    pytest.param("+i", ".ipavolume/logs", id="logs"),
]


@pytest.mark.parametrize(("word", "path"), CHANGED)
def test_what_cannot_be_changed_is_found_in_planning(
    word: str, path: str, site: Site, versions: tuple[Path, Path]
) -> None:
    """F2."""
    _populated(site, versions)
    second = site.image("two", versions[1:], lists=LISTS)
    if not (site.volume() / path).exists():
        (site.volume() / path).mkdir(mode=0o700)
    _chattr(word, site.volume() / path)
    _is_refused(site, second, word, path)
    _chattr(f"-{word[1:]}", site.volume() / path)
    site.upgrade(second)


def test_a_directory_that_can_only_grow_cannot_take_a_copy_into_a_region(
    tmp_path: Path, filesystem: Filesystems, versions: tuple[Path, Path]
) -> None:
    """F2, F3: what is put into it by a copy has a directory beside it for a moment."""
    for site in _on(Site(top=tmp_path), filesystem("xfs")):
        _populated(site, versions)
        second = site.image("two", versions[1:], lists=LISTS)
        grown = site.volume() / "etc/app/sub"
        _chattr("+a", grown)
        assert "create" in site.run("upgrade", second, "--dry-run", status=100).stdout
        subprocess.run([need_tool("chattr"), "+P", "-p", "5", grown], check=True, timeout=60)
        _is_refused(site, second, "+a", "etc/app/sub")
        _chattr("-a", grown)
        site.upgrade(second)
        assert (grown / "new").read_text() == "new"


def test_what_cannot_be_removed_of_an_ended_run_keeps_no_current_volume_from_starting(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """F2: that it is in the way of the next upgrade is told then."""
    _populated(site, versions)
    second = site.image("two", versions[1:], lists=LISTS)
    site.upgrade(second)
    trash = site.volume() / ".ipavolume/trash"
    trash.mkdir(mode=0o700)
    (trash / "left").touch()
    _chattr("+i", trash / "left")
    site.run("upgrade", second)
    assert (trash / "left").exists()
    _chattr("-i", trash / "left")
    site.run("upgrade", second)
    assert not trash.exists()


@pytest.mark.parametrize("kind", ["xfs", "btrfs", "tmpfs"])
def test_every_file_system_tells_it(
    kind: str, tmp_path: Path, filesystem: Filesystems, versions: tuple[Path, Path]
) -> None:
    """F2."""
    for site in _on(Site(top=tmp_path), filesystem(kind)):
        _populated(site, versions)
        second = site.image("two", versions[1:], lists=LISTS)
        for word, path in (("+i", "etc/app/program"), ("+a", "build-id")):
            _chattr(word, site.volume() / path)
            _is_refused(site, second, word, path)
            _chattr(f"-{word[1:]}", site.volume() / path)
        site.upgrade(second)


def test_what_a_renumbered_account_owns_is_found(site: Site, versions: tuple[Path, Path]) -> None:
    """F2: below a directory that the owner translation goes through."""
    _populated(site, versions)
    users = "root:x:0:0::/:/bin/sh\nsvc:x:260:251::/:/bin/false\n"
    moved = site.image("two", versions[:1], lists=LISTS, passwd=users, group=GROUPS)
    path = "var/lib/app/spool/job"
    _chattr("+a", site.volume() / path)
    _is_refused(site, moved, "+a", path)
    _chattr("-a", site.volume() / path)
    site.upgrade(moved)
    assert owner(site.volume() / path)[0] == 260


def test_what_the_plan_does_not_touch_may_be_immutable(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """F2: nothing is refused though nothing is wrong."""
    _populated(site, versions)
    second = site.image("two", versions[1:], lists=LISTS)
    for word, path in (
        *(("+i", "etc/app/same"), ("+i", "etc/app/edited.conf")),
        *(("+i", "var/lib/app/spool/job"), ("+i", "var/lib/app"), ("+a", "etc/app/sub")),
    ):
        _chattr(word, site.volume() / path)
    site.upgrade(second)
    assert (site.volume() / "etc/app/edited.conf").read_text() == "edited"
    assert (site.volume() / "etc/app/edited.conf.rpmnew").read_text() == "version 2"
    assert (site.volume() / "etc/app/sub/new").read_text() == "new"
    _chattr("+i", site.volume() / "build-id")
    assert site.run("check", second).stdout.splitlines()[0].endswith(": current")
    site.run("start", second, "--", "true")


@pytest.mark.parametrize("path", [".", "etc", "etc/app"])
def test_an_empty_volume_with_an_immutable_directory_is_not_populated(
    path: str, site: Site, versions: tuple[Path, Path]
) -> None:
    """F2."""
    first = site.image("one", versions[:1], lists=LISTS)
    (site.volume() / path).mkdir(parents=True, exist_ok=True)
    _chattr("+i", site.volume() / path)
    _is_refused(site, first, "+i", path)
    _chattr("-i", site.volume() / path)
    site.upgrade(first)


def test_many_are_counted_and_some_named(site: Site, versions: tuple[Path, Path]) -> None:
    _populated(site, versions)
    second = site.image("two", versions[1:], lists=LISTS)
    subprocess.run([need_tool("chattr"), "-R", "+i", str(site.volume())], check=True, timeout=60)
    said = site.run("upgrade", second, status=65).stderr
    assert f"chattr -i {site.volume()} " in " ".join(said.split())
    assert "more" in said
    assert "lsattr -R" in said


@pytest.mark.crash
def test_an_attribute_set_after_the_mark_is_named_and_the_next_start_finishes(
    site: Site, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    """F2: a resumed run says so, and stays upgrading. So it does of what is mounted over a file."""
    _populated(site, versions)
    second = site.image("two", versions[1:], lists=LISTS)
    spare = tmp_path / "spare"
    subprocess.run(["cp", "-a", str(site.volume()), str(spare)], check=True, timeout=60)
    words = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(second)]
    env = clean_environment({"PYTHONHASHSEED": "0"})
    _, calls = trace(words, env=env, log=tmp_path / "calls")
    marked = next(
        n for n, call in enumerate(calls) if call.name == "renameat2" and "transaction" in call.text
    )
    renames = [call for call in calls[marked:] if call.name in ("renameat", "rename")]
    subprocess.run(["rm", "-rf", str(site.volume())], check=True, timeout=60)
    subprocess.run(["cp", "-a", str(spare), str(site.volume())], check=True, timeout=60)
    killed(words, renames[1], env=env)
    place = site.volume() / "etc/app/program"
    subprocess.run(["mount", "--bind", str(place), str(place)], check=True, timeout=60)
    try:
        said = site.run("upgrade", second, status=65).stderr
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=60)
    assert "[mounted-over]" in said
    assert "in the middle of an upgrade" in said
    _chattr("+i", place)
    said = site.run("upgrade", second, status=65).stderr
    assert "[immutable]" in said
    assert f"chattr -i {place}" in " ".join(said.split())
    assert "in the middle of an upgrade" in said
    assert "upgrading" in site.run("check", second, status=None).stdout.splitlines()[0]
    _chattr("-i", place)
    site.upgrade(second)
    assert place.read_text() == "version 2"
