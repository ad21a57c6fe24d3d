"""What is said of a run: of one that is interrupted, of several, in two phases, of whose steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from support.command import listed_in, run_ipavolume, volume_of
from support.taskworlds import World, build_packages, logs, step

pytestmark = [pytest.mark.root, pytest.mark.rpm]

FAILS = step("yield Command(words=('false',), reason='to fail')", summary="Fails")


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return build_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture
def world(tmp_path: Path, rpms: Mapping[str, Path]) -> World:
    return World(tmp_path, rpms)


def test_what_is_left_of_an_interrupted_run_is_shown(world: World) -> None:
    """Words 9: nothing was."""
    world.populate()
    image = world.image("2", {"s5000_fine": step(logs("fine")), "s5010_fails": FAILS})
    world.run(image, "start", "--", "true", status=13)
    said = world.run(image, "upgrade", "--dry-run", status=100).stdout
    assert said.startswith("/data: upgrading\n")
    assert "  plan: no file has to change\n  then: up to 1 step or scriptlet\n" in said
    assert "s5010_fails: Fails" in said
    assert "s5000_fine" not in said


def test_each_run_says_what_it_executed(world: World) -> None:
    """Words 9: all was said at the end, under whichever run was the last."""
    world.populate()
    world.run(world.image("2", {"s5010_fails": FAILS}), "start", "--", "true", status=13)
    image = world.image("3", {"s5020_then": step(logs("then"))})
    said = world.run(image, "start", "--", "true").stderr
    finished, _, upgraded = said.partition("upgrade v1 -> v2\n")[2].partition("upgrade v2 -> v3\n")
    assert "its files were put in place before" in finished
    assert "docker run --rm -v VOLUME:/data IMAGE ipavolume history --json" in finished
    assert "s5020_then" not in finished
    assert "    step s5020_then: done" in upgraded
    assert "s5010_fails" not in upgraded


def test_a_summary_names_the_command_that_can_be_typed_where_it_is_read(world: World) -> None:
    world.populate()
    conf = world.volume / "etc/svc/svc.conf"
    conf.write_text("edited\n")
    # On the host the image is a tree, and in a container's log there is neither tree nor shell.
    two = world.image("2", {})
    said = world.site.run("upgrade", two).stdout
    where = f"--root {two.root} --volume /data={world.volume}"
    assert f"  to review (ipavolume conflicts --diff {where}):\n" in said
    conf.write_text("edited again\n")
    said = world.run(world.image("3", {}), "start", "--", "true").stderr
    inside = "docker run --rm -v VOLUME:/data IMAGE ipavolume conflicts --diff"
    assert f"  to review ({inside}):\n" in said


def test_steps_for_packages_of_another_application_are_not_in_the_way(world: World) -> None:
    """Words 11: ten steps of FreeIPA came before the image's own."""
    image = world.image("1", {"s5000_own": step(logs("own"))})
    options = ("--root", str(image.root))
    said = run_ipavolume("steps", *options).stdout
    assert said.splitlines()[0].endswith("s5000_own: Does what a test wants.")
    assert "are for packages that the image does not have (shown with -v)" in said
    everything = run_ipavolume("steps", *options, "-v").stdout
    assert "s0300" in everything
    found = listed_in(run_ipavolume("steps", *options, "--json").stdout)
    assert len(found) > 5


def test_a_directory_that_is_not_removed_because_it_is_not_empty_is_named(world: World) -> None:
    """Words 10: it was "done", and the directory was there."""
    world.populate()
    body = "yield Remove(path='/var/lib/svc/sub', reason='not used any more')"
    image = world.image("2", {"s5000_clears": step(body, when="start", phase="offline")})
    (world.volume / "var/lib/svc/sub").mkdir()
    (world.volume / "var/lib/svc/sub/mine").write_text("mine\n")
    said = world.run(image, "start", "--", "true").stderr
    assert "s5000_clears left /var/lib/svc/sub: something was put there, or into it" in said
    assert (world.volume / "var/lib/svc/sub/mine").read_text() == "mine\n"


@pytest.mark.parametrize("words", [("--root", "/no/such/image"), ("/no/such/volume",)])
def test_what_is_not_there_has_one_status(world: World, words: tuple[str, ...]) -> None:
    """Words 7: 2, 74 or 78, and "unsafe"."""
    options = () if "--root" in words else ("--root", str(world.image("1", {}).root))
    done = run_ipavolume("check", "--json", *options, *words, status=74)
    if not options:
        assert "[no-image]" in done.stderr
    else:
        assert volume_of(done.stdout)["state"] is None
        said = run_ipavolume("check", *options, *words, status=74).stdout
        assert said.startswith("/no/such/volume: unknown\n")
        # Once, with its code and hint, and not above it as well.
        assert said.count("No such file or directory") == 1
