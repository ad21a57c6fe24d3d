"""Side-by-side measurements: what scripts/bench runs.

Each row is a race (``racing.py``) over images (``benchmark_images.py``). What is printed are
medians, and ratios of medians of one run.

``--against FILE`` compares ratios and CPU with a table that an earlier run printed.
Each race is said on standard error when it has been run: what is long may be ended early.
``--quick`` is one round of few files: whether everything runs, not how fast. ``--scale`` runs
each command once, for sizes at which a race would take hours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmark_images import OWNER_AFTER, OWNER_BEFORE, make_image, make_large_image
from benchmark_tables import HEAD, aligned, changes, named, table
from racing import MAKE, USUAL, Contestant, FileSystem, Measured, measure, overlay, race, run

ROUNDS, ROUNDS_OF_MANY, MANY_FILES = 5, 3, 100_000
"""How often each contestant of a race runs, and how often from that many files on."""
MANY, MANY_UP_TO_FILES = 30, 1000
"""Volumes of a host that one check looks at, and up to how many files in each."""
WOULD_UPGRADE = 100
"""How ``ipavolume check`` ends where the image would do something."""
LEAST = str(Path(__file__).with_name("least.py"))


def rows(
    command: str,
    interpreter: str,
    directory: Path,
    count: int,
    rounds: int,
    kind: str,
    *,
    floor: bool,
    core: bool,
) -> list[tuple[str, ...]]:
    """Measure everything for one number of files; return the lines of the table.

    With *floor* also what ``least.py`` does, a run of which is no volume of ours; with *core*
    populating, the two upgrades and the start alone.
    """

    def with_least(
        race_: list[Contestant], words: Sequence[str | Path], make: Callable[[Path], Path]
    ) -> list[Contestant]:
        def least(where: Path) -> Sequence[str]:
            return [interpreter, "-I", LEAST, *map(str, words), str(make(where))]

        return [*race_, Contestant("least", least)] if floor else race_

    megabytes = 600 + count * 14 * (rounds + 3) * 5 // 1024
    result: list[tuple[str, ...]] = []
    with FileSystem(directory, megabytes, kind) as mount:
        packages = directory / "packages"
        run("rm", "-rf", str(packages))
        packages.mkdir()
        first = make_image(mount, command, packages, count, 1)
        second = make_image(mount, command, packages, count, 2)
        rebuilt = mount / "image-rebuilt"
        run("cp", "-a", str(first), str(rebuilt))
        # The configuration counts in the fingerprint, its comment changes nothing.
        (rebuilt / "etc/ipavolume.toml").write_text("# another build\n")
        run(command, "prepare", "-q", "--root", str(rebuilt))
        run("rm", "-rf", str(packages))
        template = first / "data-template"

        def copy(where: Path) -> Sequence[str]:
            return ["cp", "-a", f"{template}/.", str(where)]

        def copy_sync(where: Path) -> Sequence[str]:
            return ["sh", "-c", f"cp -a {template}/. {where} && sync -f {where}"]

        def rsync(where: Path) -> Sequence[str]:
            return ["rsync", "-a", f"{template}/", f"{where}/"]

        def populate(where: Path) -> Sequence[str]:
            return [command, "upgrade", "-q", "--root", str(first), "--volume", str(where)]

        race_ = [
            Contestant("cp -a", copy),
            Contestant("cp -a + sync -f", copy_sync),
            Contestant("rsync -a", rsync),
            Contestant("populate", populate),
        ]
        race_ = with_least(race_, ["populate", first], lambda where: where)
        race(mount / "populate", race_, rounds)
        result += table(f"populate {count}", race_, "cp -a + sync -f", "populate")

        if not core:
            result += from_a_layer(command, mount, first, count, rounds)

        volume, copied = mount / "volume", mount / "copied"
        for one in (volume, copied):
            one.mkdir()
            run(*populate(one))

        def dry_rsync(_where: Path) -> Sequence[str]:
            return ["rsync", "-a", "--dry-run", f"{template}/", f"{volume}/"]

        def unchanged(where: Path) -> Sequence[str]:
            # The very inodes, since the index knows them: the volume goes to and fro between
            # two images that ship the same files.
            root = (first, rebuilt)[int(where.name.rpartition("-")[2]) % 2 == 0]
            return [command, "upgrade", "-q", "--root", str(root), "--volume", str(volume)]

        if not core:
            result += checks(command, mount, dry_rsync, volume, count, rounds)

        race_ = [Contestant("rsync -a --dry-run", dry_rsync), Contestant("unchanged", unchanged)]
        race_ = with_least(race_, ["unchanged", rebuilt], lambda _: copied)
        # The round that is not counted brings the volume to the other image.
        race(mount / "unchanged", race_, rounds)
        row = f"upgrade, nothing changed {count}"
        result += table(row, race_, "rsync -a --dry-run", "unchanged")

        def rsync_changed(where: Path) -> Sequence[str]:
            run("cp", "-a", f"{template}/.", str(where))
            return ["rsync", "-a", f"{second}/data-template/", f"{where}/"]

        def changed(where: Path) -> Sequence[str]:
            run(*populate(where))
            return [command, "upgrade", "-q", "--root", str(second), "--volume", str(where)]

        def filled(where: Path) -> Path:
            run(*populate(where))
            return where

        race_ = [Contestant("rsync -a", rsync_changed), Contestant("5 % changed", changed)]
        race_ = with_least(race_, ["changed", second], filled)
        race(mount / "changed", race_, min(rounds, 3))
        result += table(f"upgrade, 5 % changed {count}", race_, "rsync -a", "5 % changed")

        def bare(_where: Path) -> Sequence[str]:
            return [interpreter, "-I", "-S", "-c", "pass"]

        current = rebuilt if rounds % 2 == 0 else first
        run(command, "upgrade", "-q", "--root", str(current), "--volume", str(volume))
        run("rm", "-rf", str(current / "data"))
        run("mv", str(volume), str(current / "data"))

        def start(_where: Path) -> Sequence[str]:
            return [command, "start", "--root", str(current), "--", "/bin/true"]

        def true(_where: Path) -> Sequence[str]:
            return ["/bin/true"]

        race_ = [
            Contestant("/bin/true", true),
            Contestant("python3 -I -S", bare),
            Contestant("start", start),
        ]
        race(mount / "start", race_, 5 * rounds)
        result += table(f"start, current {count}", race_, "python3 -I -S", "start")
    return result


def from_a_layer(
    command: str, mount: Path, first: Path, count: int, rounds: int
) -> list[tuple[str, ...]]:
    """Measure populating from a layer of an overlay, where there are no reflinks."""
    with overlay(mount, first) as merged:
        layered = merged / "data-template"

        def copy_layer(where: Path) -> Sequence[str]:
            return ["sh", "-c", f"cp -a {layered}/. {where} && sync -f {where}"]

        def populate_layer(where: Path) -> Sequence[str]:
            return [command, "upgrade", "-q", "--root", str(merged), "--volume", str(where)]

        race_ = [
            Contestant("cp -a + sync -f", copy_layer),
            Contestant("populate", populate_layer),
        ]
        race(mount / "layer", race_, rounds)
        row = f"populate from an overlay's layer {count}"
        return table(row, race_, "cp -a + sync -f", "populate")


def checks(
    command: str,
    mount: Path,
    dry_rsync: Callable[[Path], Sequence[str]],
    volume: Path,
    count: int,
    rounds: int,
) -> list[tuple[str, ...]]:
    """Measure ``check`` of *volume* beside *dry_rsync* of it, and of many volumes like it."""
    first, second = mount / "image-1", mount / "image-2"
    template = first / "data-template"
    result: list[tuple[str, ...]] = []

    def check(_where: Path) -> Sequence[str]:
        return [command, "check", "--root", str(second), str(volume)]

    race_ = [
        Contestant("rsync -a --dry-run", dry_rsync),
        Contestant("check", check, success=(WOULD_UPGRADE,)),
    ]
    race(mount / "check", race_, rounds)
    result += table(f"check, 5 % changed {count}", race_, "rsync -a --dry-run", "check")

    if count <= MANY_UP_TO_FILES:
        many = [mount / f"many-{number}" for number in range(MANY if rounds > 1 else 3)]
        for one in many:
            one.mkdir()
            run(command, "upgrade", "-q", "--root", str(first), "--volume", str(one))

        def rsync_many(_where: Path) -> Sequence[str]:
            runs = (f"rsync -a --dry-run {template}/ {one}/" for one in many)
            return ["sh", "-ec", "; ".join(runs)]

        def check_many(_where: Path) -> Sequence[str]:
            return [command, "check", "--root", str(second), *map(str, many)]

        race_ = [
            Contestant("rsync -a --dry-run", rsync_many),
            Contestant("check", check_many, success=(WOULD_UPGRADE,)),
        ]
        race(mount / "many", race_, rounds)
        row = f"check of {len(many)} volumes {count}"
        result += table(row, race_, "rsync -a --dry-run", "check")
    return result


def owners(
    command: str, directory: Path, count: int, rounds: int, kind: str
) -> list[tuple[str, ...]]:
    """Measure what it costs that an account has another number in the next image."""
    megabytes = 600 + count * 14 * (rounds + 3) * 2 // 1024
    with FileSystem(directory, megabytes, kind) as mount:
        packages = directory / "packages"
        packages.mkdir()
        of_before, of_after = (
            make_image(mount, command, packages, count, 1, owner=owner)
            for owner in (OWNER_BEFORE, OWNER_AFTER)
        )
        run("rm", "-rf", str(packages))

        def chown(where: Path) -> Sequence[str]:
            run("cp", "-a", f"{of_before}/data-template/.", str(where))
            numbers = f"{OWNER_BEFORE}:{OWNER_BEFORE}", f"{OWNER_AFTER}:{OWNER_AFTER}"
            made = f"chown -R --from={numbers[0]} {numbers[1]} {where} && sync -f {where}"
            return ["sh", "-c", made]

        def translated(where: Path) -> Sequence[str]:
            run(command, "upgrade", "-q", "--root", str(of_before), "--volume", str(where))
            return [command, "upgrade", "-q", "--root", str(of_after), "--volume", str(where)]

        race_ = [
            Contestant("chown -R --from + sync -f", chown),
            Contestant("owners translated", translated),
        ]
        race(mount / "owners", race_, min(rounds, 3))
        row = f"upgrade, a tenth given to another owner {count}"
        return table(row, race_, race_[0].name, race_[1].name)


def peers(
    command: str, peer: Path, directory: Path, count: int, rounds: int
) -> list[tuple[str, ...]]:
    """Measure what the freeipa-container project's script costs on the same files.

    Args:
        command: Ours.
        peer: A checkout of the project.
        directory: Where it is measured.
        count: How many files; its script runs several programs for each.
        rounds: How often.
    """
    script = str(peer.absolute() / "utils/populate-volume-from-template")
    with FileSystem(directory, 600 + count * 14 * (rounds + 3) * 5 // 1024) as mount:
        packages = directory / "packages"
        packages.mkdir()
        images = [make_image(mount, command, packages, count, version) for version in (1, 2)]
        run("rm", "-rf", str(packages))
        templates = []
        for image in images:
            # As its images have them: what rpm calls configuration, and what else it owns.
            template = mount / f"template-of-{image.name}"
            run("cp", "-a", f"{image}/data-template", str(template))
            for name in (".configfiles", ".configfiles-noreplace"):
                (template / name / "etc").mkdir(parents=True)
                run("cp", "-a", str(template / "etc/bench"), str(template / name / "etc"))
            (template / ".rpm-owned/var/lib").mkdir(parents=True)
            run("cp", "-a", str(template / "var/lib/bench"), str(template / ".rpm-owned/var/lib"))
            templates.append(template)

        def theirs(where: Path, version: int = 1) -> Sequence[str]:
            beside = where.parent / f"{where.name}-template"
            beside.unlink(missing_ok=True)
            beside.symlink_to(templates[version - 1])
            return [script, str(where)]

        def ours(where: Path, version: int = 1) -> Sequence[str]:
            root = str(images[version - 1])
            return [command, "upgrade", "-q", "--root", root, "--volume", str(where)]

        def their_upgrade(where: Path) -> Sequence[str]:
            run(*theirs(where))
            return theirs(where, 2)

        def our_upgrade(where: Path) -> Sequence[str]:
            run(*ours(where))
            return ours(where, 2)

        result: list[tuple[str, ...]] = []
        for name, race_ in (
            ("populate", [Contestant("their script", theirs), Contestant("populate", ours)]),
            (
                "upgrade, 5 % changed",
                [Contestant("their script", their_upgrade), Contestant("upgrade", our_upgrade)],
            ),
        ):
            race(mount / name.partition(",")[0], race_, min(rounds, 3))
            row = f"{name}, beside a script {count}"
            result += table(row, race_, "their script", race_[1].name)
    return result


TAG = "ipavolume-benchmark"


def has_engine() -> bool:
    """Tell whether docker answers; who asks is told that it does not."""
    words = ["docker", "version"]
    answers = (
        shutil.which("docker")
        and not subprocess.run(words, capture_output=True, check=False).returncode
    )
    if not answers:
        print("docker does not answer: nothing is measured with it", file=sys.stderr)
    return bool(answers)


@contextmanager
def imported(root: Path) -> Iterator[str]:
    """Have docker have the image tree *root* as an image of one layer."""
    run("bash", "-o", "pipefail", "-c", f"tar -C {root} -c . | docker import - {TAG}")
    try:
        yield TAG
    finally:
        run("docker", "image", "rm", TAG)


def engine_checks(command: str, directory: Path, count: int, rounds: int) -> list[tuple[str, ...]]:
    """Measure ``check --image`` of many volumes with an image that docker has."""
    with FileSystem(directory, 600 + count * 14 * (MANY + 3) // 1024) as mount:
        packages = directory / "packages"
        packages.mkdir()
        first, second = (make_image(mount, command, packages, count, v) for v in (1, 2))
        run("rm", "-rf", str(packages))
        many = [mount / f"many-{number}" for number in range(MANY if rounds > 1 else 3)]
        for one in many:
            one.mkdir()
            run(command, "upgrade", "-q", "--root", str(first), "--volume", str(one))
        with imported(second) as tag:

            def rsync_many(_where: Path) -> Sequence[str]:
                template = second / "data-template"
                return ["sh", "-ec", "; ".join(f"rsync -a -n {template}/ {one}/" for one in many)]

            def of_tree(_where: Path) -> Sequence[str]:
                return [command, "check", "--root", str(second), *map(str, many)]

            def of_image(_where: Path) -> Sequence[str]:
                return [command, "check", "--image", tag, *map(str, many)]

            upgrade = (WOULD_UPGRADE,)
            race_ = [
                Contestant("rsync -a --dry-run", rsync_many),
                Contestant("check --root", of_tree, success=upgrade),
                Contestant("check --image", of_image, success=upgrade),
            ]
            race(mount / "engine", race_, rounds)
        row = f"check --image of {len(many)} volumes {count}"
        return table(row, race_, "rsync -a --dry-run", "check --image")


def in_container(
    command: str, interpreter: str, directory: Path, count: int, rounds: int
) -> list[tuple[str, ...]]:
    """Measure populate in a container that docker runs, from its layer to a volume.

    All of them are started by ``docker exec``: the one of ``true`` is what that costs, and what
    the table says of processor and memory is that of docker's command.
    """
    with FileSystem(directory, 600 + count * 14 * (rounds + 3) * 2 // 1024) as mount:
        packages = directory / "packages"
        packages.mkdir()
        image = make_image(mount, command, packages, count, 1)
        run("rm", "-rf", str(packages))
        # The programs are the host's, where they are there; /usr/share is the image's own.
        asked = "import sys, ipavolume; print(sys.prefix, sys.base_prefix, *ipavolume.__path__)"
        said = subprocess.run(
            [interpreter, "-c", asked], capture_output=True, text=True, check=True
        )
        prefix, base, package = said.stdout.split()
        programs = {prefix, base, os.path.dirname(package), os.path.dirname(command)} - {"/usr"}
        programs.update(filter(os.path.isdir, map("/usr/{}".format, ("bin", "lib", "lib64"))))
        for name in ("bin", "lib", "lib64"):
            (image / name).symlink_to(f"usr/{name}")
        area = mount / "container"
        area.mkdir()
        name = f"{TAG}-{os.getpid()}"
        with imported(image) as tag:
            options = [f"--volume={path}:{path}:ro" for path in sorted(programs)]
            options += [f"--volume={area}:/volumes", "--env=IPAVOLUME_SNAPSHOT=never"]
            words = ["docker", "run", "-d", "--init", "--network=none", f"--name={name}", *options]
            run(*words, tag, "sleep", "infinity")
            try:

                def executed(*words: str) -> Sequence[str]:
                    return ["docker", "exec", name, *words]

                def copy(where: Path) -> Sequence[str]:
                    to = f"/volumes/{where.name}"
                    return executed("sh", "-c", f"cp -a /data-template/. {to} && sync -f {to}")

                def populate(where: Path) -> Sequence[str]:
                    return executed(command, "upgrade", "-q", "--volume", f"/volumes/{where.name}")

                def nothing(_where: Path) -> Sequence[str]:
                    return executed("true")

                race_ = [
                    Contestant("true", nothing),
                    Contestant("cp -a + sync -f", copy),
                    Contestant("populate", populate),
                ]
                race(area, race_, rounds)
            finally:
                run("docker", "rm", "-f", name)
        return table(f"populate in a container {count}", race_, "cp -a + sync -f", "populate")


def snapshots(command: str, directory: Path, count: int, rounds: int) -> list[tuple[str, ...]]:
    """Measure what a snapshot costs on each file system, beside a copy as large."""
    packages = directory / "packages"
    run("rm", "-rf", str(packages), str(directory / "image-1"))
    packages.mkdir(parents=True)
    image = make_image(directory, command, packages, count, 1)
    result: list[tuple[str, ...]] = []
    for kind in MAKE:
        megabytes = 3000 + count * 14 * (rounds + 3) * 2 // 1024
        with FileSystem(directory, megabytes, kind) as mount:
            volume = mount / "volume"
            volume.mkdir()
            where = ("--root", str(image), "--volume", str(volume))
            run(command, "upgrade", "-q", *where)

            def copy(area: Path, volume: Path = volume) -> Sequence[str]:
                made = "cp -a --reflink=auto --"
                return ["sh", "-c", f"{made} {volume} {area}/copy && sync -f {area}"]

            def create(_area: Path, where: Sequence[str] = where) -> Sequence[str]:
                run(command, "snapshot", "drop", "--all", *where)
                return [command, "snapshot", "create", *where]

            race_ = [
                Contestant("cp -a --reflink=auto + sync -f", copy),
                Contestant("snapshot", create),
            ]
            race(mount / "area", race_, rounds)
            row = f"snapshot, {kind} {count}"
            result += table(row, race_, race_[0].name, race_[1].name)
    run("rm", "-rf", str(packages), str(image))
    return result


SCALE_HEAD = ("what", "s", "CPU s", "CPU us a path", "MiB", "bytes a path")


def scale(command: str, directory: Path, count: int) -> list[tuple[str, ...]]:
    """Measure each command once with *count* files: what the next size costs."""
    result: list[tuple[str, ...]] = []

    def row(what: str, measured: Measured) -> None:
        result.append(
            (
                f"{what} {count}",
                f"{measured.seconds:.1f}",
                f"{measured.cpu_s:.1f}",
                f"{measured.cpu_s / count * 1e6:.1f}",
                f"{measured.peak_kib >> 10}",
                f"{measured.peak_kib * 1024 // count}",
            )
        )
        print("  ".join(result[-1]), file=sys.stderr, flush=True)

    with FileSystem(directory, 2000 + count * 40 // 1024) as mount:
        first, measured = make_large_image(mount, command, count, 1)
        row("prepare", measured)
        query = "rpm", "--root", str(first), "--dbpath", "/var/lib/rpm", "-qa", "--xml"
        row("rpm -qa --xml", measure(*query))
        volume = mount / "volume"
        volume.mkdir()

        def upgrade(image: Path) -> Measured:
            return measure(command, "upgrade", "-q", "--root", str(image), "--volume", str(volume))

        row("populate", upgrade(first))
        toml = first / "etc/ipavolume.toml"
        toml.write_text("# another build\n")
        row("prepare again", measure(command, "prepare", "-q", "--root", str(first)))
        row(
            "check",
            measure(command, "check", "--root", str(first), str(volume), success=(WOULD_UPGRADE,)),
        )
        row("nothing changed", upgrade(first))
        second, measured = make_large_image(mount, command, count, 2)
        row("5 % changed, a tenth given to another owner", upgrade(second))
        owner = (volume / "var/lib/bench/d00000/file0000001").stat().st_uid
        if owner != OWNER_AFTER:
            sys.exit(f"an owner was not translated: {owner}")
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", type=Path, required=True)
    parser.add_argument("--interpreter", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--against", type=Path, help="a table that was printed earlier")
    parser.add_argument("--quick", action="store_true", help="one round, 20 files")
    parser.add_argument(
        "--peer", type=Path, help="a checkout of the freeipa-container project, for its script"
    )
    parser.add_argument(
        "--floor", action="store_true", help="beside the least that any program had to do"
    )
    parser.add_argument(
        "--core", action="store_true", help="populating, the two upgrades and the start alone"
    )
    parser.add_argument("--scale", action="store_true", help="each command once: 1000000 files")
    parser.add_argument(
        "--file-system",
        choices=(*MAKE, "all"),
        default=USUAL,
        help="on which everything is measured; snapshots always are on all",
    )
    parser.add_argument("sizes", type=int, nargs="*")
    options = parser.parse_args()
    if options.core and (options.scale or options.peer):
        parser.error("--core is neither of a million files nor beside a peer")
    usual = [20] if options.quick else [1_000_000] if options.scale else [1000, 5000, 20000, 100000]
    sizes = options.sizes or usual
    kinds = list(MAKE) if options.file_system == "all" else [options.file_system]
    earlier = options.against.read_text() if options.against else ""
    command = str(options.command.absolute())
    interpreter = str(options.interpreter.absolute())
    directory = options.directory.absolute()
    # No other contestant keeps what it replaces.
    os.environ["IPAVOLUME_SNAPSHOT"] = "never"
    directory.mkdir(parents=True, exist_ok=True)
    if options.scale:
        costs = [line for count in sizes for line in scale(command, directory, count)]
        print(aligned([SCALE_HEAD, *costs]), end="")
        return
    # The memory a run will need, touched once, by a process of its own.
    run(sys.executable, "-c", "bytearray(1 << 30)")
    with_engine = has_engine()
    lines: list[tuple[str, ...]] = []
    for count in sizes:
        rounds = 1 if options.quick else ROUNDS if count < MANY_FILES else ROUNDS_OF_MANY
        for kind in kinds:
            print(f"measuring {count} files, {kind} ...", file=sys.stderr, flush=True)
            measured = rows(
                command,
                interpreter,
                directory,
                count,
                rounds,
                kind,
                floor=options.floor,
                core=options.core,
            )
            if not options.core:
                measured += owners(command, directory, count, rounds, kind)
            # What an earlier table calls a row is what it was on the usual one.
            lines += measured if kind == USUAL else [named(kind, line) for line in measured]
        if options.core:
            continue
        if with_engine:
            lines += in_container(command, interpreter, directory, count, rounds)
        if count <= MANY_UP_TO_FILES:
            if with_engine:
                lines += engine_checks(command, directory, count, rounds)
            if options.peer is not None:
                lines += peers(command, options.peer, directory, count, rounds)
        lines += snapshots(command, directory, count, rounds)
    printed = aligned([HEAD, *lines])
    print(printed, end="")
    if changed := changes(earlier, printed):
        print("", *changed, sep="\n")


if __name__ == "__main__":
    main()
