"""What is swapped while we work."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from support.command import Result, clean_environment
from support.hostile import SVC, SVC_GROUP, check, picture, upgrade
from support.planted import KINDS, Scene, assert_no_other_content_has_rights, make_scene
from support.requirements import need_tool

pytestmark = [pytest.mark.root, pytest.mark.rpm]


@dataclass(frozen=True, kw_only=True)
class Swap:
    """What somebody does while the program stands still."""

    name: str
    """The last component of the path; the program is stopped at calls that name it."""
    path: str
    to: str

    def __str__(self) -> str:
        return f"{self.path} becomes {self.to}"


SWAPS: Final = (
    Swap(name="state", path="var/lib/svc/state", to="a link to a directory"),
    Swap(name="fresh.d", path="var/lib/svc/fresh.d", to="a link to a directory"),
    Swap(name="seed", path="var/lib/svc/state/seed", to="a link to a file"),
    Swap(name="conf", path="var/lib/svc/conf", to="a FIFO"),
    Swap(name="tool", path="var/lib/svc/tool", to="a hard link"),
    Swap(name="secret", path="var/lib/svc/secret", to="a hard link"),
    Swap(name="secret", path="var/lib/svc/secret", to="a link to a file"),
    Swap(name="capable", path="var/lib/svc/capable", to="a device"),
    Swap(name="plain", path="var/lib/svc/plain", to="a link to a file"),
)
_CALLS: Final = "openat,newfstatat,readlinkat,renameat,renameat2,linkat,unlinkat,mkdirat,rename"


def _traced(name: str, log: str, *injected: str) -> list[str]:
    """Return how strace watches the calls that name a file by its last component."""
    return [
        *(need_tool("strace"), "-f", "-q", "-o", log, "-P", name, "-e", f"trace={_CALLS}"),
        *injected,
        *(sys.executable, "-m", "ipavolume", "upgrade"),
    ]


def _calls(scene: Scene, swap: Swap) -> list[tuple[str, int]]:
    """Return the calls of an undisturbed upgrade that name the file: name and number."""
    log = scene.volume.parent / "calls"
    subprocess.run(
        [*_traced(swap.name, str(log)), "--root", scene.workshop.two(), "--volume", scene.volume],
        check=True,
        capture_output=True,
        env=clean_environment(),
        timeout=60,
    )
    counts: dict[str, int] = {}
    calls = []
    for line in log.read_text().splitlines():
        match = re.match(rf'\d+ +(\w+)\(.*"{re.escape(swap.name)}"', line)
        if match is not None:
            counts[match[1]] = counts.get(match[1], 0) + 1
            calls.append((match[1], counts[match[1]]))
    return calls


def _disturbed(
    scene: Scene,
    name: str,
    stops: Mapping[tuple[str, int], Callable[[], None]],
    *,
    image: Path | None = None,
) -> Result:
    """Upgrade, stopped behind calls that name a file; something is done at each of them."""
    root = image or scene.workshop.two()
    reader, writer = os.pipe()
    injected = [
        word
        for call, number in stops
        for word in ("-e", f"inject={call}:signal=STOP:when={number}")
    ]
    with subprocess.Popen(
        [
            *_traced(name, f"/dev/fd/{writer}", *injected),
            *("--root", root, "--volume", scene.volume),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=clean_environment(),
        pass_fds=[writer],
    ) as process:
        os.close(writer)
        with open(reader, encoding="utf-8", errors="replace") as log:
            for call, act in stops.items():
                line = next((line for line in log if "stopped by SIGSTOP" in line), "")
                assert line, f"never came to {call}"
                stopped = int(line.split()[0])
                try:
                    act()
                except BaseException:
                    os.kill(stopped, signal.SIGKILL)
                    raise
                os.kill(stopped, signal.SIGCONT)
            log.read()
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _carry_out(scene: Scene, swap: Swap) -> None:
    place = scene.at(swap.path)
    if place.exists():
        place.rename(place.with_name(f"{swap.name}.moved"))
    KINDS[swap.to](scene, place)


def _edit(scene: Scene) -> None:
    for path in ("var/lib/svc/conf", "var/lib/svc/plain"):
        scene.at(path).write_text("edited\n")


@pytest.mark.crash
@pytest.mark.parametrize("swap", SWAPS, ids=str)
def test_nothing_is_gained_by_swapping_a_file_while_we_work(
    scene: Scene, swap: Swap, tmp_path: Path, populated: Path
) -> None:
    _edit(scene)
    calls = _calls(scene, swap)
    assert len(calls) > 3
    # Behind the first call, in the middle, and before the last: while planning and after.
    for number in sorted({0, len(calls) // 2, len(calls) - 2, len(calls) - 1}):
        again = make_scene(scene.workshop, populated, tmp_path / str(number))
        _edit(again)
        linked = ("/secret",) if swap.to == "a hard link" else ()
        again.outside.begin()

        result = _disturbed(again, swap.name, {calls[number]: partial(_carry_out, again, swap)})

        assert result.returncode in (0, 65, 74), result.stderr
        again.outside.verify(linked=linked)
        assert_no_other_content_has_rights(again)
        _assert_no_secret_was_copied(again)
        if result.returncode != 0:
            assert f"/data/{swap.path}" in result.stderr
            moved = again.at(f"{swap.path}.moved")
            if moved.exists():
                again.remove(swap.path)
                moved.rename(again.at(swap.path))
            upgrade(again.workshop.two(), again.volume)
        check(again.workshop.two(), again.volume, status=0)
        everything = {seen.content for seen in picture(again.volume).values()}
        assert hashlib.sha256(b"edited\n").hexdigest() in everything


def _assert_no_secret_was_copied(scene: Scene) -> None:
    """What another's file holds is nowhere on the volume but under that file's own names."""
    inode = scene.outside.secret.stat().st_ino
    secret = hashlib.sha256(scene.outside.secret.read_bytes()).hexdigest()
    scene.outside.begin()
    copies = {
        path
        for path, seen in picture(scene.volume).items()
        if seen.content == secret and seen.ino != inode
    }
    assert copies == set()


@pytest.mark.crash
def test_what_is_decided_on_is_what_was_looked_at(scene: Scene) -> None:
    """Somebody else's file is there when we look and act, the package's while we read."""
    secret, key = scene.at("var/lib/svc/secret"), scene.at("var/lib/svc/ca.key")
    decoy = scene.at("var/lib/svc/decoy")
    secret.rename(decoy)
    secret.write_text("key of root alone\n")
    secret.chmod(0o600)

    def show_the_packages() -> None:
        secret.rename(key)
        decoy.rename(secret)

    def show_the_key() -> None:
        secret.rename(decoy)
        key.rename(secret)

    result = _disturbed(
        scene,
        "secret",
        {("newfstatat", 1): show_the_packages, ("openat", 1): show_the_key},
    )

    assert result.returncode == 0, result.stderr
    assert secret.read_text() == "key of root alone\n"
    st = secret.stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 0, 0o600)


@pytest.mark.crash
def test_rights_that_were_lost_by_writing_to_a_file_do_not_come_back_with_its_owner(
    scene: Scene,
) -> None:
    """The kernel takes set-id bits away when somebody writes; the plan is older than that."""
    program = scene.at("var/lib/svc/set-id")
    program.write_text("harmless\n")
    os.chown(program, SVC, SVC_GROUP)
    program.chmod(0o6755)

    def write() -> None:
        program.write_text("evil\n")
        program.chmod(0o755)

    image = scene.workshop.renumbered()
    result = _disturbed(scene, "set-id", {("openat", 1): write}, image=image)

    assert result.returncode == 0, result.stderr
    st = program.stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (350, 351, 0o755)
    assert program.read_text() == "evil\n"
