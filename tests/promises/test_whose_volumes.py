"""A volume belongs to one application, and whoever is not that one's image leaves it alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from support.command import clean_environment, run_ipavolume
from support.images import Image, Packaged, build_rpm, picture
from support.requirements import need_tool
from support.upgrades import Site

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
    found = json.loads(looked.stdout)
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
    strace += ["-e", "inject=syncfs:signal=KILL:when=2"]
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
