"""Putting the units and the init wrapper into an image that has systemd."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from ipavolume.config.model import Config
from ipavolume.errors import ConfigurationError, VolumeIOError
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files
from ipavolume.model.paths import CONFIG_PATH, SHIPPED_STEPS, is_within
from ipavolume.model.progress import Progress
from ipavolume.model.units import OWN_PLACE, UNIT_KINDS, UNIT_PLACES
from ipavolume.prepare import shipment
from ipavolume.prepare.files import reported
from ipavolume.prepare.findings import Code, Findings
from ipavolume.steps.api import Declaration
from ipavolume.systemd.handover import ONLINE_UNIT, UNIT_DIRECTORY

SYSTEMD: Final = "/usr/lib/systemd/systemd"
LOCK_UNIT: Final = "ipavolume-lock.service"
TARGET: Final = "ipavolume.target"
_PHASE_TARGET: Final = "ipavolume-phase.target"
_RUNNING_UNIT: Final = "ipavolume-running.service"
WRAPPER: Final = "/usr/local/sbin/init"
_WANTS: Final = f"{UNIT_DIRECTORY}/default.target.wants"
_KEEPS_JOURNAL: Final = "freeipa"
"""The profile with which the journal is on the volume, as in the images that it is made after."""
_JOURNAL: Final = (
    ("ipavolume-journald.conf", f"{UNIT_DIRECTORY}/systemd-journald.service.d/ipavolume.conf"),
    ("ipavolume-journal.conf", "/usr/lib/systemd/journald.conf.d/ipavolume.conf"),
)
_MOUNT: Final = "/data"
"""The mount in what is shipped of that."""
_PROGRAM: Final = "/usr/bin/ipavolume"
_UNIT_DIRECTORIES: Final = ("/etc/systemd/system", "/usr/local/lib/systemd/system", UNIT_DIRECTORY)
_SCRIPTS: Final = "/etc/init.d"
_SCRIPTS_GENERATOR: Final = "/usr/lib/systemd/system-generators/systemd-sysv-generator"
_NEEDS: Final = frozenset({"Requires", "Requisite", "BindsTo", "Wants", "Upholds"})
_WAITS: Final = _NEEDS | {"After", "PartOf"}
# What basic.target comes after, and so what every service comes after that does not say otherwise.
_EARLY: Final = frozenset({"socket", "path", "mount", "automount", "swap", "slice"})
_KINDS: Final = _EARLY | {"service", "timer", "target", "device", "scope"}
_LINKS: Final = (".wants", ".requires", ".upholds")
_PLAIN_WORD: Final = re.compile(r"[\w/.:+@-]+", re.ASCII)
_ESCAPES: Final = {
    **{number: f"\\x{number:02x}" for number in (*range(0x20), 0x7F)},
    **str.maketrans({"\\": "\\\\", '"': '\\"', "%": "%%"}),
}
_STARTS_ONLINE: Final = re.compile(rb"^ExecStart=.* online$", re.MULTILINE)
_MARK: Final = b"exec ipavolume start "
_MAX_BYTES: Final = 64 << 10


def install(
    tree: ImageTree,
    config: Config,
    *,
    running: bool,
    make: Progress,
    findings: Findings,
) -> bool:
    """Put units and wrapper into the image, if systemd starts it; killed, the next run goes on.

    What a base image was given and this one is not to have is taken out. Packages depend on systemd
    also where something else takes its place, as docker-systemctl-replacement does, which would
    start our units as it does others: there that is all but the wrapper, which executes what a
    start does there.

    Args:
        tree: The image.
        config: Its configuration.
        running: There are steps that come once the application is ready.
        make: Makes the directory at a location, and those above it, where missing.
        findings: Takes what is in the way.

    Returns:
        Whether anything was changed.

    Raises:
        VolumeIOError: If reading or writing fails.
    """
    if not tree.exists(SYSTEMD):
        return False
    program = find_program(tree)
    if is_replaced(tree, config):
        return _withdraw(tree, _ours(tree, config, program or _PROGRAM).values())
    online_unit = config.online_unit
    if not program:
        program = _PROGRAM
        findings.add(
            Code.NO_IPAVOLUME,
            f"ipavolume is not in the image; its units and {WRAPPER} expect it at {program!r}",
            path=program,
        )
    wanted = dict(_unit_contents(online_unit, program, running=running))
    contents = {f"{UNIT_DIRECTORY}/{name}": content for name, content in wanted.items()}
    if config.profile == _KEEPS_JOURNAL:
        contents |= _journal_contents(config.volumes[0].mount)
    # That one comes with the phase, which wants it.
    links = {f"{_WANTS}/{name}": name for name in wanted if name != _PHASE_TARGET}
    there = _ours(tree, config, program)
    changed = _withdraw(
        tree, [there[path] for path in there if path not in contents and path not in links]
    )
    for path, content in contents.items():
        changed |= _put(tree, path, content, 0o644, make=make)
    for name in links.values():
        changed |= _want(tree, name, make=make, findings=findings)
    found = _content(tree, WRAPPER)
    if tree.lstat(tree.resolve(WRAPPER, follow=False)) is not None and (
        found is None or _MARK not in found
    ):
        findings.add(
            Code.KEPT_FILE,
            f"{WRAPPER} is there already and was left; have it execute 'ipavolume start -- ...'",
            path=WRAPPER,
        )
    else:
        changed |= _put(tree, WRAPPER, _read_shipped("init"), 0o755, make=make)
        if not config.start_exec:
            findings.add(
                Code.NOTHING_TO_EXECUTE,
                "systemd is in the image, and exec of [start] is not written: as its entry point "
                f"{WRAPPER} executes the container's command (CMD), or nothing without one",
                path=CONFIG_PATH,
            )
    if changed:
        tree.forget()
    for path, fault in _faults(tree, online_unit):
        findings.add(Code.UNIT_ORDER, fault, path=path)
    return changed


def _unit_contents(online_unit: str, program: str, *, running: bool) -> Iterator[tuple[str, bytes]]:
    """Yield the units of an image, by name, in which the command is *program*."""
    shipped = [ONLINE_UNIT, LOCK_UNIT, _PHASE_TARGET]
    # That one last, which says what the first is called.
    for name in [*shipped, _RUNNING_UNIT, TARGET] if running else [*shipped, TARGET]:
        text = _read_shipped(name).decode("utf-8")
        text = text.replace(f"{_PROGRAM} ", f"{_quoted(program)} ")
        text = text.replace(ONLINE_UNIT, online_unit)
        yield online_unit if name == ONLINE_UNIT else name, text.encode()


def _quoted(word: str) -> str:
    """Return *word* as the command line of a unit has it; a variable in it is one still.

    Source: ``systemd.syntax(7)``, "Quoting", and ``systemd.unit(5)``, "Specifiers".
    """
    return word if _PLAIN_WORD.fullmatch(word) else f'"{word.translate(_ESCAPES)}"'


def _journal_contents(mount: str) -> Iterator[tuple[str, bytes]]:
    """Yield what has the journal on the volume at *mount*, by path."""
    # An argument that is no variable, by systemd.service(5), "Command lines".
    argument = _quoted(mount).replace("$", "$$")
    for shipped, path in _JOURNAL:
        text = _read_shipped(shipped).decode("utf-8")
        yield path, text.replace(_MOUNT, argument).encode()


def _ours(tree: ImageTree, config: Config, program: str) -> dict[str, str]:
    """Return the locations of what is there of ours, also by another configuration, by path.

    Of a unit that somebody edited it is the link by which it is started.
    """
    found: dict[str, str] = {}
    for online_unit in (config.online_unit, *_online_units(tree)):
        for name, content in _unit_contents(online_unit, program, running=True):
            path, wanted = f"{UNIT_DIRECTORY}/{name}", f"{_WANTS}/{name}"
            link = tree.resolve(wanted, follow=False)
            st = tree.lstat(link)
            if st is not None and stat.S_ISLNK(st.st_mode) and tree.readlink(link) == f"../{name}":
                found[wanted] = link
            if _content(tree, path) == content:
                found[path] = tree.resolve(path, follow=False)
    for shipped, path in _JOURNAL:
        head, mount, tail = _read_shipped(shipped).partition(_MOUNT.encode())
        there = _content(tree, path) or b""
        # Whatever the mount was: it is on one line.
        argument = there.removeprefix(head).removesuffix(tail)
        if there == head + argument + tail and (mount or not argument) and b"\n" not in argument:
            found[path] = tree.resolve(path, follow=False)
    return found


def _online_units(tree: ImageTree) -> list[str]:
    """Return what a base image calls the unit that runs the online phase."""
    content = _content(tree, f"{UNIT_DIRECTORY}/{TARGET}") or b""
    said = (line.partition("=") for line in _lines(content.decode("utf-8", "replace")))
    names = [name for key, _, value in said if key.strip() == "Requires" for name in value.split()]
    return [
        name
        for name in names
        if "/" not in name
        and _STARTS_ONLINE.search(_content(tree, f"{UNIT_DIRECTORY}/{name}") or b"")
    ]


def _withdraw(tree: ImageTree, locations: Iterable[str]) -> bool:
    """Take out what :func:`install` put into a base image; return whether that was anything."""
    gone = tuple(locations)
    for location in gone:
        parent, _, name = location.rpartition("/")
        with reported(f"remove {location!r}"):
            directory = tree.open_directory(parent)
            try:
                files.unlink(directory, name)
            finally:
                os.close(directory)
    if gone:
        tree.forget()
    return bool(gone)


def _content(tree: ImageTree, path: str) -> bytes | None:
    """Return what is in the file at *path*; ``None``: there is none."""
    return tree.read_file(path, limit_bytes=_MAX_BYTES) if _is_file(tree, path) else None


def is_replaced(tree: ImageTree, config: Config) -> bool:
    """Tell whether systemd is in the image, and a start executes another program of it."""
    words = config.start_exec
    if not words or not tree.exists(SYSTEMD) or not tree.exists(words[0]):
        return False
    return tree.resolve(words[0]) != tree.resolve(SYSTEMD)


def check_supervision(tree: ImageTree, config: Config) -> None:
    """Make sure that something of ours is there to verify what a run came to.

    Raises:
        ConfigurationError: If the start is replaced by another program than systemd, and is to
            verify all the same.
    """
    if config.verify is not None and not _stays(tree, config):
        raise _not_supervised("[verify] is configured", "to ask")


def check_running(tree: ImageTree, config: Config, steps: Iterable[Declaration]) -> None:
    """Make sure that something of ours is there to have done what *steps* want beside it.

    Raises:
        ConfigurationError: If nothing is, and one of them is the image's own.
    """
    own = [step.source for step in steps if not step.source.startswith(SHIPPED_STEPS)]
    if own and not _stays(tree, config):
        raise _not_supervised(f"{own[0]} has PHASE = 'running'", "to have that done")


def _stays(tree: ImageTree, config: Config) -> bool:
    """Tell whether something of ours is there once the application has been executed."""
    words = config.start_exec
    # What the command line executes is known only then; where systemd is there, it is that.
    is_systemd = tree.resolve(words[0]) == tree.resolve(SYSTEMD) if words else tree.exists(SYSTEMD)
    return config.start_supervise or is_systemd


def _not_supervised(what: str, to: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what}, but without systemd nothing of ours is left {to} once the start has executed the "
        "application",
        code="not-supervised",
        path=CONFIG_PATH,
        hint=f"Have the start stay: supervise = true in [start] of {CONFIG_PATH}.",
    )


def units(tree: ImageTree, listed: Iterable[str]) -> tuple[str, ...]:
    """Return the units that systemd of the image finds, if links to units are *listed*.

    Returns:
        Such as ``system/sshd.service``, sorted.
    """
    paths = tuple(listed)
    found = set()
    for kind in UNIT_KINDS:
        for place in UNIT_PLACES:
            if any(
                is_within(f"{OWN_PLACE}/{kind}", path) or is_within(path, f"{OWN_PLACE}/{kind}")
                for path in paths
            ):
                directory = f"{place}/{kind}"
                found |= {
                    f"{kind}/{name}"
                    for name in _names(tree, directory)
                    if name.rpartition(".")[2] in _KINDS and tree.exists(f"{directory}/{name}")
                }
    return tuple(sorted(found, key=os.fsencode))


def unit_places(tree: ImageTree) -> Iterator[tuple[str, str]]:
    """Yield what is in the image's directories of system units, as directory and name."""
    for directory in _UNIT_DIRECTORIES:
        for name in _names(tree, directory):
            yield directory, name


def unit_names(tree: ImageTree) -> frozenset[str]:
    """Return the names of the image's system units, templates of instances among them.

    Those that systemd makes at each boot of scripts of System V are among them, too.
    """
    names = {name for _, name in unit_places(tree)}
    if tree.exists(_SCRIPTS_GENERATOR):
        names |= {
            f"{name.removesuffix('.sh')}.service"
            for name in _names(tree, _SCRIPTS)
            if _is_executable(tree, f"{_SCRIPTS}/{name}")
        }
    return frozenset(names)


def _is_executable(tree: ImageTree, path: str) -> bool:
    try:
        status = tree.lstat(tree.resolve(path))
    except ConfigurationError:
        return False
    return status is not None and stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o111)


def _faults(tree: ImageTree, online_unit: str) -> Iterator[tuple[str, str]]:
    """Yield files that say of ours what is a deadlock or a cycle, each with that and the remedy."""
    targets = (TARGET, _PHASE_TARGET)
    own = (*(f"{UNIT_DIRECTORY}/{name}" for name in targets), f"{_WANTS}/{online_unit}")
    for path, kind in _unit_files(tree):
        if path in own:
            continue
        if _says(tree, path, _WAITS, online_unit):
            ours = online_unit
        elif path.rpartition("/")[0].endswith("/service.d") and _says(tree, path, _WAITS, TARGET):
            text = (
                f"{path} has every service come after {TARGET}, also those that it comes after: of "
                f"such a cycle systemd leaves one out. Write After={TARGET} for those that use the "
                "volume"
            )
            yield path, text
            continue
        elif _says(tree, path, _WAITS if kind in _EARLY else _NEEDS, TARGET) and kind != "target":
            ours = TARGET
        else:
            continue
        said = f"{path} comes after {ours} or needs it"
        if kind in _EARLY:
            text = (
                f"{said}, and that comes after every {kind}: of such a cycle systemd leaves one "
                f"out. Take it out; the service that the {kind} is for has After={TARGET}"
            )
        else:
            text = (
                f"{said}: a start of that unit by the first run or by a scriptlet waits for ever. "
                f"Write After={TARGET} in its place, and nothing else"
            )
        yield path, text


def _unit_files(tree: ImageTree) -> list[tuple[str, str]]:
    """Return the files that make up units, with the kind of the unit, as far as they are used."""
    found: dict[str, tuple[str, str]] = {}
    for directory in _UNIT_DIRECTORIES:
        for name in _names(tree, directory):
            unit = name
            below = [name]
            for suffix in (".d", *_LINKS):
                if name.endswith(suffix):
                    unit = name.removesuffix(suffix)
                    below = [
                        f"{name}/{file}"
                        for file in _names(tree, f"{directory}/{name}")
                        if suffix != ".d" or file.endswith(".conf")
                    ]
            if unit.rpartition(".")[2] not in _KINDS:
                continue
            for file in below:
                # The first directory's hides those of the same name, systemd.unit(5).
                found.setdefault(file, (f"{directory}/{file}", unit.rpartition(".")[2]))
    return sorted(found.values())


def _names(tree: ImageTree, directory: str) -> list[str]:
    try:
        fd = tree.open_directory(tree.resolve(directory))
    except (OSError, ConfigurationError):
        return []
    try:
        return files.listdir(fd)
    finally:
        os.close(fd)


def _says(tree: ImageTree, path: str, settings: Collection[str], unit: str) -> bool:
    """Tell whether *unit* is in one of *settings* of a file, or is what a link is for."""
    parent, _, name = path.rpartition("/")
    if parent.endswith(_LINKS):
        return name == unit
    try:
        content = tree.read_file(path, limit_bytes=_MAX_BYTES)
    except (ConfigurationError, VolumeIOError):
        # A mask, or a link into nowhere: systemd makes nothing of it, either.
        return False
    said = (line.partition("=") for line in _lines((content or b"").decode("utf-8", "replace")))
    return any(
        key.strip() in settings and unit in value.replace('"', " ").split()
        for key, _, value in said
    )


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a unit file, put together; a comment may stand in between."""
    begun = ""
    for line in text.splitlines():
        if line.lstrip().startswith(("#", ";")):
            continue
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1] + " "
            continue
        yield begun
        begun = ""
    yield begun


def find_program(tree: ImageTree) -> str:
    """Return the path of the ipavolume command in the image; "" when it is not there."""
    beside = os.path.join(os.path.dirname(sys.executable), "ipavolume")
    for path in (_PROGRAM, "/usr/local/bin/ipavolume", beside):
        if tree.exists(path):
            return path
    return ""


def _is_file(tree: ImageTree, path: str) -> bool:
    st = tree.lstat(tree.resolve(path, follow=False))
    return st is not None and stat.S_ISREG(st.st_mode)


def _read_shipped(name: str) -> bytes:
    path = shipment.directory("scripts") / name
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(
            f"ipavolume is not installed completely: there is no {str(path)!r}",
            hint="Install it again.",
        ) from None


def _put(tree: ImageTree, path: str, content: bytes, mode: int, *, make: Progress) -> bool:
    if _content(tree, path) == content:
        st = tree.lstat(tree.resolve(path))
        if st is not None and stat.S_IMODE(st.st_mode) == mode:
            return False
    with reported(f"write {path!r}"):
        directory, name = _open_parent(tree, path, make)
        try:
            files.write_file(directory, name, content, mode=mode)
        finally:
            os.close(directory)
    return True


def _want(tree: ImageTree, unit: str, *, make: Progress, findings: Findings) -> bool:
    """Have the default target want *unit*, whatever target that is."""
    target = f"../{unit}"
    with reported(f"make {_WANTS}/{unit!r}"):
        directory, name = _open_parent(tree, f"{_WANTS}/{unit}", make)
        try:
            st = files.lstat(directory, name)
            if st is None:
                files.replace_by_link(directory, name, target)
                return True
            if not stat.S_ISLNK(st.st_mode) or files.readlink(directory, name) != target:
                path = f"{_WANTS}/{unit}"
                findings.add(Code.KEPT_FILE, f"{path} is there already and was left", path=path)
            return False
        finally:
            os.close(directory)


def _open_parent(tree: ImageTree, path: str, make: Progress) -> tuple[int, str]:
    parent, _, name = path.rpartition("/")
    location = tree.resolve(parent)
    make(location)
    return tree.open_directory(location), name
