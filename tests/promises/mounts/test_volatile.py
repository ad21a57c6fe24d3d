"""A volatile volume, which is filled afresh at each start."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import PROJECT
from support.filesystems import Filesystems
from support.images import Image, picture
from support.mounts import BOTH, LISTS
from support.requirements import need_tool
from support.upgrades import Site, owner, set_acl

pytestmark = [pytest.mark.root, pytest.mark.rpm]

DATA = PROJECT / "tests/data"


VOLATILE = BOTH + '[[volume]]\nmount = "/tmp"\nvolatile = true\n'


@pytest.fixture
def volatile(site: Site, versions: tuple[Path, Path]) -> tuple[Site, Image]:
    """A site whose image fills ``/tmp`` at each start."""

    def edit(image: Image) -> None:
        cache = image.write("/var/cache/app/index", "as shipped", mode=0o2640)
        os.chown(cache, 250, 251)
        cache.chmod(0o2640)
        set_acl(cache, "u:4242:r")
        os.chown(cache.parent, 250, 251)
        cache.parent.chmod(0o1770)
        cache.with_name("twin").hardlink_to(cache)
        cache.with_name("link").symlink_to("index")
        image.write("/var/cache/app/keep/state", "kept elsewhere")

    lists = {**LISTS, "/tmp": ["/var/cache/app/"]}
    lists["/data"] = [*lists["/data"], "/var/cache/app/keep/"]
    image = site.image("one", versions[:1], lists=lists, config=VOLATILE, edit=edit)
    site.volume("/tmp").chmod(0o1777)
    return site, image


def test_a_volatile_volume_is_filled_afresh_at_each_start(volatile: tuple[Site, Image]) -> None:
    site, image = volatile
    tmp = site.volume("/tmp")
    for round_ in range(3):
        site.run("start", image, "--", "true")
        found = picture(tmp, times=False)
        assert found == picture(image.root / "tmp-template", times=False)
        assert len(found) == 7
        assert os.readlink(tmp / "var/cache/app/keep") == "/data/var/cache/app/keep"
        assert owner(tmp / "var/cache/app") == (250, 251, 0o1770)
        assert stat.S_IMODE(tmp.stat().st_mode) == 0o1777
        kept = site.volume("/data") / "var/cache/app/keep/state"
        assert kept.read_text() == ("kept elsewhere" if round_ == 0 else f"round {round_ - 1}")
        kept.write_text(f"round {round_}")
        index = tmp / "var/cache/app/index"
        index.write_text("changed")
        (tmp / "var/cache/app/twin").unlink()
        (tmp / "var/cache/app/twin").mkdir()
        (tmp / "var/cache/app/twin/inside").write_text("x")
        (tmp / "left over\n").mkdir()
        (tmp / "left over\n/by a service").symlink_to("/etc")
        (tmp / "etc").symlink_to(site.volume("/data") / "etc")
    assert (site.volume("/data") / "etc/app/app.conf").read_text() == "version 1"


@pytest.mark.parametrize("known", [False, True], ids=["empty", "current"])
def test_a_volume_in_the_place_of_a_volatile_one_too_is_told_as_that(
    volatile: tuple[Site, Image], *, known: bool
) -> None:
    """An empty one was filled as that, and was nobody's then; another might be emptied."""
    site, image = volatile
    if known:
        site.run("start", image, "--", "true")
    site.volumes["/tmp"] = site.volume("/data")
    before = picture(site.volume("/data"))
    for words in ((), ("--allow", "kept-volume")):
        said = site.run("start", image, *words, "--", "true", status=65).stderr
        assert "/data and /tmp are one and the same volume" in said
        assert "[foreign-volume]" in said
    assert picture(site.volume("/data")) == before


def test_a_part_of_a_volume_in_the_place_of_a_volatile_one_is_not_emptied(
    volatile: tuple[Site, Image], bind: Callable[[Path, Path], None]
) -> None:
    site, image = volatile
    site.run("start", image, "--", "true")
    site.volumes["/tmp"] = site.top / "mounted"
    site.volume("/tmp").mkdir()
    part = site.volume("/data") / "etc"
    bind(part, site.volume("/tmp"))
    before = picture(site.volume("/data"))
    for command in (("start", "--", "true"), ("upgrade",), ("check",)):
        said = site.run(command[0], image, *command[1:], status=65)
        assert "is a part of the volume at /data, mounted once more" in said.stdout + said.stderr
        assert "[kept-volume]" in said.stdout + said.stderr
    assert picture(site.volume("/data")) == before
    site.run("start", image, "--allow", "kept-volume", "--", "true")
    assert [path.name for path in part.iterdir()] == ["var"]


def test_a_volatile_volume_that_has_another_one_as_a_part_of_it_is_not_emptied(
    volatile: tuple[Site, Image], bind: Callable[[Path, Path], None]
) -> None:
    site, image = volatile
    part = site.volume("/tmp") / "part"
    part.mkdir()
    (part / "of somebody").write_text("kept")
    site.volumes["/data"] = site.top / "mounted"
    site.volume("/data").mkdir()
    bind(part, site.volume("/data"))
    said = site.run("start", image, "--", "true", status=65).stderr
    assert "has the volume at /data as a part of it" in said
    assert "[kept-volume]" in said
    assert (part / "of somebody").read_text() == "kept"


def _by_descriptor(top: Path, part: Path, place: Path) -> None:
    """Mount *part* as the kubelet does for a subPath: what it has open, by its number."""
    script = 'exec 7<"$0" && exec mount --bind /proc/self/fd/7 "$1"'
    subprocess.run(["sh", "-c", script, part, place], check=True, timeout=60)


def _by_subvolume(top: Path, part: Path, place: Path) -> None:
    """Mount *part*, a subvolume, by its name."""
    device = subprocess.run(
        ["findmnt", "-n", "-v", "-o", "SOURCE", top], check=True, capture_output=True, text=True
    ).stdout.strip()
    option = f"subvol={part.relative_to(top)}"
    subprocess.run(["mount", "-o", option, device, place], check=True, timeout=60)


@pytest.mark.filesystem
@pytest.mark.parametrize(
    ("kind", "mount"),
    [("ext4", _by_descriptor), ("btrfs", _by_subvolume)],
    ids=["subPath", "subvol"],
)
@pytest.mark.parametrize("is_part", [True, False], ids=["a part", "beside it"])
def test_a_part_of_a_volume_is_told_however_it_was_mounted(
    filesystem: Filesystems,
    volatile: tuple[Site, Image],
    kind: str,
    mount: Callable[[Path, Path, Path], None],
    is_part: bool,  # noqa: FBT001 - a column of the table
) -> None:
    site, image = volatile
    top = filesystem(kind)
    claim, part = top / "claim", top / ("claim/scratch" if is_part else "scratch")
    for directory in (claim, part):
        made = ["btrfs", "-q", "subvolume", "create"] if kind == "btrfs" else ["mkdir"]
        subprocess.run([*made, directory], check=True, timeout=60)
    (part / "notes").write_text("mine")
    places = [site.top / name for name in ("data-place", "tmp-place")]
    for place, what in zip(places, (claim, part), strict=True):
        place.mkdir()
        mount(top, what, place)
    try:
        site.volumes["/data"], site.volumes["/tmp"] = places
        said = site.run("start", image, "--", "true", status=65 if is_part else 0).stderr
        assert ("is a part of the volume at /data, mounted once more" in said) == is_part
        assert (part / "notes").exists() == is_part
    finally:
        for place in places:
            subprocess.run(["umount", place], check=True, timeout=60)


def test_only_a_start_fills_a_volatile_volume(volatile: tuple[Site, Image]) -> None:
    site, image = volatile
    tmp = site.volume("/tmp")
    (tmp / "file").write_text("x")
    site.upgrade(image)
    site.run("check", image)
    site.run("upgrade", image, "--dry-run")
    assert [path.name for path in tmp.iterdir()] == ["file"]
    site.run("start", image, "--", "true")
    assert sorted(path.name for path in tmp.iterdir()) == ["var"]


def test_what_is_mounted_in_a_volatile_volume_stays(
    volatile: tuple[Site, Image], bind: Callable[[Path, Path], None]
) -> None:
    site, image = volatile
    tmp = site.volume("/tmp")
    secrets = site.top / "secrets"
    secrets.mkdir()
    (secrets / "password").write_text("secret")
    (tmp / "run/secrets").mkdir(parents=True)
    bind(secrets, tmp / "run/secrets")
    (tmp / "file").write_text("x")
    (tmp / "run/file").write_text("x")
    for _ in range(2):
        site.run("start", image, "--", "true")
        assert (secrets / "password").read_text() == "secret"
        assert sorted(path.name for path in tmp.iterdir()) == ["run", "var"]
        assert [path.name for path in (tmp / "run").iterdir()] == ["secrets"]
        assert (tmp / "var/cache/app/index").read_text() == "as shipped"


@pytest.mark.filesystem
def test_an_immutable_file_in_a_volatile_volume_is_named(
    volatile: tuple[Site, Image], filesystem: Filesystems
) -> None:
    site, image = volatile
    site.volumes["/tmp"] = filesystem("ext4")
    left = site.volume("/tmp") / "a b/left"
    left.parent.mkdir()
    left.write_text("left")
    subprocess.run([need_tool("chattr"), "+i", str(left)], check=True, timeout=60)
    try:
        said = site.run("start", image, "--", "true", status=65).stderr
    finally:
        subprocess.run([need_tool("chattr"), "-i", str(left)], check=True, timeout=60)
    assert "'/tmp/a b/left' has to change, but is immutable (chattr +i) [immutable]" in said
    assert f"chattr -i '{left}'. Then start again." in said
    site.run("start", image, "--", "true")
    assert not left.exists()


def test_freeipas_two_lists_lead_every_path_to_a_place_that_exists(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    site = Site(top=tmp_path)
    lists = {
        f"/{name}": (DATA / f"freeipa-volume-{name}-list").read_text().splitlines()
        for name in ("data", "tmp")
    }
    config = (
        'profile = "freeipa"\n[[volume]]\nmount = "/data"\n'
        '[[volume]]\nmount = "/tmp"\nvolatile = true\n[start]\nexec = ["true"]\n'
        "[scriptlets]\npackages = []\n[first-run]\ncommand = []\n"
    )

    def edit(image: Image) -> None:
        image.write("/etc/krb5.conf", "[libdefaults]\n")
        image.write("/var/lib/certmonger/cas/20260101", "a CA")
        image.write("/var/lib/certmonger/lock", "")
        image.write("/var/lib/sss/db/cache", "cache", mode=0o600)
        image.write("/var/tmp/left", "over")

    image = site.image("one", versions[:1], lists=lists, config=config, edit=edit)
    site.volume("/data")
    site.volume("/tmp")
    site.run("start", image)

    def resolve(path: str) -> Path:
        """Return where the container is led to by *path*, its last component not followed."""
        for _ in range(40):
            here, real = "", image.root
            for part in path.split("/")[1:]:
                here = f"{here}/{part}"
                mount = next((one for one in site.volumes if here.startswith(one + "/")), "")
                top = site.volumes[mount] if mount else image.root
                real = Path(f"{top}{here[len(mount) :]}")
                if real.is_symlink():
                    target = os.readlink(real)
                    assert target.startswith("/")
                    path = target + path[len(here) :]
                    break
            else:
                return real
        raise AssertionError(path)

    listed = [path for paths in lists.values() for path in paths]
    assert len(listed) > 100
    for path in listed:
        place = resolve(path.rstrip("/"))
        mount = "/data" if path in lists["/data"] else "/tmp"
        assert place.is_relative_to(site.volumes[mount]), path
        assert place.parent.is_dir(), path
        if path.endswith("/"):
            assert place.is_dir(), path
    assert resolve("/etc/krb5.conf").read_text() == "[libdefaults]\n"
    assert resolve("/var/lib/certmonger/cas/20260101").read_text() == "a CA"
    # A service writes to both, the container starts again: one is kept, the other is not.
    resolve("/var/lib/certmonger/requests/1").write_text("a request")
    resolve("/var/tmp/work").write_text("in progress")
    site.run("start", image)
    assert resolve("/var/lib/certmonger/requests/1").read_text() == "a request"
    assert not resolve("/var/tmp/work").exists()
    assert resolve("/var/tmp/left").read_text() == "over"
