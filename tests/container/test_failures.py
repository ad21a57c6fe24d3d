"""The last lines of ``docker logs`` say what failed, whether the data are safe, what to do next.

What they say is tried where it is an option: it is taken out of the log as it stands there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from support import containers
from support.containers import PREFIX, Container
from support.images import picture

pytestmark = pytest.mark.slow

OLD, NEW = f"{PREFIX}/plain:1", f"{PREFIX}/plain:2"
_numbers: Final = itertools.count(1)
_TAIL_LINES: Final = 20
_TAIL_BYTES: Final = 2048


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    containers.need_images("plain:1", "plain:2")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a container ended.

    Attributes:
        status: Its exit status.
        log: What ``docker logs --tail 20`` shows, of that what an orchestrator keeps.
    """

    status: int
    log: str

    def line(self, label: str) -> str:
        """Return what the last lines say under *label*."""
        (found,) = re.findall(rf"^ipavolume: {label}: (.*)$", self.log, re.MULTILINE)
        assert isinstance(found, str)
        return found


@contextlib.contextmanager
def started(image: str, volume: str, options: Sequence[str]) -> Iterator[Container]:
    container = Container(f"{PREFIX}-failures-{os.getpid()}-{next(_numbers)}")
    words = ("run", "--detach", "--name", container.name, "--network", "none", "-v", volume)
    command = ("sleep", "300") if "sleep" in options else ("true",)
    try:
        containers.engine(*words, *(one for one in options if one != "sleep"), image, *command)
        yield container
    finally:
        container.remove()


def start(image: str, volume: str | Path, *options: str) -> Ended:
    """Start a container on a volume, and wait for its end."""
    place = f"{volume}:/data" if ":/data" not in str(volume) else str(volume)
    with started(image, place, options) as container:
        status = container.wait()
        tail = "\n".join(container.logs().splitlines()[-_TAIL_LINES:])
        return Ended(status=status, log=tail.encode()[-_TAIL_BYTES:].decode("utf-8", "replace"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A volume that is empty, one of the old image, and one of the new."""
    top = tmp_path_factory.mktemp("failures")
    empty, old, new = (top / name for name in ("empty", "old", "new"))
    for volume in (empty, old):
        volume.mkdir()
    assert start(OLD, old).status == 0
    shutil.copytree(old, new, symlinks=True)
    subprocess.run(["cp", "-aT", old, new], check=True)
    assert start(NEW, new).status == 0
    return {"empty": empty, "old": old, "new": new}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


ACCEPT = '[accept]\nfrom = ["debian>=12,<14"]\n'
FIRST_RUN = ACCEPT + '[first-run]\ndone-when = "/etc/bind/done"\nruins-when = "/etc/bind/ruin"\n'
STEP = '''"""Does what a test wants.

Without it nothing is missing. Source: this test.
"""

from ipavolume.steps import Command

COMPONENT = "bind9"
APPLIES_FROM = ""
WHEN = ("upgrade",)
PHASE = "offline"


def plan(volume, template):
    yield Command(words=("sh", "-c", "seq 100; echo the cause; exit 3"), reason="to fail")
'''
BROKEN_STEP = STEP.partition("    yield")[0] + "    yield volume.no_such_method()\n"


def configured(text: str) -> Callable[[Path, Path], tuple[str, ...]]:
    """Give the image another configuration."""

    def prepare(work: Path, _: Path) -> tuple[str, ...]:
        return "-v", f"{write(work / 'ipavolume.toml', text)}:/etc/ipavolume.toml:ro"

    return prepare


def stepped(text: str) -> Callable[[Path, Path], tuple[str, ...]]:
    """Give the image an upgrade step."""

    def prepare(work: Path, _: Path) -> tuple[str, ...]:
        name = "s5900_fails.py"
        return "-v", f"{write(work / name, text)}:/etc/ipavolume/upgrade_steps/{name}:ro"

    return prepare


def optioned(*options: str) -> Callable[[Path, Path], tuple[str, ...]]:
    return lambda _work, _volume: options


def changed(change: Callable[[Path], object]) -> Callable[[Path, Path], tuple[str, ...]]:
    """Do something to the volume."""

    def prepare(_: Path, volume: Path) -> tuple[str, ...]:
        change(volume)
        return ()

    return prepare


def give_to_a_shop(work: Path, volume: Path) -> tuple[str, ...]:
    identity = volume / ".ipavolume/identity.json"
    identity.write_text(json.dumps(json.loads(identity.read_text()) | {"application": "shop"}))
    return configured('application = ["dns"]\n' + ACCEPT)(work, volume)


def put_a_database_there(volume: Path) -> None:
    os.chown(write(volume / "PG_VERSION", "15\n"), 999, 999)


def mount_a_file_over_one(work: Path, _: Path) -> tuple[str, ...]:
    return "-v", f"{write(work / 'options', 'mine')}:/data/etc/bind/db.empty"


def lose_the_state(volume: Path) -> None:
    shutil.rmtree(volume / ".ipavolume")


def damage_the_state(volume: Path) -> None:
    os.truncate(volume / ".ipavolume/identity.json", 10)


def install_with(command: str, *options: str) -> Callable[[Path, Path], tuple[str, ...]]:
    """Give the image a first run."""

    def prepare(work: Path, volume: Path) -> tuple[str, ...]:
        text = FIRST_RUN + f"command = {json.dumps(['/bin/sh', '-c', command])}\n"
        return *configured(text)(work, volume), *options

    return prepare


def leave_half_an_installation(work: Path, volume: Path) -> tuple[str, ...]:
    options = install_with("touch /etc/bind/ruin; exit 3")(work, volume)
    failed = start(OLD, volume, *options)
    assert failed.status == 13
    assert "only partly configured" in failed.line("state")
    return options


def install_a_server(work: Path, volume: Path) -> tuple[str, ...]:
    program = write(work / "ipa-server-install", "#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    text = FIRST_RUN + 'command = ["/usr/sbin/ipa-server-install"]\n'
    return (
        *configured(text)(work, volume),
        *("-v", f"{program}:/usr/sbin/ipa-server-install:ro", "-h", "short"),
    )


def break_off_an_upgrade(work: Path, volume: Path) -> tuple[str, ...]:
    # With a snapshot the old image would go back.
    without = ("-e", "IPAVOLUME_SNAPSHOT=never")
    assert start(NEW, volume, *stepped(STEP)(work, volume), *without).status == 13
    return ()


UNTOUCHED = "the volume is as it was; nothing visible was changed"
STILL_OPEN = "the volume is in the middle of an upgrade, as it was before; nothing was changed now"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A start that fails.

    Attributes:
        base: Which volume.
        image: Which image.
        prepare: What is done to the volume, and returns options.
        status: Exit status.
        code: Code of the error.
        cause: Named in the error.
        state: Begin of the state line.
        hint: In the hint.
        works: The variables of the hint make the start succeed.
    """

    image: str
    base: str
    prepare: Callable[[Path, Path], tuple[str, ...]]
    status: int
    code: str
    cause: str
    hint: str
    state: str = UNTOUCHED
    works: bool = False


FAILURES: Final = {
    "missing right": Failure(
        image=OLD, base="empty", prepare=optioned("--cap-drop", "CHOWN"),
        status=74, code="missing-right", cause="/data", hint="CHOWN",
    ),
    "foreign": Failure(
        image=OLD, base="old", prepare=give_to_a_shop,
        status=77, code="foreign", cause="'shop'", hint="IPAVOLUME_ALLOW=foreign", works=True,
    ),
    "occupied": Failure(
        image=OLD, base="empty", prepare=changed(put_a_database_there),
        status=77, code="occupied", cause="'PG_VERSION'", hint="IPAVOLUME_ALLOW=occupied",
        works=True,
    ),
    "newer": Failure(
        image=OLD, base="new", prepare=optioned(),
        status=77, code="newer", cause="bind9", hint="IPAVOLUME_ALLOW=newer",
    ),
    "blocked": Failure(
        image=OLD, base="old", prepare=break_off_an_upgrade,
        status=77, code="blocked", cause="in the middle of an upgrade",
        state=STILL_OPEN, hint="IPAVOLUME_ALLOW=blocked,newer",
    ),
    "incompatible": Failure(
        image=NEW, base="old", prepare=configured('[accept]\nfrom = ["debian>=99"]\n'),
        status=77, code="incompatible", cause="debian 12", hint="IPAVOLUME_ALLOW=incompatible",
        works=True,
    ),
    "damaged state": Failure(
        image=NEW, base="old", prepare=changed(damage_the_state),
        status=65, code="damaged-state", cause="/data/.ipavolume/identity.json",
        hint="-e IPAVOLUME_ALLOW=stateless -e IPAVOLUME_FROM=ID:VERSION",
    ),
    "stateless": Failure(
        image=OLD, base="old", prepare=changed(lose_the_state),
        status=65, code="stateless", cause="/data", hint="IPAVOLUME_ALLOW=stateless",
    ),
    "unsafe volume": Failure(
        image=OLD, base="old", prepare=changed(lambda one: (one / ".ipavolume").chmod(0o777)),
        status=65, code="unsafe-volume", cause="/data/.ipavolume", hint="chmod",
    ),
    "partial install": Failure(
        image=OLD, base="empty", prepare=leave_half_an_installation,
        status=65, code="partial-install", cause="/etc/bind/ruin", hint="wipe it",
    ),
    "host name": Failure(
        image=OLD, base="empty", prepare=install_a_server,
        status=77, code="unqualified-hostname", cause="'short'", hint="-h NAME.DOMAIN",
    ),
    "broken step": Failure(
        image=NEW, base="old", prepare=stepped(BROKEN_STEP),
        status=78, code="broken-step", cause="s5900_fails.py", hint="ln -s /dev/null",
    ),
    "failing step": Failure(
        image=NEW, base="old", prepare=stepped(STEP),
        status=13, code="command-failed", cause="s5900_fails", state="the files of the new image",
        hint="/data/.ipavolume/logs/",
    ),
    "failing first run": Failure(
        image=OLD, base="empty", prepare=install_with("seq 100; echo the cause; exit 3"),
        status=13, code="first-run-failed", cause="status 3", state="the volume is unconfigured",
        hint="start again",
    ),
    "unknown version": Failure(
        image=OLD, base="old",
        prepare=lambda _work, volume: (
            *changed(lose_the_state)(_work, volume), "-e", "IPAVOLUME_ALLOW=stateless"
        ),
        status=77, code="unknown-version", cause="/data", hint="IPAVOLUME_FROM=debian:12",
        works=True,
    ),
    "no consent": Failure(
        image=NEW, base="old", prepare=optioned("-e", "IPAVOLUME_UPGRADE=refuse"),
        status=77, code="no-consent", cause="an upgrade waits", hint="IPAVOLUME_UPGRADE=auto",
    ),
    "expected existing": Failure(
        image=OLD, base="empty", prepare=optioned("-e", "IPAVOLUME_EXPECT=existing"),
        status=77, code="expected-existing", cause="/data is empty", hint="right volume",
    ),
    "mounted over": Failure(
        image=NEW, base="old", prepare=mount_a_file_over_one,
        status=65, code="mounted-over", cause="/data/etc/bind/db.empty",
        hint="IPAVOLUME_ALLOW=mounted-over", works=True,
    ),
}  # fmt: skip


def check(ended: Ended, failure: Failure) -> None:
    assert ended.status == failure.status, ended.log
    error = ended.line("error")
    assert error.endswith(f"[{failure.code}]")
    assert failure.cause in error
    assert ended.line("state").startswith(failure.state)
    assert failure.hint in ended.line("hint")
    assert f"docker run --rm IMAGE ipavolume manual {failure.code}" in ended.line("hint")
    assert "--allow" not in ended.log


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_the_last_lines_say_cause_state_and_what_to_do(
    bases: dict[str, Path], tmp_path: Path, failure: Failure
) -> None:
    volume = containers.copy(bases[failure.base], tmp_path)
    options = failure.prepare(tmp_path, volume)
    ended = start(failure.image, volume, *options)
    check(ended, failure)
    if failure.works:
        said = re.findall(r"-e IPAVOLUME_[A-Z]+=[\w:,-]+", ended.line("hint"))
        again = start(failure.image, volume, *options, *" ".join(said).split())
        assert again.status == 0, again.log


def test_the_old_image_goes_back_and_serves(bases: dict[str, Path], tmp_path: Path) -> None:
    """What an orchestrator does that puts the old image back, and then tries the new one again."""
    volume = containers.copy(bases["old"], tmp_path)
    assert start(NEW, volume, *stepped(STEP)(tmp_path, volume)).status == 13
    ended = start(OLD, volume)
    assert ended.status == 0, ended.log
    assert "the volume is going back" in ended.log
    assert "is current" in ended.log.splitlines()[-1]
    before, now = (
        picture(one, times=False, leave_out=lambda path: path.startswith("/.ipavolume"))
        for one in (bases["old"], volume)
    )
    assert now == before
    again = start(NEW, volume)
    assert again.status == 77, again.log
    assert "[refused]" in again.log


def test_a_full_disk_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    name = f"{PREFIX}-full-{os.getpid()}"
    options = ("type=tmpfs", "device=tmpfs", "o=size=64k")
    containers.engine("volume", "create", *(f"--opt={option}" for option in options), name)
    try:
        ended = start(OLD, name)
    finally:
        containers.engine("volume", "rm", name)
    full = Failure(
        image=OLD, base="", prepare=optioned(), status=74, code="no-space", cause="/data",
        hint="IPAVOLUME_ALLOW=space",
    )  # fmt: skip
    check(ended, full)


def test_a_volume_that_is_mounted_read_only_is_told(bases: dict[str, Path]) -> None:
    ended = start(NEW, f"{bases['old']}:/data:ro")
    read_only = Failure(
        image=NEW, base="old", prepare=optioned(), status=74, code="read-only", cause="/data",
        hint="read-write",
    )  # fmt: skip
    check(ended, read_only)


def test_who_holds_a_volume_is_told(bases: dict[str, Path], tmp_path: Path) -> None:
    volume = containers.copy(bases["old"], tmp_path)
    with started(OLD, f"{volume}:/data", ("sleep",)) as first:
        first.until(lambda: "handing over" in first.logs())
        locked = Failure(
            image=OLD, base="old", prepare=optioned(), status=75, code="locked",
            cause=first.inspect()["Id"][:12], state="the volume was not touched", hint="Stop",
        )  # fmt: skip
        check(start(OLD, volume), locked)


def test_a_change_of_type_is_told_and_its_way_out_keeps_what_was_there(tmp_path: Path) -> None:
    """The directory was put in a file's place by somebody, and what is in it by nobody's image."""
    containers.need_images("small:1", "small:2")
    old, new = f"{PREFIX}/small:1", f"{PREFIX}/small:2"
    run = ("run", "--rm", "--network", "none", "-v", f"{tmp_path}:/data")
    containers.engine(*run, old, "ipavolume", "upgrade")
    place = tmp_path / "etc/svc/data"
    place.unlink()
    write(place / "mine", "mine\n")
    type_change = Failure(
        image=new, base="", prepare=optioned(), status=65, code="type-change",
        cause="'/data/etc/svc/data/mine', which no image shipped",
        hint="-e IPAVOLUME_ALLOW=type-change",
    )  # fmt: skip
    check(start(new, tmp_path), type_change)
    assert (place / "mine").read_text() == "mine\n"
    containers.engine(*run, "-e", "IPAVOLUME_ALLOW=type-change", new, "ipavolume", "upgrade")
    assert place.read_text() == "data 2\n"
    (kept,) = (tmp_path / ".ipavolume/saved").glob("*/etc/svc/data/mine")
    assert kept.read_text() == "mine\n"


def test_the_way_out_of_damaged_state_is_one(bases: dict[str, Path], tmp_path: Path) -> None:
    """Words 5: it led to a second refusal, which asked for a release of another distribution."""
    volume = containers.copy(bases["old"], tmp_path)
    damage_the_state(volume)
    for path in (volume / ".ipavolume").iterdir():
        if path.name != "lock":
            path.rename(tmp_path / path.name)
    ended = start(NEW, volume, "-e", "IPAVOLUME_ALLOW=stateless", "-e", "IPAVOLUME_FROM=debian:12")
    assert ended.status == 0, ended.log


def test_the_manual_is_in_the_image() -> None:
    said = containers.engine("run", "--rm", NEW, "ipavolume", "manual", "stateless")
    assert "In a container: -e IPAVOLUME_ALLOW=stateless" in said
