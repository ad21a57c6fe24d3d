"""Path lists and mounts: what prepare takes onto volumes, and what it refuses."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from support import inside
from support.command import PROJECT
from support.images import Image, age, make_image, picture, refuses

from ipavolume.errors import ConfigurationError

pytestmark = [pytest.mark.root, pytest.mark.rpm]

DATA = PROJECT / "tests/data"


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


def test_an_entry_that_an_earlier_prepare_has_put_on_another_volume_is_told_as_that(
    bare: Image,
) -> None:
    bare.write("/srv/moved/x", "x")
    bare.write("/etc/ipavolume.toml", '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n')
    bare.list("/srv/moved/")
    bare.list("# none yet", name="logs")
    bare.prepare()
    bare.list("# moved")
    bare.list("/srv/moved/", name="logs")
    refuses(bare, ConfigurationError, "'/srv/moved' is listed for /logs, and on /data since an")
    bare.list("/srv/moved/")
    refuses(bare, ConfigurationError, "'/srv/moved' is listed for /data and for /logs")


def test_volumes_that_nest_back_and_forth_are_refused(bare: Image) -> None:
    bare.write("/a/b/c/x")
    bare.write("/etc/ipavolume.toml", '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\n')
    bare.list("/a/", "/a/b/c/")
    bare.list("/a/b/", name="logs")
    refuses(bare, ConfigurationError, "circle")


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
    refuses(bare, ConfigurationError, repr(entry.rstrip("/")))


def test_all_faults_of_all_lists_at_once(bare: Image) -> None:
    bare.list("/data/x", "/proc/x", "/etc/passwd/x")
    with pytest.raises(ConfigurationError) as caught:
        bare.prepare()
    for number in (1, 2, 3):
        assert f"/etc/volume-data-list:{number}:" in str(caught.value)


def test_without_a_path_list(bare: Image) -> None:
    refuses(bare, ConfigurationError, "/etc/volume-data-list")


def test_names_of_unpackaged_files_that_are_refreshed(bare: Image) -> None:
    bare.write("/etc/app/one.conf")
    bare.write("/etc/app/two.txt")
    bare.write("/etc/ipavolume.toml", '[files]\nrefresh = ["/etc/app/*.conf", "/etc/aaa.conf"]\n')
    bare.list("/etc/app/", "/etc/aaa.conf")
    bare.prepare()
    refreshed = {path for path, record in bare.records().items() if record.refresh}
    assert refreshed == {"/data/etc/app/one.conf"}


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


@pytest.mark.parametrize("where", ["image", "mount"])
def test_what_a_derived_image_puts_into_a_listed_directory_is_named_with_its_place_in_the_template(
    bare: Image, tmp_path: Path, where: str
) -> None:
    """``COPY a.css /etc/app/`` follows the link; a builder may mount what it copied there."""
    bare.write("/etc/app/app.conf")
    bare.list("/etc/app/")
    bare.prepare()
    copied = tmp_path / "mounted" if where == "mount" else bare.root / "data"
    for name in ("etc/app/a.css", "etc/app/sub/b", "etc/app/sub/c", "etc/app/sub/d"):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).touch()
    said = "holds "
    if where == "mount":
        words = [*inside.IPAVOLUME, "prepare"]
        result = inside.run(bare.root, {"/data": copied}, words)
        assert result.returncode == 78
        text = result.stderr
    else:
        bare.prepare()
        text = "\n".join(bare.warnings)
        said = "holds 1 entry that a volume hides: "
    assert f"{said}'/data/etc/app/a.css', '/data/etc/app/sub/b', '/data/etc/app/sub/c' and" in text
    assert "the link '/etc/app' while" in text
    assert "into the template, as '/data-template/etc/app/a.css'" in text


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


def test_what_a_build_wrote_through_a_link_is_named_behind_what_else_a_volume_hides(
    bare: Image,
) -> None:
    bare.write("/var/lib/app/x")
    bare.list("/var/lib/app/")
    bare.prepare()
    # COPY of a derived image follows the link.
    bare.write("/data/var/lib/app/copied")
    for number in range(5):
        bare.write(f"/data/a{number}")
    (said,) = (text for text in bare.prepare().warnings if "that a volume hides" in text)
    assert said.endswith(
        "and others; what is written through the link '/var/lib/app' while an image is built "
        "belongs into the template, as '/data-template/var/lib/app/copied'"
    )
