"""Adoption: volumes that the freeipa-container project's scripts populated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support import tracing
from support.command import clean_environment, volume_of
from support.filesystems import Filesystems
from support.images import Image, Packaged, build_rpm, picture
from support.peers import ids
from support.requirements import find_tool, need_tool
from support.upgrades import Site, actions, owner, set_acl

from ipavolume.model.files import FileFlags, FileType

pytestmark = [pytest.mark.root, pytest.mark.rpm]

PEER = os.environ.get("IPAVOLUME_PEER", "")
PATHS = ["/etc/app/", "/etc/single.conf", "/etc/pki/", "/etc/dirsrv/", "/var/lib/ipa/"]
LISTS = {"/data": PATHS}
CONFIG = 'profile = "freeipa"\n[start]\nexec = ["true"]\n[scriptlets]\npackages = []\n'
NOREPLACE = "%config(noreplace)"
SYSUPGRADE = "var/lib/ipa/sysupgrade/sysupgrade.state"
DSE = "etc/dirsrv/slapd-EXAMPLE-TEST/dse.ldif"


def _files(version: str) -> list[Packaged]:
    text = f"version {version}\n"
    files = [
        Packaged(path="/etc/app", directory=True, words="%attr(0755,root,svc)"),
        Packaged(path="/etc/single.conf", words=NOREPLACE, content=text),
        Packaged(path="/etc/app/same.conf", words=NOREPLACE, content="same\n"),
        Packaged(path="/etc/app/program", content=text),
        Packaged(path="/etc/app/link", target=f"version-{version}"),
        Packaged(path="/etc/app/link.conf", words="%config", target=f"version-{version}"),
        *(
            Packaged(path=f"/etc/app/{name}", words=f"{words} %attr(0640,root,svc)", content=text)
            for name, words in (
                ("clean", NOREPLACE),
                ("clean-plain", "%config"),
                ("edited", NOREPLACE),
                ("edited-plain", "%config"),
                ("deleted", NOREPLACE),
                ("tightened", NOREPLACE),
                ("given", NOREPLACE),
                ("linked", NOREPLACE),
                ("\u00fcmlaut", NOREPLACE),
            )
        ),
    ]
    if version == "1":
        files += [
            Packaged(path="/etc/app/dropped", words="%config", content=text),
            Packaged(path="/etc/app/dropped-edited", words="%config", content=text),
            Packaged(path="/etc/app/dropped-program", content=text),
        ]
    else:
        files += [
            Packaged(path="/etc/app/later", words="%config", content=text),
            Packaged(path="/etc/app/later.d", directory=True, words="%attr(0750,svc,svc)"),
            Packaged(path="/etc/app/later.d/file", content=text),
        ]
    return files


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The application and FreeIPA's own packages, by version of the image."""
    top = tmp_path_factory.mktemp("adoption")
    dirsrv = [Packaged(path="/usr/share/dirsrv/x", content="x")]
    return {
        version: [
            build_rpm(top, "app", _files(version), version=version),
            build_rpm(
                top,
                "freeipa-server",
                [Packaged(path="/usr/share/ipa/x", content="x")],
                version=f"4.12.{version}",
                release=f"3.fc4{int(version) + 1}",
            ),
            build_rpm(top, "389-ds-base", dirsrv, version=f"3.1.{version}"),
            build_rpm(
                top,
                "pki-server",
                [Packaged(path="/usr/share/pki/x", content="x")],
                version=f"11.{version}.0",
            ),
        ]
        for version in "12"
    }


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _instance(volume: Path, version: str = "1", *, release: str = "fc42") -> None:
    """Write what FreeIPA itself records of its versions, and what daemons keep."""
    _write(
        volume / SYSUPGRADE,
        "[dns]\nregen_named_conf = True\n\n"
        f"[ipa]\nplatform = fedora\ndata_version = 4.12.{version}-3.{release}\n",
    )
    _write(
        volume / "etc/pki/pki.version",
        f"Configuration-Version: 11.{version}.0\n\nSpecification-Version: 11.{version}.0\n",
    )
    _write(
        volume / DSE,
        "dn: cn=config\nnsslapd-port: 389\n"
        f"nsslapd-versionstring: 389-Directory/3.1.{version} B2025.024.0000\n",
    )
    os.chown(_write(volume / "var/lib/ipa/private/key", "a key"), 4242, 4242)


def _set_os(image: Image, os_id: str, version: str) -> None:
    image.write("/usr/lib/os-release", f'ID={os_id}\nVERSION_ID="{version}"\n')


def _image(
    site: Site,
    packages: dict[str, list[Path]],
    version: str = "2",
    *,
    release: tuple[str, str] = ("fedora", "43"),
    edit: Callable[[Image], None] = lambda _: None,
) -> Image:
    def dockerfile(image: Image) -> None:
        _set_os(image, *release)
        # It is about files, on a host: nothing is executed there.
        image.mask_steps()
        edit(image)

    return site.image(
        f"image-{version}", packages[version], lists=LISTS, config=CONFIG, edit=dockerfile
    )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A machine."""
    return Site(top=tmp_path)


@pytest.fixture
def legacy(site: Site, packages: dict[str, list[Path]]) -> Site:
    """A volume as those scripts leave it after a first start and one upgrade.

    Made from the description of its layout; :func:`by_the_scripts` runs the scripts.
    """
    image = _image(site, packages, "1", release=("fedora", "42"))
    volume = site.volume()
    template = image.root / "data-template"
    subprocess.run(["cp", "-a", f"{template}/.", str(volume)], check=True, timeout=60)
    for name, wanted in (
        (".configfiles", FileFlags.CONFIG),
        (".configfiles-noreplace", FileFlags.CONFIG | FileFlags.NOREPLACE),
    ):
        for record in image.records().values():
            inside = record.path.removeprefix("/data/")
            if record.flags & wanted == wanted and record.type is not FileType.DIRECTORY:
                target = volume / name / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                copy = ["cp", "-a", str(template / inside), str(target)]
                subprocess.run(copy, check=True, timeout=60)
    _write(volume / "volume-version", "2.0\n")
    _write(volume / "build-id", "2e5b6f7c-51f7-4c2c-8f8c-0a8f6c1d7e55\n")
    _write(volume / "build-id-upgraded-20250714-093012", "an older id\n")
    _write(volume / "hostname", "ipa.example.test\n")
    _instance(volume)
    return site


def _administrate(volume: Path) -> None:
    """Do what administrators and services do."""
    app = volume / "etc/app"
    for name in ("edited", "edited-plain", "dropped-edited", "\u00fcmlaut"):
        (app / name).write_text(f"edited {name}\n")
    (app / "deleted").unlink()
    (app / "tightened").chmod(0o600)
    os.chown(app / "given", 0, 4343)
    set_acl(app / "same.conf", "u:4242:rw")
    (app / "linked").unlink()
    (app / "linked").symlink_to("/run/secrets/linked")
    (app / "program").write_text("patched\n")
    _write(app / "own.conf", "mine\n")
    _write(volume / "var/lib/ipa/backup/data", "a backup\n")


def test_with_configfiles_config_files_follow_rpms_rules(
    legacy: Site, packages: dict[str, list[Path]]
) -> None:
    volume = legacy.volume()
    app = volume / "etc/app"
    _administrate(volume)
    left = {
        path: seen
        for path, seen in picture(volume).items()
        if path.startswith(("/var/", "/etc/dirsrv", "/etc/pki", "/.", "/build-id-", "/h"))
    }
    image = _image(legacy, packages)
    checked = volume_of(legacy.run("check", image, "--json", status=100).stdout)
    assert checked["state"] == "legacy"
    assert "fedora:42" in checked["reason"]
    outcome = legacy.upgrade(image)
    assert outcome["state"] == "legacy"
    content = {
        path.name: os.readlink(path) if path.is_symlink() else path.read_text()
        for path in app.iterdir()
        if not path.is_dir()
    }
    new = "version 2\n"
    assert content == {
        "same.conf": "same\n",
        "clean": new,
        "clean-plain": new,
        "edited": "edited edited\n",
        "edited.rpmnew": new,
        "\u00fcmlaut": "edited \u00fcmlaut\n",
        "\u00fcmlaut.rpmnew": new,
        "edited-plain": new,
        "edited-plain.rpmsave": "edited edited-plain\n",
        "deleted": new,
        "tightened": new,
        "given": new,
        "linked": "/run/secrets/linked",
        "linked.rpmnew": new,
        "dropped-edited.rpmsave": "edited dropped-edited\n",
        "later": new,
        "own.conf": "mine\n",
        # Nothing says what these were: they are left, and somebody is told.
        "program": "patched\n",
        "dropped-program": "version 1\n",
        "link": "version-1",
        "link.conf": "version-1",
        "link.conf.rpmnew": "version-2",
    }
    assert (volume / "etc/single.conf").read_text() == new
    assert (app / "later.d/file").read_text() == new
    assert owner(app / "later.d") == (250, 251, 0o750)
    # What an administrator set stays, on a new content too.
    assert owner(app / "tightened") == (0, 251, 0o600)
    assert owner(app / "given") == (0, 4343, 0o640)
    assert owner(app / "same.conf") == (0, 0, 0o664)
    assert owner(app / "clean") == (0, 251, 0o640)
    kept = actions(outcome, "keep")
    assert {kept[f"/data/etc/app/{name}"]["rule"] for name in ("program", "link")} == {
        "unknown-old"
    }
    now = picture(volume)
    assert {path: now[path] for path in left} == left

    history = legacy.history()
    assert [(run["kind"], run["to"]) for run in history] == [("adopt", "image-2")]
    assert history[0]["from"] == "2e5b6f7c-51f7-4c2c-8f8c-0a8f6c1d7e55"
    again = legacy.upgrade(image)
    assert again["state"] == "current"
    assert picture(volume) == now
    listed = legacy.run("conflicts", image).stdout
    assert len(listed.splitlines()) == 6


def test_after_adoption_an_upgrade_is_like_any_other(
    legacy: Site, packages: dict[str, list[Path]], tmp_path: Path
) -> None:
    volume = legacy.volume()
    _administrate(volume)
    legacy.upgrade(_image(legacy, packages))
    files = [
        replace(one, content="version 3\n") if one.content == "version 2\n" else one
        for one in _files("2")
    ]
    third = [build_rpm(tmp_path, "app", files, version="3"), *packages["2"][1:]]
    app = volume / "etc/app"
    (app / "clean").write_text("edited later\n")
    outcome = legacy.upgrade(_image(legacy, {"3": third}, "3"))
    assert outcome["state"] == "outdated"
    assert (app / "clean").read_text() == "edited later\n"
    assert (app / "clean.rpmnew").read_text() == "version 3\n"
    assert (app / "clean-plain").read_text() == "version 3\n"
    assert (app / "edited").read_text() == "edited edited\n"
    assert (app / "edited.rpmnew").read_text() == "version 2\n"
    assert (app / "edited.rpmnew.1").read_text() == "version 3\n"
    # What was unknown is known by now: a changed program is replaced, and kept.
    assert (app / "program").read_text() == "version 3\n"
    (run,) = (plan["run"] for plan in outcome["plans"])
    saved = volume / f".ipavolume/saved/{run}/etc/app/program"
    assert saved.read_text() == "patched\n"


@pytest.mark.parametrize("missing", ["both", "contents", "truncated"])
def test_without_configfiles_nothing_is_overwritten(
    missing: str, legacy: Site, packages: dict[str, list[Path]]
) -> None:
    volume = legacy.volume()
    for name in (".configfiles", ".configfiles-noreplace"):
        if missing == "truncated":
            # An upgrade by the scripts ran out of space while it wrote them.
            for path in (volume / name).rglob("*"):
                if path.is_file() and not path.is_symlink():
                    os.truncate(path, 0)
        else:
            shutil.rmtree(volume / name)
            if missing == "contents":
                (volume / name).mkdir()
    _administrate(volume)
    before = picture(volume)
    image = _image(legacy, packages)
    legacy.upgrade(image)
    now = picture(volume)
    changed = {path for path in before if now.get(path) != before[path]}
    replaced = {
        path
        for path in changed
        if not before[path][0].startswith("d")  # type: ignore[attr-defined]
    }
    if missing == "truncated":
        # A plain config file is replaced, as rpm does; its content stays beside it.
        assert replaced == {
            "/build-id",
            "/etc/app/clean-plain",
            "/etc/app/edited-plain",
            "/etc/app/dropped",
            "/etc/app/dropped-edited",
            "/volume-version",
        }
        app = volume / "etc/app"
        assert (app / "clean-plain.rpmsave").read_text() == "version 1\n"
        assert (app / "edited-plain.rpmsave").read_text() == "edited edited-plain\n"
        assert (app / "dropped.rpmsave").read_text() == "version 1\n"
        assert (app / "dropped-edited.rpmsave").read_text() == "edited dropped-edited\n"
    else:
        assert replaced == {"/build-id", "/volume-version"}
    for name in ("clean", "edited", "tightened", "given", "linked"):
        assert (volume / f"etc/app/{name}.rpmnew").read_text() == "version 2\n"
    assert (volume / "etc/app/later").read_text() == "version 2\n"
    assert legacy.upgrade(image)["state"] == "current"


def test_a_volume_of_the_very_image_is_adopted_without_a_change(
    legacy: Site, packages: dict[str, list[Path]]
) -> None:
    """The image of the id on the volume, prepared again with ipavolume."""
    volume = legacy.volume()
    (volume / "build-id").write_text("image-1\n")
    _instance(volume)
    image = Image(root=legacy.top / "image-1")
    before = picture(volume)
    outcome = legacy.upgrade(image)
    assert outcome["state"] == "legacy"
    assert all(not plan["actions"] for plan in outcome["plans"])
    now = picture(volume, leave_out=lambda path: path.startswith("/.ipavolume"))
    # It says whose it is now.
    assert now.pop("/volume-version") != before.pop("/volume-version")
    assert {path: seen[:-1] for path, seen in now.items()} == {
        path: seen[:-1] for path, seen in before.items()
    }
    assert legacy.upgrade(image)["state"] == "current"


# -- where it comes from -----------------------------------------------------------------


def _refused(site: Site, image: Image, code: str, *words: str, args: Sequence[str] = ()) -> None:
    before = picture(site.top)
    said = site.refused(image, code, *args, status=77)
    for word in words:
        assert word in said, said
    site.run("check", image, *args, status=77)
    site.run("start", image, *args, status=77)
    assert picture(site.top) == before


@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        (SYSUPGRADE, "4.12.1-3.fc42", "4.13.0-1.fc43"),
        ("etc/pki/pki.version", "11.1.0", "11.10.0"),
        (DSE, "389-Directory/3.1.1", "389-Directory/3.2.0"),
    ],
)
def test_data_of_a_newer_version_is_refused(
    where: str, old: str, new: str, legacy: Site, packages: dict[str, list[Path]]
) -> None:
    path = legacy.volume() / where
    path.write_text(path.read_text().replace(old, new))
    image = _image(legacy, packages)
    ours = {"4.13.0-1.fc43": "4.12.2-3.fc43", "11.10.0": "11.2.0", "389-Directory/3.2.0": "3.1.2"}
    _refused(legacy, image, "newer", new.rpartition("/")[2], ours[new])
    legacy.upgrade(image, "--allow", "newer")
    assert legacy.history()[-1]["overrides"] == ["newer"]


@pytest.mark.parametrize(
    ("recorded", "release", "accepted"),
    [
        ("fc42", ("fedora", "43"), True),
        ("fc43", ("fedora", "43"), True),
        ("fc41", ("fedora", "43"), False),
        ("el9_6", ("almalinux", "9.7"), True),
        ("el9", ("rhel", "9"), True),
        ("el9_6", ("almalinux", "10.1"), False),
        ("el9", ("fedora", "43"), False),
        ("fc42", ("centos", "10"), False),
    ],
)
def test_the_release_is_taken_from_the_version_of_the_data(
    recorded: str,
    release: tuple[str, str],
    accepted: bool,  # noqa: FBT001 - a column of the table
    legacy: Site,
    packages: dict[str, list[Path]],
) -> None:
    _instance(legacy.volume(), release=recorded)
    image = _image(legacy, packages, release=release)
    if accepted:
        assert legacy.upgrade(image)["state"] == "legacy"
    else:
        _refused(legacy, image, "incompatible", release[0], release[1])
        # The operator knows better what it is, or wants it anyway.
        legacy.upgrade(image, "--allow", "incompatible")
        assert legacy.history()[-1]["overrides"] == ["incompatible"]


@pytest.mark.parametrize("sysupgrade", ["missing", "without version", "a link", "a FIFO", "binary"])
def test_where_nothing_says_the_release_the_operator_does(
    sysupgrade: str, legacy: Site, packages: dict[str, list[Path]]
) -> None:
    path = legacy.volume() / SYSUPGRADE
    text = path.read_text()
    path.unlink()
    if sysupgrade == "without version":
        path.write_text("[ipa]\nplatform = fedora\n")
    elif sysupgrade == "a link":
        _write(legacy.top / "elsewhere", text)
        path.symlink_to(legacy.top / "elsewhere")
    elif sysupgrade == "a FIFO":
        os.mkfifo(path)
    elif sysupgrade == "binary":
        path.write_bytes(b"\xff\0data_version" * 1000)
    image = _image(legacy, packages)
    _refused(legacy, image, "unknown-version", str(legacy.volume()))
    _refused(legacy, image, "incompatible", "fedora 40", args=["--from", "fedora:40"])
    for wrong in ("42", ":42"):
        legacy.run("upgrade", image, "--from", wrong, status=2)
    outcome = legacy.upgrade(image, env={"IPAVOLUME_FROM": "fedora:42"})
    assert outcome["state"] == "legacy"
    assert (legacy.volume() / "etc/app/clean").read_text() == "version 2\n"


def test_consent_is_needed_for_an_adoption_too(
    legacy: Site, packages: dict[str, list[Path]]
) -> None:
    image = _image(legacy, packages)
    before = picture(legacy.top)
    legacy.refused(image, "no-consent", status=77, env={"IPAVOLUME_UPGRADE": "refuse"})
    assert picture(legacy.top) == before


# -- by the scripts themselves -----------------------------------------------------------

_IN_A_ROOT = """
set -e
root=$1 volume=$2 peer=$3
mount --bind /usr "$root/usr"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind "$peer" "$root/peer"
mount --bind "$volume" "$root/data"
shift 3
exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/root/bin:/usr/sbin:/usr/bin \
    bash -e -o pipefail -c "cd /; $*"
"""


def _in_root(root: Path, volume: Path, script: str) -> str:
    """Run a shell script in a tree that has the host's programs, with the volume at /data."""
    for name in ("usr", "dev", "proc", "peer", "data", "root/bin", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    # Where alternatives are links by way of /etc, which the tree has its own of.
    awk = find_tool("awk")
    if awk and not (root / "root/bin/awk").is_symlink():
        (root / "root/bin/awk").symlink_to(os.path.realpath(awk))
    (root / "root/.rpmmacros").write_text("%_dbpath /var/lib/rpm\n")
    # A mount namespace of its own: what is mounted there is seen by nobody else.
    command = [need_tool("unshare"), "--mount", "sh", "-c", _IN_A_ROOT, "sh"]
    done = subprocess.run(
        [*command, str(root), str(volume), PEER, script],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def by_the_scripts(site: Site, packages: dict[str, list[Path]]) -> Site:
    """A volume that the scripts of the freeipa-container project populated."""
    if not PEER:
        pytest.skip("IPAVOLUME_PEER names no checkout of the freeipa-container project")
    from support.images import make_image

    for version in "12":
        image = make_image(site.top / f"peer-{version}", packages[version])
        image.list(*PATHS)
        _in_root(
            image.root,
            site.volume(),
            "bash /peer/utils/prepare-volume-template /etc/volume-data-list /data; "
            f"echo id-of-{version} > /data-template/build-id",
        )
    _populate(site, "1")
    (site.volume() / "volume-version").write_text("2.0\n")
    _instance(site.volume())
    return site


def _populate(site: Site, version: str) -> str:
    return _in_root(
        site.top / f"peer-{version}",
        site.volume(),
        "bash /peer/utils/populate-volume-from-template /data",
    )


def test_what_we_have_is_told_from_theirs_without_our_state(
    legacy: Site, packages: dict[str, list[Path]]
) -> None:
    """A backup without the directories whose names begin with a dot; their scripts read on."""
    volume = legacy.volume()
    image = _image(legacy, packages)
    legacy.upgrade(image)
    said = (volume / "volume-version").read_text()
    assert said == "2.0\nipavolume\n"
    # What their tests and their script for the start of a container do with it.
    theirs = """grep -q '^2' volume-version; version=$(cat volume-version)
    if [ -x "/usr/sbin/ipa-volume-upgrade-$version-2.0" ]; then exit 13; fi"""
    subprocess.run(["bash", "-ec", theirs], cwd=volume, check=True, timeout=60)
    for path in volume.glob(".*"):
        shutil.rmtree(path)
    legacy.refused(image, "stateless")
    (volume / "volume-version").write_text("2.0\n")
    checked = volume_of(legacy.run("check", image, "--json", status=100).stdout)
    assert checked["state"] == "legacy"
    # Whose it is, is known all the same.
    (volume / "volume-version").write_text(said)
    outcome = legacy.upgrade(image, "--allow", "stateless", "--from", "fedora:42")
    assert outcome["state"] == "stateless"


def test_a_directory_where_the_version_would_be_stays(
    legacy: Site, packages: dict[str, list[Path]]
) -> None:
    place = legacy.volume() / "volume-version"
    place.unlink()
    place.mkdir()
    legacy.upgrade(_image(legacy, packages))
    assert list(place.iterdir()) == []


def test_a_version_that_is_mounted_over_stays(
    legacy: Site, packages: dict[str, list[Path]]
) -> None:
    """As by ``-v FILE:/data/volume-version``, or ``subPath`` of a pod."""
    place = legacy.volume() / "volume-version"
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        legacy.upgrade(_image(legacy, packages))
        assert place.read_text() == "2.0\n"
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_volume_populated_by_the_scripts_is_adopted(
    by_the_scripts: Site, packages: dict[str, list[Path]]
) -> None:
    volume = by_the_scripts.volume()
    assert (volume / "build-id").read_text() == "id-of-1\n"
    assert (volume / ".configfiles-noreplace/etc/app/clean").read_text() == "version 1\n"
    _administrate(volume)
    outcome = by_the_scripts.upgrade(_image(by_the_scripts, packages))
    assert outcome["state"] == "legacy"
    _assert_adopted(volume)


def _assert_adopted(volume: Path) -> None:
    app = volume / "etc/app"
    for name in ("clean", "clean-plain", "edited-plain", "tightened", "given", "later"):
        assert (app / name).read_text() == "version 2\n", name
    assert (app / "edited").read_text() == "edited edited\n"
    assert (app / "edited.rpmnew").read_text() == "version 2\n"
    assert (app / "edited-plain.rpmsave").read_text() == "edited edited-plain\n"
    assert (app / "dropped-edited.rpmsave").read_text() == "edited dropped-edited\n"
    assert (app / "own.conf").read_text() == "mine\n"
    assert os.readlink(app / "linked") == "/run/secrets/linked"
    assert owner(app / "tightened") == (0, 251, 0o600)
    assert owner(app / "given") == (0, 4343, 0o640)


def test_a_volume_upgraded_by_the_scripts_is_adopted(
    by_the_scripts: Site, packages: dict[str, list[Path]]
) -> None:
    site = by_the_scripts
    volume = site.volume()
    _administrate(volume)
    _populate(site, "2")
    (volume / "build-id").rename(volume / "build-id-upgraded-20260102-030405")
    (volume / "build-id").write_text("id-of-2\n")
    _instance(volume, "2", release="fc43")
    before = picture(volume)
    image = _image(site, packages)
    assert site.upgrade(image)["state"] == "legacy"
    now = picture(volume, leave_out=lambda path: path.startswith("/.ipavolume"))
    gone = {path for path in before if path not in now}
    assert gone == set()
    changed = {path for path in before if now[path][:-1] != before[path][:-1]}
    changed -= {"/build-id", "/volume-version"}
    # They leave links as they are; where one differs from the image's, that comes beside it.
    assert changed == set()
    assert set(now) - set(before) <= {"/etc/app/link.conf.rpmnew", "/etc/app/linked.rpmnew"}


def test_an_image_of_theirs_is_prepared_on_top_of_their_scripts(
    by_the_scripts: Site,
) -> None:
    site = by_the_scripts
    volume = site.volume()
    _administrate(volume)
    image = Image(root=site.top / "peer-2")
    image.mask_steps()
    image.write("/etc/ipavolume.toml", CONFIG)
    image.prepare()
    (build_id,) = ids(image)
    assert build_id != "id-of-2"
    assert image.records()["/data/etc/app/clean"].package == "app"
    assert not [path for path in image.records() if "configfiles" in path or "rpm-owned" in path]
    outcome = site.upgrade(image)
    assert outcome["recorded"] == build_id
    _assert_adopted(volume)
    assert site.upgrade(image)["state"] == "current"


@pytest.mark.filesystem
def test_an_adoption_keeps_what_the_old_image_left(
    legacy: Site, packages: dict[str, list[Path]], filesystem: Filesystems
) -> None:
    """Nobody has another way back from it: without room for one it is refused."""
    image = _image(legacy, packages)
    volume = legacy.volume()
    before = picture(volume, leave_out=lambda path: path == "/.ipavolume")
    roomy = volume
    legacy.volumes["/data"] = filesystem("ext4", 64) / "volume"
    subprocess.run(["cp", "-a", roomy, legacy.volume()], check=True, timeout=60)
    auto = {"IPAVOLUME_SNAPSHOT": "auto"}
    legacy.refused(image, "no-snapshot", status=74, env=auto)
    assert not (legacy.volume() / ".ipavolume/baseline.jsonl").exists()
    legacy.volumes["/data"] = roomy
    said = legacy.run("upgrade", image, env=auto).stderr
    assert "way back: a copy" in said or "way back: reflinks" in said
    (run,) = (volume / ".ipavolume/snapshots").iterdir()
    assert picture(run / "content") == before
    assert (run / "state/build-id").read_text() == (run / "content/build-id").read_text()
    # Their files, links and id are back, and nothing says any more that it was ever ours.
    legacy.run("rollback", image)
    after = picture(volume, times=False, leave_out=lambda path: path == "/.ipavolume")
    assert after == picture(run / "content", times=False)
    assert "legacy\n" in legacy.run("check", image, status=77).stdout
    legacy.run("upgrade", image, "--retry", env=auto)
    assert legacy.history()[-1]["kind"] == "adopt"


def test_what_went_back_is_theirs_again_half_done_or_committed(
    by_the_scripts: Site, packages: dict[str, list[Path]]
) -> None:
    """Their own scripts start on it as before, and find nothing to do."""
    site = by_the_scripts
    volume, image = site.volume(), _image(site, packages)
    _administrate(volume)
    _populate(site, "1")

    def seen() -> dict[str, tuple[object, ...]]:
        return picture(volume, times=False, leave_out=lambda path: path.startswith("/.ipavolume"))

    before = seen()
    pristine = site.top / "pristine"
    subprocess.run(["cp", "-a", volume, pristine], check=True, timeout=60)
    env = clean_environment({"IPAVOLUME_SNAPSHOT": "always"})
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(image)]
    done, calls = tracing.trace(command, env=env, log=site.top / "log")
    assert done.returncode == 0, done.stderr
    changes = [call for call in calls if tracing.is_change(call)]
    for half_done in (False, True):
        if half_done:
            shutil.rmtree(volume)
            subprocess.run(["cp", "-a", pristine, volume], check=True, timeout=60)
            mark = next(n for n, call in enumerate(changes) if '"transaction"' in call.text)
            tracing.killed(command, changes[(mark + len(changes)) // 2], env=env)
        assert seen() != before
        assert (volume / ".ipavolume/transaction").exists() == half_done
        site.run("rollback", image)
        assert seen() == before
        assert "legacy\n" in site.run("check", image, status=77).stdout
        _populate(site, "1")
        assert seen() == before
