"""What a command loads and how often it looks: what nobody needs is not in the way of a start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from support.command import clean_environment
from support.images import Packaged, build_rpm
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

WATCHED: Final = """
import collections, json, os, sys
calls = collections.Counter()
compiled = []
def watch(frame, event, _argument):
    if event == "call":
        name = frame.f_globals.get("__name__", "")
        if name.startswith("ipavolume."):
            calls[f"{name}.{frame.f_code.co_qualname}"] += 1
        by = frame.f_back
        if name == "re" and frame.f_code.co_name == "compile" and by.f_code.co_name == "<module>":
            compiled.append(by.f_globals["__name__"])
sys.setprofile(watch)
from ipavolume import fastpath
from ipavolume.cli.main import main
def tell():
    sys.setprofile(None)
    with open(os.environ["SEEN"], "w") as stream:
        json.dump({"calls": calls, "modules": sorted(sys.modules), "compiled": compiled}, stream)
    os._exit(0)
# A start ends by executing something else.
fastpath.execute = lambda *_: tell()
try:
    main(sys.argv[1:])
finally:
    tell()
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A volume of image one, and image two."""
    site = Site(top=tmp_path)
    for version in ("1", "2"):
        files = [Packaged(path="/etc/app/app.conf", words="%config", content=version)]
        rpm = build_rpm(tmp_path, "app", files, version=version)
        site.image(
            f"v{version}", [rpm], lists={"/data": ["/etc/app/"]}, edit=lambda one: one.mask_steps()
        )
    return site


def watched(site: Site, image: str, command: str, *words: str) -> dict[str, Any]:
    """Return what *command* called and loaded."""
    seen = site.top / "seen"
    argv = [command, "--root", str(site.top / image), "--volume", str(site.volume()), *words]
    subprocess.run(
        [sys.executable, "-c", WATCHED, *argv],
        check=True,
        capture_output=True,
        env=clean_environment({"SEEN": str(seen)}),
        timeout=60,
    )
    found = json.loads(seen.read_text())
    assert isinstance(found, dict)
    return found


def test_an_upgrade_judges_before_and_after_and_opens_and_asks_once(site: Site) -> None:
    calls = watched(site, "v1", "upgrade")["calls"]
    assert calls["ipavolume.plan.draft.draft"] == 1
    calls = watched(site, "v2", "start", "--", "true")["calls"]
    assert (site.volume() / "build-id").read_text() == "v2\n"
    assert calls["ipavolume.plan.verdict.judge"] == 2
    assert calls["ipavolume.firstrun.request.make_request"] == 1
    assert calls["ipavolume.image.image.Image.__init__"] == 1
    assert calls["ipavolume.image.image.Image.verify"] == 1


def test_what_finds_nothing_to_do_loads_nothing_that_does_something(site: Site) -> None:
    watched(site, "v1", "upgrade")
    loaded = set(watched(site, "v1", "upgrade")["modules"])
    assert "ipavolume.plan.verdict" in loaded
    doing = ("apply.run", "apply.rollback", "plan.draft", "commands.check", "firstrun.run")
    # The image has no first run.
    other_commands = ("cli.prepare", "cli.rehearse", "commands.start", "firstrun.standing")
    assert not loaded & {f"ipavolume.{name}" for name in (*doing, *other_commands)}


def test_an_upgrade_that_runs_nothing_loads_neither_what_does_nor_a_parser(site: Site) -> None:
    watched(site, "v1", "upgrade")
    assert not (site.top / "v2/etc/ipavolume.toml").exists()
    loaded = set(watched(site, "v2", "upgrade")["modules"])
    assert "ipavolume.apply.run" in loaded
    assert not loaded & {"ipavolume.linux.command", "subprocess", "symtable", "tomllib"}


def test_where_keys_stand_is_only_looked_for_where_something_is_wrong(site: Site) -> None:
    config = site.top / "v1/etc/ipavolume.toml"
    config.write_text("[start]\nsupervise = true\n")
    calls = watched(site, "v1", "upgrade")["calls"]
    assert calls["ipavolume.config.reading.parse_config"]
    assert "ipavolume.config.tomllines.key_lines" not in calls


def test_a_recorded_run_is_read_once_however_often_it_is_asked_for(site: Site) -> None:
    watched(site, "v1", "upgrade")
    calls = watched(site, "v2", "upgrade", "--dry-run")["calls"]
    assert calls["ipavolume.volume.history.read_history"] > 1
    assert calls["ipavolume.volume.history._run"] == 1


def test_of_patterns_only_what_each_record_is_asked_for_is_compiled_by_loading(site: Site) -> None:
    watched(site, "v1", "upgrade")
    compiled = watched(site, "v2", "upgrade", "--dry-run")["compiled"]
    ours = {name for name in compiled if name.startswith("ipavolume.")}
    # Others are texts, which the standard library compiles when one is asked for the first time.
    assert ours == {"ipavolume.formats.manifest"}


def test_a_probe_loads_nothing_that_runs_or_plans(site: Site) -> None:
    watched(site, "v1", "upgrade")
    loaded = set(watched(site, "v1", "status", "--probe", "ready")["modules"])
    assert "ipavolume.commands.probe" in loaded
    doing = ("steps.perform", "steps.loading", "steps.declaration", "plan.verdict", "apply.run")
    assert not loaded & {f"ipavolume.{name}" for name in doing}


def test_a_check_loads_nothing_of_a_build(site: Site) -> None:
    watched(site, "v1", "upgrade")
    found = watched(site, "v2", "check")
    for folder in ("prepare", "rpm.header", "rpm.database", "rpm.tags", "rpm.query"):
        assert not [name for name in found["modules"] if name.startswith(f"ipavolume.{folder}")]
    assert found["calls"]["ipavolume.image.image.Image.__init__"] == 1
    assert found["calls"]["ipavolume.plan.verdict.judge"] == 1
