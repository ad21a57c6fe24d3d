"""Before what a step did is undone it is asked, in a container of the image that goes back."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import inside
from support.images import Image
from support.requirements import need_root
from support.taskworlds import World, build_packages, step

pytestmark = [pytest.mark.root, pytest.mark.rpm]

JUDGES = '''

def going_back(volume):
    """Tell what would be lost, and refuse where a peer has seen it."""
    now, then = volume.read("/etc/svc/svc.conf"), volume.before("/etc/svc/svc.conf")
    yield Warn(code="lost", text=f"{now} becomes {then}")
    if volume.kind("/var/lib/svc/peer"):
        yield Refuse(code="seen", text="a peer has seen it", hint="Tell the peer.")
'''
ASKS = """
import json, os, sys
from ipavolume.context import Context, Options
from ipavolume.errors import IpaVolumeError
from ipavolume.steps.going_back import asks_going_back

begun, allow = json.loads(sys.argv[1])
with Context(Options()) as context:
    before = os.open("/data/var/lib/svc/before", os.O_RDONLY)
    try:
        found, _ = asks_going_back(
            context.image, context.volumes, begun, {"/data": before}, recorded=None, allow=allow
        )
        print(json.dumps([[one.code, one.text] for one in found]))
    except IpaVolumeError as err:
        print(json.dumps([err.code, err.exit_status, err.hint]))
"""


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A package in three versions."""
    need_root()
    return build_packages(tmp_path_factory.mktemp("rpms"))


def _ask(world: World, image: Image, *begun: str, allow: str = "") -> Any:
    argv = [sys.executable, "-c", ASKS, json.dumps([begun, [allow]])]
    done = inside.run(image.root, world.volume, argv)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_steps_that_had_begun_are_asked_whether_that_can_be_undone(
    tmp_path: Path, rpms: Mapping[str, Path]
) -> None:
    world = World(tmp_path, rpms)
    image = world.image(
        "1", {"s5010_judges": step("return ()") + JUDGES, "s5020_silent": step("return ()")}
    )
    world.run(image, "upgrade")
    kept = world.volume / "var/lib/svc/before/etc/svc/svc.conf"
    kept.parent.mkdir(parents=True)
    kept.write_text("older")
    begun = ("step s5010_judges", "step s5020_silent", "scriptlet s5010_judges", "step s5030_new")

    assert _ask(world, image) == []
    assert _ask(world, image, "step s5020_silent") == []
    unknown, lost = _ask(world, image, *begun)
    assert unknown[0] == "not-asked"
    assert "s5030_new" in unknown[1]
    assert lost == ["lost", "b'version 1' becomes b'older'"]

    (world.volume / "var/lib/svc/peer").write_text("")
    code, status, hint = _ask(world, image, *begun)
    assert (code, status) == ("s5010:seen", 77)
    assert hint.startswith("Tell the peer.")
    # Overridden it is said all the same: it says what is to be done afterwards.
    assert [found[0] for found in _ask(world, image, *begun, allow="s5010:seen")] == [
        *("not-asked", "lost", "seen")
    ]
