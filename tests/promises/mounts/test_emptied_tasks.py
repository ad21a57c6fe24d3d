"""What is still to be executed where a volume of logs is emptied, as a tmpfs is at each start."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

import pytest
from support import firstrun, inside
from support.command import PROJECT
from support.images import Image, Packaged, build_rpm
from support.taskworlds import LOG, OWN, logs, step
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

REFILL: Final = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/logs"\nrefill = true\n'
ADOPTS: Final = 'application = ["freeipa"]\n' + REFILL
LISTS: Final = {"/data": ["/etc/svc/", "/var/lib/svc/"], "/logs": ["/var/log/svc/"]}
FAILS: Final = f"""
script = "echo second >>/data/{LOG}; test ! -e /data/fail"
yield Command(words=("sh", "-c", script), reason="to be seen")
"""
STEPS: Final = {
    "s5000_first": step(logs("first")),
    "s5010_second": step(FAILS, phase="online"),
    "s5020_new": step(logs("new"), when="populate", phase="online"),
}
ALWAYS: Final = {"IPAVOLUME_SNAPSHOT": "always"}


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three versions of a package with files for both volumes."""
    top = tmp_path_factory.mktemp("svc")
    return {
        version: build_rpm(
            top,
            "svc",
            [
                Packaged(path="/etc/svc/svc.conf", content=f"version {version}", words="%config"),
                Packaged(path="/var/lib/svc", directory=True),
                Packaged(path="/var/log/svc", directory=True),
                Packaged(path="/var/log/svc/README", content=f"version {version}"),
            ],
            version=version,
        )
        for version in "123"
    }


class World:
    """A machine with a volume of data and one of logs, and images whose steps are executed."""

    def __init__(self, top: Path, packages: Mapping[str, Path]) -> None:
        """Make the volumes."""
        self.site = Site(top=top)
        self._packages = packages
        self.data, self.logs = self.site.volume("/data"), self.site.volume("/logs")

    def image(
        self, version: str, steps: Mapping[str, str] | None = None, *, config: str = REFILL
    ) -> Image:
        """Return the image of a version, with *steps* of its own."""

        def edit(image: Image) -> None:
            for name, text in (steps or {}).items():
                image.write(f"{OWN}/{name}.py", text)

        rpms = [self._packages[version]]
        return self.site.image(f"v{version}", rpms, lists=LISTS, config=config, edit=edit)

    def upgrade(
        self, image: Image, *words: str, env: Mapping[str, str] | None = None, status: int = 0
    ) -> CompletedProcess[str]:
        """Upgrade the volumes to *image* in a container of it."""
        words = (*inside.IPAVOLUME, "upgrade", *words)
        done = inside.run(image.root, self.site.volumes, words, env=env)
        assert done.returncode == status, done.stderr
        return done

    def empty(self) -> None:
        """Empty the volume of logs, with the mode that an engine gives a tmpfs."""
        shutil.rmtree(self.logs)
        self.logs.mkdir()
        self.logs.chmod(0o1777)

    @property
    def executed(self) -> list[str]:
        """What steps were executed, in their order."""
        return (self.data / LOG).read_text().split()

    def is_filled(self, version: str) -> bool:
        """Tell whether the volume of logs has what a version ships."""
        return (self.logs / "var/log/svc/README").read_text() == f"version {version}"


@pytest.fixture
def world(tmp_path: Path, packages: dict[str, Path]) -> World:
    """A machine."""
    return World(tmp_path, packages)


def test_what_was_executed_is_not_executed_again(world: World) -> None:
    """And each failure counts, after which starts wait for longer and longer."""
    world.upgrade(world.image("1"))
    second = world.image("2", STEPS)
    (world.data / "fail").touch()
    for attempt in (1, 2, 3):
        world.upgrade(second, status=13)
        attempts = (world.data / ".ipavolume/attempts.json").read_text()
        assert f'"count":{attempt}' in attempts.replace(" ", "")
        world.empty()
    (world.data / "fail").unlink()
    world.upgrade(second)
    assert world.executed == ["first", *["second"] * 4]
    assert world.is_filled("2")
    last = world.site.history()[-1]
    assert (last["run"][:4], last["result"], last["overrides"]) == ("0002", "done", [])
    assert "outdated" not in world.upgrade(second).stderr


def _adoptable(world: World) -> None:
    """Put on the volumes what the freeipa-container project's scripts leave there."""
    for directory in (".configfiles", ".configfiles-noreplace", "etc/svc", "var/lib/svc"):
        (world.data / directory).mkdir(parents=True)
    (world.data / "etc/svc/svc.conf").write_text("version 1")
    (world.data / "volume-version").write_text("2.0\n")
    (world.data / "fail").touch()


@pytest.mark.parametrize("version", ["2", "3"])
def test_an_adoption_that_is_finished_later_executes_what_an_upgrade_does(
    world: World, version: str
) -> None:
    """By its own image or by another one, which chooses its steps anew: data are no new volume."""
    images = {one: world.image(one, STEPS, config=ADOPTS) for one in "23"}
    _adoptable(world)
    world.upgrade(images["2"], "--from", "fedora:43", status=13)
    assert world.executed == ["first", "second"]
    (world.data / "fail").unlink()
    (world.data / LOG).unlink()
    if version == "2":
        world.empty()
    world.upgrade(images[version], "--from", "fedora:43")
    assert world.executed == {"2": ["second"], "3": ["first", "second"]}[version]


def test_who_fills_an_emptied_volume_executes_nothing_and_needs_no_consent(world: World) -> None:
    """Whatever a step always has to do at an upgrade; and the way back stays."""
    world.upgrade(world.image("1"))
    second = world.image("2", STEPS)
    world.upgrade(second, env=ALWAYS)
    (kept,) = (world.data / ".ipavolume/snapshots").iterdir()
    before = world.executed
    for _ in range(2):
        world.empty()
        world.upgrade(second, env={**ALWAYS, "IPAVOLUME_UPGRADE": "refuse"})
        assert world.site.history()[-1]["kind"] == "refill"
        assert world.is_filled("2")
    assert world.executed == before
    assert [*(world.data / ".ipavolume/snapshots").iterdir()] == [kept]


def test_an_upgrade_that_was_let_happen_is_finished_whoever_asks_for_consent(world: World) -> None:
    world.upgrade(world.image("1"))
    second = world.image("2", STEPS)
    (world.data / "fail").touch()
    world.upgrade(second, status=13)
    (world.data / "fail").unlink()
    world.empty()
    world.upgrade(second, env={"IPAVOLUME_UPGRADE": "refuse"})
    assert world.is_filled("2")


def test_an_installation_that_waits_for_an_answer_has_its_logs_again(tmp_path: Path) -> None:
    site = Site(top=tmp_path)
    site.volume("/data")
    logs_ = site.volume("/logs")

    def edit(image: Image) -> None:
        for path in ("/usr/sbin/ipa-server-install", "/usr/sbin/ipa-replica-install"):
            image.write(path, firstrun.INSTALLER, mode=0o755)
        image.write("/etc/hosts", "127.0.0.1 localhost\n10.0.0.2 0f3c\n")
        image.write("/var/log/ipa/README", "x")
        for directory in ("var/lib/ipa", "root"):
            (image.root / directory).mkdir(parents=True)

    image = site.image(
        "one",
        [firstrun.build_package(tmp_path)],
        lists={**firstrun.LISTS, "/logs": ["/var/log/ipa/"]},
        config=firstrun.CONFIG + REFILL,
        edit=edit,
    )
    site.upgrade(image)
    driver = PROJECT / "tests/support/firstruninside.py"
    script = 'mount --bind /dev/null /dev/console; hostname "$0"; "$@"; exit $?'
    words = ["unshare", "--uts", "sh", "-c", script, firstrun.NAME, sys.executable, str(driver)]
    inside.run(image.root, site.volumes, [*words, "--", "-U", "--external-ca"])
    shutil.rmtree(logs_)
    logs_.mkdir()
    done = inside.run(image.root, site.volumes, [*inside.IPAVOLUME, "upgrade"])
    assert "[waiting]" not in done.stderr
    assert (logs_ / "var/log/ipa/README").read_text() == "x"
