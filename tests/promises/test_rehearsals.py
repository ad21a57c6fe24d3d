"""A rehearsal in a container, without an engine: as in a pod on a cloned claim."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from support import inside
from support.command import Result, run_ipavolume
from support.images import Image, picture
from support.steps import put_step, step_text
from support.upgrades import Site

pytestmark = [pytest.mark.root, pytest.mark.rpm]

STEP = (
    "def plan(volume, template):\n"
    '    yield Command(words=("sh", "-c", "echo {said}; exit {status}"), reason="to convert",'
    " timeout_s=600)\n"
)


@pytest.fixture
def site(tmp_path: Path, versions: tuple[Path, Path]) -> Site:
    """A volume of the first version, as a claim that was cloned has it."""
    site = Site(top=tmp_path)
    first = site.image("one", versions[:1], lists={"/data": ["/etc/app/"]})
    assert start(first, site, "true", env={}).returncode == 0
    return site


@pytest.fixture
def second(site: Site, versions: tuple[Path, Path]) -> Image:
    """The image that is rehearsed."""
    return site.image("two", versions[1:], lists={"/data": ["/etc/app/"]})


def start(image: Image, site: Site, *command: str, env: Mapping[str, str] | None = None) -> Result:
    """Start a container of an image on the volume: by default a rehearsal."""
    words = [*inside.IPAVOLUME, "start", "--", *command]
    environment = {"IPAVOLUME_REHEARSAL": "1"} if env is None else env
    return inside.run(image.root, site.volume(), words, env=environment)


def start_within(image: Image, site: Site, *command: str, begun: str) -> tuple[Result, int]:
    """Rehearse with a limit that lets it come as far as to make the file *begun* of the volume.

    What was ended before that is gone on with, with twice the time.
    """
    limit_s = 1
    while True:
        limit_s *= 2
        env = {"IPAVOLUME_REHEARSAL": "1", "IPAVOLUME_REHEARSAL_TIMEOUT": str(limit_s)}
        done = start(image, site, *command, env=env)
        if (site.volume() / begun).exists():
            return done, limit_s
        assert limit_s < 60, done.stderr


def told(done: Result) -> dict[str, Any]:
    """Return what a rehearsal printed that it came to."""
    (found,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert isinstance(found, dict)
    return found


def test_what_goes_well_ends_with_0_and_no_other_start_takes_the_copy(
    site: Site, second: Image
) -> None:
    secret = second.root / ".ipavolume-rehearsal"
    secret.mkdir(mode=0o700)
    (secret / "environment").write_bytes(b"TOLD=by a file\0")
    (secret / "environment").chmod(0o600)
    done = start(second, site, "sh", "-c", "trap 'echo ended $TOLD; exit 1' TERM; sleep 600 & wait")
    assert done.returncode == 0, done.stderr
    assert told(done)["rehearsal"] == "fine"
    assert "ended by a file" in done.stdout
    assert (site.volume() / "build-id").read_text() == "two\n"
    uuid = json.loads((site.volume() / ".ipavolume/identity.json").read_text())["uuid"]
    before = picture(site.volume())
    # Neither the short way of a start that has nothing to do nor another command.
    for again in (start(second, site, "true", env={}), site.run("upgrade", second, status=77)):
        assert again.returncode == 77
        assert f"rehearsal of {uuid}" in again.stderr
        assert "[clone]" in again.stderr
    assert picture(site.volume()) == before
    # Another rehearsal does, although there is nothing to upgrade.
    assert told(start(second, site, "sleep", "600"))["rehearsal"] == "fine"


@pytest.mark.parametrize(
    ("said", "rehearsal", "status"),
    [
        pytest.param("the database is too old", "failed", 13, id="failed"),
        pytest.param("Temporary failure in name resolution", "undecided", 75, id="undecided"),
    ],
)
def test_a_step_that_fails_is_named_with_what_it_said(
    site: Site, second: Image, said: str, rehearsal: str, status: int
) -> None:
    body = STEP.format(said=said, status=3)
    imports = "from ipavolume.steps import Command\n"
    put_step(second.root, "s5010_convert.py", step_text(body=body, imports=imports), own=True)
    second.prepare(build_id="two")
    done = start(second, site, "true")
    found = told(done)
    assert (found["rehearsal"], done.returncode) == (rehearsal, status)
    assert found["step"] == "step s5010_convert"
    assert said in "\n".join([found["message"], *found["lines"]])


def test_a_first_run_that_waits_for_an_answer_leaves_it_undecided(
    site: Site, versions: tuple[Path, Path]
) -> None:
    """It was fine, with nothing started."""
    config = '[first-run]\ncommand = ["touch", "/data/csr"]\nwaiting-when = "/data/csr"\n'
    image = site.image("two", versions[1:], lists={"/data": ["/etc/app/"]}, config=config)
    done = start(image, site, "sleep", "600")
    found = told(done)
    assert (found["rehearsal"], found["code"], done.returncode) == ("undecided", "waiting", 75)


def test_a_step_that_takes_longer_than_the_rehearsal_may_ends_it(site: Site, second: Image) -> None:
    body = STEP.format(said="it begins >/data/begun; sleep 600", status=0)
    imports = "from ipavolume.steps import Command\n"
    put_step(second.root, "s5010_convert.py", step_text(body=body, imports=imports), own=True)
    second.prepare(build_id="two")
    done, limit_s = start_within(second, site, "true", begun="begun")
    assert (told(done)["rehearsal"], done.returncode) == ("failed", 13)
    assert f"within {limit_s} s" in told(done)["message"]
    assert told(done)["step"] == "step s5010_convert"


def test_an_application_that_ends_or_is_not_ready_in_time_has_failed(
    site: Site, second: Image
) -> None:
    done = start(second, site, "sh", "-c", "exit 4")
    assert (told(done)["rehearsal"], done.returncode) == ("failed", 13)
    assert "ended with status 4" in told(done)["message"]
    config = second.root / "etc/ipavolume.toml"
    config.write_text(
        config.read_text() + "\n[ready]\nports = [4]\n"
        if config.exists()
        else "[ready]\nports = [4]\n"
    )
    second.prepare(build_id="two")
    words = ("sh", "-c", "touch /data/begun; exec sleep 600")
    done, _ = start_within(second, site, *words, begun="begun")
    assert (told(done)["rehearsal"], done.returncode) == ("failed", 13)
    assert "port 4" in told(done)["message"]
    # Who looks on for an hour knows what for.
    assert "not yet: nothing listens on TCP port 4\n" in done.stderr


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        pytest.param("[ready]\nports = [4]\n", "port 4", id="not ready"),
        pytest.param('[ready]\nignore = ["x"]\n', "nobody answers", id="found wrong"),
    ],
)
def test_what_a_start_would_not_wait_for_a_rehearsal_does_not_wait_for_either(
    site: Site, second: Image, extra: str, why: str
) -> None:
    config = second.root / "etc/ipavolume.toml"
    config.write_text(
        "[start]\nsupervise = true\n[verify]\nready-within-s = 1\ntimeout-s = 1\n"
        f"""command = ["sh", "-c", "echo nobody answers; exit 3"]\n{extra}"""
    )
    second.prepare(build_id="two")
    done = start(second, site, "sleep", "600")
    assert (told(done)["rehearsal"], done.returncode) == ("failed", 13)
    assert "not ready and verified within 2 s: " in told(done)["message"]
    assert why in told(done)["message"]


def test_what_a_start_does_not_verify_has_the_time_of_the_rehearsal_to_be_ready(
    site: Site, second: Image
) -> None:
    """On a current volume a container waits for its application, however long that takes."""
    assert start(second, site, "true", env={}).returncode == 0
    (second.root / "etc/ipavolume.toml").write_text(
        "[start]\nsupervise = true\n[verify]\nready-within-s = 1\ntimeout-s = 1\n"
        "[ready]\n"
        """command = ["sh", "-c", "echo >>/data/asked; test $(wc -l </data/asked) -gt 1"]\n"""
    )
    second.prepare(build_id="two")
    done = start(second, site, "sleep", "600")
    assert (told(done)["rehearsal"], done.returncode) == ("fine", 0)


@pytest.mark.parametrize("word", ["exit-on-finished", "no-exit"])
def test_the_application_is_started_whatever_a_container_is_told_to_do_instead(
    site: Site, versions: tuple[Path, Path], word: str
) -> None:
    second = site.image(
        "two",
        versions[1:],
        lists={"/data": ["/etc/app/"]},
        config='[start]\nexec = ["sh", "-c", "printf started; exit 4"]\n',
    )
    done = start(second, site, word)
    assert (told(done)["rehearsal"], done.returncode) == ("failed", 13)
    assert "ended with status 4" in told(done)["message"]
    # The result has a line of its own although the application did not end its own.
    assert done.stdout.splitlines()[-2] == "started"


AGREEMENT: Final = b"dn: cn=to-b\nobjectClass: nsds5replicationagreement\ncn: to-b\n"


def test_no_agreement_of_a_directory_server_is_enabled_in_a_pod(
    site: Site, versions: tuple[Path, Path]
) -> None:
    second = site.image(
        "two",
        versions[1:],
        lists={"/data": ["/etc/app/"]},
        config='profile = "freeipa"\n[start]\nexec = ["sh", "-c", "echo started"]\n'
        "[scriptlets]\npackages = []\nsubstitute = []\n",
    )
    config = site.volume() / "etc/dirsrv/slapd-A/dse.ldif"
    config.parent.mkdir(parents=True)
    config.write_bytes(AGREEMENT)
    start(second, site, env={})
    assert config.read_bytes() == AGREEMENT
    for _ in range(2):
        # Also where the one that marked the copy was killed before it came to this.
        config.write_bytes(AGREEMENT)
        start(second, site)
        assert b"nsds5ReplicaEnabled: off" in config.read_bytes()


def test_how_long_it_may_take_is_in_seconds() -> None:
    env = {"IPAVOLUME_REHEARSAL": "1", "IPAVOLUME_REHEARSAL_TIMEOUT": "1h"}
    done = run_ipavolume("start", "--root", "/nowhere", "--", "true", status=2, env=env)
    assert "seconds" in done.stderr
