"""Killed at any moment of a first run or an upgrade, the next start finishes or says why not."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from support import containers, site
from support.containers import Container

pytestmark = pytest.mark.slow

METHODS: Final[Mapping[str, Callable[[Container], object]]] = {
    "docker kill": lambda container: container.kill(signal.SIGKILL),
    "kill -9 from the host": lambda container: container.kill_from_host(),
    "docker stop": lambda container: container.stop(patience_s=10),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is interrupted.

    Attributes:
        image: The image that is started.
        base: Directory with the volume as it is before.
        lines: How many lines a start prints that nobody disturbs.
        answers: Tells whether everything that was written through the services answers.
    """

    image: str
    base: Path
    lines: int
    answers: Callable[[Container], bool]


def has_everything(container: Container) -> bool:
    return site.ask(container) == site.EXPECTED


def has_records(container: Container) -> bool:
    return site.records_of(container) == site.EXPECTED.records


def is_set_up(container: Container) -> bool:
    """Tell whether the services of a server without users answer."""
    return site.entries_of(container) == {} and site.principals_of(container) == frozenset()


def serves(container: Container) -> bool:
    return site.records_of(container) == {}


def until_up(container: Container, image: str) -> None:
    if image.startswith("server"):
        site.until_up(container)
    else:
        container.until(lambda: site.is_serving(container))


def lines_of(image: str, base: Path, work: Path) -> int:
    """Count what an undisturbed start prints until it is up."""
    with containers.container(image, containers.copy(base, work)) as container:
        until_up(container, image)
        said = [line for line in container.logs().splitlines() if is_ours(line)]
    return len(said)


def is_ours(line: str) -> bool:
    """Tell whether a line is of the program's, not of what it hands over to."""
    return line.startswith(("ipavolume:", " ", "upgrade ", "populate "))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    containers.need_images("server:1", "server:2", "plain:1", "plain:2")
    work = tmp_path_factory.mktemp("killed")
    found = {}
    for kind, fill, everything, nothing in (
        ("server", site.fill, has_everything, is_set_up),
        ("plain", site.add_records, has_records, serves),
    ):
        empty, filled = work / f"{kind}-empty", work / f"{kind}-filled"
        empty.mkdir()
        filled.mkdir()
        with containers.container(f"{kind}:1", filled) as container:
            until_up(container, f"{kind}:1")
            fill(container)
            container.stop()
        for name, image, base, answers in (
            (f"{kind} first run", f"{kind}:1", empty, nothing),
            (f"{kind} upgrade", f"{kind}:2", filled, everything),
        ):
            place = work / name
            place.mkdir()
            lines = lines_of(image, base, place)
            found[name] = Run(image=image, base=base, lines=lines, answers=answers)
    return found


MOMENTS: Final = {
    "server first run": 8,
    "server upgrade": 10,
    "plain first run": 8,
    "plain upgrade": 14,
}
"""How many moments of each run, spread over all that it says: 40."""


def moments() -> Iterator[object]:
    methods = list(METHODS)
    for name, count in MOMENTS.items():
        for number in range(count):
            method = methods[number % len(methods)]
            yield pytest.param(name, number, method, id=f"{name}-{number}-{method}")


@pytest.mark.parametrize(("name", "number", "method"), list(moments()))
def test_the_next_start_finishes_or_refuses_and_then_everything_answers(
    runs: Mapping[str, Run], tmp_path: Path, name: str, number: int, method: str
) -> None:
    run = runs[name]
    volume = containers.copy(run.base, tmp_path)
    after = 1 + number * (run.lines - 1) // (MOMENTS[name] - 1)
    with containers.container(run.image, volume) as container:
        lines = container.lines()
        seen = 0
        for line in lines:
            seen += is_ours(line)
            if seen == after:
                break
        METHODS[method](container)
        container.wait()
        first = container.logs()
    assert seen == after, first
    before = site.content(volume)
    with containers.container(run.image, volume) as container:
        if is_left_half_way(volume):
            assert container.wait() == 65, first + container.logs()
            assert "partial" in container.logs()
            assert "ipavolume" in container.logs()
            assert site.content(volume) == before
            return
        until_up(container, run.image)
        assert run.answers(container), first + container.logs()
        assert container.run("ipavolume", "check").stdout.startswith("/data: current")


def is_left_half_way(volume: Path) -> bool:
    """Tell whether a first run has left something and has not come to its end."""
    record = volume / ".ipavolume/first-run.json"
    ruins = volume / "etc/dirsrv/slapd-localhost/dse.ldif"
    done = volume / "var/lib/site/configured"
    return record.exists() and ruins.exists() and not done.exists()


@pytest.mark.parametrize("image", ["server:2", "plain:2"])
def test_of_two_containers_on_one_volume_one_works(
    runs: Mapping[str, Run], tmp_path: Path, image: str
) -> None:
    run = runs[f"{image.partition(':')[0]} upgrade"]
    volume = containers.copy(run.base, tmp_path)
    with (
        containers.container(image, volume) as first,
        containers.container(image, volume) as second,
    ):
        # Which of them is the one is a matter of luck; the other one ends by itself.
        ended = containers.wait_for_one(first, second)
        works = second if ended is first else first
        assert ended.wait() == 75
        assert "in use" in ended.logs()
        until_up(works, image)
        assert run.answers(works)
