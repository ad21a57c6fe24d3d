"""prepare, on trees that the real rpm made."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.command import PROJECT, run_ipavolume
from support.filesystems import Filesystems
from support.images import (
    LONG_AGO,
    MANIFEST,
    Image,
    Packaged,
    age,
    build_rpm,
    make_image,
    picture,
)
from support.requirements import need_tool
from support.steps import put_step, step_text

from ipavolume.errors import (
    ConfigurationError,
    IpaVolumeError,
    ManifestError,
    PackageError,
    UsageError,
)
from ipavolume.model.files import FileFlags, FileType
from ipavolume.rpm.query import rpm_database_xml

pytestmark = [pytest.mark.root, pytest.mark.rpm]

DATA = PROJECT / "tests/data"
CONFIG_NOREPLACE = FileFlags.CONFIG | FileFlags.NOREPLACE


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two packages that share a directory and a file, and a newer one."""
    top = tmp_path_factory.mktemp("packages")
    alpha = [
        Packaged(path="/etc/alpha", directory=True),
        Packaged(path="/etc/alpha/alpha.conf", words="%config(noreplace)", content="a1\n"),
        Packaged(path="/etc/alpha/plain.conf", words="%config", content="p1\n"),
        Packaged(path="/etc/alpha/maybe.conf", words="%config(missingok)", content="m1\n"),
        Packaged(path="/etc/alpha/data", content="d1\n"),
        Packaged(path="/etc/alpha/link", target="alpha.conf"),
        Packaged(path="/etc/alpha/shared", words="%config", content="s1\n"),
        Packaged(path="/etc/alpha/made-later", words="%ghost", content="g\n"),
        Packaged(path="/etc/alpha/gone", words="%ghost %attr(0640,root,svc)", content="g\n"),
        Packaged(path="/etc/alpha/gone.d", words="%ghost %attr(0750,svc,svc)", directory=True),
        Packaged(path="/etc/single.conf", words="%config", content="one\n"),
        Packaged(path="/var/lib/alpha", words="%ghost %attr(0750,svc,svc)", directory=True),
        Packaged(path="/var/log/alpha.log", words="%ghost", content="log\n"),
        Packaged(path="/var/legacy/alpha.state", content="state\n"),
    ]
    alpha.append(Packaged(path="/etc/kept.conf", words="%config(noreplace)", content="k1\n"))
    changed = {
        "/etc/alpha/alpha.conf": "a2\n",
        "/etc/single.conf": "two\n",
        "/etc/kept.conf": "k2\n",
    }
    newer = [replace(one, content=changed.get(one.path, one.content)) for one in alpha]
    return {
        "alpha": build_rpm(top, "alpha", alpha, epoch=1),
        "alpha2": build_rpm(top, "alpha", newer, version="2", epoch=1),
        "aaa": build_rpm(
            top,
            "aaa",
            [
                Packaged(path="/etc/alpha", directory=True),
                Packaged(path="/etc/alpha/shared", content="s1\n"),
                Packaged(path="/etc/aaa.conf", words="%config", content="x\n"),
            ],
        ),
    }


@pytest.fixture
def image(tmp_path: Path, packages: dict[str, Path]) -> Image:
    """A tree with both packages."""
    return make_image(tmp_path / "root", [packages["alpha"], packages["aaa"]])


@pytest.fixture
def bare(tmp_path: Path, packages: dict[str, Path]) -> Image:
    """A tree with a package that owns next to nothing."""
    return make_image(tmp_path / "root", [packages["aaa"]])


def test_what_the_manifest_says_of_packaged_files(image: Image) -> None:
    image.list("/etc/alpha/", "/etc/single.conf", "/var/lib/alpha/", "/var/log/alpha.log")
    (image.root / "etc/alpha/maybe.conf").write_text("edited by a Dockerfile\n")
    image.write("/etc/alpha/made-later", "by a scriptlet\n")
    os.chown(image.root / "etc/alpha/data", 250, 251)
    os.chown(image.root / "etc/alpha/plain.conf", 4242, 4243)
    result = image.prepare(image_name="example/alpha:1")

    records = image.records()
    assert sorted(records) == [
        "/data/etc",
        "/data/etc/alpha",
        "/data/etc/alpha/alpha.conf",
        "/data/etc/alpha/data",
        "/data/etc/alpha/gone",
        "/data/etc/alpha/gone.d",
        "/data/etc/alpha/link",
        "/data/etc/alpha/made-later",
        "/data/etc/alpha/maybe.conf",
        "/data/etc/alpha/plain.conf",
        "/data/etc/alpha/shared",
        "/data/etc/single.conf",
        "/data/var",
        "/data/var/lib",
        "/data/var/lib/alpha",
        "/data/var/log",
        "/data/var/log/alpha.log",
    ]
    below = {path.removeprefix("/data/etc/"): record for path, record in records.items()}
    assert below["alpha"].package in ("aaa", "alpha")
    conf = below["alpha/alpha.conf"]
    assert (conf.flags, conf.package, conf.rpm_digest) == (CONFIG_NOREPLACE, "alpha", "")
    assert (conf.owner, conf.group, conf.size, conf.mode) == ("root", "root", 3, 0o644)
    maybe = below["alpha/maybe.conf"]
    assert maybe.flags == FileFlags.CONFIG | FileFlags.MISSINGOK
    assert maybe.rpm_digest.startswith("sha256:")
    assert maybe.rpm_digest != f"sha256:{maybe.content}"
    assert (below["alpha/data"].owner, below["alpha/data"].group) == ("svc", "svc")
    assert (below["alpha/plain.conf"].owner, below["alpha/plain.conf"].uid) == ("4242", 4242)
    assert (below["alpha/link"].type, below["alpha/link"].content) == (
        FileType.SYMLINK,
        "alpha.conf",
    )
    assert below["alpha/shared"].package == "alpha", "the owner whose file is config"
    assert below["alpha/made-later"].flags == FileFlags.GHOST
    assert below["alpha/made-later"].present
    assert not below["alpha/gone"].present
    assert (below["alpha/gone"].mode, below["alpha/gone"].uid, below["alpha/gone"].gid) == (
        0o640,
        0,
        251,
    )
    assert (below["alpha/gone.d"].type, below["alpha/gone.d"].present) == (
        FileType.DIRECTORY,
        False,
    )
    lib = records["/data/var/lib/alpha"]
    assert (lib.present, lib.mode, lib.uid, lib.gid) == (True, 0o750, 250, 251)
    assert not records["/data/var/log/alpha.log"].present

    header = image.header()
    assert (header.build_id, header.image_name) == (result.build_id, "example/alpha:1")
    assert (header.os_id, header.os_version) == ("fedora", "43")
    assert [(one.name, one.evr) for one in header.packages] == [("aaa", "1-1"), ("alpha", "1:1-1")]
    assert any(one.name == "alpha-feature" for one in header.packages[1].provides)
    assert header.accounts.users == {"root": 0, "svc": 250, "toor": 0}
    (volume,) = header.volumes
    assert volume.entries == (
        "/etc/alpha",
        "/etc/single.conf",
        "/var/lib/alpha",
        "/var/log/alpha.log",
    )
    present = [record for record in records.values() if record.present]
    assert volume.top is not None
    assert [top.path for top in volume.top] == ["/data/etc", "/data/var"]
    for top in volume.top:
        inside = [one for one in present if f"{one.path}/".startswith(f"{top.path}/")]
        assert (top.is_directory, top.entries) == (True, len(inside))
        assert top.bytes == sum(one.size for one in inside)
    assert result.records == len(records)
    assert result.changed
    assert result.links == 4
    assert image.readlink("/etc/alpha") == "/data/etc/alpha"
    assert image.readlink("/var/log/alpha.log") == "/data/var/log/alpha.log"
    assert (image.root / "etc/build-id").read_text() == result.build_id + "\n"
    assert (image.root / "data").is_dir()


def test_run_again_changes_nothing_at_all(image: Image) -> None:
    image.list("/etc/alpha/", "/etc/missing/", "/etc/single.conf", "/var/log/alpha.log")
    image.write("/usr/share/app/x", "x")
    (image.root / "usr/share/app/link").symlink_to("/data/elsewhere/file")
    image.prepare()
    age(image.root)
    before = picture(image.root)
    result = image.prepare()
    assert not result.changed
    assert result.links == 0
    assert picture(image.root) == before


def test_database_and_package_files_agree(
    image: Image, tmp_path: Path, packages: dict[str, Path]
) -> None:
    image.list("/etc/alpha/", "/etc/single.conf", "/var/lib/alpha/", "/var/log/alpha.log")
    twin = Image(root=tmp_path / "twin")
    subprocess.run(["cp", "-a", str(image.root), str(twin.root)], check=True)
    image.prepare(build_id="same")
    twin.prepare(build_id="same", rpms=[packages["aaa"], packages["alpha"], packages["aaa"]])
    assert twin.records() == image.records()
    assert replace(twin.header(), created="") == replace(image.header(), created="")


def test_every_kind_of_entry(bare: Image) -> None:
    root = bare.root
    bare.write("/etc/file", "file")
    bare.write("/etc/directory/inner/x", "x")
    bare.write("/etc/no-slash/x", "x")
    bare.write("/etc/slash", "a file")
    (root / "etc/link").symlink_to("/etc/file")
    (root / "etc/relative").symlink_to("../usr/lib/os-release")
    (root / "etc/dangling").symlink_to("/nowhere")
    bare.write("/usr/real/below/y", "y")
    (root / "var").mkdir(exist_ok=True)
    (root / "var/alias").symlink_to("../usr/real")
    (root / "etc/volume-data-list").write_bytes(
        b"# comment\r\n  # another\n\n"
        b"/etc/file\r\n"
        b"//etc/./directory//\n"
        b"/etc/directory/inner/\n"
        b"/etc/directory/missing/deeper/\n"
        b"/etc/directory/other/file\n"
        b"/etc/no-slash\n"
        b"/etc/slash/\n"
        b"/etc/x/../link\n"
        b"/etc/relative\n"
        b"/etc/dangling\n"
        b"/nope/dir/\n"
        b"/nope2/sub/file\n"
        b"/var/alias/below/\n"
        b"/etc/file\n"
        b"/etc/last"
    )
    bare.prepare()
    template = root / "data-template"
    assert (template / "etc/file").read_text() == "file"
    assert (template / "etc/directory/inner/x").read_text() == "x"
    assert (template / "etc/directory/missing/deeper").is_dir()
    assert (template / "etc/directory/other").is_dir()
    assert not (template / "etc/directory/other/file").exists()
    assert (template / "etc/no-slash/x").read_text() == "x"
    assert (template / "etc/slash").read_text() == "a file"
    assert os.readlink(template / "etc/link") == "/etc/file"
    assert os.readlink(template / "etc/dangling") == "/nowhere"
    assert (template / "nope/dir").is_dir()
    assert (template / "nope2/sub").is_dir()
    assert not (template / "nope2/sub/file").exists()
    assert (template / "var/alias/below/y").read_text() == "y"
    for path in ("etc/file", "etc/directory", "etc/no-slash", "etc/slash", "etc/link"):
        assert os.readlink(root / path) == f"/data/{path}"
    for path in ("etc/relative", "etc/dangling", "nope/dir", "nope2/sub/file", "etc/last"):
        assert os.readlink(root / path) == f"/data/{path}"
    assert os.readlink(root / "usr/real/below") == "/data/var/alias/below"
    assert os.readlink(root / "var/alias") == "../usr/real"
    assert any("'/etc/slash' is listed as a directory" in text for text in bare.warnings)
    assert any("'/etc/relative' led to '/usr/lib/os-release'" in one for one in bare.warnings)
    (volume,) = bare.header().volumes
    assert len(volume.entries) == 14
    age(root)
    before = picture(root)
    assert not bare.prepare().changed
    assert picture(root) == before


def test_freeipas_own_lists_together(bare: Image) -> None:
    root = bare.root
    data = (DATA / "freeipa-volume-data-list").read_bytes()
    tmp = (DATA / "freeipa-volume-tmp-list").read_bytes()
    (root / "etc/volume-data-list").write_bytes(data)
    (root / "etc/volume-tmp-list").write_bytes(tmp)
    bare.write("/var/lib/certmonger/cas/20260101", "ca")
    bare.write("/var/lib/certmonger/lock", "lock")
    (root / "var/lib/certmonger").chmod(0o700)
    bare.write("/etc/sssd/sssd.conf", "[sssd]", mode=0o600)
    bare.write("/var/tmp/left", "over")
    bare.write(
        "/etc/ipavolume.toml",
        'profile = "freeipa"\n[[volume]]\nmount = "/data"\n'
        '[[volume]]\nmount = "/tmp"\nvolatile = true\n[scriptlets]\npackages = []\n',
    )
    result = bare.prepare()
    listed = len([one for one in data.split(b"\n") + tmp.split(b"\n") if one])
    assert result.entries == listed
    assert result.links == listed
    for line in (data + tmp).decode().split():
        path = line.rstrip("/")
        mount = "/data" if line.encode() in data.split(b"\n") else "/tmp"
        if path.startswith("/var/lib/certmonger/"):
            assert os.readlink(f"{root}/tmp-template{path}") == f"/data{path}"
            assert (root / f"data-template{path}").is_dir()
        else:
            assert os.readlink(f"{root}{path}") == f"{mount}{path}"
    assert (root / "data-template/var/lib/certmonger/cas/20260101").read_text() == "ca"
    assert (root / "tmp-template/var/lib/certmonger/lock").read_text() == "lock"
    for top in ("data-template", "tmp-template"):
        assert stat.S_IMODE((root / top / "var/lib/certmonger").stat().st_mode) == 0o700
    records = bare.records()
    assert records["/tmp/var/lib/certmonger/cas"].content == "/data/var/lib/certmonger/cas"
    assert [volume.volatile for volume in bare.header().volumes] == [False, True]
    assert not any(text.startswith("[first-run]") for text in bare.warnings)
    age(root)
    before = picture(root)
    assert not bare.prepare().changed
    assert picture(root) == before


@pytest.mark.parametrize("inner_first", [True, False])
def test_an_entry_inside_that_of_another_volume_in_a_derived_image(
    bare: Image, *, inner_first: bool
) -> None:
    bare.write("/srv/outer/inner/x", "x")
    bare.write("/srv/outer/y", "y")
    bare.write("/etc/ipavolume.toml", '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n')
    first, second = ("data", "logs") if inner_first else ("logs", "data")
    entry = {"data": "/srv/outer/inner/", "logs": "/srv/outer/"}
    bare.list(entry[first], name=first)
    bare.list("# none yet", name=second)
    bare.prepare()
    bare.list(entry[second], name=second)
    bare.prepare()
    root = bare.root
    assert os.readlink(root / "srv/outer") == "/logs/srv/outer"
    assert os.readlink(root / "logs-template/srv/outer/inner") == "/data/srv/outer/inner"
    assert (root / "data-template/srv/outer/inner/x").read_text() == "x"
    assert (root / "logs-template/srv/outer/y").read_text() == "y"
    assert not bare.prepare().changed


def test_volumes_that_nest_back_and_forth_are_refused(bare: Image) -> None:
    bare.write("/a/b/c/x")
    bare.write("/etc/ipavolume.toml", '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n')
    bare.list("/a/", "/a/b/c/")
    bare.list("/a/b/", name="logs")
    _refuses(bare, ConfigurationError, "circle")


def test_an_entry_above_one_that_is_a_link_already(bare: Image) -> None:
    bare.write("/var/lib/app/state/x", "x")
    bare.write("/var/lib/app/y", "y")
    bare.list("/var/lib/app/state/")
    bare.prepare()
    bare.list("/var/lib/app/")
    bare.prepare()
    root = bare.root
    assert os.readlink(root / "var/lib/app") == "/data/var/lib/app"
    assert (root / "data-template/var/lib/app/state/x").read_text() == "x"
    assert (root / "data-template/var/lib/app/y").read_text() == "y"
    assert bare.header().volumes[0].entries == ("/var/lib/app", "/var/lib/app/state")
    assert not bare.prepare().changed


def test_a_list_entry_that_leads_through_a_listed_directory_to_elsewhere(bare: Image) -> None:
    bare.write("/usr/share/foo/bar", "bar")
    bare.write("/etc/a/x", "x")
    (bare.root / "etc/a/l").symlink_to("/usr/share/foo")
    bare.list("/etc/a/", "/etc/a/l/bar")
    bare.prepare()
    root = bare.root
    assert os.readlink(root / "data-template/etc/a/l") == "/usr/share/foo"
    assert os.readlink(root / "usr/share/foo/bar") == "/data/usr/share/foo/bar"
    assert (root / "data-template/usr/share/foo/bar").read_text() == "bar"
    assert not bare.prepare().changed


def test_two_names_of_one_place(bare: Image) -> None:
    bare.write("/run-real/app/x", "x")
    (bare.root / "alias").symlink_to("run-real")
    bare.list("/alias/app/", "/run-real/app")
    bare.prepare()
    assert os.readlink(bare.root / "run-real/app") == "/data/run-real/app"
    assert (bare.root / "data-template/run-real/app/x").read_text() == "x"
    assert not (bare.root / "data-template/alias").exists()
    assert not bare.prepare().changed


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_lists_does_not_matter(
    tmp_path: Path, packages: dict[str, Path], *, reverse: bool
) -> None:
    pictures = []
    for number, turned in enumerate((False, reverse)):
        image = make_image(tmp_path / str(number), [packages["alpha"]])
        image.write("/var/lib/app/state/x", "x")
        paths = ["/etc/alpha/", "/var/lib/app/state/", "/var/lib/app/", "/nope/a", "/nope/"]
        image.list(*(reversed(paths) if turned else paths))
        image.prepare(build_id="same")
        pictures.append(
            (picture(image.root / "data-template", times=False), image.header().fingerprint)
        )
    assert pictures[0][0] == pictures[1][0]


def test_strays_are_taken_in_and_the_image_becomes_another(
    image: Image, packages: dict[str, Path]
) -> None:
    image.list("/etc/alpha/", "/etc/single.conf", "/etc/kept.conf")
    first = image.prepare(image_name="base")
    image.install(packages["alpha2"])
    root = image.root
    assert (root / "etc/alpha/alpha.conf").read_text() == "a2\n", "rpm made a directory again"
    assert (root / "etc/single.conf").read_text() == "two\n", "rpm made a file again"
    assert os.readlink(root / "etc/single.conf.rpmsave") == "/data/etc/single.conf"
    assert (root / "etc/kept.conf.rpmnew").read_text() == "k2\n", "rpm left the link alone"
    image.write("/etc/alpha/new", "new")
    image.list("/etc/alpha/", "/etc/single.conf", "/etc/kept.conf", "/etc/aaa.conf")
    second = image.prepare()
    assert second.build_id != first.build_id
    assert second.fingerprint != first.fingerprint
    assert (root / "etc/build-id").read_text() == second.build_id + "\n"
    assert image.header().image_name == ""
    assert os.readlink(root / "etc/alpha") == "/data/etc/alpha"
    assert os.readlink(root / "etc/single.conf") == "/data/etc/single.conf"
    template = root / "data-template/etc"
    assert (template / "single.conf").read_text() == "two\n"
    assert (template / "alpha/alpha.conf").read_text() == "a2\n"
    assert (template / "alpha/maybe.conf").read_text() == "m1\n"
    assert (template / "alpha/new").read_text() == "new"
    assert (template / "aaa.conf").read_text() == "x\n"
    assert image.records()["/data/etc/alpha/alpha.conf"].rpm_digest == ""
    assert image.records()["/data/etc/kept.conf"].rpm_digest != ""
    assert [one.evr for one in image.header().packages] == ["1-1", "1:2-1"]
    beside = [text for text in image.warnings if "rpm left" in text]
    assert any("'/etc/kept.conf.rpmnew'" in text for text in beside)
    assert any("'/etc/single.conf.rpmsave'" in text for text in beside)
    assert not image.prepare().changed


def test_a_stray_of_another_type_wins(bare: Image) -> None:
    bare.write("/etc/one/x", "x")
    bare.write("/etc/two", "file")
    bare.write("/etc/three/sub/x", "x")
    bare.write("/etc/three/file", "file")
    bare.list("/etc/one", "/etc/two", "/etc/three")
    bare.prepare()
    root = bare.root
    for name in ("one", "two", "three"):
        (root / "etc" / name).unlink()
    bare.write("/etc/one", "now a file")
    bare.write("/etc/two/x", "now a directory")
    bare.write("/etc/three/sub", "now a file")
    bare.write("/etc/three/file/deep/x", "now a directory")
    bare.prepare()
    assert (root / "data-template/etc/one").read_text() == "now a file"
    assert (root / "data-template/etc/two/x").read_text() == "now a directory"
    assert (root / "data-template/etc/three/sub").read_text() == "now a file"
    assert (root / "data-template/etc/three/file/deep/x").read_text() == "now a directory"


def test_a_derived_image_with_a_list_of_its_own_keeps_the_base_images_entries(
    bare: Image, tmp_path: Path
) -> None:
    bare.write("/etc/base", "b")
    bare.write("/etc/extra", "e")
    bare.list("/etc/base")
    first = bare.prepare()
    extra = tmp_path / "extra-list"
    extra.write_text("/etc/extra\n")
    (bare.root / "etc/base").unlink()
    bare.write("/etc/base", "stray")
    second = bare.prepare(lists=[str(extra)])
    assert bare.header().volumes[0].entries == ("/etc/base", "/etc/extra")
    assert (bare.root / "data-template/etc/base").read_text() == "stray"
    assert first.build_id != second.build_id


def test_build_ids(bare: Image) -> None:
    bare.list("/etc/aaa.conf")
    bare.write("/etc/build-id", "chosen by hand\n")
    assert bare.prepare().build_id == "chosen by hand"
    assert bare.prepare(build_id="given").build_id == "given"
    assert (bare.root / "etc/build-id").read_text() == "given\n"
    assert bare.prepare().build_id == "given"
    bare.write("/etc/build-id", "edited afterwards\n")
    bare.list("/etc/aaa.conf", "/etc/new")
    assert bare.prepare().build_id == "edited afterwards"
    bare.list("/etc/aaa.conf", "/etc/new", "/etc/newer")
    assert bare.prepare().build_id not in ("given", "edited afterwards")


def test_an_image_whose_programs_changed_gets_another_build_id(bare: Image) -> None:
    """Words 18: a corrected image is told from the broken one, and is the same to a volume."""
    bare.list("/etc/aaa.conf")
    program = bare.write("/app/bin/serve", "broken\n", mode=0o755)
    bare.write("/etc/motd")
    first = bare.prepare()
    bare.write("/etc/motd", "not a program\n")
    bare.write("/usr/lib/python3/__pycache__/x.pyc")
    assert bare.prepare().build_id == first.build_id

    def corrected(content: str) -> str:
        bare.write("/app/bin/serve", content, mode=0o755)
        result = bare.prepare()
        assert (result.changed, result.fingerprint) == (True, first.fingerprint)
        assert bare.prepare().build_id == result.build_id == bare.header().build_id
        return result.build_id

    ids = [first.build_id, corrected("corrected\n")]
    age(bare.root)
    assert bare.prepare().build_id == ids[-1]
    # Of the same size, but made later.
    later = max(path.lstat().st_mtime for path in bare.root.rglob("*") if path.is_file()) + 10**9
    program.write_text("correctly\n")
    os.utime(program, (later, later))
    ids.append(bare.prepare().build_id)
    # Copied with the time at which it was written, before the newest.
    bare.write("/usr/bin/newest")
    os.utime(bare.root / "usr/bin/newest", (later, later))
    ids.append(bare.prepare().build_id)
    program.write_text("rightly..\n")
    os.utime(program, (later - 60, later - 60))
    ids.append(bare.prepare().build_id)
    assert bare.prepare().build_id == ids[-1]
    program.unlink()
    ids.append(bare.prepare().build_id)
    assert len(set(ids)) == 6


def test_the_build_id_of_an_image_of_the_freeipa_container_project(bare: Image) -> None:
    bare.list("/etc/aaa.conf")
    bare.write("/data-template/build-id", "theirs\n")
    bare.write("/data-template/volume-version", "1\n")
    bare.write("/data-template/.configfiles/etc/x", "1\n")
    build_id = bare.prepare().build_id
    assert build_id != "theirs"
    for place in ("etc/build-id", "data-template/build-id"):
        assert (bare.root / place).read_text() == f"{build_id}\n"
    assert set(bare.records()) == {"/data/etc", "/data/etc/aaa.conf"}
    assert not bare.prepare().changed


@pytest.mark.parametrize("build_id", ["", "two\nlines", "x" * 300, "\x1b[31m"])
def test_what_is_no_build_id(bare: Image, build_id: str) -> None:
    bare.list("/etc/aaa.conf")
    with pytest.raises(UsageError):
        bare.prepare(build_id=build_id)


@pytest.mark.parametrize("epoch", ["now", "\u00b2", "-1e3", "9" * 30, "9" * 5000])
def test_a_time_of_the_build_that_is_none(
    bare: Image, monkeypatch: pytest.MonkeyPatch, epoch: str
) -> None:
    bare.list("/etc/aaa.conf")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        bare.prepare()


def test_links_of_the_image_into_the_volume_get_directories(bare: Image) -> None:
    root = bare.root
    bare.write("/usr/lib/app/x")
    (root / "usr/lib/app/direct").symlink_to("/data/spool/app/queue")
    (root / "usr/lib/app/relative").symlink_to("../../../data/other/file")
    (root / "usr/lib/app/through").symlink_to("/etc/app/sub/file")
    (root / "usr/lib/app/mount").symlink_to("/data")
    (root / "usr/lib/app/loop").symlink_to("loop")
    (root / "usr/lib/app/up").symlink_to("../../../../../../../../etc/passwd")
    (root / "run").mkdir()
    (root / "run/x").symlink_to("/data/not/scanned")
    bare.write("/etc/app/conf")
    bare.write("/var/lib/state/x")
    # F68: their places are not made yet.
    (root / "etc/state").symlink_to("../var/lib/state/now")
    (root / "etc/keyboard.conf").symlink_to("default/keyboard")
    bare.list("/etc/app/", "/var/lib/state/", "/etc/default/keyboard")
    bare.prepare()
    links = dict(bare.header().links)
    assert links == {
        "/etc/app": "/data/etc/app",
        "/etc/default/keyboard": "/data/etc/default/keyboard",
        "/etc/state": "/data/var/lib/state/now",
        "/var/lib/state": "/data/var/lib/state",
        "/usr/lib/app/direct": "/data/spool/app/queue",
        "/usr/lib/app/relative": "/data/other/file",
        "/usr/lib/app/through": "/data/etc/app/sub/file",
    }
    template = root / "data-template"
    assert (template / "spool/app").is_dir()
    assert not (template / "spool/app/queue").exists()
    assert (template / "other").is_dir()
    assert not (template / "etc/app/sub").exists()
    assert sorted(path.name for path in template.iterdir()) == ["etc", "other", "spool", "var"]
    assert [path.name for path in (template / "var/lib").iterdir()] == ["state"]


def test_everything_about_a_file_survives(bare: Image) -> None:
    root = bare.root
    need_tool("setfacl")
    top = root / "srv/app"
    top.mkdir(parents=True)
    bare.write("/srv/app/set-id", mode=0o6755)
    os.chown(root / "srv/app/set-id", 250, 251)
    (root / "srv/app/set-id").chmod(0o6755)
    bare.write("/srv/app/a", "hard")
    os.link(top / "a", top / "b")
    (top / "sub").mkdir()
    os.link(top / "a", top / "sub/c")
    with (top / "sparse").open("wb") as stream:
        stream.seek(64 << 20)
        stream.write(b"end")
    os.mkfifo(top / "fifo", 0o620)
    (top / "link").symlink_to("a")
    os.chown(top / "link", 250, 251, follow_symlinks=False)
    bare.write("/srv/app/attributes")
    os.setxattr(top / "attributes", "user.colour", b"\x00\xff")
    os.setxattr(top / "attributes", "security.selinux", b"system_u:object_r:x:s0")
    os.setxattr(top / "attributes", "trusted.overlay.opaque", b"y")
    bare.write("/srv/app/acl")
    subprocess.run(["setfacl", "-m", "u:250:rw,g:251:r", str(top / "acl")], check=True)
    (top / "defaults").mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:250:rwx", str(top / "defaults")], check=True)
    bare.write("/srv/app/defaults/x")
    bare.write("/srv/app/capable", mode=0o755)
    subprocess.run(
        [need_tool("setcap"), "cap_net_bind_service+ep", str(top / "capable")], check=True
    )
    names = [
        b"new\nline",
        b"undecodable \xff\xfe",
        b"n" * 255,
        b" leading",
        b"trailing ",
        b"-dash",
        b"back\\slash",
        b"\x1b[31mred",
        b"a-b",
        b"a.b",
    ]
    for name in names:
        with open(os.path.join(os.fsencode(top), name), "wb") as stream:
            stream.write(name)
    (top / "sub").chmod(0o1777)
    os.chown(top, 250, 251)
    top.chmod(0o2750)
    age(top)
    before = picture(top)
    blocks = (top / "sparse").stat().st_blocks
    bare.list("/srv/app/")
    bare.prepare()
    copy = root / "data-template/srv/app"
    after = picture(copy)
    kept = tuple(
        one
        for one in before["/attributes"][5]  # type: ignore[attr-defined]
        if one[0] == "user.colour"
    )
    before["/attributes"] = (*before["/attributes"][:5], kept, *before["/attributes"][6:])
    assert after == before
    assert (copy / "sparse").stat().st_blocks <= blocks
    assert stat.S_IMODE(copy.stat().st_mode) == 0o2750
    records = bare.records()
    assert records["/data/srv/app/b"].hard_link == "/data/srv/app/a"
    assert records["/data/srv/app/sub/c"].hard_link == "/data/srv/app/a"
    assert records["/data/srv/app/a"].hard_link == ""
    assert dict(records["/data/srv/app/acl"].xattrs).keys() == {"system.posix_acl_access"}
    assert dict(records["/data/srv/app/capable"].xattrs).keys() == {"security.capability"}
    for name in names:
        path = "/data/srv/app/" + os.fsdecode(name)
        assert records[path].size == len(name)


@pytest.mark.parametrize(("depth", "fits"), [(190, True), (600, False)])
def test_a_tree_as_deep_as_paths_can_be_and_deeper(bare: Image, depth: int, *, fits: bool) -> None:
    top = bare.root / "srv/deep"
    top.mkdir(parents=True)
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d" * 20, dir_fd=fd)
        below = os.open("d" * 20, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=fd))
    os.close(fd)
    bare.list("/srv/deep/")
    if not fits:
        with pytest.raises(ConfigurationError, match="4095"):
            bare.prepare()
        return
    bare.prepare()
    assert os.readlink(top) == "/data/srv/deep"
    assert "/data/srv/deep" + ("/" + "d" * 20) * depth + "/bottom" in bare.records()
    assert not bare.prepare().changed


def test_directories_whose_names_begin_alike_keep_their_files(bare: Image) -> None:
    for path in ("a/file", "a/deep/file", "a-b/file", "a.d/file", "a0/file", "b/file"):
        bare.write(f"/srv/app/{path}", path)
    bare.list("/srv/app/")
    bare.prepare()
    template = bare.root / "data-template/srv/app"
    found = {str(one.relative_to(template)): one.read_text() for one in template.rglob("file")}
    assert found == {path: path for path in found}
    assert sorted(found) == ["a-b/file", "a.d/file", "a/deep/file", "a/file", "a0/file", "b/file"]
    assert {f"/data/srv/app/{path}" for path in found} <= bare.records().keys()


def test_sockets_and_devices_are_left_out(bare: Image) -> None:
    top = bare.root / "srv/app"
    top.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        fd = os.open(top, os.O_RDONLY)
        one.bind(f"/proc/self/fd/{fd}/socket")
        two.bind(f"/proc/self/fd/{fd}/../alone")
        os.close(fd)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    bare.write("/srv/app/x")
    bare.list("/srv/app/", "/srv/alone")
    bare.prepare()
    assert sorted(os.listdir(bare.root / "data-template/srv/app")) == ["x"]
    assert os.readlink(bare.root / "srv/alone") == "/data/srv/alone"
    left_out = [text for text in bare.warnings if "socket or device" in text]
    assert len(left_out) == 3


def test_parents_in_the_template_are_as_in_the_image(bare: Image) -> None:
    (bare.root / "srv").mkdir()
    (bare.root / "srv/private").mkdir(mode=0o700)
    os.chown(bare.root / "srv/private", 250, 251)
    os.setxattr(bare.root / "srv/private", "user.x", b"1")
    bare.list("/srv/private/state")
    bare.prepare()
    copy = bare.root / "data-template/srv/private"
    st = copy.stat()
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o700, 250, 251)
    assert os.getxattr(copy, "user.x") == b"1"


@pytest.mark.parametrize(
    "entry",
    [
        "/data",
        "/data/x",
        "/data-template",
        "/data-template/x/",
        "/proc/x",
        "/sys",
        "/dev/shm/",
        "/usr",
        "/usr/share/ipavolume/",
        "/usr/share/ipavolume/steps",
        "/etc/",
        "/etc/build-id",
        "/etc/ipavolume.toml",
        "/etc/ipavolume/steps/",
        "/.ipavolume/x",
        "/build-id",
        "/via-link/x",
        "/etc/passwd/x",
        "/circle/x",
        "/slash/data",
    ],
)
def test_entries_that_cannot_be_kept_on_a_volume(bare: Image, entry: str) -> None:
    (bare.root / "via-link").symlink_to("/usr/share/ipavolume")
    (bare.root / "circle").symlink_to("circle")
    (bare.root / "slash").symlink_to("/")
    bare.list(entry)
    _refuses(bare, ConfigurationError, repr(entry.rstrip("/")))


def test_all_faults_of_all_lists_at_once(bare: Image) -> None:
    bare.list("/data/x", "/proc/x", "/etc/passwd/x")
    with pytest.raises(ConfigurationError) as caught:
        bare.prepare()
    for number in (1, 2, 3):
        assert f"/etc/volume-data-list:{number}:" in str(caught.value)


def _refuses(image: Image, error: type[IpaVolumeError], text: str) -> None:
    age(image.root)
    before = picture(image.root)
    with pytest.raises(error) as caught:
        image.prepare()
    assert text in str(caught.value)
    assert picture(image.root) == before


def test_without_a_path_list(bare: Image) -> None:
    _refuses(bare, ConfigurationError, "/etc/volume-data-list")


def test_without_an_rpm_database(tmp_path: Path, packages: dict[str, Path]) -> None:
    image = make_image(tmp_path / "root")
    image.list("/etc/passwd")
    _refuses(image, PackageError, "no rpm database")
    image.prepare(rpms=[packages["aaa"]])
    assert [one.name for one in image.header().packages] == ["aaa"]


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_rpm_database(bare: Image, damage: str) -> None:
    database = bare.root / "var/lib/rpm/rpmdb.sqlite"
    data = database.read_bytes()
    for name in ("rpmdb.sqlite-wal", "rpmdb.sqlite-shm"):
        (bare.root / "var/lib/rpm" / name).unlink(missing_ok=True)
    if damage == "cut":
        database.write_bytes(data[: len(data) // 2])
    else:
        database.write_bytes(b"\xa5" * len(data))
    bare.list("/etc/aaa.conf")
    _refuses(bare, PackageError, "rpm -qa --xml")


def test_without_the_command_rpm(bare: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    bare.list("/etc/aaa.conf")
    monkeypatch.setenv("PATH", "/nonexistent")
    _refuses(bare, PackageError, "cannot run rpm")


@pytest.mark.parametrize(
    ("name", "status"), [("TERM", 143), ("INT", 130), ("HUP", 129), ("USR1", -signal.SIGUSR1)]
)
def test_a_signal_that_comes_behind_the_last_bytes_of_rpm(
    bare: Image, tmp_path: Path, name: str, status: int
) -> None:
    rpm = tmp_path / "bin/rpm"
    rpm.parent.mkdir()
    rpm.write_text(f'#!/bin/sh\n{need_tool("rpm")} "$@" || exit\nexec >&-\nkill -{name} $PPID\n')
    rpm.chmod(0o755)
    bare.list("/etc/aaa.conf")
    age(bare.root)
    before = picture(bare.root)
    path = f"{rpm.parent}:{os.environ['PATH']}"
    done = run_ipavolume("prepare", "--root", bare.root, status=status, env={"PATH": path})
    assert picture(bare.root) == before
    assert f"stopped by SIG{name}" in done.stderr or status < 0


def test_what_ails_rpm_is_told(tmp_path: Path, packages: dict[str, Path]) -> None:
    image = make_image(tmp_path / "root", [packages["aaa"]])
    database = os.open(image.root / "var/lib/rpm", os.O_RDONLY)
    try:
        with (
            pytest.raises(PackageError, match="writes more than can be right") as caught,
            rpm_database_xml(database, name="/var/lib/rpm", limit_bytes=100) as stream,
        ):
            stream.read()
    finally:
        os.close(database)
    assert "in time" not in str(caught.value)


def test_a_database_whose_place_is_a_link(bare: Image) -> None:
    (bare.root / "usr/lib/sysimage").mkdir(parents=True)
    (bare.root / "var/lib/rpm").rename(bare.root / "usr/lib/sysimage/rpm")
    (bare.root / "var/lib/rpm").symlink_to("/usr/lib/sysimage/rpm")
    bare.list("/etc/aaa.conf")
    bare.prepare()
    assert [one.name for one in bare.header().packages] == ["aaa"]


def test_a_manifest_that_was_cut_short_is_made_anew(bare: Image) -> None:
    bare.list("/etc/aaa.conf")
    first = bare.prepare()
    whole = (bare.root / MANIFEST).read_bytes()
    (bare.root / MANIFEST).write_bytes(whole[:-20])
    with pytest.raises(ManifestError):
        bare.records()
    assert bare.prepare().build_id == first.build_id
    assert any("made anew" in text for text in bare.warnings)
    assert len(bare.records()) == 2


def test_a_hostile_tree_leads_nowhere_outside_of_it(bare: Image, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    age(outside)
    root = bare.root
    (root / "escape").symlink_to("../" * 20 + str(outside).lstrip("/"))
    (root / "absolute").symlink_to(outside)
    bare.list("/escape/secret", "/absolute/secret", "/etc/aaa.conf")
    before = picture(outside)
    bare.prepare()
    assert picture(outside) == before
    assert not any(
        path.read_bytes() == b"secret"
        for path in (root / "data-template").rglob("*")
        if path.is_file()
    )


def test_names_of_unpackaged_files_that_are_refreshed(bare: Image) -> None:
    bare.write("/etc/app/one.conf")
    bare.write("/etc/app/two.txt")
    bare.write("/etc/ipavolume.toml", '[files]\nrefresh = ["/etc/app/*.conf", "/etc/aaa.conf"]\n')
    bare.list("/etc/app/", "/etc/aaa.conf")
    bare.prepare()
    refreshed = {path for path, record in bare.records().items() if record.refresh}
    assert refreshed == {"/data/etc/app/one.conf"}


def test_steps_configuration_and_release_count_for_the_fingerprint(bare: Image) -> None:
    bare.list("/etc/aaa.conf")
    seen = {bare.prepare().fingerprint}
    put_step(bare.root, "s5000_x.py", step_text(component="?app"), own=True)
    seen.add(bare.prepare().fingerprint)
    text = step_text(component="?app", summary="Another.")
    put_step(bare.root, "s5000_x.py", text, own=True)
    seen.add(bare.prepare().fingerprint)
    (bare.root / "etc/ipavolume/upgrade_steps/s0300_sssd_caches.py").symlink_to("/dev/null")
    seen.add(bare.prepare().fingerprint)
    bare.write("/etc/ipavolume.toml", "# only a comment\n")
    seen.add(bare.prepare().fingerprint)
    bare.write("/usr/lib/os-release", 'NAME=Test\nID=fedora\nVERSION_ID="44"\n')
    seen.add(bare.prepare().fingerprint)
    assert len(seen) == 6
    bare.write("/usr/bin/other", "not on the volume")
    seen.add(bare.prepare().fingerprint)
    assert len(seen) == 6


def test_mount_and_template_of_ones_own(bare: Image, tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("/etc/aaa.conf\n")
    bare.prepare(lists=[str(listed)], mount="/srv/volume/", template="/usr/lib/volume")
    assert os.readlink(bare.root / "etc/aaa.conf") == "/srv/volume/etc/aaa.conf"
    assert (bare.root / "usr/lib/volume/etc/aaa.conf").is_file()
    assert (bare.root / "srv/volume").is_dir()
    (volume,) = bare.header().volumes
    assert (volume.mount, volume.template) == ("/srv/volume", "/usr/lib/volume")


@pytest.mark.parametrize("mount", ["data", "/", "/proc/x", "/usr/share"])
def test_what_is_no_mount(bare: Image, mount: str) -> None:
    bare.list("/etc/aaa.conf")
    with pytest.raises(ConfigurationError):
        bare.prepare(mount=mount)


def test_a_mount_that_is_not_configured(bare: Image) -> None:
    bare.list("/etc/aaa.conf")
    bare.write("/etc/ipavolume.toml", '[[volume]]\nmount = "/data"\n')
    with pytest.raises(ConfigurationError, match="not a volume"):
        bare.prepare(mount="/logs")


def test_content_that_a_volume_would_hide_is_reported(bare: Image) -> None:
    bare.write("/data/etc/left", "by a package's scriptlet")
    bare.list("/etc/aaa.conf")
    bare.prepare()
    assert any("1 entry that a volume hides" in text for text in bare.warnings)


def test_something_mounted_on_a_listed_path(bare: Image, tmp_path: Path) -> None:
    bare.write("/etc/app/sub/x")
    bare.list("/etc/app/")
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["mount", "--bind", str(other), str(bare.root / "etc/app/sub")], check=True)
    try:
        with pytest.raises(ConfigurationError, match="something is mounted"):
            bare.prepare()
    finally:
        subprocess.run(["umount", str(bare.root / "etc/app/sub")], check=True)


def test_other_file_systems_are_not_searched_for_links(bare: Image, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "link").symlink_to("/data/from/elsewhere")
    (bare.root / "mnt").mkdir()
    bare.list("/etc/aaa.conf")
    subprocess.run(["mount", "--bind", str(other), str(bare.root / "mnt")], check=True)
    try:
        bare.prepare()
    finally:
        subprocess.run(["umount", str(bare.root / "mnt")], check=True)
    assert not (bare.root / "data-template/from").exists()


@pytest.fixture
def overlay(
    tmp_path: Path, filesystem: Filesystems, packages: dict[str, Path]
) -> Iterator[tuple[Image, Path]]:
    """An image as the layers of a build: the tree below, an empty layer above."""
    top = filesystem("ext4", 64)
    for name in ("upper", "work", "merged"):
        (top / name).mkdir()
    lower = make_image(top / "lower", [packages["alpha"], packages["aaa"]])
    lower.write("/srv/app/sub/deep/x", "x")
    os.link(lower.write("/srv/app/a", "hard"), lower.root / "srv/app/b")
    age(lower.root)
    layers = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
    subprocess.run(
        ["mount", "-t", "overlay", "-o", layers, "overlay", str(top / "merged")], check=True
    )
    try:
        yield Image(root=top / "merged"), top
    finally:
        subprocess.run(["umount", str(top / "merged")], check=True)


@pytest.mark.filesystem
def test_on_the_layers_of_a_build(overlay: tuple[Image, Path]) -> None:
    image, top = overlay
    root = image.root
    with pytest.raises(OSError, match="cross-device"):
        os.rename(root / "srv/app/sub", root / "srv/moved")
    below = picture(top / "lower")
    image.list("/srv/app/", "/etc/alpha/", "/etc/single.conf", "/var/log/alpha.log")
    image.prepare()
    assert os.readlink(root / "srv/app") == "/data/srv/app"
    assert (root / "data-template/srv/app/sub/deep/x").stat().st_mtime == LONG_AGO
    assert image.records()["/data/srv/app/b"].hard_link == "/data/srv/app/a"
    assert picture(top / "lower") == below
    assert not (top / "upper/var/lib/rpm").exists(), "the database was copied to the layer"
    before = picture(root)
    assert not image.prepare().changed
    assert picture(root) == before


@pytest.mark.filesystem
def test_in_a_layer_above_one_that_was_prepared(
    tmp_path: Path, filesystem: Filesystems, packages: dict[str, Path]
) -> None:
    top = filesystem("ext4", 64)
    for name in ("upper", "work", "merged"):
        (top / name).mkdir()
    base = make_image(top / "lower", [packages["alpha"]])
    base.write("/srv/app/sub/x", "x")
    base.write("/srv/app/y", "y")
    base.list("/srv/app/", "/etc/alpha/")
    first = base.prepare()
    layers = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
    merged = top / "merged"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", str(merged)], check=True)
    try:
        image = Image(root=merged)
        (merged / "srv/app").unlink()
        image.write("/srv/app/sub/x", "stray")
        image.write("/srv/app/y/now/a/directory", "z")
        second = image.prepare()
        assert second.build_id != first.build_id
        template = merged / "data-template/srv/app"
        assert (template / "sub/x").read_text() == "stray"
        assert (template / "y/now/a/directory").read_text() == "z"
        assert os.readlink(merged / "srv/app") == "/data/srv/app"
        assert not image.prepare().changed
    finally:
        subprocess.run(["umount", str(merged)], check=True)


@pytest.mark.filesystem
def test_a_full_file_system(
    tmp_path: Path, filesystem: Filesystems, packages: dict[str, Path]
) -> None:
    top = filesystem("tmpfs", 3)
    image = make_image(top / "root", [packages["aaa"]])
    image.write("/srv/app/big", os.urandom(1 << 20))
    filler = top / "filler"
    filler.write_bytes(bytes(1 << 20))
    image.list("/srv/app/")
    with pytest.raises(IpaVolumeError) as caught:
        image.prepare()
    assert caught.value.exit_status == 74
    assert "No space left" in str(caught.value)
    assert (image.root / "srv/app/big").is_file()
    filler.unlink()
    image.prepare()
    assert (image.root / "data-template/srv/app/big").stat().st_size == 1 << 20
    assert sorted(os.listdir(image.root / "data-template")) == ["srv"]


def test_what_a_profile_wants_is_said_to_be_the_profiles(bare: Image) -> None:
    """F63: "Correct /etc/ipavolume.toml", in which none of the missing packages was."""
    bare.list("/etc/aaa.conf")
    bare.write("/etc/ipavolume.toml", 'profile = "freeipa"\n')
    with pytest.raises(ConfigurationError) as caught:
        bare.prepare()
    said = str(caught.value)
    assert 'profile = "freeipa", where [scriptlets] has no packages of its own, names' in said
    # What only some servers have need not be there.
    asked = ("389-ds-base", "certmonger", "bind", "pki-server")
    assert [word for word in asked if word in said] == ["389-ds-base", "certmonger"]
    assert "[scriptlets] packages = [" in caught.value.hint
    assert "in the place of a profile's" in caught.value.hint


def httpd(image: Image) -> None:
    """Lay out what httpd's package has, and what other relative links there may be."""
    image.write("/usr/lib64/httpd/modules/mod_ssl.so", "module")
    image.write("/var/log/httpd/error_log", "log")
    image.write("/etc/httpd/conf/httpd.conf", "conf")
    image.write("/etc/httpd/conf.d/own.conf", "own")
    for name, target in {
        "modules": "../../usr/lib64/httpd/modules",
        "run": "../../run/httpd",
        "logs": "../../var/log/httpd",
        "conf.d/inside": "../conf/httpd.conf",
        "conf.d/dangling": "not/made/yet",
        "conf.d/circle": "circle",
        "absolute": "/usr/lib64/httpd/modules",
        "through": "../httpd/conf.d/own.conf",
    }.items():
        (image.root / "etc/httpd" / name).symlink_to(target)
    image.list("/etc/httpd/", "/var/log/httpd/")


def test_relative_links_that_would_lead_elsewhere_on_a_volume_fail_the_build(
    bare: Image,
) -> None:
    """F26: they dangled, and the web server did not find its modules."""
    httpd(bare)
    before = picture(bare.root)
    with pytest.raises(ConfigurationError) as caught:
        bare.prepare()
    assert caught.value.code == "relative-links"
    said = str(caught.value)
    modules = "'/etc/httpd/modules' -> '../../usr/lib64/httpd/modules'"
    assert f"{modules} (would do: '/usr/lib64/httpd/modules')" in said
    assert "'/etc/httpd/run' -> '../../run/httpd' (would do: '/run/httpd')" in said
    assert said.count("would do") == 2
    assert picture(bare.root) == before
    for name, target in {"modules": "/usr/lib64/httpd/modules", "run": "/run/httpd"}.items():
        link = bare.root / "etc/httpd" / name
        link.unlink()
        link.symlink_to(target)
    bare.prepare()
    assert (bare.root / "data-template/etc/httpd/logs").readlink() == Path("../../var/log/httpd")


def test_what_lies_in_an_entry_of_another_volume_is_judged_from_there(bare: Image) -> None:
    """F26: the way up is that of the place where a link goes, not of the directory around it."""
    bare.write("/etc/ipavolume.toml", '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n')
    bare.write("/srv/app/conf", "conf")
    bare.write("/srv/app/logs/now", "log")
    (bare.root / "srv/app/logs/conf").symlink_to("../conf")
    (bare.root / "srv/app/now").symlink_to("logs/now")
    bare.list("/srv/app/")
    bare.list("/srv/app/logs/", name="logs")
    with pytest.raises(ConfigurationError) as caught:
        bare.prepare()
    assert "'/srv/app/logs/conf' -> '../conf' (would do: '/srv/app/conf')" in str(caught.value)
    assert "/srv/app/now" not in str(caught.value)


def test_an_image_that_was_prepared_with_such_a_link_is_warned_of_it(bare: Image) -> None:
    """F26: its volumes have it already, and whoever derives an image from it did not make it."""
    httpd(bare)
    for name in ("modules", "run"):
        (bare.root / "etc/httpd" / name).unlink()
    bare.prepare()
    link = bare.root / "data-template/etc/httpd/modules"
    link.symlink_to("../../usr/lib64/httpd/modules")
    bare.prepare()
    assert any(
        "'/etc/httpd/modules' led to '/usr/lib64/httpd/modules'" in one for one in bare.warnings
    )


def test_the_link_of_selinux_does_not_fail_a_build_with_the_profile(bare: Image) -> None:
    """F26: nothing in a container needs it."""
    bare.write("/etc/selinux/config", "SELINUX=enforcing")
    bare.write("/etc/sysconfig/other", "other")
    (bare.root / "etc/sysconfig/selinux").symlink_to("../selinux/config")
    bare.list("/etc/sysconfig/")
    with pytest.raises(ConfigurationError, match="/etc/sysconfig/selinux"):
        bare.prepare()
    for name in ("389-ds-base", "certmonger", "sssd-common"):
        bare.install(build_rpm(bare.root.parent, name, []))
    bare.write("/etc/ipavolume.toml", 'profile = "freeipa"\n')
    bare.prepare()
