"""A derived image that forgets ``ipavolume prepare`` is told so, and nobody else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support import inside
from support.command import run_ipavolume, volume_of
from support.images import Image, Packaged, build_rpm
from support.steps import put_step, step_text
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

CONFIG = 'application = ["app"]\n[files]\nrefresh = ["/etc/app/ui/*"]\n'
STEP = "s5010_own.py"
OTHERS = step_text(component="?other")
"""No run asks it, so that none needs a container."""


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a config file."""
    files = [Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content="1")]
    return build_rpm(tmp_path_factory.mktemp("not-prepared"), "app", files)


class Derived:
    """A prepared image whose volume is current, and what is changed in it since."""

    def __init__(self, top: Path, package: Path) -> None:
        """Make the image and its volume."""
        self.site = Site(top=top)

        def edit(image: Image) -> None:
            put_step(image.root, STEP, OTHERS, own=True)
            (image.root / "etc/app/ui").mkdir()
            image.write("/etc/app/ui/style.css")

        self.image = self.site.image(
            "one", [package], lists={"/data": ["/etc/app/"]}, config=CONFIG, edit=edit
        )
        # Where the image has its mount, so that a start can take the short way.
        self.site.volumes["/data"] = self.image.root / "data"
        self.site.upgrade(self.image)

    def append(self, path: str, text: str) -> None:
        """Lengthen a file of the image, as ``RUN cat >>`` does."""
        with (self.image.root / path.lstrip("/")).open("a") as stream:
            stream.write(text)

    def told(self, *options: str) -> list[tuple[str, str]]:
        """Return path and message of each of these findings of ``check``."""
        return [(one["path"], one["message"]) for one in self.findings(*options)]

    def findings(self, *options: str) -> list[dict[str, str]]:
        """Return these findings of ``check``, whose status they do not change."""
        words = (*self.site.arguments(self.image), "--json", *options)
        found = volume_of(run_ipavolume("check", *words).stdout)["findings"]
        return [one for one in found if one["code"] == "not-prepared"]

    def started(self) -> tuple[list[str], bool]:
        """Start it; return what it warns of, and whether it took the short way."""
        words = ["start", "--root", str(self.image.root), "--", "true"]
        said = run_ipavolume(*words, env={"PYTHONVERBOSE": "1"}).stderr
        warned = [line for line in said.splitlines() if line.startswith("ipavolume: ")]
        warned = [one.partition("warning: ")[2] for one in warned if "warning: " in one]
        return warned, "import 'ipavolume.cli.main'" not in said


@pytest.fixture
def derived(tmp_path: Path, package: Path) -> Derived:
    """What each test begins with."""
    return Derived(tmp_path, package)


def more_listed(derived: Derived) -> str:
    derived.append("/etc/volume-data-list", "/var/lib/plugin/\n")
    return "/etc/volume-data-list"


def other_line_of_the_same_size(derived: Derived) -> str:
    derived.append("/etc/volume-data-list", "# /var/lib/plugin\n")
    derived.image.prepare()
    text = (derived.image.root / "etc/volume-data-list").read_text()
    derived.image.write("/etc/volume-data-list", text.replace("# ", "  "))
    return "/etc/volume-data-list"


def other_files_refreshed(derived: Derived) -> str:
    text = CONFIG.replace("ui", "UI")
    derived.image.write("/etc/ipavolume.toml", text)
    return "/etc/ipavolume.toml"


def another_volume(derived: Derived) -> str:
    derived.append("/etc/ipavolume.toml", '[[volume]]\nmount = "/data"\nlists = ["/etc/own"]\n')
    derived.image.write("/etc/own", "/etc/app/\n")
    return "/etc/ipavolume.toml"


def another_package(derived: Derived) -> str:
    derived.append("/etc/ipavolume.toml", '[[package]]\nname = "plugin"\nversion = "1"\n')
    return "/etc/ipavolume.toml"


def another_step(derived: Derived) -> str:
    put_step(derived.image.root, "s5020_own.py", OTHERS, own=True)
    return "/etc/ipavolume/upgrade_steps/s5020_own.py"


def another_text_of_a_step(derived: Derived) -> str:
    put_step(derived.image.root, STEP, OTHERS.replace("something", "anything"), own=True)
    return f"/etc/ipavolume/upgrade_steps/{STEP}"


FORGOTTEN = (
    more_listed,
    other_line_of_the_same_size,
    other_files_refreshed,
    another_volume,
    another_package,
    another_step,
    another_text_of_a_step,
)


@pytest.mark.parametrize("forgotten", FORGOTTEN)
def test_what_prepare_has_not_seen_is_told_until_it_runs(
    forgotten: Callable[[Derived], str], derived: Derived
) -> None:
    assert derived.told() == []
    assert derived.started() == ([], True)
    path = forgotten(derived)
    (finding,) = derived.findings()
    assert (finding["path"], finding["severity"]) == (path, "warning")
    assert "RUN ipavolume prepare" in finding["hint"]
    said = f"{path!r} {finding['message']} [not-prepared]. {finding['hint']}"
    assert derived.started() == ([said], False)
    assert derived.site.run("upgrade", derived.image).stderr.count(f"warning: {said}\n") == 1
    derived.image.prepare()
    derived.site.upgrade(derived.image)
    assert derived.told() == []
    assert derived.started() == ([], True)


def test_a_line_is_named_with_what_comes_of_it(derived: Derived) -> None:
    derived.append("/etc/volume-data-list", "".join(f"/srv/{number}\n" for number in range(7)))
    ((_, message),) = derived.told()
    assert message == (
        "lists '/srv/0', '/srv/1', '/srv/2', '/srv/3', '/srv/4' and 2 more "
        "paths, and ipavolume prepare has not run since: what is written there stays in the "
        "container, and is lost with it"
    )
    derived.append("/etc/volume-data-list", "relative\n")
    ((_, message),) = derived.told()
    assert "'relative' is not an absolute path" in message


def test_what_comes_to_something_by_itself_is_not_told(derived: Derived) -> None:
    """A start reads it, or nothing depends on it: times, comments, lines that are gone, masks."""
    derived.append("/etc/volume-data-list", "# a comment\n/etc/app\n")
    derived.append("/etc/ipavolume.toml", '[snapshot]\nbefore-upgrade = "never"\n')
    steps = derived.image.root / "etc/ipavolume/upgrade_steps"
    (steps / "s0120_unique_machine_id.py").symlink_to("/dev/null")
    (steps / STEP).unlink()
    assert derived.told() == []
    assert derived.started() == ([], False)
    derived.image.write("/etc/volume-data-list", "")
    (derived.image.root / "etc/ipavolume.toml").unlink()
    derived.image.write("/etc/ipavolume.toml", f"# mine\n{CONFIG}")
    assert derived.told() == []
    assert derived.started()[0] == []


def test_other_times_do_not_take_the_short_way(derived: Derived) -> None:
    for path in ("volume-data-list", "ipavolume.toml", f"ipavolume/upgrade_steps/{STEP}"):
        file = derived.image.root / "etc" / path
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    assert derived.started() == ([], True)
    derived.image.prepare()
    assert derived.started() == ([], True)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (f"/etc/ipavolume/upgrade_steps/{STEP}", OTHERS.replace("something", "anything")),
        ("/etc/ipavolume.toml", CONFIG.replace("ui", "UI")),
    ],
)
def test_what_is_mounted_is_for_the_container_at_hand(
    derived: Derived, tmp_path: Path, place: str, text: str
) -> None:
    derived.image.write("/srv/mended", text)
    volume = derived.image.root / "data"
    for mount, told in ((f"mount --bind /srv/mended {place}", 0), (f"cat /srv/mended >{place}", 1)):
        layer = tmp_path / f"layer{told}"
        layer.mkdir()
        words = ["sh", "-ec", f'{mount}; exec "$@"', "sh", *inside.IPAVOLUME, "check", "--json"]
        done = inside.run(derived.image.root, volume, words, layer=layer)
        found = volume_of(done.stdout)["findings"]
        assert [one["code"] for one in found].count("not-prepared") == told, done


def test_an_image_that_does_not_say_what_prepare_has_read(derived: Derived) -> None:
    """One of an older version, or one whose list was given on the command line of ``prepare``."""
    data = derived.image.root / "usr/share/ipavolume/start"
    text = data.read_bytes()
    more_listed(derived)
    for other in (text.replace(b"start-3", b"start-2"), text[:40], b""):
        data.write_bytes(other)
        assert derived.told() == []
    own = derived.site.top / "list"
    own.write_text("/etc/app/\n")
    derived.image.prepare(lists=[str(own)])
    derived.site.upgrade(derived.image)
    assert derived.told() == []
    assert derived.started() == ([], True)
