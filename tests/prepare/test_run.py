"""prepare, on trees that the real rpm made."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.images import MANIFEST, Image, age, picture
from support.requirements import need_tool
from support.steps import put_step, step_text

from ipavolume.errors import ConfigurationError, ManifestError, UsageError
from ipavolume.model.files import FileFlags, FileType

pytestmark = [pytest.mark.root, pytest.mark.rpm]

CONFIG_NOREPLACE = FileFlags.CONFIG | FileFlags.NOREPLACE


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
