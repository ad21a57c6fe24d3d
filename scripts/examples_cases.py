"""What scripts/examples plays with each example; see there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support import containers
from support.command import PROJECT
from support.containers import PASSWORD, Container

MOMENTS: Final = 8
ENTRIES: Final = 1_000
RESULTS: Final = PROJECT / "build/examples"
SECRET: Final = "/run/secrets/password"  # noqa: S105 - where it is
PROJECT_NAME: Final = "ipavolume-example-{name}"
DATA, LOGS = NAMES = ("data", "logs")
"""The volumes of a compose file."""
TREE: Final = "dc=example,dc=test"


@dataclass(frozen=True, kw_only=True)
class Example:
    """An application in two versions.

    Attributes:
        name: Its directory.
        images: The image before, and the one that is upgraded to.
        fill: Puts the data there.
        look: Returns what is there of it; the same before and after.
        version: Returns the version of the server that runs.
        has_logs: Its logs have a volume of their own.
    """

    name: str
    images: tuple[str, str]
    fill: Callable[[Container], object]
    look: Callable[[Container], str]
    version: Callable[[Container], str]
    has_logs: bool = False


def psql(container: Container, command: str) -> str:
    """Return what the server answers."""
    words = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "psql", "-XAtc")
    return container.run(*words, command).stdout.strip()


def fill_table(container: Container) -> None:
    """Make a table with an index, and something that is set for the server."""
    psql(container, "CREATE TABLE kept AS SELECT n FROM generate_series(1, 10000) AS n")
    psql(container, "ALTER TABLE kept ADD text text")
    psql(container, "UPDATE kept SET text = md5(n::text)")
    psql(container, "CREATE INDEX ON kept (text)")
    psql(container, "ALTER SYSTEM SET work_mem = '5MB'")
    psql(container, "SELECT pg_reload_conf()")


def look_at_table(container: Container) -> str:
    """Return a digest of all rows, one that is found by the index, and what was set."""
    rows = psql(container, "SELECT count(*), md5(string_agg(n || text, ',' ORDER BY n)) FROM kept")
    found = psql(
        container, "SET enable_seqscan = off; SELECT n FROM kept WHERE text = md5('77')"
    ).splitlines()[-1]
    return f"{rows} {found} {psql(container, 'SHOW work_mem')}"


def fill_directory(container: Container) -> None:
    """Add entries."""
    entries = "\n".join(
        f"dn: uid=user{number},{TREE}\nobjectClass: inetOrgPerson\ncn: {number}\nsn: {number}\n"
        for number in range(ENTRIES)
    )
    words = ("ldapadd", "-x", "-H", "ldap://localhost", "-D", f"cn=admin,{TREE}")
    container.run(*words, "-w", PASSWORD, stdin=entries)


def look_at_directory(container: Container) -> str:
    """Return all entries with their times and identifiers, and one that is found by the index."""
    # As the administrator, for whom there is no limit.
    words = ["ldapsearch", "-x", "-LLL", "-H", "ldap://localhost", "-b", TREE]
    words += ("-D", f"cn=admin,{TREE}", "-w", PASSWORD)
    everything = container.run(*words, "(objectClass=*)", "*", "+").stdout
    (found,) = (
        line
        for line in container.run(*words, "(uid=user77)", "sn").stdout.splitlines()
        if line.startswith("sn: ")
    )
    count = everything.count("\ndn: ") + everything.startswith("dn: ")
    # What is the server's own and changes with it.
    kept = sorted(line for line in everything.splitlines() if not line.startswith("contextCSN"))
    digest = hashlib.sha256("\n".join(kept).encode()).hexdigest()
    return f"{count} {found} {digest[:16]}"


def redis(container: Container, *words: str) -> str:
    """Return what the database answers."""
    asked = ("redis-cli", "-a", PASSWORD, "--no-auth-warning", *words)
    return container.run(*asked).stdout.strip()


def fill_services(container: Container) -> None:
    """Give the database keys, the web server a page, and enable one service and disable another."""
    keys = "".join(f"SET key{number} {number}\n" for number in range(ENTRIES))
    container.run("redis-cli", "-a", PASSWORD, "--no-auth-warning", stdin=keys)
    redis(container, "SAVE")
    container.shell("echo 'a page of ours' >/var/www/html/index.html")
    container.shell("systemctl disable --now cron.service")
    container.shell("systemctl is-active nginx.service redis-server.service")


def look_at_services(container: Container) -> str:
    """Return the keys, the page, which services are enabled, and whether they log."""
    page = container.shell("curl -s http://localhost/").strip()
    keys = redis(container, "DBSIZE"), redis(container, "GET", "key77")
    units = ("nginx.service", "redis-server.service", "cron.service")
    # Each image's own idea of what is active comes with each container; what is enabled lasts.
    enabled = container.run("systemctl", "is-enabled", *units, status=None).stdout.split()
    active = container.run("systemctl", "is-active", *units, status=None).stdout.split()
    logs = container.shell("test -s /logs/var/log/nginx/access.log && echo logged").strip()
    return f"{page} {keys} {enabled} {active} {logs}"


EXAMPLES: Final = {
    one.name: one
    for one in (
        Example(
            name="postgresql",
            images=("postgresql:15", "postgresql:17"),
            fill=fill_table,
            look=look_at_table,
            version=lambda container: psql(container, "SHOW server_version"),
        ),
        Example(
            name="slapd",
            images=("slapd:2.5", "slapd:2.6"),
            fill=fill_directory,
            look=look_at_directory,
            version=lambda container: container.shell("readlink /var/lib/ldap/current").strip(),
        ),
        Example(
            name="services",
            images=("services:12", "services:13"),
            fill=fill_services,
            look=look_at_services,
            version=lambda container: container.run("redis-server", "--version").stdout.strip(),
            has_logs=True,
        ),
    )
}


def up(image: str, volume: Path, password: Path | None = None) -> AbstractContextManager[Container]:
    """Start an image as compose.yaml does; the password is there for the first run only."""
    options = list(containers.READ_ONLY)
    if password is not None:
        options += ["-e", f"PASSWORD_FILE={SECRET}", "-v", f"{password}:{SECRET}:ro"]
    if image.startswith("services:"):
        logs_of(volume).mkdir(exist_ok=True)
        options += ["-v", f"{logs_of(volume)}:/logs"]
    return containers.container(image, volume, options=options)


@contextmanager
def composed(example: Example, image: str, work: Path) -> Iterator[Container]:
    """Have the compose file of an example up with an image; its volumes stay."""
    os.environ["IMAGE"] = f"{containers.PREFIX}/{image}"
    file = str(work / "compose.yaml")
    # Machines of tests have no network that an engine could make one of.
    service = {"network_mode": "none"}
    project = PROJECT_NAME.format(name=example.name)
    with containers.composed(file, work, project, service, called=example.name) as (container, _):
        container.until_ready()
        yield container
        container.stop()


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def logs_of(volume: Path) -> Path:
    """Return where the volume of the logs is that belongs to a volume."""
    return volume.with_name(f"{volume.name}-logs")


def copied(base: Path, place: Path) -> Path:
    """Return a fresh copy of a volume, and of its logs where they have one of their own."""
    for source, target in ((base, place), (logs_of(base), logs_of(place))):
        shutil.rmtree(target, ignore_errors=True)
        if source.exists():
            subprocess.run(["cp", "-a", "--reflink=auto", source, target], check=True)
    return place


def ours(line: str) -> bool:
    """Tell whether a line is of the upgrade, not of the server after it."""
    return line.startswith("ipavolume: ")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long something took."""
    begin = time.monotonic()
    yield
    say(f"  {what}: {time.monotonic() - begin:.1f} s")


def check(example: Example, container: Container, expected: str, version: str) -> str:
    """Return what is wrong with a container that has upgraded its volume; "" when nothing is."""
    container.until_ready()
    found = example.look(container)
    if found != expected:
        return f"data were {expected}, and are {found}"
    if (runs := example.version(container)) == version:
        return f"it is still version {runs}"
    said = container.run("ipavolume", "check", status=None).stdout
    return "" if said.startswith("/data: current") else said


def play(example: Example, work: Path) -> bool:
    """Play an example; tell whether all was well."""
    say(f"{example.name}: {example.images[0]} to {example.images[1]}")
    before, after = example.images
    password = work / "password"
    password.write_text(f"{PASSWORD}\n")
    password.chmod(0o600)
    shutil.copy(PROJECT / f"ipavolume/examples/{example.name}/compose.yaml", work)
    project = PROJECT_NAME.format(name=example.name)
    stopped, killed = work / "stopped", work / "killed"
    for name in NAMES:
        containers.remove_volume(project, name)
    try:
        with (
            timed("populated, set up and filled"),
            composed(example, before, work) as container,
        ):
            example.fill(container)
            expected, version = example.look(container), example.version(container)
        places = dict(zip(NAMES, (stopped, logs_of(stopped)), strict=True))
        for name in NAMES if example.has_logs else [DATA]:
            source = containers.place_of(project, name)
            subprocess.run(["cp", "-a", source, places[name]], check=True)
        # As after a power failure: the server has to recover first.
        with up(before, copied(stopped, killed)) as container:
            container.until_ready()
            container.kill()
            container.wait()
        if example.has_logs:
            # An empty one may take its place between two runs.
            containers.remove_volume(project, LOGS)
        with timed("upgraded"), composed(example, after, work) as container:
            fault = check(example, container, expected, version)
            log = container.logs()
            (RESULTS / f"{example.name}.log").write_text(log)
            say(f"  {version} -> {example.version(container)}: {fault or expected}")
    finally:
        for name in NAMES:
            containers.remove_volume(project, name)
    lines = [line for line in log.splitlines() if ours(line)]
    faults = [fault] if fault else []
    for number in range(MOMENTS):
        base = killed if number % 2 else stopped
        volume = copied(base, work / "volume")
        begin = time.monotonic()
        with up(after, volume) as container:
            last = kill_after(container, 1 + number * (len(lines) - 2) // (MOMENTS - 1))
        if number % 4 > 1:
            # So it may amid a run, where it is a tmpfs.
            shutil.rmtree(logs_of(volume), ignore_errors=True)
        with up(after, volume) as container:
            fault = check(example, container, expected, version)
            log = container.logs()
        word = fault or "all there"
        say(
            f"  {number + 1}. server {base.name} before, killed after: {last[:60]!r}: {word}, "
            f"{time.monotonic() - begin:.1f} s"
        )
        if fault:
            faults.append(fault)
            say(log)
    say(f"{example.name}: {MOMENTS + 1 - len(faults)} of {MOMENTS + 1} upgrades lost nothing")
    return not faults


def kill_after(container: Container, count: int) -> str:
    """Kill it when it has said so many lines; return the last one."""
    seen = 0
    for line in container.lines():
        seen += ours(line)
        if seen == count:
            container.kill()
            container.wait()
            return re.sub(r"^ipavolume: (?:\S+Z )?", "", line.strip())
    raise AssertionError(f"it ended after {seen} lines of {count}:\n{container.logs()}")


def main() -> None:
    """Play the examples that are named."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    fine = True
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory(prefix="ipavolume-examples-", dir="/var/tmp") as work:
            fine = play(EXAMPLES[name], Path(work)) and fine
    sys.exit(0 if fine else 1)


main()
