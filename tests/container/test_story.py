"""A server's life: installed, filled, looked after, and upgraded to the next release."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from support import containers, site
from support.command import RunIpavolume
from support.containers import PREFIX
from support.site import Answers

V1: Final = f"{PREFIX}/server:1"
V2: Final = f"{PREFIX}/server:2"
REBUILT: Final = f"{PREFIX}/rebuilt:2"

pytestmark = pytest.mark.slow

ADMINISTRATOR: Final = """
echo '// more than one address' >> /etc/bind/named.conf.options
echo '; ours' >> /etc/bind/db.local
echo '# ours' >> /etc/default/named
chmod 0600 /etc/default/389-ds-base
systemctl disable --now krb5-admin-server
systemctl stop krb5-kdc
mv /data/var/lib/krb5kdc /big/krb5kdc
ln -s /big/krb5kdc /data/var/lib/krb5kdc
systemctl start krb5-kdc
"""
"""What the administrator does: edits, a tighter mode, a disabled unit, a relocated directory."""

OWNERS: Final = r"find /data/ -xdev -printf '%P\t%u:%g\n'"


@dataclass(frozen=True, kw_only=True)
class Look:
    """A container that came up, as it was seen.

    Attributes:
        log: What it printed.
        answers: What its services answered.
        owners: Names of owner and group by path on the volume.
        seconds: From its start until everything was up.
        status: How it ended when it was stopped.
    """

    log: str
    answers: Answers
    owners: Mapping[str, str]
    seconds: float
    status: int


@dataclass(frozen=True, kw_only=True)
class Story:
    """What was seen from the first start to the last.

    Attributes:
        volume: Where the volume is.
        options: Options for further containers on it.
        installed: The first container, filled.
        edited: The second start of the same image, after the administrator's work.
        preview: The dry run of the next release's image.
        upgraded: The first container of the next release.
        again: Its next start.
    """

    volume: Path
    options: tuple[str, ...]
    installed: Look
    edited: Look
    preview: str
    upgraded: Look
    again: Look


class Teller:
    """Runs one container after the other on one volume."""

    def __init__(self, work: Path, project: str, volume: Path | None) -> None:
        """Give each container *work* / big as well; without *volume* use the project's own."""
        self._work = work
        self._project = project
        self._volume = volume
        self._big = work / "big"
        self._big.mkdir()

    def up(self, image: str) -> Any:
        service = {"image": image, "volumes": [f"{self._big}:/big"]}
        return containers.composed(
            "server.yaml", self._work, self._project, service, volume=self._volume
        )

    def look(self, image: str, *work: str, filled: bool = True) -> Look:
        """Start a container, do *work* in it, ask its services, stop it."""
        begin = time.monotonic()
        with self.up(image) as (container, _):
            site.until_up(container)
            seconds = time.monotonic() - begin
            if not filled:
                site.fill(container)
            answers = site.ask(container)
            for script in work:
                container.shell(script)
            owners = dict(line.split("\t") for line in container.shell(OWNERS).splitlines() if line)
            log = container.logs()
            status = container.stop()
        return Look(log=log, answers=answers, owners=owners, seconds=seconds, status=status)


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    containers.need_images("server:1", "server:2", "rebuilt:2")


@pytest.fixture(scope="module", params=["directory", "named volume"])
def story(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    work = tmp_path_factory.mktemp("story")
    project = f"ipavolume{work.name}"
    volume = None
    if request.param == "directory":
        volume = work / "volume"
        volume.mkdir()
    teller = Teller(work, project, volume)
    try:
        installed = teller.look(V1, ADMINISTRATOR, filled=False)
        edited = teller.look(V1)
        place = volume or containers.place_of(project)
        preview = containers.engine(
            *("run", "--rm", "--network", "none", "--read-only", "-v", f"{place}:/data:ro"),
            *("-v", f"{work}/big:/big:ro", V2, "ipavolume", "upgrade", "--dry-run"),
            check=False,
        )
        yield Story(
            volume=place,
            options=(*containers.READ_ONLY, "-v", f"{work}/big:/big"),
            installed=installed,
            edited=edited,
            preview=preview,
            upgraded=teller.look(V2),
            again=teller.look(V2),
        )
    finally:
        containers.remove_volume(project)


def test_the_first_run_sets_the_server_up(story: Story) -> None:
    assert "first run: set-up-server is done" in story.installed.log
    assert containers.PASSWORD not in story.installed.log
    assert story.installed.answers == site.EXPECTED
    assert story.installed.status == 0


def test_a_start_of_a_current_volume_says_that_and_does_nothing(story: Story) -> None:
    for look in (story.edited, story.again):
        (line,) = (line for line in look.log.splitlines() if line.startswith("ipavolume: "))
        assert "is current" in line
        assert look.answers == site.EXPECTED


def test_every_entry_principal_and_record_answers_after_the_upgrade(
    story: Story, record_property: Any
) -> None:
    assert story.upgraded.answers == site.EXPECTED
    assert story.upgraded.status == 0
    times = (
        f"first run {story.installed.seconds:.1f} s, upgrade {story.upgraded.seconds:.1f} s, "
        f"current {story.again.seconds:.1f} s from docker-compose up until every unit is up"
    )
    record_property("figures", f"{times}\n{story.upgraded.log}")


def test_edits_are_kept_as_rpm_would_keep_them(story: Story) -> None:
    bind = story.volume / "etc/bind"
    assert (bind / "named.conf.options").read_text().endswith("// more than one address\n")
    assert "more than one" not in (bind / "named.conf.options.rpmnew").read_text()
    assert not (bind / "db.local").exists()
    assert (bind / "db.local.rpmsave").read_text().endswith("; ours\n")
    default = story.volume / "etc/default"
    assert (default / "named").read_text().endswith("# ours\n")
    assert not (default / "named.rpmnew").exists()
    assert "named.conf.options.rpmnew" in story.upgraded.log
    assert "db.local.rpmsave" in story.upgraded.log


def test_what_the_packages_changed_and_nobody_edited_is_new(story: Story) -> None:
    bind = story.volume / "etc/bind"
    assert "named.conf.root-hints" in (bind / "named.conf").read_text()
    assert (bind / "named.conf.root-hints").exists()
    assert not (bind / "db.empty").exists()


def test_a_tightened_mode_a_disabled_unit_and_a_relocated_directory_stay(story: Story) -> None:
    default = story.volume / "etc/default/389-ds-base"
    assert default.stat().st_mode & 0o7777 == 0o600
    wanted = story.volume / "etc/systemd/system/multi-user.target.wants"
    assert not (wanted / "krb5-admin-server.service").is_symlink()
    assert (wanted / "krb5-kdc.service").is_symlink()
    assert (story.volume / "var/lib/krb5kdc").readlink() == Path("/big/krb5kdc")


def test_owners_are_right_although_the_accounts_have_changed_places(story: Story) -> None:
    before, after = story.edited.owners, story.upgraded.owners
    # The directory server writes these anew at each start, as the user and group it runs as.
    both = {path for path in before.keys() & after.keys() if "/dse.ldif." not in path}
    assert {path: after[path] for path in both} == {path: before[path] for path in both}
    owners = {owner for pair in after.values() for owner in pair.split(":")}
    assert {"dirsrv", "bind", "root"} <= owners
    assert not [owner for owner in owners if owner.isdigit()]
    numbers = {(story.volume / path).lstat().st_uid for path in both if after[path] == "bind:bind"}
    assert numbers == {701}


def test_the_dry_run_told_what_was_then_done(story: Story) -> None:
    done = re.findall(r"/data/\S+\.rpm(?:new|save)", story.upgraded.log)
    assert len(set(done)) == 3
    for path in done:
        assert path in story.preview
    assert "bdb2mdb" in story.preview
    for name in ("bind9-post", "krb5-kdc-post", "389-ds-base-posttrans"):
        assert name in story.preview
        assert name in story.upgraded.log


def test_the_host_sees_what_the_volume_has_become(story: Story, ipavolume: RunIpavolume) -> None:
    runs = ipavolume("history", str(story.volume)).stdout
    assert [line.split()[1] for line in runs.splitlines() if line[:1].isdigit()] == [
        "populate",
        "first-run",
        "upgrade",
    ]
    card = ipavolume("status", str(story.volume)).stdout
    assert V2 in card


def test_the_older_image_refuses_the_upgraded_volume(story: Story) -> None:
    before = site.content(story.volume)
    with containers.container("server:1", story.volume, options=story.options) as container:
        assert container.wait() == 77
        log = container.logs()
    assert V1 in log
    assert V2 in log
    assert "389-ds-base" in log
    assert site.content(story.volume) == before


def test_a_rebuild_that_changed_nothing_is_recognised(story: Story) -> None:
    ids = [
        containers.engine("run", "--rm", "--entrypoint", "cat", image, "/etc/build-id")
        for image in (V2, REBUILT)
    ]
    assert ids[0] != ids[1]
    with containers.container("rebuilt:2", story.volume, options=story.options) as container:
        site.until_up(container)
        assert site.ask(container) == site.EXPECTED
        log = container.logs()
        container.stop()
    assert "rebuilt" in log
    assert "bdb2mdb" not in log
    assert "-post" not in log
    assert (story.volume / "build-id").read_text().strip() == ids[1]


@pytest.mark.parametrize("image", ["server:1", "server:2"])
def test_a_server_that_might_write_elsewhere_writes_to_its_volume_alone(
    image: str, tmp_path: Path, ipavolume: RunIpavolume
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    with containers.container(image, volume, options=containers.WRITABLE) as container:
        site.until_up(container)
        site.fill(container)
        assert site.ask(container) == site.EXPECTED
        container.shell("systemctl disable --now krb5-admin-server; systemctl restart named")
        assert containers.engine("diff", container.name) == ""
        assert ipavolume("audit", container.name).returncode == 0
