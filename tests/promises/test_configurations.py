"""Every configuration that README, manual and profile show, from an empty volume to its adoption.

The frame into which a new key of the configuration goes: add a configuration that uses it, and
the whole life of a volume is played with it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest
from support import inside
from support.command import PROJECT, result_of
from support.documents import MANUAL, README, blocks
from support.images import Image, Packaged, build_rpm, picture
from support.upgrades import Site, actions

pytestmark = [pytest.mark.root, pytest.mark.rpm]

DATA: Final = PROJECT / "tests/data"
SERVICE: Final = "%attr(0750,svc,svc)"
NOREPLACE: Final = "%config(noreplace)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A configuration under test.

    Attributes:
        text: Its ``ipavolume.toml``; "" for none.
        lists: Paths by the mount they belong to.
        shipped: The image has no lists; those are the profile's.
    """

    text: str
    lists: Mapping[str, Sequence[str]]
    shipped: bool = False

    @property
    def kept(self) -> list[str]:
        """The mounts that keep what is on them."""
        tables = tomllib.loads(self.text).get("volume", [{"mount": "/data"}])
        return [table["mount"] for table in tables if not table.get("volatile")]


LISTS: Final = {
    "/data": ["/etc/app/", "/etc/single.conf", "/var/lib/app/"],
    "/logs": ["/var/log/app/"],
    "/tmp": ["/var/cache/app/"],
}
FREEIPA: Final = {
    f"/{name}": [
        line
        for line in (DATA / f"freeipa-volume-{name}-list").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    for name in ("data", "tmp")
}


_TABLE: Final = r"application = |\[{1,2}(volume|start|accept|files|scriptlets|first-run|ready)\b"


def _shown() -> Iterator[str]:
    """Yield each literal block of README and manual that is a configuration, or part of one."""
    for page in (README, *MANUAL.values()):
        for _, text in blocks(page):
            if re.match(_TABLE, text):
                yield text


_TOGETHER: Final = r"\[(snapshot|rollback|verify|lock)\]"


def _joined() -> str:
    """Return as one configuration what is shown of what is about runs and not about files.

    One volume's life with each would take minutes. Of a key that is shown twice the last counts.
    """
    tables: dict[str, dict[str, object]] = {"start": {"exec": ["true"]}}
    for page in MANUAL.values():
        for _, text in blocks(page):
            if re.match(_TOGETHER, text):
                for name, table in tomllib.loads(text).items():
                    tables.setdefault(name, {}).update(table)
    assert tables.keys() == {"start", "snapshot", "rollback", "verify", "lock"}
    # Words, numbers and lists of them are written alike in both.
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )


def _lists_for(text: str) -> dict[str, list[str]]:
    tables = tomllib.loads(text).get("volume", [{"mount": "/data"}])
    return {table["mount"]: LISTS[table["mount"]] for table in tables}


CONFIGURATIONS: Final = {
    "none": Configuration(text="", lists={"/data": LISTS["/data"]}),
    "volatile": Configuration(
        text='[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/tmp"\nvolatile = true\n'
        '[accept]\nguard = ["my-server", "copied", "?other"]\n'
        '[[package]]\nname = "copied"\nversion = "1.2"\nconfig = ["/etc/app/copied.conf"]\n',
        lists={mount: LISTS[mount] for mount in ("/data", "/tmp")},
    ),
    "freeipa": Configuration(
        text='profile = "freeipa"\n[[volume]]\nmount = "/data"\n'
        '[[volume]]\nmount = "/tmp"\nvolatile = true\n[scriptlets]\npackages = []\n',
        lists=FREEIPA,
    ),
    "freeipa alone": Configuration(
        text='profile = "freeipa"\n[scriptlets]\npackages = []\n',
        lists={"/data": FREEIPA["/data"], "/volatile": FREEIPA["/tmp"]},
        shipped=True,
    ),
    "going back": Configuration(text=_joined(), lists={"/data": LISTS["/data"]}),
    **{
        f"shown {number}": Configuration(text=text, lists=_lists_for(text))
        for number, text in enumerate(_shown(), 1)
    },
}


def _application(version: str) -> list[Packaged]:
    """Return a package with something for every volume, below FreeIPA's paths, too."""
    text = f"version {version}"
    files = [Packaged(path="/etc/single.conf", words=NOREPLACE, content=text)]
    for top in ("/etc/app", "/etc/krb5.conf.d", "/var/lib/app", "/var/lib/ipa", "/var/log/app"):
        files += [
            Packaged(path=top, directory=True),
            Packaged(path=f"{top}/edited.conf", words=NOREPLACE, content=text),
            Packaged(path=f"{top}/plain.conf", words="%config", content=text),
            Packaged(path=f"{top}/{version}", content=text),
        ]
    for top in ("/var/cache/app", "/var/lib/certmonger/local", "/var/lib/gssproxy/rcache"):
        files += [
            Packaged(path=top, directory=True, words=SERVICE),
            Packaged(path=f"{top}/cache.conf", words="%config", content=text),
            Packaged(path=f"{top}/{version}", content=text),
            Packaged(path=f"{top}/deep/{version}/file", content=text),
        ]
    return files


@pytest.fixture(scope="session")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The application in two versions, and the second as another release."""
    top = tmp_path_factory.mktemp("configurations")
    return {
        "1": build_rpm(top, "my-server", _application("1"), version="1"),
        "2": build_rpm(top, "my-server", _application("2"), version="2"),
        "2-2": build_rpm(top, "my-server", _application("2"), version="2", release="2"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """A volume's life with one configuration."""

    site: Site
    configuration: Configuration
    rpms: Mapping[str, Path]

    def image(self, name: str, version: str) -> Image:
        """Make and prepare an image; nothing of the machine's is executed in it."""
        return self.site.image(
            name,
            [self.rpms[version]],
            lists={} if self.configuration.shipped else self.configuration.lists,
            config=self.configuration.text,
            edit=lambda image: image.mask_steps(),
        )

    def files(self, name: str) -> list[Path]:
        """Return where the files *name* are on the volumes that are kept."""
        found = [
            path
            for mount in self.configuration.kept
            for path in sorted(self.site.volume(mount).rglob(name))
            if ".ipavolume" not in path.parts
        ]
        assert found
        return found

    def contents(self, name: str) -> set[str]:
        """Return what the files *name* say."""
        return {path.read_text() for path in self.files(name)}

    def volatile_is_what_the_image_has(self, image: Image) -> None:
        """Start the image; hold each volatile volume against its template."""
        volatile = set(self.configuration.lists) - set(self.configuration.kept)
        if volatile:
            self.site.run("start", image, "--", "true")
        for mount in volatile:
            shipped = picture(image.root / f"{mount[1:]}-template", times=False)
            assert shipped
            assert picture(self.site.volume(mount), times=False) == shipped


@pytest.fixture(params=list(CONFIGURATIONS.values()), ids=list(CONFIGURATIONS))
def life(request: pytest.FixtureRequest, tmp_path: Path, rpms: dict[str, Path]) -> Life:
    """A volume, its images and one configuration."""
    configuration: Configuration = request.param
    text = configuration.text
    if "first-run" not in tomllib.loads(text) and "freeipa" in text:
        text += "[first-run]\ncommand = []\n"
    if "exec" not in tomllib.loads(text).get("start", {}) and "freeipa" in text:
        text += '[start]\nexec = ["true"]\n'
    text = text.replace('"/usr/sbin/init"', '"true"')
    configuration = replace(configuration, text=text)
    site = Site(top=tmp_path)
    for mount in configuration.lists:
        site.volume(mount)
    return Life(site=site, configuration=configuration, rpms=rpms)


def test_readme_shows_configurations() -> None:
    assert sum("volatile = true" in text for text in _shown()) == 1
    assert sum(text.startswith("[start]") for text in _shown()) == 1


def test_a_volume_is_populated_upgraded_rebuilt_run_again_and_adopted(life: Life) -> None:
    site = life.site
    first = life.image("one", "1")
    assert site.upgrade(first)["state"] == "empty"
    assert life.contents("plain.conf") == {"version 1"}
    life.volatile_is_what_the_image_has(first)
    assert site.upgrade(first)["state"] == "current"
    for path in life.files("edited.conf"):
        path.write_text("edited")

    second = life.image("two", "2")
    planned = result_of(site.run("upgrade", second, "--dry-run", "--json", status=100).stdout)
    assert {action["path"].split("/")[1] for action in planned["plan"]} == {
        mount[1:] for mount in life.configuration.kept
    }
    assert site.upgrade(second)["state"] == "outdated"
    assert life.contents("plain.conf") == {"version 2"}
    assert life.contents("edited.conf") == {"edited"}
    assert life.contents("edited.conf.rpmnew") == {"version 2"}
    life.volatile_is_what_the_image_has(second)

    # Another release of the package, with the same files.
    third = life.image("three", "2-2")
    outcome = site.upgrade(third)
    assert outcome["state"] == "outdated"
    assert actions(outcome, "create") == actions(outcome, "replace") == {}
    life.volatile_is_what_the_image_has(third)

    rebuilt = life.image("four", "2-2")
    assert site.upgrade(rebuilt)["state"] == "rebuilt"
    # Every file is looked at again, whether or not the index knows it.
    for args in (("--again",), ("--again", "--checksum")):
        outcome = site.upgrade(rebuilt, *args)
        assert len(outcome["plans"]) == 1
        assert actions(outcome, "create") == actions(outcome, "replace") == {}
    assert site.upgrade(rebuilt)["state"] == "current"
    life.volatile_is_what_the_image_has(rebuilt)

    # A volume that another project's image left, and nothing of ours.
    for mount in life.configuration.kept:
        shutil.rmtree(site.volume(mount) / ".ipavolume")
    primary = site.volume(life.configuration.kept[0])
    (primary / "build-id").write_text("2e5b6f7c-51f7-4c2c-8f8c-0a8f6c1d7e55\n")
    (primary / "volume-version").write_text("2.0\n")
    for mount in life.configuration.kept[1:]:
        (site.volume(mount) / "build-id").unlink()
    # What the other project leaves is FreeIPA's, and refused by what calls itself something else.
    another = rebuilt.header().application not in ("", "freeipa")
    if another:
        site.refused(rebuilt, "foreign", "--from", "fedora:43", status=77)
    allow = ("--allow", "foreign") if another else ()
    outcome = site.upgrade(rebuilt, "--from", "fedora:43", *allow)
    assert outcome["state"] == "legacy"
    assert life.contents("edited.conf") == {"edited"}
    assert site.upgrade(rebuilt)["state"] == "current"
    life.volatile_is_what_the_image_has(rebuilt)


def test_a_strangers_file_is_compared_with_and_kept(life: Life) -> None:
    site = life.site
    first = life.image("one", "1")
    for mount in life.configuration.kept:
        (site.volume(mount) / "var/lib/app").mkdir(parents=True)
        (site.volume(mount) / "var/lib/app/own").write_text("mine")
    outcome = site.upgrade(first)
    assert outcome["state"] == "empty"
    assert life.contents("own") == {"mine"}
    assert life.contents("plain.conf") == {"version 1"}
    assert site.upgrade(life.image("two", "2"))["state"] == "outdated"
    assert life.contents("own") == {"mine"}
    assert life.contents("plain.conf") == {"version 2"}


# Waits the first time it is asked to, and is killed there.
WAITS: Final = "test -e /data/{0} || {{ touch /data/{0}; echo waiting; sleep 1000; }}"
FIRST_RUN: Final = """
[first-run]
command = ["/usr/bin/svc-setup"]
done-when = "{done}"
"""
STEP: Final = f"""
\"\"\"Run a command.

Symptom: none.

Source: this test.
\"\"\"

from ipavolume.steps import Command

COMPONENT = "my-server"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "online"


def plan(volume, template):
    yield Command(words=("sh", "-c", {WAITS.format("upgraded")!r}), reason="to be tested")
"""


def _with_first_run(life: Life) -> Life:
    """Return *life* with a first run whose command the test has."""
    text = life.configuration.text.replace("[first-run]\ncommand = []\n", "")
    if (at := text.find("[first-run]")) >= 0:
        rest = re.search(r"^\[(?!first-run)", text[at:], re.MULTILINE)
        text = text[:at] + (text[at + rest.start() :] if rest else "")
    if "exec" not in tomllib.loads(text).get("start", {}):
        text += '[start]\nexec = ["true"]\n'
    lists = life.configuration.lists
    listed = next(path for path in lists["/data"] if path in {"/etc/app/", "/etc/ipa/"})
    text += FIRST_RUN.format(done=f"{listed}configured")
    return Life(site=life.site, configuration=Configuration(text=text, lists=lists), rpms=life.rpms)


def test_a_read_only_container_is_killed_in_its_first_run_and_in_an_upgrade(life: Life) -> None:
    """Nothing is written but on volumes; a volatile one is a file system in memory."""
    life = _with_first_run(life)
    done = tomllib.loads(life.configuration.text)["first-run"]["done-when"]
    volumes = {mount: life.site.volume(mount) for mount in life.configuration.kept}
    argv = ["sh", "-ec", 'mount -o remount,ro /; mount -o remount,ro /usr; exec "$@"', "sh"]
    argv += [*inside.IPAVOLUME, "start", "--"]
    for version in ("1", "2"):
        image = life.image(f"image {version}", version)
        image.write(
            "/usr/bin/svc-setup",
            f"#!/bin/sh -e\n{WAITS.format('begun')}\ntouch {done}\n",
            mode=0o755,
        )
        image.write("/etc/ipavolume/upgrade_steps/s5000_run_a_command.py", STEP.lstrip())
        image.prepare(build_id=f"image {version}")
        with inside.started(image.root, volumes, argv) as container:
            assert container.process.stderr is not None
            assert any("| waiting" in line for line in container.process.stderr)
        for what in ("is done", "is current") if version == "1" else ("s5000", "is current"):
            finished = inside.run(image.root, volumes, argv)
            assert finished.returncode == 0, finished.stderr
            assert what in finished.stderr
        assert life.contents("plain.conf") == {f"version {version}"}
        if version == "1":
            for path in life.files("edited.conf"):
                path.write_text("edited")
    assert life.contents("edited.conf") == {"edited"}
    assert life.contents("edited.conf.rpmnew") == {"version 2"}


VOLATILE: Final = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/vt"\nvolatile = true\n'


def _volatile(site: Site, rpms: Mapping[str, Path], version: str) -> Image:
    lists = {"/data": ["/etc/app/"], "/vt": ["/var/cache/app/"]}
    return site.image(version, [rpms[version]], lists=lists, config=VOLATILE)


def test_an_upgrade_by_hand_finds_volatile_volumes_filled(
    tmp_path: Path, rpms: Mapping[str, Path]
) -> None:
    """A start that was refused has not filled them, nor did one that never was."""
    site = Site(top=tmp_path)
    image = _volatile(site, rpms, "1")
    volumes = {mount: site.volume(mount) for mount in ("/data", "/vt")}
    argv = [*inside.IPAVOLUME, "upgrade"]
    done = inside.run(image.root, volumes, argv)
    assert done.returncode == 0, done.stderr
    assert (volumes["/vt"] / "var/cache/app/1").is_file()

    # Not a second time: what runs in the container may be using it.
    (volumes["/vt"] / "var/cache/app/1").unlink()
    done = inside.run(image.root, volumes, argv)
    assert done.returncode == 0, done.stderr
    assert not (volumes["/vt"] / "var/cache/app/1").exists()


@pytest.mark.parametrize("mark", [".ipavolume", "build-id", "volume-version"])
def test_a_volume_that_was_kept_is_not_emptied(
    tmp_path: Path, rpms: Mapping[str, Path], mark: str
) -> None:
    """Mounted at the wrong place, or a new image declares it volatile."""
    site = Site(top=tmp_path)
    volume = site.volume("/vt")
    images = [_volatile(site, rpms, version) for version in ("1", "2")]
    site.run("start", images[0], "--", "true")
    if mark == ".ipavolume":
        # An empty one, or with nothing but the lock in it, a start that was killed leaves.
        (volume / mark).mkdir()
        (volume / mark / "history.jsonl").write_text("")
    else:
        (volume / mark).write_text("mine\n")
    (volume / "var/cache/app/data").write_text("mine\n")
    before = picture(volume), picture(site.volume("/data"))
    for image in images:
        said = site.run("start", image, "--", "true", status=65).stderr
        assert f"content is kept: {volume} has '{mark}' [kept-volume]" in said
        assert "kept-volume" in site.run("check", image, status=65).stdout
        assert (picture(volume), picture(site.volume("/data"))) == before
    site.run("start", images[1], "--allow", "kept-volume", "--", "true")
    assert picture(volume, times=False) == picture(images[1].root / "vt-template", times=False)


@pytest.mark.parametrize("known", [False, True], ids=["empty", "current"])
def test_a_kept_volume_that_is_mounted_as_a_volatile_one_as_well_is_not_emptied(
    *, known: bool, tmp_path: Path, rpms: Mapping[str, Path]
) -> None:
    site = Site(top=tmp_path)
    image = _volatile(site, rpms, "1")
    site.volume("/vt")
    if known:
        site.run("start", image, "--", "true")
    site.volumes["/vt"] = site.volume("/data")
    before = picture(tmp_path)
    for words in ((), ("--allow", "kept-volume")):
        said = site.run("start", image, *words, "--", "true", status=65).stderr
        assert f"/data and /vt are one and the same volume, '{site.volume()}'" in said
        assert "[foreign-volume]" in site.run("check", image, *words, status=65).stdout
    assert picture(tmp_path) == before


def test_what_another_project_leaves_on_its_volatile_volume_is_no_mark_of_a_kept_one(
    tmp_path: Path, rpms: Mapping[str, Path]
) -> None:
    """The freeipa-container project's start copies its records of config files to /tmp, too."""
    site = Site(top=tmp_path)
    image = _volatile(site, rpms, "1")
    (site.volume("/vt") / ".configfiles").mkdir()
    site.run("start", image, "--", "true")
    assert not (site.volume("/vt") / ".configfiles").exists()


def test_nobody_but_root_makes_a_volatile_volume_one_that_is_kept(
    tmp_path: Path, rpms: Mapping[str, Path]
) -> None:
    """A place like /tmp, in which everybody may make what he likes."""
    site = Site(top=tmp_path)
    image = _volatile(site, rpms, "1")
    planted = site.volume("/vt") / ".ipavolume"
    planted.mkdir()
    os.chown(planted, 65534, 65534)
    site.run("start", image, "--", "true")
    assert not planted.exists()
