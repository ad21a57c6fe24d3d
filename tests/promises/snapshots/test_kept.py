"""How long snapshots stay: the last ones, those made by hand, and those that are still needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import tracing
from support.command import clean_environment, listed_in, result_of
from support.images import USERS, Image, picture
from support.snapshots import ALWAYS, LISTS, Images, live, seen, snapshots_of
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]


def test_the_last_ones_stay_and_numbers_are_never_used_again(site: Site, images: Images) -> None:
    made = images()
    site.upgrade(made["1"])
    runs = []
    for number in "232":
        site.upgrade(made[number], "--allow", "newer", env=ALWAYS)
        (run,) = snapshots_of(site.volume()).iterdir()
        runs.append(run.name)
    assert [one.partition("-")[0] for one in runs] == ["0002", "0003", "0004"]
    (site.volume() / ".ipavolume/undone/0009-image").mkdir(parents=True, mode=0o700)
    outcome = result_of(
        site.run("upgrade", made["3"], "--dry-run", "--json", status=100, env=ALWAYS).stdout
    )
    assert outcome["way_back"]["method"] in ("copy", "reflink")
    site.upgrade(made["3"], env=ALWAYS)
    (run,) = snapshots_of(site.volume()).iterdir()
    assert run.name.startswith("0010-")


def test_an_upgrade_that_is_done_again_does_not_cost_the_way_back_to_the_image_before(
    site: Site, images: Images
) -> None:
    made = images()
    site.upgrade(made["1"])
    site.upgrade(made["2"], env=ALWAYS)
    for _ in range(2):
        site.upgrade(made["2"], "--again", env=ALWAYS)
    first, again = sorted(one.name for one in snapshots_of(site.volume()).iterdir())
    assert (first[:4], again[:4]) == ("0002", "0004")
    told = site.run("rollback", made["2"], "--dry-run").stdout
    assert f"ipavolume rollback {first}" in told
    site.run("rollback", made["2"], first)
    assert (site.volume() / "etc/app/program").read_text() == "program 1\n"


@pytest.mark.parametrize(
    "wrong", [{"failed": ["s5000_app"]}, {"failed": [], "result": "failed", "cause": "nobody"}]
)
def test_that_of_a_run_whose_result_was_not_right_stays(
    site: Site, images: Images, wrong: dict[str, Any]
) -> None:
    """Until somebody drops it: what it was before may be what is wanted."""
    made = images()
    site.upgrade(made["1"])
    site.upgrade(made["2"], env=ALWAYS)
    (first,) = snapshots_of(site.volume()).iterdir()
    found = {"run": first.name, "passed": [], "at": "", **wrong}
    (site.volume() / ".ipavolume/verified.json").write_text(json.dumps(found) + "\n")
    site.upgrade(made["3"], env=ALWAYS)
    assert {one.name[:4] for one in snapshots_of(site.volume()).iterdir()} == {"0002", "0003"}
    (site.volume() / ".ipavolume/verified.json").unlink()
    site.upgrade(made["2"], "--allow", "newer", env=ALWAYS)
    assert {one.name[:4] for one in snapshots_of(site.volume()).iterdir()} == {"0004"}


def test_what_is_no_snapshot_of_a_run_is_removed(site: Site, images: Images) -> None:
    """A run that never came to its mark has left what nobody goes back to."""
    made = images()
    site.upgrade(made["1"])
    site.upgrade(made["2"], env=ALWAYS)
    (kept,) = snapshots_of(site.volume()).iterdir()
    left = snapshots_of(site.volume()) / "0007-image"
    shutil.copytree(kept, left)
    record = json.loads((left / "record.json").read_text())
    (left / "record.json").write_text(json.dumps({**record, "run": left.name}))
    (snapshots_of(site.volume()) / "0008-image/content").mkdir(parents=True)
    (snapshots_of(site.volume()) / ".making/content").mkdir(parents=True)
    newer = snapshots_of(site.volume()) / "0009-image"
    newer.mkdir()
    (newer / "record.json").write_text('{"format": 2}')
    site.upgrade(made["3"])
    # What is not understood is not removed, and nothing else by a run that makes none.
    assert {one.name for one in snapshots_of(site.volume()).iterdir()} == {kept.name, newer.name}


def test_nothing_walks_through_snapshots(
    site: Site, images: Images, versions: Mapping[str, Path]
) -> None:
    """Owners of an account that got another number are translated on the volume alone."""
    made = images()
    site.upgrade(made["1"])
    live(site.volume())
    site.upgrade(made["2"], env=ALWAYS)
    (run,) = snapshots_of(site.volume()).iterdir()
    content = picture(run)
    conflicts = site.run("conflicts", made["2"]).stdout
    moved = USERS.replace(":250:", ":750:")
    other = site.image("moved", [versions["3"]], lists=LISTS, passwd=moved)
    site.upgrade(other)
    assert (site.volume() / "var/lib/app/database").stat().st_uid == 750
    assert picture(run) == content
    assert "snapshots" not in conflicts
    assert "snapshots" not in site.run("conflicts", other).stdout


# -- by hand -----------------------------------------------------------------------------


def _listed(site: Site, image: Image) -> list[dict[str, Any]]:
    said = site.run("snapshot", image, "--json").stdout
    return listed_in(said)


def test_one_by_hand_stays_until_it_is_dropped(site: Site, images: Images) -> None:
    made = images()
    for status, words in ((2, ["create"]), (2, ["drop"]), (2, ["drop", "0001-image"])):
        site.run("snapshot", made["1"], *words, status=status)
    site.upgrade(made["1"])
    before = seen(site.volume())
    said = site.run("snapshot", made["1"], "create").stdout
    assert said.startswith("0002-hand  ")
    assert "by hand, of image-1" in said
    site.upgrade(made["2"], env=ALWAYS)
    site.upgrade(made["3"], env=ALWAYS)
    first, second = _listed(site, made["3"])
    assert (first["run"], first["snapshot"]["by_hand"]) == ("0002-hand", True)
    assert picture(snapshots_of(site.volume()) / "0002-hand/content") == before
    assert second["run"].startswith("0004-")
    undone = site.volume() / f".ipavolume/undone/{second['run']}"
    undone.mkdir(parents=True)
    (undone / "file").write_text("put aside")
    assert _listed(site, made["3"])[1]["undone"]
    assert "undone:" in site.run("snapshot", made["3"]).stdout
    (snapshots_of(site.volume()) / "0002-hand/record.json").write_text("{")
    assert "damaged" in site.run("snapshot", made["3"]).stdout
    assert _listed(site, made["3"])[0]["fault"]
    site.run("snapshot", made["3"], "drop", "0002-hand")
    site.run("snapshot", made["3"], "drop", second["run"], "--undone")
    assert not undone.parent.exists()
    assert [one["run"] for one in _listed(site, made["3"])] == [second["run"]]
    said = site.run("snapshot", made["3"], "drop", "--all", "--json").stdout
    assert result_of(said) == {"dropped": [second["run"]]}
    assert not snapshots_of(site.volume()).exists()
    assert _listed(site, made["3"]) == []


def _killed_amid(site: Site, image: Image) -> Path:
    """Begin to upgrade to *image*, and be killed after the mark; return the snapshot of before."""
    command = [sys.executable, "-m", "ipavolume", "upgrade", *site.arguments(image)]
    env = clean_environment(ALWAYS)
    kept = site.top / "kept"
    subprocess.run(["cp", "-a", site.volume(), kept], check=True, timeout=60)
    _, calls = tracing.trace(command, env=env, log=site.top / "log")
    shutil.rmtree(site.volume())
    subprocess.run(["cp", "-a", kept, site.volume()], check=True, timeout=60)
    marked = next(
        number
        for number, call in enumerate(calls)
        if "renameat" in call.name and "staging" in call.text
    )
    tracing.killed(command, calls[marked + 2], env=env)
    (run,) = snapshots_of(site.volume()).iterdir()
    return run


def test_nobody_asks_for_the_mount_of_a_snapshot_that_was_dropped(
    site: Site, images: Images
) -> None:
    """None was ever used: who looks for one looks in vain."""
    made = images()
    site.upgrade(made["1"])
    site.upgrade(made["2"], env=ALWAYS)
    (run,) = snapshots_of(site.volume()).iterdir()
    site.run("snapshot", made["2"], "drop", run.name)
    asked: list[tuple[str, Image, tuple[str, ...]]] = [
        ("upgrade", made["1"], ()),
        ("rollback", made["2"], ()),
        ("rollback", made["2"], (run.name,)),
    ]
    for command, image, more in asked:
        said = site.run(command, image, *more, status=77).stderr
        assert f"snapshot of run {run.name} is not here" in said.replace("The s", "s")
        assert "missing?" not in said


def test_amid_an_upgrade_what_became_of_its_snapshot_is_said(site: Site, images: Images) -> None:
    made = images()
    site.upgrade(made["1"])
    run = _killed_amid(site, made["2"])
    shutil.copytree(site.volume(), site.top / "amid", symlinks=True)
    (run / "record.json").write_text("{")
    said = site.run("upgrade", made["2"], env=ALWAYS).stderr
    assert "way back: none:" in said
    assert "record.json is cut short or was altered" in said.replace("'", "")
    assert "is not here" not in said
    assert "missing?" not in said

    shutil.rmtree(site.volume())
    shutil.copytree(site.top / "amid", site.volume(), symlinks=True)
    shutil.rmtree(run)
    for command in ("upgrade", "rollback"):
        said = site.run(command, made["1"], status=77).stderr
        assert f"snapshot of run {run.name} is not here" in said.replace("The s", "s")
        assert "missing?" not in said
    said = site.run("upgrade", made["2"], env=ALWAYS).stderr
    assert f"way back: none: the snapshot of run {run.name} is not here\n" in said


def test_the_way_back_from_what_is_not_finished_is_not_dropped(site: Site, images: Images) -> None:
    made = images()
    site.upgrade(made["1"])
    run = _killed_amid(site, made["2"])
    said = site.run("snapshot", made["2"], "drop", run.name, status=77).stderr
    assert "[open-transaction]" in said
    site.run("snapshot", made["2"], "create", status=77)
    # It had no steps: with its end the chain ends, and the next run begins one of its own.
    said = site.run("upgrade", made["3"], env=ALWAYS).stderr
    assert f"way back: the snapshot of run {run.name}" in said
    assert "way back: a copy" in said or "way back: reflinks" in said
    (second,) = snapshots_of(site.volume()).iterdir()
    assert [one.get("snapshot") for one in site.history()] == [None, run.name, second.name]
    assert (second / "content/etc/app/program").read_text() == "program 2\n"
