"""An image derived from one of the freeipa-container project, and volumes that theirs left."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
from support import inside, peers
from support.command import PROJECT
from support.images import Image, Packaged, build_rpm, make_image, picture

from ipavolume.prepare.findings import Code, UnfitImageError

pytestmark = [pytest.mark.root, pytest.mark.rpm]

LISTS: Final = {
    "data": ("/etc/ipa/", "/etc/systemd/system/", "/var/lib/ipa/", "/var/log/ipa/"),
    "tmp": ("/var/lib/gssproxy/", "/var/tmp/"),
}
CONFIG: Final = (
    'profile = "freeipa"\n[start]\nexec = []\nlog-follow = []\n[first-run]\ncommand = []\n'
    "[scriptlets]\npackages = []\n"
)
EXAMPLE: Final = PROJECT / "ipavolume/examples/freeipa"
LINKS_STEP: Final = "s0110_links_to_units_of_old_images.py"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """FreeIPA's packages by name, in two versions."""
    top = tmp_path_factory.mktemp("packages")
    kept = "%config(noreplace)"
    return {
        version: [
            build_rpm(
                top,
                "freeipa-server",
                [
                    Packaged(path="/etc/ipa/default.conf", words=kept, content=f"{version}\n"),
                    Packaged(path="/var/lib/ipa/shipped", content=f"{version}\n"),
                ],
                version=version,
            ),
            *(
                build_rpm(
                    top,
                    name,
                    [Packaged(path=f"/usr/share/{name}/x", content="x")],
                    version=version,
                )
                for name in ("389-ds-base", "certmonger", "sssd-common")
            ),
        ]
        for version in "12"
    }


def published(root: Path, rpms: list[Path], version: str) -> Image:
    """Make a stand-in for a published image of that project."""
    image = make_image(root, rpms)
    image.write("/usr/lib/os-release", f'ID=fedora\nVERSION_ID="4{version}"\n')
    image.write("/usr/lib/systemd/systemd", mode=0o755)
    image.write("/usr/bin/ipavolume", mode=0o755)
    image.write("/var/lib/gssproxy/state", version)
    peers.dress(image, f"theirs-{version}", LISTS)
    return image


def derive(image: Image, config: str = CONFIG) -> Image:
    """Do what the example's Dockerfile does on top of it.

    Args:
        image: The stand-in.
        config: Its configuration: the example's own would execute what a stand-in has not.
    """
    shutil.copytree(EXAMPLE / "rootfs", image.root, dirs_exist_ok=True)
    image.write("/etc/ipavolume.toml", config)
    if not (image.root / "etc/ipavolume").exists():
        image.mask_steps()
        (image.root / "etc/ipavolume/upgrade_steps" / LINKS_STEP).unlink()
    image.prepare()
    return image


def test_what_theirs_does_itself_is_taken_out(
    tmp_path: Path, packages: dict[str, list[Path]]
) -> None:
    image = published(tmp_path / "image", packages["1"], "1")
    assert len(peers.theirs_in(image.root)) == 5
    derive(image, (EXAMPLE / "rootfs/etc/ipavolume.toml").read_text())
    assert peers.theirs_in(image.root) == set()
    assert not any(Code.UNIT_ORDER in line for line in image.warnings)
    assert b"ipavolume start" in (image.root / peers.INIT[1:]).read_bytes()
    (build_id,) = peers.ids(image)
    assert build_id != "theirs-1"
    # What is volatile stays where their images have it.
    assert [volume.mount for volume in image.header().volumes] == ["/data", "/tmp"]
    assert image.readlink("/var/lib/gssproxy") == "/tmp/var/lib/gssproxy"
    assert not any(Code.KEPT_FILE in line for line in image.warnings)

    once = picture(image.root)
    assert not image.prepare().changed
    assert picture(image.root) == once


def test_the_journal_is_on_the_volume(tmp_path: Path, packages: dict[str, list[Path]]) -> None:
    """Whether or not the image has a directory there, and when the journal is started again."""
    image = derive(published(tmp_path / "image", packages["1"], "1"))
    storage = image.root / "usr/lib/systemd/journald.conf.d/ipavolume.conf"
    assert "Storage=volatile" in storage.read_text().splitlines()
    unit = image.root / peers.UNITS[1:] / "systemd-journald.service.d/ipavolume.conf"
    text = unit.read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.startswith("ExecStartPre="))
    words = shlex.split(line.removeprefix("ExecStartPre=-").replace("$$", "$"))
    volume = tmp_path / "volume"
    volume.mkdir()
    script = (
        'mkdir -p /run/log/journal/empty; for _ in 1 2; do "$@"; done; echo x >/run/log/journal/x'
    )
    start = ["sh", "-ec", script, "sh", *words]
    # A volume that nobody has filled is left as it is.
    inside.run(image.root, volume, start).check_returncode()
    assert not list(volume.iterdir())
    inside.run(image.root, volume, [*inside.IPAVOLUME, "upgrade"]).check_returncode()
    inside.run(image.root, volume, start).check_returncode()
    assert (volume / "var/log/journal/x").read_text() == "x\n"
    # What has content, as the host's that is mounted there, stays.
    script = 'mkdir -p /run/log/journal; echo y >/run/log/journal/x; "$@"; cat /run/log/journal/x'
    done = inside.run(image.root, volume, ["sh", "-c", script, "sh", *words])
    assert done.stdout == "y\n"
    assert (volume / "var/log/journal/x").read_text() == "x\n"


@pytest.mark.parametrize(
    ("other", "left"),
    [
        pytest.param(
            CONFIG.replace("exec = []", 'exec = ["/usr/bin/systemctl"]'), set(), id="no systemd"
        ),
        pytest.param(
            "[start]\nexec = []\n",
            {
                *("ipavolume-lock.service", "ipavolume-online.service"),
                *("ipavolume-phase.target", "ipavolume.target"),
            },
            id="not the profile",
        ),
    ],
)
def test_what_an_image_in_between_was_given_by_its_configuration_goes(
    tmp_path: Path, packages: dict[str, list[Path]], other: str, left: set[str]
) -> None:
    """Its name for the online unit, the drop-ins that have the journal on its mount."""
    image = published(tmp_path / "image", packages["1"], "1")
    image.write("/usr/bin/systemctl", "#!/bin/sh\n", mode=0o755)
    named = "exec = []\nonline-unit = 'application-upgrade.service'"
    derive(image, CONFIG.replace("exec = []", named))
    system = image.root / "usr/lib/systemd"
    journal = {*system.glob("*/systemd-journald.service.d/*"), *system.glob("journald.conf.d/*")}
    assert len(journal) == 2
    assert (system / "system/application-upgrade.service").exists()
    image.write("/etc/ipavolume.toml", other)
    image.prepare()
    assert not any(path.exists() for path in journal)
    names = {path.name for path in (system / "system").glob("*pplication-upgrade*")}
    assert names | {path.name for path in (system / "system").glob("ipavolume*")} == left
    wanted = {path.name for path in (system / "system/default.target.wants").iterdir()}
    assert wanted == left - {"ipavolume-phase.target"}
    assert not image.prepare().changed


def test_a_derived_image_of_another_configuration_has_another_id(
    tmp_path: Path, packages: dict[str, list[Path]]
) -> None:
    """Two images derived from the same one are not the same image."""
    image = published(tmp_path / "one", packages["1"], "1")
    other = tmp_path / "other"
    shutil.copytree(image.root, other, symlinks=True)
    assert peers.ids(derive(image)) != peers.ids(derive(Image(root=other)))


def test_without_the_profile_nothing_of_theirs_is_touched(
    tmp_path: Path, packages: dict[str, list[Path]]
) -> None:
    image = published(tmp_path / "image", packages["1"], "1")
    derive(image, "[start]\nexec = []\n")
    assert len(peers.theirs_in(image.root)) == 5


@pytest.mark.parametrize("place", ["/etc/systemd/system", "/usr/local/lib/systemd/system"])
def test_a_unit_of_that_name_that_is_somebodys_own_is_refused(
    tmp_path: Path, packages: dict[str, list[Path]], place: str
) -> None:
    image = published(tmp_path / "image", packages["1"], "1")
    top = image.root / "data-template" if place.startswith("/etc") else image.root
    unit = top / place[1:] / peers.UPGRADE
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text("[Service]\nExecStart=/usr/local/bin/mine\n")
    before = peers.theirs_in(image.root)
    with pytest.raises(UnfitImageError) as refused:
        derive(image)
    assert refused.value.code == Code.SUPERSEDED_UNIT
    assert f"{place}/{peers.UPGRADE}" in str(refused.value)
    assert peers.theirs_in(image.root) == before
    # Masked it does nothing.
    unit.unlink()
    unit.symlink_to("/dev/null")
    derive(image)
    assert os.readlink(unit) == "/dev/null"


def test_a_volume_of_theirs_with_all_their_units_enabled_is_taken_over_and_upgraded(
    tmp_path: Path, packages: dict[str, list[Path]]
) -> None:
    """Their image ran on it last; the derived one starts, then that of the next version."""
    first = published(tmp_path / "first", packages["1"], "1")
    volume = tmp_path / "volume"
    shutil.copytree(first.root / "data-template", volume, symlinks=True)
    for name in (".configfiles", ".configfiles-noreplace"):
        (volume / name / "etc/ipa").mkdir(parents=True)
        shutil.copy2(volume / "etc/ipa/default.conf", volume / name / "etc/ipa")
    (volume / "volume-version").write_text("2.0\n")
    (volume / "hostname").write_text("ipa.example.test\n")
    (volume / "var/lib/ipa/sysupgrade").mkdir()
    (volume / "var/lib/ipa/sysupgrade/sysupgrade.state").write_text(
        "[ipa]\nplatform = fedora\ndata_version = 0.9-1.fc41\n"
    )
    wants = volume / peers.WANTS[1:]
    for name in (peers.UPGRADE, peers.ADDRESS):
        (wants / name).symlink_to(f"{peers.UNITS}/{name}")
    mine = wants / "mine.service"
    mine.symlink_to("/etc/systemd/system/mine.service")
    (volume / "etc/ipa/default.conf").write_text("edited\n")

    def start(image: Image, version: str) -> str:
        # What is empty at each start is below /tmp, which is the container's own here.
        done = inside.run(
            image.root,
            volume,
            [
                *(*inside.IPAVOLUME, "start", "--allow", "hostname", "--"),
                *("cat", "/var/lib/gssproxy/state"),
            ],
        )
        assert (done.returncode, done.stdout) == (0, version), done.stderr
        return done.stderr

    said = start(derive(first), "1")
    assert "legacy" in said
    assert peers.theirs_in(volume) == set()
    assert mine.is_symlink()
    assert (volume / "build-id").read_text().strip() in peers.ids(first)
    assert (volume / "etc/ipa/default.conf").read_text() == "edited\n"

    second = derive(published(tmp_path / "second", packages["2"], "2"))
    assert "outdated" in start(second, "2")
    assert (volume / "build-id").read_text().strip() in peers.ids(second)
    assert (volume / "etc/ipa/default.conf").read_text() == "edited\n"
    assert (volume / "etc/ipa/default.conf.rpmnew").read_text() == "2\n"


# -- what their users start a container with ---------------------------------------------


def test_exit_on_finished_ends_what_was_begun_and_serves_what_is_current(
    tmp_path: Path, packages: dict[str, list[Path]]
) -> None:
    def image(version: str) -> Image:
        made = make_image(tmp_path / version, packages[version])
        made.list("/etc/ipa/")
        made.mask_steps()
        made.write("/usr/lib/os-release", 'ID=fedora\nVERSION_ID="44"\n')
        made.write(
            "/etc/ipavolume.toml",
            '[start]\nexec = ["sh", "-c", "echo serving"]\n'
            '[first-run]\ncommand = ["sh", "-c", "echo $0 $* >/data/etc/ipa/done"]\n'
            'done-when = "/data/etc/ipa/done"\n',
        )
        made.prepare()
        return made

    first, second = image("1"), image("2")
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o755)

    def start(one: Image, *words: str) -> tuple[str, str]:
        done = inside.run(one.root, volume, [*inside.IPAVOLUME, "start", "--", *words])
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr.splitlines()[-1]

    # The installer runs, and gets the other arguments; then the container ends.
    out, last = start(first, "exit-on-finished", "-U")
    assert "serving" not in out
    assert last.endswith("ending: exit-on-finished")
    assert "-U" in (volume / "etc/ipa/done").read_text()
    assert "exit" not in (volume / "etc/ipa/done").read_text()
    # A server that is there is served, as their images do.
    assert "serving" in start(first, "exit-on-finished", "-U")[0]
    out, last = start(first, "exit-on-finished=always")
    assert out == ""
    assert last.endswith("ending: exit-on-finished=always")
    # An upgrade is something that is finished.
    assert "serving" not in start(second, "exit-on-finished")[0]
    assert (volume / "build-id").read_text().strip() == second.header().build_id
    assert "serving" in start(second)[0]


@pytest.mark.parametrize("words", [("bash", "-c", "echo $0"), ("/bin/bash", "-c", "echo $0")])
def test_a_shell_is_executed_and_nothing_else(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["sh", PROJECT / "scripts/init", *words],
        check=False,
        capture_output=True,
        encoding="utf-8",
        env={"PATH": os.environ["PATH"]},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{words[0]}\n", "")
