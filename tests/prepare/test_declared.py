"""Software that was copied into an image and is declared as packages, up to its upgrades."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from support import inside
from support.command import run_ipavolume, volume_of
from support.documents import MANUAL, blocks, chapter
from support.images import Image, Packaged, build_rpm, make_image, picture
from support.steps import put_step, step_text
from support.upgrades import Site

from ipavolume.config.reading import parse_config
from ipavolume.errors import ConfigurationError
from ipavolume.formats import manifest
from ipavolume.model.files import FileFlags
from ipavolume.prepare.findings import UnfitImageError
from ipavolume.rpm.versions import compare_evr

pytestmark = pytest.mark.root

LIST = ("/etc/app/",)


def declare(*lines: str) -> str:
    return "\n".join(["[[package]]", 'name = "app"', *lines, ""])


def make(root: Path, *lines: str, version: str | bytes = "1.4\n", text: str = "one\n") -> Image:
    """Make an image of a program that no rpm has brought."""
    image = make_image(root)
    image.write("/opt/app/VERSION", version)
    image.write("/etc/app/app.conf", text)
    image.write("/etc/app/page", text)
    image.list(*LIST)
    image.write("/etc/ipavolume.toml", declare(*lines))
    return image


# -- what can be declared ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (["config = []"], "package[1] has to have one of version, version-file"),
        (['version = "1"', 'version-file = "/v"'], "package[1] has to have one of"),
        (["version-command = []"], "package[1].version-command is empty"),
        (['version = "1 2"'], "'1 2' is no version such as"),
        (['version = "-1"'], "'-1' is no version"),
        (['version = "1"', 'config = ["etc/*"]'], "is not an absolute path"),
        (['version = "1"', 'conf = ["/etc/*"]'], "package[1].conf is not a known key"),
        (['version = "1"', "[[package]]", 'name = "app"', 'version = "2"'], "declared twice"),
        (['version = "1"', "[[package]]", 'name = "a b"', 'version = "2"'], "no name of a package"),
        (['version = "1"', "[[package]]", 'version = "2"'], "package[2] has no name"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(lines: list[str], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(fault)):
        parse_config(declare(*lines).encode())


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.4.1", "2.4.1"), ("v2-3\r\n", "v2-3"), ("\n 7:2~rc1-1 \n", "7:2~rc1-1")],
)
def test_a_version_is_read_from_a_file(tmp_path: Path, version: str, expected: str) -> None:
    image = make(tmp_path / "root", 'version-file = "/opt/app/VERSION"', version=version)
    image.prepare()
    (package,) = image.header().packages
    assert (package.name, package.evr, package.arch) == ("app", expected, "")
    assert [(one.name, one.evr) for one in package.provides] == [("app", expected)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 lines where one"),
        (b"1.4\n1.5\n", "several lines"),
        (b"version 1.4\n", "is no version"),
        (b"\xff\xfe1\n", "is no version"),
        (b"1" * 5000, "is larger than"),
        (b"-", "is no version"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(
    tmp_path: Path, content: bytes, said: str
) -> None:
    image = make(tmp_path / "root", 'version-file = "/opt/app/VERSION"', version=content)
    before = picture(image.root)
    with pytest.raises(UnfitImageError, match=re.escape(said)) as caught:
        image.prepare()
    assert (caught.value.code, caught.value.exit_status) == ("no-version", 78)
    assert picture(image.root) == before


def test_a_link_out_of_the_image_leads_nowhere(tmp_path: Path) -> None:
    """Links are the image's own: the file of this machine is not read."""
    (tmp_path / "secret").write_text("6.6.6\n")
    image = make(tmp_path / "root", 'version-file = "/opt/app/VERSION"')
    path = image.root / "opt/app/VERSION"
    for target in (str(tmp_path / "secret"), "../../../../../../.." + str(tmp_path / "secret")):
        path.unlink()
        path.symlink_to(target)
        with pytest.raises(UnfitImageError, match="there is no file '/opt/app/VERSION'"):
            image.prepare()
    path.unlink()
    path.symlink_to("VERSION")
    with pytest.raises(UnfitImageError, match="lead in a circle"):
        image.prepare()
    path.unlink()
    path.mkdir()
    with pytest.raises(UnfitImageError, match="not a regular file"):
        image.prepare()


def test_a_program_is_asked_only_in_the_image_itself(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    image = make(tmp_path / "root", f'version-command = ["touch", "{marker}"]')
    with pytest.raises(UnfitImageError, match="nothing of the tree"):
        image.prepare()
    assert not marker.exists()


def test_what_a_program_says_of_its_version(tmp_path: Path) -> None:
    """It fails, hangs, is not there, or says too much: refused, and the image unchanged."""
    root = tmp_path / "root"
    image = make(root, "version = '1'")
    program = image.write("/opt/app/version", mode=0o755)
    layer = tmp_path / "layer"

    def prepare(
        script: str, *, words: str = '["/opt/app/version", "3"]', timeout_s: int = 600
    ) -> str:
        program.write_text(f"#!/bin/sh\n{script}\n")
        limit = f"timeout_s = {timeout_s}"
        image.write("/etc/ipavolume.toml", declare(f"version-command = {words}", limit))
        shutil.rmtree(layer, ignore_errors=True)
        layer.mkdir()
        done = inside.run(root, {}, [*inside.IPAVOLUME, "prepare"], layer=layer)
        assert done.returncode in (0, 78), done.stderr
        if done.returncode:
            assert "[no-version]" in done.stderr
            assert not (layer / "top/upper/data-template").exists()
            assert not (layer / "top/upper/etc/build-id").exists()
        return done.stderr

    assert "ended with status 3: 'no such option'" in prepare("echo no such option >&2; exit 3")
    assert "was ended after 1 s" in prepare("echo 1.5; sleep 1000", timeout_s=1)
    assert "several lines" in prepare("echo warning >&2; echo 1.5")
    assert "several lines" in prepare("yes 1.5 | head -n 100000")
    assert "0 lines" in prepare(":")
    assert "'app version 1.5' is no version" in prepare("echo app version 1.5")
    assert "No such file or directory [no-version]" in prepare(":", words='["/opt/none"]')
    assert "no-version" not in prepare('echo "1.5-$1"; echo; sleep 1000 &')
    with (layer / "usr/upper/share/ipavolume/manifest.jsonl").open("rb") as stream:
        (package,) = manifest.read_header(stream).packages
    assert package.evr == "1.5-3"


# -- what rpms have ----------------------------------------------------------------------


@pytest.mark.rpm
def test_an_rpm_keeps_its_name_and_its_files(tmp_path: Path) -> None:
    rpm = build_rpm(
        tmp_path,
        "app",
        [
            Packaged(path="/etc/app", directory=True),
            Packaged(path="/etc/app/rpms.conf", words="%config", content="x\n"),
            Packaged(path="/etc/app/later.conf", words="%ghost", content="x\n"),
        ],
    )
    image = make(tmp_path / "root")
    image.install(rpm)
    version = 'version = "2"'
    for text, refused in (
        (declare(version), ["package-owned"]),
        (declare(version, 'config = ["/etc/app/r*"]'), ["package-owned", "config-owned"]),
        (
            declare(version, 'config = ["/data/etc/app/later.conf"]'),
            ["package-owned", "config-owned"],
        ),
    ):
        image.write("/etc/ipavolume.toml", text)
        before = picture(image.root)
        with pytest.raises(UnfitImageError) as caught:
            image.prepare()
        assert [one.code for one in caught.value.refused] == refused
        assert picture(image.root) == before
    # The directory is the rpm's, and what was copied into it is not.
    image.write(
        "/etc/ipavolume.toml",
        '[[package]]\nname = "own"\nversion = "2"\nconfig = ["/etc/app/app.*", "/etc/app/none"]\n',
    )
    assert [one.code for one in image.prepare().findings] == ["unused-config"]
    records = image.records()
    assert records["/data/etc/app/rpms.conf"].package == "app"
    own = records["/data/etc/app/app.conf"]
    assert (own.package, own.flags) == ("own", FileFlags.CONFIG | FileFlags.NOREPLACE)
    assert records["/data/etc/app/page"].package == ""
    assert [one.name for one in image.header().packages] == ["app", "own"]


def test_two_declared_packages_cannot_have_one_file(tmp_path: Path) -> None:
    image = make(tmp_path / "root")
    text = declare('version = "1"', 'config = ["/etc/app/*"]')
    image.write("/etc/ipavolume.toml", text + text.replace('"app"', '"other"'))
    with pytest.raises(UnfitImageError) as caught:
        image.prepare()
    assert {one.code for one in caught.value.refused} == {"config-owned"}
    assert not (image.root / "etc/build-id").exists()


def test_other_configuration_under_one_version_is_warned_of(tmp_path: Path) -> None:
    image = make(tmp_path / "root", 'version = "1"', 'config = ["/etc/app/*"]')
    assert image.prepare().findings == ()
    assert image.prepare().findings == ()
    image.write("/data-template/etc/app/app.conf", "two\n")
    (found,) = image.prepare().findings
    assert (found.code, "'/data/etc/app/app.conf'" in found.message) == ("same-version", True)
    assert image.prepare().findings == ()
    image.write("/data-template/etc/app/app.conf", "three\n")
    image.write("/etc/ipavolume.toml", declare('version = "1-2"', 'config = ["/etc/app/*"]'))
    assert image.prepare(strict=True).findings == ()


def test_a_glob_that_would_switch_on_again_what_was_switched_off_is_warned_of(
    tmp_path: Path,
) -> None:
    image = make(tmp_path / "root", 'version = "1"', 'config = ["/etc/app/*.conf"]')
    etc = image.root / "etc/app"
    for path, target in (
        ("sites-enabled/default.conf", "../sites-available/default.conf"),
        ("mods-enabled/tls.conf", "/etc/app/mods-available/tls.conf"),
        ("boot.wants/app.conf", "/usr/lib/app/app.conf"),
        # Neither of these is deleted to switch something off.
        ("hints.conf", "mods-available/hints.conf"),
        ("old.conf", "app.conf"),
        ("chosen.conf", "/etc/alternatives/chosen.conf"),
    ):
        link = etc / path
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
        image.write(f"/etc/app/sites-available/{link.name}")
        image.write(f"/etc/app/mods-available/{link.name}")
    (found,) = image.prepare().findings
    assert found.code == "config-switch"
    assert "[[package]] app: config: '/etc/app/*.conf' matches" in found.message
    named = re.findall(r"'(/etc/app/[^'*]+)'", found.message)
    assert named == [
        "/etc/app/boot.wants/app.conf",
        "/etc/app/mods-enabled/tls.conf",
        "/etc/app/sites-enabled/default.conf",
    ]
    # Named one by one they are meant.
    globs = ["/etc/app/app.conf", *named]
    image.write("/etc/ipavolume.toml", declare('version = "2"', f"config = {globs}"))
    assert image.prepare(strict=True).findings == ()


@pytest.mark.parametrize(
    ("version", "release", "better"),
    [
        ("2.0.0-rc.1", "2.0.0", "2.0.0~rc.1"),
        ("1:2.0.0-beta", "1:2.0.0", "1:2.0.0~beta"),
        ("2.0rc1", "2.0", "2.0~rc1"),
        ("2.0b2", "2.0", "2.0~b2"),
        ("2.0.dev3", "2.0", "2.0~dev3"),
        ("2.0-SNAPSHOT", "2.0", "2.0~SNAPSHOT"),
        ("2.0rc1-2", "2.0", "2.0~rc1-2"),
        ("2.0b2-2", "2.0", "2.0~b2-2"),
    ],
)
def test_what_comes_before_a_release_is_to_be_written_as_rpm_sorts_it(
    tmp_path: Path, version: str, release: str, better: str
) -> None:
    """Its volumes would be refused by the release, as newer ones."""
    image = make(tmp_path / "root", f'version = "{version}"', 'config = ["/etc/app/*"]')
    (found,) = image.prepare().findings
    assert found.code == "pre-release"
    assert f"newer than {release}, " in found.message
    assert found.message.endswith(f" is {better}")
    assert compare_evr(better, release) < 0


@pytest.mark.parametrize(
    "version",
    [
        *("2.0~rc1", "2.0.0", "2.0-3", "2.0.0-1.rc1.fc43", "1.1.1w", "2.0p1", "r2024a"),
        # With the commit that they were made of: a build in six was refused with --strict.
        *("2.4.1-g1a2b3c4", "2.4.1-1.git3f2a9b1", "2.4.1+1a2b3c4"),
    ],
)
def test_what_is_no_version_before_a_release_is_none(tmp_path: Path, version: str) -> None:
    image = make(tmp_path / "root", f'version = "{version}"', 'config = ["/etc/app/*"]')
    assert image.prepare().findings == ()


# -- from populate to upgrades -----------------------------------------------------------


def test_an_odd_name_that_no_package_has_is_escaped_once(tmp_path: Path) -> None:
    image = make(tmp_path / "image")
    image.write("/etc/ipavolume.toml", "")
    image.write("/etc/app/back\\slash\n")
    said = run_ipavolume("prepare", "--root", str(image.root), "--no-packages").stderr
    assert r"no package owns: /etc/app/app.conf, /etc/app/back\\slash\n, /etc/app/page" in said


def test_a_step_is_asked_of_a_volume_whose_image_had_no_packages(tmp_path: Path) -> None:
    """Nothing is known of what had been copied into that one; of another one all packages are."""
    site = Site(top=tmp_path)
    bare, other, declared = (
        make(tmp_path / "bare"),
        make(tmp_path / "other"),
        make(tmp_path / "two"),
    )
    bare.write("/etc/ipavolume.toml", "")
    bare.prepare(build_id="bare", no_packages=True)
    other.write("/etc/ipavolume.toml", declare('version = "1"').replace('"app"', '"library"'))
    other.prepare(build_id="other")
    declared.write("/etc/ipavolume.toml", declare('version = "2"'))
    put_step(declared.root, "s5100_step.py", step_text(applies_from="<2"), own=True)
    declared.prepare(build_id="two")
    for image, why in (
        (bare, "the version of app is not known"),
        (other, "app is not on the volume"),
    ):
        site.volumes.clear()
        site.volumes["/data"] = tmp_path / f"volume-{image.root.name}"
        site.volumes["/data"].mkdir()
        site.upgrade(image)
        assert why in site.run("steps", declared).stdout
        planned = site.run("upgrade", declared, "--dry-run", "--allow", "foreign", status=100)
        assert ("s5100_step" in planned.stdout) is (image is bare)


def recipe(start: str, title: str) -> str:
    """Return the literal block of a *chapter* of the manual that has a line beginning so."""
    for _, block in blocks(chapter(MANUAL["build"], title)):
        if any(line.startswith(start) for line in block.splitlines()):
            return block
    raise AssertionError(f"{title} has no block with {start!r}")


def build(root: Path, version: str, confs: dict[str, str]) -> Image:
    """Build an image as the recipe of the manual does."""
    image = make_image(root)
    title = "Software without rpm"
    copied = {
        "my-server": {"/VERSION": f"{version}\n"},
        "my-server.conf": {"": "port = 1\n"},
        "conf.d": {f"/{name}": text for name, text in confs.items()},
        "volume-data-list": {"": "/etc/my-server.conf\n/etc/my-server/\n/var/lib/my-server/\n"},
        "ipavolume.toml": {"": recipe("[[package]]", title)},
        "s5010_ask_for_tls.py": {"": recipe('"""Ask for TLS', "Upgrade steps")},
    }
    for line in recipe("COPY", title).strip().splitlines():
        word, *words = line.split()
        if word == "COPY":
            *names, to = words
            for name in names:
                # A directory's content is copied, a file goes into what ends with a slash.
                for inner, text in copied.pop(name).items():
                    image.write(f"{to}{inner}" if inner else f"{to}{name}", text)
        else:
            assert [word, *words[:2]] == ["RUN", "mkdir", "-p"]
            assert words[3:6] == ["&&", "ipavolume", "prepare"]
            (image.root / words[2].lstrip("/")).mkdir(parents=True)
            run_ipavolume("prepare", "--root", image.root, "--build-id", root.name, *words[6:])
    assert copied == {}
    return image


def upgrade(image: Image, volume: Path) -> None:
    """Bring *volume* to *image*, in a container of it: there are steps to run."""
    done = inside.run(image.root, volume, [*inside.IPAVOLUME, "upgrade"])
    assert done.returncode == 0, done.stderr


def test_what_the_manual_shows_from_an_empty_volume_to_upgrades(tmp_path: Path) -> None:
    site = Site(top=tmp_path)
    first = build(tmp_path / "one", "1.4", {"limits": "l1\n", "users": "u1\n", "old": "o1\n"})
    second = build(tmp_path / "two", "2.0-1", {"limits": "l2\n", "users": "u2\n", "new": "n2\n"})
    third = build(tmp_path / "three", "2.0-2", {"limits": "l3\n", "users": "u2\n"})
    volume = site.volume()
    upgrade(first, volume)
    etc = volume / "etc"
    (etc / "my-server/users").write_text("mine\n")
    (volume / "var/lib/my-server/table").write_text("data\n")

    found = volume_of(site.run("check", second, "--json", status=100).stdout)
    assert (found["state"], found["recorded"]["packages"], found["image"]["packages"]) == (
        "outdated",
        {"my-server": "1.4"},
        {"my-server": "2.0-1"},
    )
    upgrade(second, volume)
    assert (etc / "my-server.conf").read_text() == "port = 1\ntls = on\n"
    assert {path.name: path.read_text() for path in (etc / "my-server").iterdir()} == {
        "limits": "l2\n",
        "users": "mine\n",
        "users.rpmnew": "u2\n",
        "new": "n2\n",
    }
    assert "my-server" in site.refused(first, "newer", status=77)

    # From the first image to the third, and the same by way of the second.
    upgrade(third, volume)
    assert (etc / "my-server/limits").read_text() == "l3\n"
    assert (etc / "my-server.conf").read_text() == "port = 1\ntls = on\n"
    assert not (etc / "my-server/new").exists()
    assert "2.0-2" in site.refused(second, "newer", status=77)
    assert (volume / "var/lib/my-server/table").read_text() == "data\n"
    jump = tmp_path / "jump"
    jump.mkdir(mode=0o755)
    upgrade(first, jump)
    upgrade(third, jump)
    assert (jump / "etc/my-server.conf").read_text() == "port = 1\ntls = on\n"
    names = sorted(path.name for path in (jump / "etc/my-server").iterdir())
    assert names == ["limits", "users"]
