"""What a failed unit had to say outlives the container, with a real systemd (F71)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
from support.images import Image, Packaged, build_rpm
from support.requirements import need_root
from support.systemd import SYSTEMD, add_systemd, machine
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.slow]

UNITS: Final = "/etc/systemd/system"
CONFIG: Final = f"""
[start]
exec = ["{SYSTEMD}"]

[scriptlets]
packages = ["app"]

[first-run]
command = ["/usr/local/bin/setup"]
done-when = "/etc/app/configured"
"""
SAYS: Final = "[Service]\nType=oneshot\nExecStart=/bin/sh -c '{script}'\n"
WORDS: Final = "the certificate of ldap.example.test has expired"
UNIT: Final = SAYS.format(script=f'printf "{WORDS}\\\\007\\\\n"; exit 3')
# Before the run, and not of it.
EARLIER: Final = "[Unit]\nDefaultDependencies=no\n" + SAYS.format(script="echo other words; exit 3")
OTHER: Final = SAYS.format(script="echo of no importance; exit 3")
RESTART: Final = "systemctl restart web.service"
DONE: Final = "touch /etc/app/configured"
STEP: Final = """\
\"\"\"Run a command.

Symptom: none.

Source: this test.
\"\"\"

from ipavolume.steps import Command

COMPONENT = "app"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "online"


def plan(volume, template):
    yield Command(words=("sh", "-c", {script!r}), reason="to be tested", timeout_s=60)
"""


@pytest.fixture(scope="session")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A package whose scriptlet restarts its unit, in two versions."""
    need_root()
    top = tmp_path_factory.mktemp("journal")
    files = [Packaged(path="/etc/app/app.conf", words="%config(noreplace)", content="x")]
    scriptlet = f"%posttrans\n{RESTART}\n"
    return [build_rpm(top, "app", files, version=one, scriptlets=scriptlet) for one in "12"]


def _image(
    site: Site, name: str, rpm: Path, setup: str, *, steps: Mapping[str, str] | None = None
) -> Image:
    def edit(image: Image) -> None:
        add_systemd(image)
        image.write("/usr/bin/sh", Path("/bin/sh").read_bytes(), mode=0o755)
        (image.root / "bin").symlink_to("usr/bin")
        for unit, text in (("web", UNIT), ("earlier", EARLIER), ("other", OTHER)):
            image.write(f"{UNITS}/{unit}.service", text)
        wants = image.root / f"{UNITS[1:]}/sysinit.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "earlier.service").symlink_to("../earlier.service")
        for step, text in (steps or {}).items():
            image.write(f"/etc/ipavolume/upgrade_steps/{step}.py", text)
        image.write("/usr/local/bin/setup", f"#!/bin/sh\n{setup}\n", mode=0o755)

    return site.image(name, [rpm], lists={"/data": ["/etc/app/"]}, config=CONFIG, edit=edit)


def test_a_first_run_whose_unit_fails_has_the_units_own_words(
    tmp_path: Path, rpms: list[Path]
) -> None:
    site = Site(top=tmp_path)
    volume = site.volume()
    setup = f"systemctl start other; {RESTART}; exit 1"
    with machine(_image(site, "one", rpms[0], setup), volume) as container:
        assert container.wait() == 13
    message = container.seen[container.seen.index("ipavolume: error: ") :]
    assert f"  | web.service failed:\nipavolume:   | {WORDS}\\x07\nipavolume: state:" in message
    # A control character stays out of the terminal.
    assert "\a" not in message
    assert "of no importance" not in message
    log = (volume / ".ipavolume/logs/first-run.log").read_text()
    assert "  | web.service failed; the end of its journal:\n" in log
    assert f"\n  | {WORDS}" in log
    assert "  | other.service failed; the end of its journal:\n" in log
    assert "\n  | of no importance\n" in log
    assert "other words" not in log + message


def test_a_step_whose_command_names_the_unit_has_that_units_words(
    tmp_path: Path, rpms: list[Path]
) -> None:
    site = Site(top=tmp_path)
    volume = site.volume()
    with machine(_image(site, "one", rpms[0], DONE), volume) as container:
        container.wait_for("the application runs")
        container.stop()
    script = f"{RESTART}; systemctl start -q other 2> /dev/null; exit 1"
    step = {"s5000_restart": STEP.format(script=script)}
    with machine(_image(site, "two", rpms[1], DONE, steps=step), volume) as container:
        assert container.wait() == 13
    message = container.seen[container.seen.index("ipavolume: error: ") :]
    assert f"  | web.service failed:\nipavolume:   | {WORDS}\\x07\nipavolume: state:" in message
    log = max((volume / ".ipavolume/logs").glob("0*.log"))
    assert f"\n  | {WORDS}" in log.read_text()
    assert "\n  | of no importance\n" in log.read_text()


def test_a_scriptlet_whose_unit_fails_has_them_in_its_warning_and_the_log(
    tmp_path: Path, rpms: list[Path]
) -> None:
    site = Site(top=tmp_path)
    volume = site.volume()
    with machine(_image(site, "one", rpms[0], DONE), volume) as container:
        container.wait_for("the application runs")
        container.stop()
    with machine(_image(site, "two", rpms[1], DONE), volume) as container:
        container.wait_for("two: the application runs")
        container.stop()
    warnings = site.history()[-1]["warnings"]
    assert [text for text in warnings if WORDS in text] == [f"web.service failed: {WORDS}\a"]
    log = max((volume / ".ipavolume/logs").glob("0*.log"))
    assert WORDS in log.read_text()
