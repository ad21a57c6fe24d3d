"""A volume belongs to one application, and whoever is not that one's image leaves it alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from support import inside
from support.command import clean_environment, run_ipavolume, volume_of
from support.images import Image, Packaged, build_rpm, picture
from support.requirements import need_tool
from support.upgrades import Site

from ipavolume.volume.members import open_volume
from ipavolume.volume.strangers import strangers_data

pytestmark = [pytest.mark.root, pytest.mark.rpm]

LISTS: Final = {"/data": ["/etc/mail/", "/etc/wiki/", "/var/lib/"]}
NOREPLACE: Final = "%config(noreplace)"


def _files(name: str, version: str) -> list[Packaged]:
    return [
        Packaged(path=f"/etc/{name}", directory=True),
        Packaged(path=f"/etc/{name}/main.conf", words=NOREPLACE, content=f"{name} {version}"),
        Packaged(path=f"/var/lib/{name}", directory=True),
        Packaged(path=f"/var/lib/{name}/schema", content=f"{name} {version}"),
    ]


@pytest.fixture(scope="session")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two applications, and what any image has."""
    top = tmp_path_factory.mktemp("applications")
    return {
        f"{name}-{version}": build_rpm(top, name, _files(name, version), version=version)
        for name, version in (("mail", "1"), ("mail", "2"), ("mail", "3"), ("wiki", "1"))
    } | {"system": build_rpm(top, "system", [Packaged(path="/usr/bin/sh", content="")])}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Where the images are, and the volume."""
    return Site(top=tmp_path)


def _image(
    site: Site, name: str, rpms: Sequence[Path], application: str = "", **more: Any
) -> Image:
    """Make an image whose configuration has the words of *application*."""
    words = ", ".join(f'"{word}"' for word in application.split())
    config = (f"application = [{words}]\n" if words else "") + more.pop("config", "")
    values: dict[str, Any] = {"lists": LISTS, **more}
    return site.image(name, rpms, config=config, edit=lambda image: image.mask_steps(), **values)


def _identity(site: Site) -> str:
    data = json.loads((site.volume() / ".ipavolume/identity.json").read_text())
    assert isinstance(data["application"], str)
    return data["application"]


def refused_everywhere(
    site: Site,
    image: Image,
    code: str,
    state: str,
    *said: str,
    status: int = 77,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> None:
    """Let ``check``, dry run, start and upgrade refuse alike, and nothing change."""
    before = {mount: picture(path) for mount, path in site.volumes.items()}
    looked = site.run("check", image, "--json", *args, status=status, env=env)
    found = volume_of(looked.stdout)
    assert found["state"] == state
    errors = [one for one in found["findings"] if one["severity"] == "error"]
    assert [one["code"] for one in errors] == [code], found
    texts = [f"{errors[0]['message']} {errors[0]['hint']}"]
    for command, *words in (("upgrade", "--dry-run"), ("upgrade",), ("start", "--", "true")):
        done = site.run(command, image, *args, *words, status=status, env=env)
        assert f"[{code}]" in done.stdout + done.stderr
        texts.append(done.stdout + done.stderr)
    for text in texts:
        for word in said:
            assert word in text, text
    assert {mount: picture(path) for mount, path in site.volumes.items()} == before


# -- foreign -----------------------------------------------------------------------------


def test_the_volume_of_another_application_is_refused_until_that_is_overridden_once(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F20: it was "outdated", upgraded, and the wrong first run was run on top."""
    site.upgrade(_image(site, "mail", [rpms["mail-1"]], "mail"))
    assert _identity(site) == "mail"
    wiki = _image(site, "wiki", [rpms["wiki-1"]], "wiki")
    refused_everywhere(
        site, wiki, "foreign", "foreign", "'mail'", "'wiki'", "wiki", "--allow foreign"
    )
    assert site.upgrade(wiki, "--allow", "foreign")["state"] == "outdated"
    assert site.history()[-1]["overrides"] == ["foreign"]
    assert _identity(site) == "wiki"
    # It is the wiki's from now on: its next image needs nothing, the mail's has no way back.
    assert site.upgrade(_image(site, "again", [rpms["wiki-1"]], "wiki"))["state"] != "foreign"
    assert site.history()[-1]["overrides"] == []
    refused_everywhere(
        site, _image(site, "mail-2", [rpms["mail-2"]], "mail"), "foreign", "foreign", "'wiki'"
    )


def test_an_application_that_gets_another_name_accepts_the_old_one(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F20: the first word is recorded, all are accepted."""
    site.upgrade(_image(site, "one", [rpms["mail-1"]], "mail"))
    assert site.upgrade(_image(site, "two", [rpms["mail-2"]], "post mail"))["state"] == "outdated"
    assert _identity(site) == "post"
    assert "\nof        post\n" in run_ipavolume("status", site.volume()).stdout
    refused_everywhere(
        site, _image(site, "three", [rpms["mail-2"]], "mail"), "foreign", "foreign", "'post'"
    )


def test_an_image_that_says_nothing_leaves_what_is_recorded(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F20: a derived image without the key, and then a stranger's."""
    site.upgrade(_image(site, "one", [rpms["mail-1"]], "mail"))
    assert site.upgrade(_image(site, "two", [rpms["mail-2"]]))["state"] == "outdated"
    assert _identity(site) == "mail"
    wiki = _image(site, "wiki", [rpms["wiki-1"]], "wiki")
    refused_everywhere(site, wiki, "foreign", "foreign", "'mail'")
    # Nor does one without a word of its own take the volume by its packages.
    silent = _image(site, "silent", [rpms["wiki-1"]])
    refused_everywhere(site, silent, "foreign", "foreign", "'mail'", "mail", "wiki")
    assert site.upgrade(silent, "--allow", "foreign")["state"] == "outdated"
    assert _identity(site) == ""
    assert site.upgrade(wiki)["state"] != "foreign"
    assert _identity(site) == "wiki"


def test_packages_tell_where_nobody_says_what_the_application_is(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F47: no package in common, overlapping lists: it was "outdated ... 130 erase"."""
    site.upgrade(_image(site, "mail", [rpms["mail-1"]]))
    wiki = _image(site, "wiki", [rpms["wiki-1"]])
    refused_everywhere(site, wiki, "foreign", "foreign", "mail", "wiki", "--allow foreign")
    # Once overridden it is the other one's, by its packages, too.
    site.upgrade(wiki, "--allow", "foreign")
    assert site.history()[-1]["overrides"] == ["foreign"]
    assert (
        site.upgrade(_image(site, "both", [rpms["wiki-1"], rpms["mail-1"]]))["recorded"] == "both"
    )


@pytest.mark.parametrize("says", [("volume",), ("image",), ()])
def test_so_they_do_where_a_manifest_of_before_does_not_say_who_owns_what(
    site: Site, rpms: dict[str, Path], says: Sequence[str]
) -> None:
    site.upgrade(_image(site, "mail", [rpms["mail-1"]]))
    wiki = _image(site, "wiki", [rpms["wiki-1"]])
    for name, path in (
        ("volume", site.volume() / ".ipavolume/baseline.jsonl"),
        ("image", wiki.root / "usr/share/ipavolume/manifest.jsonl"),
    ):
        header, _, records = path.read_bytes().partition(b"\n")
        data = json.loads(header)
        assert data["owning"] in ([["mail", True]], [["wiki", True]])
        if name not in says:
            del data["owning"]
        path.write_bytes(json.dumps(data).encode() + b"\n" + records)
    refused_everywhere(site, wiki, "foreign", "foreign", "mail", "wiki", "--allow foreign")
    assert site.upgrade(_image(site, "mail 2", [rpms["mail-2"]]))["state"] == "outdated"


@pytest.mark.parametrize("first", ["", "mail"])
@pytest.mark.parametrize("second", ["", "mail"])
def test_the_same_packages_are_the_same_application(
    site: Site, rpms: dict[str, Path], first: str, second: str
) -> None:
    """F47: an image of before the key and one with it, in either order."""
    site.upgrade(_image(site, "one", [rpms["mail-1"]], first))
    assert site.upgrade(_image(site, "two", [rpms["mail-2"]], second))["state"] == "outdated"


def test_a_package_under_another_name_provides_the_old_one(
    site: Site, rpms: dict[str, Path], tmp_path: Path
) -> None:
    """F47: dogtag-pki-server here is idm-pki-server there; both provide pki-server."""
    renamed = build_rpm(
        tmp_path / "rpms", "mail-server", _files("mail", "2"), version="2", provides="mail = 2"
    )
    site.upgrade(_image(site, "one", [rpms["mail-1"]]))
    assert site.upgrade(_image(site, "two", [renamed]))["state"] == "outdated"


def test_an_image_without_packages_is_nobodys(site: Site, rpms: dict[str, Path]) -> None:
    """F47: another package system, and what rpm knows nothing of."""
    plain = _image(site, "plain", [rpms["system"]], lists={"/data": ["/etc/mail/", "/srv/"]})
    site.upgrade(_image(site, "mail", [rpms["mail-1"]]))
    assert site.upgrade(plain)["state"] == "outdated"
    assert site.upgrade(_image(site, "mail 2", [rpms["mail-2"]]))["state"] == "outdated"


def test_a_volume_of_the_freeipa_container_project_is_freeipas(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F20: whoever is not FreeIPA does not adopt it."""
    volume = site.volume()
    (volume / "build-id").write_text("2e5b6f7c-51f7-4c2c-8f8c-0a8f6c1d7e55\n")
    (volume / "volume-version").write_text("2.0\n")
    wiki = _image(site, "wiki", [rpms["wiki-1"]], "wiki")
    refused_everywhere(site, wiki, "foreign", "foreign", "'freeipa'", "'wiki'")
    assert site.upgrade(_image(site, "ipa", [rpms["mail-1"]], "freeipa"), "--from", "fedora:43")
    assert _identity(site) == "freeipa"


def test_what_another_application_began_is_not_gone_on_with(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F20, F45: it was killed as it populated; an image of another one comes."""
    mail = _image(site, "mail", [rpms["mail-1"]])
    site.volume()
    interrupt(site, mail)
    wiki = _image(site, "wiki", [rpms["wiki-1"]])
    refused_everywhere(site, wiki, "foreign", "foreign", "mail", "wiki")
    assert site.upgrade(mail)["state"] == "upgrading"


def test_a_volume_of_before_applications_were_recorded_is_read(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F20: its identity card has no such field."""
    site.upgrade(_image(site, "one", [rpms["mail-1"]]))
    card = site.volume() / ".ipavolume/identity.json"
    data = json.loads(card.read_text())
    del data["application"]
    card.write_text(json.dumps(data) + "\n")
    assert site.upgrade(_image(site, "two", [rpms["mail-2"]], "mail"))["state"] == "outdated"
    assert _identity(site) == "mail"


def interrupt(site: Site, image: Image) -> None:
    """Kill an upgrade when it is marked and nothing is recorded as swapped."""
    strace = [need_tool("strace"), "-f", "-qq", "-o", "/dev/null", "-e", "trace=syncfs"]
    # Each volume is synced before the mark.
    strace += ["-e", f"inject=syncfs:signal=KILL:when={len(site.volumes) + 1}"]
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(image)]
    subprocess.run(
        [*strace, *command], check=False, capture_output=True, env=clean_environment({}), timeout=60
    )
    assert (site.volume() / ".ipavolume/transaction").is_dir()


# -- taken over --------------------------------------------------------------------------


def _release(version: str) -> Callable[[Image], None]:
    def edit(image: Image) -> None:
        image.mask_steps()
        image.write("/usr/lib/os-release", f'ID=fedora\nVERSION_ID="{version}"\n')

    return edit


@pytest.mark.parametrize(
    ("release", "env", "code", "said"),
    [
        pytest.param("43", {"IPAVOLUME_UPGRADE": "refuse"}, "no-consent", "=auto", id="consent"),
        pytest.param("45", {}, "incompatible", "fedora 43", id="release"),
    ],
)
def test_a_takeover_is_judged_as_what_follows_it(
    site: Site, rpms: dict[str, Path], release: str, env: dict[str, str], code: str, said: str
) -> None:
    """F45: its swap was finished first, and then the upgrade refused."""
    one = _image(site, "one", [rpms["mail-1"]])
    two = _image(site, "two", [rpms["mail-2"]])
    site.upgrade(one)
    (site.volume() / "etc/mail/main.conf").write_text("mine")
    interrupt(site, two)
    third = site.image("three", [rpms["mail-3"]], lists=LISTS, edit=_release(release))
    refused_everywhere(site, third, code, "taken over", "two", said, env=env)
    # The image that began it finishes it, whatever is to be thought of further upgrades.
    assert site.run("upgrade", two, env={"IPAVOLUME_UPGRADE": "refuse"})
    assert (site.volume() / "etc/mail/main.conf").read_text() == "mine"
    if code == "incompatible":
        assert site.upgrade(third, "--allow", "incompatible")["state"] == "outdated"
        assert site.history()[-1]["overrides"] == ["incompatible"]
    else:
        assert site.upgrade(third)["state"] == "outdated"


# -- occupied ----------------------------------------------------------------------------


def _make(volume: Path, *paths: str, user: int = 0) -> None:
    """Make files, or with a slash at the end directories, of an account."""
    for path in paths:
        place = volume / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            place.mkdir()
        else:
            place.write_text("theirs\n")
        os.chown(place, user, user)


OTHERS: Final = {
    "a mark of root's": (("PG_VERSION",), 0, ("'PG_VERSION' (PostgreSQL)",)),
    "a mark deep down": (("pg/16/main/PG_VERSION",), 0, ("'pg/16/main/PG_VERSION'",)),
    "files of an account": (("db/a", "db/b"), 999, ("(user 999)", "'db/a'", "'db/b'")),
    "a directory that is a mark": (("member/wal/0.wal",), 0, ("'member/wal' (etcd)",)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_data_of_something_else_is_not_populated_over(
    site: Site, rpms: dict[str, Path], what: str
) -> None:
    """F20: a directory of PostgreSQL was "empty", populated, and installed over."""
    paths, user, said = OTHERS[what]
    _make(site.volume(), *paths, user=user)
    image = _image(site, "mail", [rpms["mail-1"]])
    refused_everywhere(site, image, "occupied", "occupied", *said, "seed", "--allow occupied")
    assert site.upgrade(image, "--allow", "occupied")["state"] == "empty"
    assert site.history()[-1]["overrides"] == ["occupied"]
    assert all((site.volume() / path).read_text() == "theirs\n" for path in paths)
    # Ours now, and never asked again.
    assert site.upgrade(image)["state"] == "current"
    assert site.upgrade(_image(site, "two", [rpms["mail-2"]]))["state"] == "outdated"


def test_a_container_says_the_same_of_an_occupied_volume(site: Site, rpms: dict[str, Path]) -> None:
    """F20: inside, where the volume is at its mount."""
    _make(site.volume(), "ibdata1", user=999)
    image = _image(site, "mail", [rpms["mail-1"]])
    before = picture(site.volume())
    for command in (["check"], ["upgrade", "--dry-run"], ["start", "--", "true"]):
        done = inside.run(image.root, site.volume(), [*inside.IPAVOLUME, *command])
        assert done.returncode == 77, done.stderr
        said = done.stdout + done.stderr
        assert "the volume at /data is not empty" in said
        assert "'ibdata1' (MySQL or MariaDB)" in said
    assert picture(site.volume()) == before


@pytest.mark.parametrize(
    "seed", ["import", "import/*", "/data/import", "*.dump"], ids=lambda seed: seed
)
def test_what_an_image_wants_to_find_is_named_as_seed(
    site: Site, rpms: dict[str, Path], seed: str
) -> None:
    """F20: an import that a service's account has put there."""
    _make(site.volume(), "import/all.dump", user=999)
    config = f'[[volume]]\nmount = "/data"\nseed = ["{seed}"]\n'
    image = _image(site, "mail", [rpms["mail-1"]], config=config)
    assert site.upgrade(image)["state"] == "empty"
    assert (site.volume() / "import/all.dump").stat().st_uid == 999
    _make(site.volume("/data"), "other.db", user=999)
    assert site.upgrade(image)["state"] == "current"


ROOTS: Final = (
    "ipa-server-install-options",
    "hostname",
    "ca.crt",
    "certs/http.key",
    "ldif/users.ldif",
    "hooks.d/10-first.sh",
    "etc/own/app.conf",
    "empty/directories/",
)
NOBODYS: Final = ("lost+found/#12", ".snapshot/hourly.0/PG_VERSION", ".zfs/x", ".Trash-1000/info/x")


def test_what_people_put_on_a_volume_beforehand_is_no_data_of_something_else(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F20: content of root never makes a volume occupied, stateless or unsafe."""
    _make(site.volume(), *ROOTS)
    _make(site.volume(), *NOBODYS, user=1000)
    _make(site.volume(), "of/a/service/", user=1000)
    image = _image(site, "mail", [rpms["mail-1"]])
    before = picture(site.volume(), times=False)
    assert volume_of(site.run("check", image, "--json", status=100).stdout)["state"] == "empty"
    assert site.upgrade(image)["state"] == "empty"
    found = picture(site.volume(), times=False)
    assert {path: found[path] for path in before} == before


def test_what_is_mounted_on_a_volume_beforehand_is_no_data_of_something_else(
    site: Site, rpms: dict[str, Path], tmp_path: Path
) -> None:
    """F6, F20: the engine makes the mount points, and the directories above them."""
    other = tmp_path / "other"
    _make(other, "PG_VERSION", "base/1", user=999)
    (tmp_path / "main.conf").write_text("mine")
    volume = site.volume()
    for name in ("srv/db", "etc/mail"):
        (volume / name).mkdir(parents=True)
    (volume / "etc/mail/main.conf").touch()
    image = _image(site, "mail", [rpms["mail-1"]])
    mount = need_tool("mount")
    script = (
        f"{mount} --bind {other} {volume}/srv/db; "
        f'{mount} --bind {tmp_path}/main.conf {volume}/etc/mail/main.conf; exec "$@"'
    )
    command = [need_tool("unshare"), "-m", "sh", "-ec", script, "sh"]
    command += [sys.executable, "-m", "ipavolume", "check", "--json", *site.arguments(image)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=clean_environment({}), timeout=60
    )
    assert volume_of(done.stdout)["state"] == "empty", done.stderr
    # Nor is what it leaves when it is not mounted any more.
    assert site.upgrade(image)["state"] == "empty"


def test_an_empty_file_of_somebody_is_nobodys_data(site: Site, rpms: dict[str, Path]) -> None:
    """F20: the directory of a compose file's repository has a ``.gitkeep`` of the host's user."""
    site.volume().mkdir(parents=True, exist_ok=True)
    keep = site.volume() / ".gitkeep"
    keep.touch()
    os.chown(keep, 1000, 1000)
    assert site.upgrade(_image(site, "mail", [rpms["mail-1"]]))["state"] == "empty"
    assert keep.exists()


def test_of_two_volumes_none_is_populated_where_the_second_is_occupied(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F20: refused before the first is written."""
    config = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/db"\n'
    lists = {"/data": ["/etc/mail/"], "/db": ["/var/lib/mail/"]}
    image = _image(site, "mail", [rpms["mail-1"]], lists=lists, config=config)
    site.volume()
    _make(site.volume("/db"), "PG_VERSION", user=999)
    refused_everywhere(site, image, "occupied", "occupied", "volume-db is not empty", "PG_VERSION")


def test_a_volume_that_is_new_to_the_image_is_not_populated_over_either(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F20, F25: image 2 has a second volume, and somebody else's is mounted there."""
    one = _image(site, "one", [rpms["mail-1"]], lists={"/data": ["/etc/mail/"]})
    site.upgrade(one)
    config = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/db"\n'
    lists = {"/data": ["/etc/mail/"], "/db": ["/var/lib/mail/"]}
    two = _image(site, "two", [rpms["mail-2"]], lists=lists, config=config)
    _make(site.volume("/db"), "PG_VERSION", user=999)
    refused_everywhere(site, two, "occupied", "occupied", "volume-db is not empty", "PG_VERSION")
    (site.volume("/db") / "PG_VERSION").unlink()
    outcome = site.upgrade(two)
    assert outcome["state"] == "outdated"
    assert "disagree" not in outcome["reason"]


def test_a_volatile_volume_is_not_asked(site: Site, rpms: dict[str, Path]) -> None:
    """F20: it is emptied anyway."""
    config = '[[volume]]\nmount = "/data"\n[[volume]]\nmount = "/vt"\nvolatile = true\n'
    lists = {"/data": ["/etc/mail/"], "/vt": ["/var/lib/mail/"]}
    image = _image(site, "mail", [rpms["mail-1"]], lists=lists, config=config)
    site.volume()
    _make(site.volume("/vt"), "dump.rdb", user=999)
    assert site.upgrade(image)["state"] == "empty"


def test_the_look_ends_however_much_there_is(tmp_path: Path) -> None:
    """F20: a hostile chain of directories is not gone down to its end."""
    volume = open_volume("/data", str(tmp_path))
    try:
        below = os.open(tmp_path, os.O_RDONLY)
        for _ in range(2000):
            os.mkdir("d", dir_fd=below)
            deeper = os.open("d", os.O_RDONLY, dir_fd=below)
            os.close(below)
            below = deeper
        os.mknod("PG_VERSION", dir_fd=below)
        os.close(below)
        assert strangers_data(volume, mounted=(), seed=()) == ()
        _make(tmp_path, "e/PG_VERSION")
        assert strangers_data(volume, mounted=(), seed=()) == (("e/PG_VERSION", "PostgreSQL"),)
    finally:
        os.close(volume.fd)
        # Deeper than pytest would remove.
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True, timeout=60)


# -- expected ----------------------------------------------------------------------------


def test_another_volume_than_the_one_with_the_expected_uuid_is_not_started_on(
    site: Site, rpms: dict[str, Path]
) -> None:
    """F35: also where it is current, and a start has nothing to do."""
    image = _image(site, "mail", [rpms["mail-1"]])
    wrong = "00000000-1111-4222-8333-444444444444"
    site.volume()
    empty = {"IPAVOLUME_EXPECT": wrong}
    refused_everywhere(site, image, "expected-existing", "empty", wrong, "wrong", env=empty)
    site.upgrade(image)
    card = json.loads((site.volume() / ".ipavolume/identity.json").read_text())
    refused_everywhere(site, image, "expected-other", "current", wrong, card["uuid"], env=empty)
    right = {"IPAVOLUME_EXPECT": card["uuid"].upper()}
    site.run("start", image, "--", "true", env=right)
    start = [*inside.IPAVOLUME, "start", "--", "true"]
    for env, status in ((right, 0), (empty, 77)):
        assert inside.run(image.root, site.volume(), start, env=env).returncode == status
    assert site.run("check", image, env={"IPAVOLUME_EXPECT": "mine"}, status=2)
