"""Scriptlets as an administrator meets them: in the dry run, when they fail, in the lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from support import inside
from support.command import listed_in
from support.images import Image, Packaged, build_rpm
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

LISTS = {"/data": ["/etc/svc/", "/var/lib/svc/"]}
CONFIG = """
[scriptlets]
packages = ["svc"]
timeout_s = {timeout_s}
substitute = [{{ package = "svc", find = "/etc/svc.old", replace = "/data/etc/svc/svc.conf" }}]
"""
POST = """%post
echo "called with $1"
grep -c version /etc/svc.old >/data/var/lib/svc/seen
echo the cause >&2
exit 7
"""
HANGS = "%posttrans\ntest ! -e /data/var/lib/svc/hang || exec sleep 1000\n"
OTHERS = "%preun\nexit 0\n%transfiletriggerin -- /usr/lib\nexit 0\n"


def give_shell(image: Image) -> None:
    """Give an image what runs its scriptlets."""
    image.write("/usr/bin/sh", Path("/bin/sh").read_bytes(), mode=0o755)
    (image.root / "bin").symlink_to("usr/bin")


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    top = tmp_path_factory.mktemp("rpms")
    return {
        version: build_rpm(
            top,
            "svc",
            [
                Packaged(path="/etc/svc/svc.conf", content=f"version {version}", words="%config"),
                Packaged(path="/var/lib/svc", directory=True),
            ],
            version=version,
            scriptlets=POST + HANGS + OTHERS,
        )
        for version in ("1", "2")
    }


@pytest.fixture
def images(tmp_path: Path, rpms: Mapping[str, Path]) -> tuple[Site, Image, Image]:
    site = Site(top=tmp_path)

    first, second = (
        site.image(
            f"v{version}",
            [rpms[version]],
            lists=LISTS,
            config=CONFIG.format(timeout_s=600),
            edit=give_shell,
        )
        for version in ("1", "2")
    )
    inside.run(first.root, site.volume(), [*inside.IPAVOLUME, "upgrade", "-q"])
    return site, first, second


def test_a_dry_run_shows_the_text_and_what_the_substitution_changed(
    images: tuple[Site, Image, Image],
) -> None:
    site, _, second = images
    said = site.run("upgrade", second, "--dry-run", "-v", status=100).stdout
    assert "svc-post 2: %post of svc-2-1 (svc: 1-1 -> 2-1)" in said
    assert "-grep -c version /etc/svc.old >/data/var/lib/svc/seen" in said
    assert "+grep -c version /data/etc/svc/svc.conf >/data/var/lib/svc/seen" in said
    assert '| echo "called with $1"' in said


def test_one_that_fails_is_a_warning_and_the_summary_says_so(
    images: tuple[Site, Image, Image],
) -> None:
    site, _, second = images
    done = inside.run(second.root, site.volume(), [*inside.IPAVOLUME, "upgrade"])
    assert done.returncode == 0, done.stderr
    assert "| called with 2" in done.stderr
    assert "1 warning:" in done.stdout
    assert "%post of svc-2-1 ended with status 7; its last line: the cause" in done.stdout
    assert (site.volume() / "var/lib/svc/seen").read_text() == "1\n"
    assert (site.volume() / "build-id").read_text() == "v2\n"
    run = site.history()[-1]
    assert [row[:3] for row in run["tasks"]] == [
        ["scriptlet svc-post 2", "online", "warned"],
        ["scriptlet svc-posttrans 2", "online", "done"],
    ]
    log = (site.volume() / ".ipavolume/logs/0002-v2.log").read_text()
    assert "  | the cause" in log
    assert "1 warning:" in log


def test_one_that_hangs_is_a_warning_and_the_summary_says_so(
    images: tuple[Site, Image, Image],
) -> None:
    site, _, second = images
    (site.volume() / "var/lib/svc/hang").touch()
    # By then the other one has ended, or not.
    second.write("/etc/ipavolume.toml", CONFIG.format(timeout_s=1))
    second.prepare(build_id="v2")
    done = inside.run(second.root, site.volume(), [*inside.IPAVOLUME, "upgrade"])
    assert done.returncode == 0, done.stderr
    assert "2 warnings:" in done.stdout
    assert "%posttrans of svc-2-1 did not end within 1 s and was ended" in done.stdout
    assert (site.volume() / "build-id").read_text() == "v2\n"
    assert [row[2] for row in site.history()[-1]["tasks"]] == ["warned", "warned"]


def test_what_one_puts_in_the_place_of_a_link_into_the_volume_goes_there_and_is_told(
    tmp_path: Path,
) -> None:
    """F22: ``sed -i`` on a listed file."""
    site = Site(top=tmp_path)
    first, second = (
        site.image(
            f"v{version}",
            [
                build_rpm(
                    tmp_path,
                    "svc",
                    [Packaged(path="/etc/svc.conf", content="old\n", words="%config")],
                    version=version,
                    scriptlets="%post\nsed -i s/old/new/ /etc/svc.conf\n",
                )
            ],
            lists={"/data": ["/etc/svc.conf"]},
            config='[scriptlets]\npackages = ["svc"]\n',
            edit=give_shell,
        )
        for version in ("1", "2")
    )
    (warned,) = (text for text in second.warnings if "replaces the listed file" in text)
    assert "%post of svc (svc-post) replaces the listed file '/etc/svc.conf'" in warned
    assert "sed -i s/old/new/ /etc/svc.conf" in warned
    inside.run(first.root, site.volume(), [*inside.IPAVOLUME, "upgrade", "-q"])
    done = inside.run(second.root, site.volume(), [*inside.IPAVOLUME, "upgrade"])
    assert done.returncode == 0, done.stderr
    assert "took the place of the link /etc/svc.conf to /data/etc/svc.conf" in done.stdout
    assert "[scriptlets] substitute" in done.stdout
    assert (site.volume() / "etc/svc.conf").read_text() == "new\n"
    run = site.history()[-1]
    assert [row[2] for row in run["tasks"]] == ["warned"]
    (copy,) = run["copies"]
    assert (site.volume() / copy[1].removeprefix("/data/")).read_text() == "old\n"
    # On a read-only root it complains, ends well, and has written nothing.
    read_only = ["sh", "-c", 'mount -o remount,ro /; exec "$@"', "-"]
    again = [*read_only, *inside.IPAVOLUME, "upgrade", "--again"]
    (site.volume() / "etc/svc.conf").write_text("old\n")
    done = inside.run(second.root, site.volume(), again)
    assert done.returncode == 0, done.stderr
    assert "'/etc/svc.conf' is listed, so it is a link of the image" in done.stdout
    assert [row[2] for row in site.history()[-1]["tasks"]] == ["warned"]


def test_scriptlets_lists_all_of_them_run_or_not_and_why(
    images: tuple[Site, Image, Image],
) -> None:
    site, first, second = images
    listed = {
        found["name"]: found for found in listed_in(site.run("scriptlets", second, "--json").stdout)
    }
    assert listed["svc-post"]["runs"] is True
    assert listed["svc-post"]["arguments"] == ["2"]
    assert listed["svc-preun"]["runs"] is False
    assert len(listed) == 4
    assert all(found["why"] for found in listed.values())
    said = site.run("scriptlets", first).stdout
    assert "runs when an upgrade changes the versions" in said


def test_steps_lists_all_of_them_and_whether_the_volume_needs_them(
    images: tuple[Site, Image, Image],
) -> None:
    site, _, second = images
    listed = {
        found["name"]: found for found in listed_in(site.run("steps", second, "--json").stdout)
    }
    assert listed["s9000_ipa_server_upgrade"]["runs"] is False
    assert listed["s9000_ipa_server_upgrade"]["why"] == "freeipa-server is not on the volume"
    said = site.run("steps", second, "-v").stdout
    assert "online, at upgrade, freeipa-server (every version)" in said
    assert "/usr/share/ipavolume/upgrade_steps/s9000_ipa_server_upgrade.py" in said


TAKES_OVER = """%post
for file in /etc/svc/own.conf /etc/svc/plain.conf; do
    test ! -e $file || cp $file /etc/svc/conf.d/
done
"""


@pytest.mark.parametrize("substituted", [False, True])
def test_a_scriptlet_that_wants_what_its_package_gave_up_is_told_of_where_it_is(
    tmp_path: Path, *, substituted: bool
) -> None:
    """One file became a directory; rpm removes the file when %post has run."""
    site = Site(top=tmp_path)
    names = ("own", "plain")
    old = [Packaged(path=f"/etc/svc/{name}.conf", content="1", words="%config") for name in names]
    new = [Packaged(path="/etc/svc/conf.d/main.conf", content="2", words="%config")]
    way = "{ package = 'svc', find = '/own.conf', replace = '/own.conf.rpmsave' }"
    config = f"[scriptlets]\npackages = ['svc']\nsubstitute = [{way if substituted else ''}]\n"
    first, second = (
        site.image(
            f"v{version}",
            [build_rpm(tmp_path, "svc", files, version=version, scriptlets=TAKES_OVER)],
            lists={"/data": ["/etc/svc/"]},
            config=config,
            edit=give_shell,
        )
        for version, files in (("1", old), ("2", new))
    )
    inside.run(first.root, site.volume(), [*inside.IPAVOLUME, "upgrade", "-q"])
    (site.volume() / "etc/svc/own.conf").write_text("mine")

    said = site.run("check", second, status=100).stdout
    assert ("names '/etc/svc/own.conf', which the image no longer ships" in said) != substituted
    assert ("which is '/data/etc/svc/own.conf.rpmsave' by then" in said) != substituted
    assert "names '/etc/svc/plain.conf', which the image no longer ships" in said
    assert "is removed before it" in said
    done = inside.run(second.root, site.volume(), [*inside.IPAVOLUME, "upgrade"])
    assert "names '/etc/svc/plain.conf'" in done.stdout
    taken = site.volume() / "etc/svc/conf.d/own.conf.rpmsave"
    assert taken.exists() == substituted
