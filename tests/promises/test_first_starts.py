"""Nothing harmless is refused at a first start, and what was planted is."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from support import inside
from support.command import Result, clean_environment, volume_of
from support.images import Image, Packaged, build_rpm, picture
from support.requirements import need_tool
from support.tracing import killed, trace
from support.upgrades import ACCESS_ACL, DEFAULT_ACL, Site, owner

from ipavolume.apply import roots
from ipavolume.errors import UnsafeVolumeError
from ipavolume.volume.facts import read_facts
from ipavolume.volume.members import Volume, open_volume

pytestmark = [pytest.mark.root, pytest.mark.rpm]

OPEN_TO_1000 = bytes.fromhex(
    "0200000001000700ffffffff02000700e803000004000500ffffffff10000700ffffffff20000500ffffffff"
)


@pytest.fixture(scope="session")
def rpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An application."""
    files = [
        Packaged(path="/etc/acme", directory=True),
        Packaged(path="/etc/acme/a.conf", words="%config(noreplace)", content="one"),
        Packaged(path="/var/lib/acme", directory=True, words="%attr(0750,svc,svc)"),
    ]
    return build_rpm(tmp_path_factory.mktemp("acme"), "acme", files, version="1")


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its next version, with a scriptlet."""
    files = [
        Packaged(path="/etc/acme", directory=True),
        Packaged(path="/etc/acme/a.conf", words="%config(noreplace)", content="two"),
        Packaged(path="/var/lib/acme", directory=True, words="%attr(0750,svc,svc)"),
    ]
    script = "%post\necho upgraded $1 > /var/lib/acme/version\n"
    top = tmp_path_factory.mktemp("newer")
    return build_rpm(top, "acme", files, version="2", scriptlets=script)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Where the image is, and the volume."""
    return Site(top=tmp_path)


@pytest.fixture
def image(site: Site, rpm: Path) -> Image:
    """An image of the application."""
    lists = {"/data": ["/etc/acme/", "/var/lib/acme/"]}
    return site.image("acme", [rpm], lists=lists, edit=lambda one: one.mask_steps())


def _state(site: Site, image: Image, status: int = 100) -> dict[str, object]:
    return volume_of(site.run("check", image, "--json", status=status).stdout)


# -- whose directory ---------------------------------------------------------------------


HARMLESS = [
    *((0, 0, mode) for mode in (0o777, 0o2775, 0o1777)),
    *((1000, 1000, mode) for mode in (0o755, 0o700)),
    (0, 1000, 0o775),
]


def test_an_empty_directory_that_others_can_write_to_is_given_to_root(
    site: Site, image: Image
) -> None:
    """F1: k3s and kind make 0777, docker's tmpfs volume 1777, a ``mkdir`` of umask 002 0775."""
    for uid, gid, mode in HARMLESS:
        shutil.rmtree(site.volume())
        _make_odd(site, uid, gid, mode)
        reason = site.upgrade(image)["reason"]
        assert f"({uid}:{gid}, mode {mode:04o}) becomes root's alone" in reason
        assert owner(site.volume()) == (0, 0, 0o755)
    assert _state(site, image, 0)["state"] == "current"


def test_whoever_looks_is_told_and_a_start_says_it_once(site: Site, image: Image) -> None:
    """F1: in one line; looking changes nothing."""
    site.volume().chmod(0o777)
    before = picture(site.volume())
    looked = _state(site, image)
    assert (looked["state"], str(looked["reason"]).count("becomes root's alone")) == ("empty", 1)
    assert "becomes root's alone" in site.run("upgrade", image, "--dry-run", status=100).stdout
    assert picture(site.volume()) == before
    said = site.run("start", image, "--", "true").stderr
    assert said.count("becomes root's alone") == 1


def _make_odd(site: Site, uid: int, gid: int, mode: int) -> None:
    site.volume().mkdir(exist_ok=True)
    os.chown(site.volume(), uid, gid)
    site.volume().chmod(mode)


def test_acls_of_such_a_directory_go(site: Site, image: Image) -> None:
    """F1: what a user may write by an ACL is his as much as by the mode."""
    for name in (ACCESS_ACL, DEFAULT_ACL):
        os.setxattr(site.volume(), name, OPEN_TO_1000)
    assert site.upgrade(image)["state"] == "empty"
    assert not {ACCESS_ACL, DEFAULT_ACL} & set(os.listxattr(site.volume()))
    assert owner(site.volume()) == (0, 0, 0o755)


def test_what_root_put_there_stays_and_its_own_mode_is_kept(site: Site, image: Image) -> None:
    """F1: certificates and options beforehand; a directory that was root's alone is no odd one."""
    site.volume().chmod(0o777)
    (site.volume() / "certs").mkdir()
    (site.volume() / "certs/ca.crt").write_text("ca")
    (site.volume() / "lost+found").mkdir(mode=0o700)
    assert site.upgrade(image)["state"] == "empty"
    assert (site.volume() / "certs/ca.crt").read_text() == "ca"
    other = Site(top=site.top / "other")
    other.top.mkdir()
    other.volume().chmod(0o700)
    other.upgrade(image)
    assert owner(other.volume()) == (0, 0, 0o700)


PLANTED = (".ipavolume", "build-id", "volume-version", "etc/acme/a.conf", "x/y", "link")


def test_what_was_planted_is_refused_and_named(site: Site, image: Image) -> None:
    """F1: nothing is taken over that others had the time to prepare."""
    for number, planted in enumerate(PLANTED):
        shutil.rmtree(site.volume())
        _make_odd(site, *((0, 0, 0o777) if number % 2 else (1000, 1000, 0o755)))
        place = site.volume() / planted
        place.parent.mkdir(parents=True, exist_ok=True)
        if planted == "link":
            place.symlink_to("/etc")
        elif planted == ".ipavolume":
            place.mkdir()
        else:
            place.write_text("planted")
        os.chown(place, 1000, 1000, follow_symlinks=False)
        before = picture(site.volume())
        said = site.refused(image, "unsafe-volume", "--allow", "occupied", "--allow", "stateless")
        if planted in ("etc/acme/a.conf", "x/y", "link"):
            assert f"'{planted}'" in said.replace("/data/", "")
        assert picture(site.volume()) == before
    assert _state(site, image, 65)["state"] == "unsafe"


def _opened(site: Site) -> Volume:
    return open_volume("/data", str(site.volume()))


@pytest.mark.parametrize("name", ["planted", ".ipavolume", "here/deeper"])
def test_what_comes_while_the_directory_changes_hands_has_it_put_back(
    site: Site, name: str
) -> None:
    """F1: between the look and the change others can still write."""
    site.volume().chmod(0o2777)
    os.setxattr(site.volume(), DEFAULT_ACL, OPEN_TO_1000)
    (site.volume() / "here").mkdir()
    volume = _opened(site)
    try:
        facts = {"/data": read_facts(volume)}
        (site.volume() / name).mkdir()
        os.chown(site.volume() / name, 1000, 1000)
        before = picture(site.volume())
        with pytest.raises(UnsafeVolumeError, match=name):
            roots.take({"/data": volume}, facts)
        assert picture(site.volume()) == before
        assert DEFAULT_ACL in os.listxattr(site.volume())
    finally:
        os.close(volume.fd)


def test_a_start_that_came_first_is_not_disturbed(site: Site) -> None:
    """F1: two starts find it empty; the second finds the other's directory, and judges anew."""
    site.volume().chmod(0o777)
    volume = _opened(site)
    try:
        facts = {"/data": read_facts(volume)}
        assert roots.take({"/data": volume}, facts)
        (site.volume() / ".ipavolume").mkdir(mode=0o755)
        assert roots.take({"/data": volume}, facts)
        assert site.volume().stat().st_mode & 0o077 == 0
    finally:
        os.close(volume.fd)


def test_a_volume_that_another_host_has_populated_meanwhile_is_not_opened_again(
    site: Site, image: Image
) -> None:
    """F1, F40: on NFS only the lock file keeps the second host off, and it comes after this."""
    site.volume().chmod(0o777)
    volume = _opened(site)
    try:
        facts = {"/data": read_facts(volume)}
        site.upgrade(image)
        before = picture(site.volume())
        assert roots.take({"/data": volume}, facts)
        assert picture(site.volume()) == before
        assert owner(site.volume())[:2] == (0, 0)
    finally:
        os.close(volume.fd)


def test_more_than_can_be_looked_at_twice_is_refused(site: Site) -> None:
    """F1: directories in one another, each of which is opened from the top, took minutes."""
    site.volume().chmod(0o777)
    deep = os.open(site.volume(), os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d", dir_fd=deep)
        inner = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = inner
    os.close(deep)
    volume = _opened(site)
    try:
        with pytest.raises(UnsafeVolumeError, match="more than"):
            read_facts(volume)
    finally:
        os.close(volume.fd)


def test_killed_while_it_changes_hands_the_next_start_takes_it(
    site: Site, image: Image, tmp_path: Path
) -> None:
    """F1: from the first change until the volume is open to everybody."""
    command = [sys.executable, "-m", "ipavolume", "upgrade", "-q", *site.arguments(image)]
    _make_odd(site, 1000, 1000, 0o777)
    env = clean_environment({})
    done, calls = trace(command, env=env, log=tmp_path / "log")
    assert done.returncode == 0, done.stderr
    modes = [call for call in calls if call.name in ("fchownat", "chown", "chmod", "fchmodat")]
    syncs = [call for call in calls if call.name == "renameat2"]
    # Before it is given, in between, before it is made the start's, after the mark, at the end.
    for call in (modes[0], modes[1], modes[2], syncs[1], modes[-1]):
        shutil.rmtree(site.volume())
        _make_odd(site, 1000, 1000, 0o777)
        killed(command, call, env=env)
        site.upgrade(image)
        assert owner(site.volume()) == (0, 0, 0o755), call


def test_an_fs_group_is_refused_with_what_to_set(site: Site, image: Image) -> None:
    """F1: Kubernetes regroups the whole volume at every mount."""
    os.chown(site.volume(), 0, 2000)
    site.volume().chmod(0o2775)
    before = picture(site.volume())
    found = _state(site, image, 65)
    assert found["state"] == "empty"
    said = site.run("start", image, "--", "true", status=65).stderr
    assert "[fs-group]" in said
    for word in ("fsGroup", "securityContext", "group 2000", "--allow fs-group"):
        assert word in said
    assert picture(site.volume()) == before
    assert site.upgrade(image, "--allow", "fs-group")["state"] == "empty"
    assert site.history()[-1]["overrides"] == ["fs-group"]
    assert owner(site.volume()) == (0, 0, 0o755)
    # And at the next mount, where nothing overrides it.
    os.chown(site.volume(), 0, 2000)
    site.volume().chmod(0o2775)
    said = site.run("upgrade", image, "--allow", "fs-group", status=65).stderr
    assert "[unsafe-volume]" in said
    assert "fsGroup" in said


def test_a_further_volume_is_given_to_root_as_well(site: Site, rpm: Path) -> None:
    """F1: the primary one may have been there for long."""
    config = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/db"\n'
    one = site.image("one", [rpm], lists={"/data": ["/etc/acme/"]})
    site.upgrade(one)
    lists = {"/data": ["/etc/acme/"], "/db": ["/var/lib/acme/"]}
    two = site.image("two", [rpm], lists=lists, config=config)
    site.volume("/db").chmod(0o777)
    outcome = site.upgrade(two)
    said = f"the root directory of {site.volume('/db')} (0:0, mode 0777) becomes root's alone"
    assert said in outcome["reason"]
    assert owner(site.volume("/db")) == (0, 0, 0o755)


# -- what a container is given -----------------------------------------------------------


RIGHTS: Final = "-all,+chown,+dac_override,+fowner,+fsetid"
"""What the README names, and no more."""


def _with_a_shell(image: Image) -> None:
    image.mask_steps()
    image.write("/usr/bin/sh", Path("/bin/sh").read_bytes(), mode=0o755)
    (image.root / "bin").symlink_to("usr/bin")


def _start(*options: str) -> str:
    return shlex.join([*options, *inside.IPAVOLUME, "start", "-q", "--", "cat", "/etc/acme/a.conf"])


def _inside(site: Site, image: Image, *lines: str) -> Result:
    return inside.run(image.root, site.volume(), ["sh", "-ec", "\n".join(lines)])


def test_a_container_needs_no_more_rights_than_named_and_no_place_but_the_volume(
    site: Site, image: Image, newer: Path
) -> None:
    """F4, F5: ``--cap-drop ALL``, ``--read-only``, no ``/tmp``; a fresh volume and an upgrade."""
    bare = (
        "mount -o remount,ro /tmp",
        "mount -o remount,ro /",
        _start("setpriv", f"--bounding-set={RIGHTS}", f"--inh-caps={RIGHTS}", "--"),
    )
    done = _inside(site, image, *bare)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("one")
    two = site.image(
        "two",
        [newer],
        lists={"/data": ["/etc/acme/", "/var/lib/acme/"]},
        config='[scriptlets]\npackages = ["acme"]\n',
        edit=_with_a_shell,
    )
    done = _inside(site, two, *bare)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("two")
    assert (site.volume() / "var/lib/acme/version").read_text() == "upgraded 2\n"
    assert "warning" not in done.stdout + done.stderr
    assert picture(site.volume() / ".ipavolume").keys().isdisjoint({"transaction", "trash"})


def test_a_file_that_is_mounted_over_a_listed_path_is_no_instance(site: Site, image: Image) -> None:
    """F6: populated around what the engine mounts there, and started without it as well."""
    done = _inside(
        site,
        image,
        "mkdir -p /data/etc/acme",
        "touch /data/etc/acme/a.conf",
        "echo mine > /tmp/a.conf",
        "mount --bind /tmp/a.conf /data/etc/acme/a.conf",
        "mount -o remount,bind,ro /data/etc/acme/a.conf",
        _start(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("mine\n")
    assert _inside(site, image, _start()).returncode == 0
    assert (site.volume() / "etc/acme/a.conf.rpmnew").read_text() == "one"


def test_a_file_system_without_renames_that_do_not_replace_holds_a_volume(
    site: Site, image: Image, newer: Path
) -> None:
    """F14: whichever way the kernel says that there are none."""
    lists = {"/data": ["/etc/acme/", "/var/lib/acme/"]}
    two = site.image("two", [newer], lists=lists, edit=lambda one: one.mask_steps())
    strace = [need_tool("strace"), "-f", "-qq", "-o", os.devnull, "-e", "trace=renameat2"]
    for error, one in (("EOPNOTSUPP", image), ("EINVAL", two)):
        words = [*strace, "-e", f"inject=renameat2:error={error}", sys.executable, "-m"]
        words += ["ipavolume", "upgrade", "-q", *site.arguments(one)]
        env = clean_environment({})
        done = subprocess.run(words, check=False, capture_output=True, env=env, timeout=120)
        assert done.returncode == 0, done.stderr
        assert (site.volume() / "build-id").read_text().strip() == one.header().build_id


# -- what is mounted where ---------------------------------------------------------------

INSTALLS: Final = """
[first-run]
command = ["/usr/bin/acme-setup"]
done-when = "/etc/acme/configured"
"""
ANONYMOUS: Final = "0123456789abcdef" * 4


def _installing(site: Site, rpm: Path) -> Image:
    def edit(image: Image) -> None:
        image.mask_steps()
        setup = "#!/bin/sh\necho installing >&2\ntouch /etc/acme/configured\n"
        image.write("/usr/bin/acme-setup", setup, mode=0o755)

    lists = {"/data": ["/etc/acme/", "/var/lib/acme/"]}
    return site.image("installs", [rpm], lists=lists, config=INSTALLS, edit=edit)


def test_without_a_volume_nothing_is_installed_unless_that_is_meant(site: Site, rpm: Path) -> None:
    """F35: no ``-v`` at all, another place, and a root that is read-only besides."""
    image = _installing(site, rpm)
    other = site.top / "other"
    other.mkdir()
    start = [*inside.IPAVOLUME, "start", "--", "true"]
    done = inside.run(image.root, {}, start)
    assert done.returncode == 77
    assert "nothing is mounted at /data" in done.stderr
    assert "-v NAME:/data" in done.stderr
    assert "installing" not in done.stderr
    done = inside.run(image.root, {"/dat": other}, start)
    assert done.returncode == 77
    # The machine may have mounts of its own below, where the test's checkout is one.
    assert re.search(r"nothing is mounted at /data, only at .*'/dat'", done.stderr)
    assert not list(other.iterdir())
    env = {"IPAVOLUME_ALLOW": "not-mounted"}
    done = inside.run(image.root, {}, start, env=env)
    assert done.returncode == 0, done.stderr
    assert "lost with the container" in done.stderr
    read_only = ["sh", "-ec", 'mount -o remount,ro /; exec "$@"', "sh", *start]
    done = inside.run(image.root, {}, read_only, env=env)
    assert done.returncode == 74
    assert "nothing is mounted at /data, and the container's root is read-only" in done.stderr
    # A directory that was given is where it is, as on a host: nothing is said of a container.
    given = 'mkdir /given; mount -o remount,ro /; exec "$@" upgrade --volume /given'
    done = inside.run(image.root, {}, ["sh", "-ec", given, "sh", *inside.IPAVOLUME])
    assert done.returncode == 74
    assert "the volume '/given' is mounted read-only [read-only]" in done.stderr


def test_an_anonymous_volume_is_named_before_anything_is_installed(site: Site, rpm: Path) -> None:
    """F35: by the directory that docker and podman have it in."""
    image = _installing(site, rpm)
    site.volumes["/data"] = site.top / f"volumes/{ANONYMOUS}/_data"
    site.volume().mkdir(parents=True)
    done = inside.run(image.root, site.volume(), [*inside.IPAVOLUME, "start", "--", "true"])
    assert done.returncode == 0, done.stderr
    said, _, installed = done.stderr.partition("acme-setup begins")
    assert f"the volume at /data is an anonymous one ({ANONYMOUS[:12]})" in said
    assert installed
    assert "anonymous" not in installed


def test_a_current_volume_that_is_read_only_is_handed_over_with_a_word(
    site: Site, image: Image
) -> None:
    """F37: its application cannot write to it."""
    site.upgrade(image)
    done = _inside(site, image, "mount -o remount,bind,ro /data", _start())
    assert done.returncode == 0, done.stderr
    assert "mounted read-only: nothing can be written to it" in done.stderr


def test_a_service_directory_that_was_moved_to_another_mount_stays_there(
    site: Site, image: Image, newer: Path
) -> None:
    """F7: a disk of its own at ``/big``, which no image knows of."""
    site.upgrade(image)
    big = site.top / "big"
    big.mkdir(mode=0o755)
    (site.volume() / "var/lib/acme").rename(big / "acme")
    (big / "acme/data").write_text("much")
    (site.volume() / "var/lib/acme").symlink_to("/big/acme")
    lists = {"/data": ["/etc/acme/", "/var/lib/acme/"]}
    two = site.image("two", [newer], lists=lists, edit=lambda one: one.mask_steps())
    (found,) = volume_of(site.run("check", two, "--json", status=100).stdout)["findings"]
    assert (found["severity"], found["code"]) == ("note", "relocated-outside")
    start = [*inside.IPAVOLUME, "start", "--", "cat", "/var/lib/acme/data"]
    done = inside.run(two.root, site.volume(), start)
    assert done.returncode == 65, done.stderr
    assert "to '/big/acme', and that is not here [unsafe-link]" in done.stderr
    done = inside.run(two.root, {"/data": site.volume(), "/big": big}, start)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("much")
    assert owner(big / "acme")[:2] != (0, 0)


# -- what an image accepts ---------------------------------------------------------------


def _prepared(
    site: Site, name: str, rpm: Path, *, config: str = "", release: str = "43", more: str = ""
) -> Image:
    def edit(image: Image) -> None:
        image.mask_steps()
        image.write("/etc/os-release", f"ID=fedora\nVERSION_ID={release}\n{more}")

    lists = {"/data": ["/etc/acme/", "/var/lib/acme/"]}
    return site.image(name, [rpm], lists=lists, config=config, edit=edit)


def test_an_image_of_rawhide_takes_a_volume_when_it_says_so(
    site: Site, rpm: Path, newer: Path
) -> None:
    """F12: two releases above the volume's."""
    site.upgrade(_prepared(site, "one", rpm))
    rawhide = "REDHAT_BUGZILLA_PRODUCT_VERSION=rawhide\nRELEASE_TYPE=development\n"
    rule = '[accept]\nfrom = ["fedora:same-or-previous"{}]\n'
    options = {"release": "45", "more": rawhide}
    two = _prepared(site, "two", newer, config=rule.format(""), **options)
    said = site.run("upgrade", two, status=77).stderr
    assert "[incompatible]" in said
    assert 'from = ["fedora>=43"]' in said
    three = _prepared(site, "three", newer, config=rule.format(', "fedora>=43"'), **options)
    assert site.upgrade(three)["state"] == "outdated"


def test_a_guard_of_nothing_guards_nothing_and_none_everything(
    site: Site, rpm: Path, newer: Path
) -> None:
    """F13: one older package in an image; the message names the setting."""
    site.upgrade(_prepared(site, "one", newer))
    said = site.run("upgrade", _prepared(site, "two", rpm), status=77).stderr
    assert "[newer]" in said
    assert "guard in [accept] of /etc/ipavolume.toml (not written: all; []: none)" in said
    site.run("check", _prepared(site, "three", rpm, config='[accept]\nguard = ["a*"]\n'), status=77)
    four = _prepared(site, "four", rpm, config="[accept]\nguard = []\n")
    assert site.upgrade(four)["state"] == "outdated"
