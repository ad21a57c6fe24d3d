"""``.ipavolume/lock`` decides, and what is planted in its place or written into it does not."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import tracing
from support.command import clean_environment, run_ipavolume
from support.hostile import picture
from support.images import Image, build_versions
from support.requirements import need_tool
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

LISTS = {"/data": ["/etc/app/"]}


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package with a config file, and its next version."""
    return build_versions(tmp_path_factory.mktemp("lockfile"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Where the volumes are."""
    return Site(top=tmp_path)


@pytest.fixture
def image(site: Site, versions: tuple[Path, Path]) -> Image:
    """An image, and its volume."""
    image = site.image("one", versions[:1], lists=LISTS, edit=lambda one: one.mask_steps())
    site.upgrade(image)
    return image


@pytest.fixture
def newer(site: Site, versions: tuple[Path, Path]) -> Image:
    """The next image."""
    return site.image("two", versions[1:], lists=LISTS, edit=lambda one: one.mask_steps())


def lock_of(site: Site) -> Path:
    """Return where the lock file is."""
    return site.volume() / ".ipavolume/lock"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of *path*, as another process would."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def test_only_root_can_open_it(site: Site, image: Image) -> None:
    """F41: who can open it can hold it."""
    st = lock_of(site).lstat()
    assert (st.st_mode, st.st_uid, st.st_gid, st.st_nlink) == (0o100600, 0, 0, 1)
    host = os.uname().nodename
    assert lock_of(site).read_text().startswith(f"{host} - 20")


def test_a_root_directory_that_somebody_locks_is_told_apart_and_overridden(
    site: Site, image: Image
) -> None:
    """F41: anybody who can open the directory can lock it."""
    before = picture(site.volume())
    with locked(site.volume()):
        said = site.refused(image, "directory-locked", status=75)
        assert f"process {os.getpid()}" in said
        assert "[directory-locked]" in site.run("check", image).stdout
        assert picture(site.volume()) == before
        site.upgrade(image, "--again", "--allow", "directory-locked")


def test_the_lock_of_the_file_is_not_overridden(site: Site, image: Image) -> None:
    with locked(lock_of(site)):
        for code in ("directory-locked", "stale-lock", "no-lock", "local-lock"):
            site.refused(image, "locked", "--allow", code, status=75)
        assert "[in-use]" in site.run("check", image).stdout


def _link(path: Path) -> None:
    path.symlink_to("elsewhere")


def _hard_link(path: Path) -> None:
    path.touch(mode=0o600)
    (path.parent.parent / "another").hardlink_to(path)


def _of_somebody(path: Path) -> None:
    path.touch(mode=0o600)
    os.chown(path, 250, 0)


PLANTS: dict[str, Callable[[Path], None]] = {
    "symbolic link": _link,
    "hard link": _hard_link,
    "directory": Path.mkdir,
    "FIFO": lambda path: os.mkfifo(path, 0o600),
    "device": lambda path: os.mknod(path, 0o20600, os.makedev(1, 3)),
    "somebody's": _of_somebody,
    "everybody's": lambda path: path.touch(mode=0o644),
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_what_is_planted_in_its_place_is_refused(
    site: Site, image: Image, newer: Image, plant: Callable[[Path], None]
) -> None:
    """F40: it is not opened, followed or waited for."""
    lock_of(site).unlink()
    plant(lock_of(site))
    before = picture(site.volume())
    for other in (image, newer):
        site.refused(other, "unsafe-lock")
        assert "[unsafe-lock]" in site.run("check", other, status=65).stdout
        site.run("start", other, "--", "true", status=65)
    assert picture(site.volume()) == before


@pytest.mark.parametrize(
    "line",
    [b"\x1b[2Jhost - 2026-01-01T00:00:00Z\n", b"a" * 4096, b"a b\n", b"host\n- 2026\n", b"\xff\n"],
)
def test_what_it_says_is_shown_only_where_it_is_what_was_written(
    site: Site, image: Image, line: bytes
) -> None:
    lock_of(site).write_bytes(line)
    with locked(lock_of(site)):
        said = site.refused(image, "locked", status=75)
        assert said.endswith(f"(process {os.getpid()}: {_words()}) [locked]")
    # It is nothing that a volume is judged by.
    assert "current" in site.run("check", image).stdout


def _words() -> str:
    words = Path(f"/proc/{os.getpid()}/cmdline").read_bytes()[:200].split(b"\0")[:4]
    return b" ".join(words).decode().strip()


def test_a_volume_of_an_older_version_gets_it_after_all_that_refuses(
    site: Site, image: Image, newer: Image
) -> None:
    site.upgrade(newer)
    lock_of(site).unlink()
    before = picture(site.volume())
    site.refused(image, "newer", status=77)
    site.run("start", image, "--", "true", status=77)
    site.run("check", newer)
    assert picture(site.volume()) == before
    site.run("start", newer, "--", "true")
    assert lock_of(site).stat().st_size > 0


def test_a_start_that_was_killed_when_it_had_made_it_left_an_empty_volume(
    site: Site, image: Image
) -> None:
    """F40: a state directory with only that file is no volume of ours."""
    volume = site.volume()
    for path in sorted(volume.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    lock_of(site).parent.mkdir()
    lock_of(site).touch(mode=0o600)
    assert "empty" in site.run("check", image, status=100).stdout
    assert site.upgrade(image)["state"] == "empty"


def test_killed_at_any_call_of_its_birth_it_is_made_by_the_next_run(
    site: Site, image: Image, newer: Image
) -> None:
    """F40: a file that is half made is in nobody's way."""
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(newer)]
    kept = site.top / "kept"
    lock_of(site).unlink()
    subprocess.run(["cp", "-a", str(site.volume()), str(kept)], check=True)
    env = clean_environment()
    done, calls = tracing.trace(command, env=env, log=site.top / "log")
    assert done.returncode == 0
    changes = [call for call in calls if tracing.is_change(call)]
    (born,) = (
        i for i, call in enumerate(changes) if '/lock"' in call.text or '"lock"' in call.text
    )
    for call in changes[max(0, born - 2) : born + 4]:
        subprocess.run(["rm", "-rf", str(site.volume())], check=True)
        subprocess.run(["cp", "-a", str(kept), str(site.volume())], check=True)
        tracing.killed(command, call, env=env)
        site.upgrade(newer)
        assert lock_of(site).lstat().st_mode == 0o100600


def test_looking_takes_no_lock(site: Site, image: Image) -> None:
    """F41: a start at the instant of a check is not refused."""
    log = site.top / "calls"
    strace = [need_tool("strace"), "-f", "-o", str(log), "-e", "trace=flock,fcntl"]
    command = [sys.executable, "-m", "ipavolume"]
    calls = ""
    for words in (["check", *site.arguments(image)], ["status", str(site.volume())]):
        subprocess.run(
            [*strace, *command, *words],
            check=True,
            env=clean_environment(),
            capture_output=True,
            timeout=60,
        )
        calls = log.read_text()
        assert "LOCK_SH" not in calls
        assert "LOCK_EX" not in calls
        assert "SETLK" not in calls
    assert "F_OFD_GETLK" in calls


def test_status_says_who_holds_it(site: Site, image: Image) -> None:
    with locked(lock_of(site)):
        said = run_ipavolume("status", site.volume()).stdout
    assert f"lock      held by {os.uname().nodename}, since 20" in said
    assert "lock  " not in run_ipavolume("status", site.volume()).stdout


def test_a_file_system_that_is_not_known_to_lock_for_everybody_is_refused(
    site: Site, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    image = site.image("one", versions[:1], lists=LISTS)
    place = site.volume()
    subprocess.run([need_tool("mount"), "-t", "ramfs", "ramfs", str(place)], check=True)
    try:
        place.chmod(0o755)
        said = site.refused(image, "no-lock")
        assert "ramfs" in said
        assert "[no-lock]" in site.run("check", image, status=65).stdout
        assert list(place.iterdir()) == []
        site.upgrade(image, "--allow", "no-lock,space")
        assert site.run("check", image, "--allow", "no-lock").returncode == 0
    finally:
        subprocess.run([need_tool("umount"), "-l", str(place)], check=True)


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ("docker/containers/{id}/hosts", "3f" * 6),
        ("overlay-containers/{id}/userdata/hosts", "3f" * 6),
        (
            "pods/0a1b2c3d-1111-2222-3333-444455556666/etc-hosts",
            "0a1b2c3d-1111-2222-3333-444455556666",
        ),
        ("containers/short/hosts", "-"),
    ],
    ids=["docker", "podman", "kubelet", "nothing known"],
)
def test_a_container_goes_by_the_id_that_its_engine_shows(
    tmp_path: Path, where: str, shown: str
) -> None:
    file = tmp_path / where.format(id="3f" * 32)
    file.parent.mkdir(parents=True)
    file.touch()
    place = tmp_path / "mounted"
    place.touch()
    code = "from ipavolume import fastpath; print(*fastpath.this_container())"
    script = 'mount --bind "$0" "$1" && shift && exec "$@"'
    done = subprocess.run(
        [
            *(need_tool("unshare"), "--mount", "sh", "-c", script, str(file), str(place)),
            *(sys.executable, "-c", code),
        ],
        check=True,
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=60,
    )
    assert done.stdout == f"{os.uname().nodename} {shown}\n"


def test_a_host_does_not_go_by_the_id_of_a_container_that_runs_there(tmp_path: Path) -> None:
    """An engine mounts things for it: podman what is its /dev/shm."""
    place = tmp_path / f"overlay-containers/{'3f' * 32}/userdata/shm"
    place.mkdir(parents=True)
    code = "from ipavolume import fastpath; print(*fastpath.this_container())"
    done = subprocess.run(
        [
            *(need_tool("unshare"), "--mount", "sh", "-c"),
            *('mount -t tmpfs shm "$0" && exec "$@"', str(place)),
            *(sys.executable, "-c", code),
        ],
        check=True,
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=60,
    )
    assert done.stdout == f"{os.uname().nodename} -\n"
