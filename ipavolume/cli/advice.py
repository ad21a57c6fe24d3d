"""Hints in the form in which they can be followed where they are read.

What is raised names options and commands as on a host: ``--allow newer``, ``ipavolume upgrade
--retry``. Who reads that in the log of a container has neither a command line nor a shell there.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import click

from ipavolume.commands import places
from ipavolume.errors import IpaVolumeError
from ipavolume.model.values import dataclass

_USUAL_MOUNT: Final = "/data"
_CODE: Final = r"[A-Za-z0-9]+(?:[:._-][A-Za-z0-9]+)*"
_RELEASE: Final = r"[A-Za-z0-9_-]+:[^\s,;]*?(?=[.,;:]?(?:\s|$))"
_OPTION: Final = rf"--allow {_CODE}|--from {_RELEASE}|--lock-timeout [A-Z]+"
_OPTIONS: Final = rf"(?:{_OPTION})(?: (?:{_OPTION}))*"
_RUN: Final = r"\d{4,}-[A-Za-z0-9]+(?![\w-])"
"""As :func:`ipavolume.volume.snapshots` makes them."""
_WORD: Final = rf"{_OPTION}|--[a-z-]+(?![\w=/])|[A-Z]{{2,}}(?![\w-])|{_RUN}"
_COMMAND: Final = (
    r"(?P<asked>Is the mount at (?P<lost>[^?]*) missing\? )?"
    r"(?P<inside>In a container (?P<whose>of the image|that has it)[^.:;]*: )?(?<![\w/.-])"
    r"ipavolume (?P<name>upgrade|rollback|conflicts|history|status|check|steps|running|snapshot"
    r"(?: (?:list|create|drop)(?![\w-]))?|manual [a-z][a-z-]*)(?![\w/=-]| --help)"
    rf"(?P<words>(?: (?:{_WORD}))*)"
)
_FITTED: Final = (
    r"(?P<fitted>\b(?:docker|podman|kubectl) (?:run|exec) (?:(?![.;] ).)*?\bipavolume \w+"
    rf"(?: (?:{_WORD}))*)"
)
"""A command that somebody has put in its form already."""
_WITHIN: Final = "docker exec CONTAINER "
_OF_STARTS: Final = "IPAVOLUME_RETRY="
"""What starts heed: a command that tries again what failed needs no such thing."""
_SETTING: Final = (
    r"IPAVOLUME_(?:SNAPSHOT=(?:never|always)|(?:UPGRADE|ROLLBACK)=auto|RETRY=[A-Za-z0-9-]+)"
    r"(?![\w-])"
)
"""Variables that hints say to set; on hold, what a command heeds that tries again what failed."""
_LOOK: Final = r"(?P<look> To look around in the container meanwhile, start it with [A-Z_]+=hold\.)"
_ADVICE: Final = rf"{_FITTED}|{_COMMAND}|(?P<options>{_OPTIONS})|(?P<setting>{_SETTING})|{_LOOK}"
_ANY_VOLUME: Final = "VOLUME"
_ANY_SNAPSHOTS: Final = "SNAPSHOTS"
_ANY_DIRECTORY: Final = "DIR"
_ANY_IMAGE: Final = "IMAGE"
_UNSHARED: Final = "_CONTAINERS_USERNS_CONFIGURED"
"""What podman has in the environment of what runs in its user namespace."""
_OF_THE_IMAGE: Final = frozenset({"upgrade", "steps", "conflicts"})
"""Commands that need the files of an image, on a host its tree."""
_TAKING_NAMES: Final = frozenset({"check", "conflicts", "history", "status"})
"""Commands that take named volumes of an engine on a host."""
_OF_EACH_START: Final = frozenset({"hostname", "kept-volume", "partial"})
"""Refusals that no command overrides for a start: it asks again, whatever was done before."""
_VARIABLES: Final = {
    "--allow": "IPAVOLUME_ALLOW",
    "--from": "IPAVOLUME_FROM",
    "--lock-timeout": "IPAVOLUME_LOCK_TIMEOUT",
}
_PARAMETERS: Final = {"--allow": "allow", "--from": "came_from", "--lock-timeout": "lock_timeout"}


class Place(enum.Enum):
    """Where somebody reads what we say."""

    HOST = "on a host"
    CONTAINER = "in a container"
    POD = "in a pod"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Who reads what we say.

    Attributes:
        place: Where.
        mounts: Where the image has its volumes.
        root: On a host, the tree of the image that the command was given, or "".
        image: On a host, the engine's image that it was given, or "".
        engine: The engine; in a container as far as that can be told.
        volumes: On a host, the volumes that it was given and the hint is about, ``[MOUNT=]DIR``.
        names: Those of them that are named volumes of the engine, ``[MOUNT=]NAME``.
        held: The container stays up and keeps the lock: what works is a command in it.
        again: On hold: such a command tries again what failed; otherwise only a start does.
        allowed: Codes of refusals that are overridden already.
        options: What the command at hand takes of the options that hints name.
        typed: On hold: it is such a command, and so takes them itself.
        leaves_online: What is online comes under the image's systemd, which no other container has.
    """

    place: Place
    mounts: Sequence[str] = (_USUAL_MOUNT,)
    root: str = ""
    image: str = ""
    engine: str = "docker"
    volumes: Sequence[str] = ()
    names: Sequence[str] = ()
    held: bool = False
    again: bool = True
    allowed: Sequence[str] = ()
    options: frozenset[str] = frozenset(_VARIABLES)
    typed: bool = False
    leaves_online: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The volumes that a hint is about, where a command was given several.

    Attributes:
        directories: Those of primary volumes, as they are called.
        volumes: Directories, ``[MOUNT=]DIR``.
        names: Named volumes of an engine, ``[MOUNT=]NAME``.
        root: Where the image is read that they are looked at with, or "".
    """

    directories: Sequence[str] = ()
    volumes: Sequence[str] = ()
    names: Sequence[str] = ()
    root: str = ""


@functools.cache
def _advice() -> re.Pattern[str]:
    """Return the compiled pattern: most runs have no hint to give."""
    return re.compile(_ADVICE)


def fit_here(
    hint: str, *, held: bool = False, again: bool = True, about: About | None = None
) -> str:
    """Return *hint* in the form that can be used where the command at hand runs.

    Args:
        hint: As on a host.
        held: The container stays up and keeps the lock.
        again: A command in it tries again what failed then.
        about: What it is about; ``None``: all that the command was given.
    """
    if not _advice().search(hint):
        return hint
    reader = _reader()
    # Who works in a container on hold types commands; who reads its log does not.
    typed = reader.held and not held
    reader = replace(reader, held=held or reader.held, again=again, typed=typed)
    if about is not None:
        if reader.place is Place.HOST and about.root not in ("", "/"):
            reader = replace(
                reader,
                mounts=_mounts_of(about.root) or reader.mounts,
                leaves_online=bool(reader.image) and _leaves_online(about.root),
            )
        volumes = (*_as_volumes(about.directories, reader.mounts), *about.volumes)
        reader = replace(reader, volumes=volumes, names=about.names)
    return fit(hint, reader)


def more_of(code: str) -> str:
    """Return the command that says more of *code* where the command at hand runs."""
    return _manual(code, _reader())


def _manual(topic: str, to: Reader) -> str:
    command = f"ipavolume manual {topic}"
    return (
        f"{to.engine} run --rm {_ANY_IMAGE} {command}" if to.place is Place.CONTAINER else command
    )


def _reader() -> Reader:
    called = click.get_current_context(silent=True)
    given = called.params if called is not None else {}
    root = given.get("root", "/")
    mounts = _mounts_of(root)
    image = given.get("reference") or ""
    place = place_of(root, os.environ, prepared=bool(mounts), image=image)
    options = frozenset(
        option for option, name in _PARAMETERS.items() if called is None or name in given
    )
    allowed = tuple(
        code for one in given.get("allow") or () for code in one.replace(",", " ").split()
    )
    if place is not Place.HOST:
        # The first thing that is said in a container is not in need of it.
        from ipavolume.commands import hold

        return Reader(
            place=place,
            mounts=mounts or (_USUAL_MOUNT,),
            engine=engine_of(os.environ),
            held=hold.is_on_hold(),
            allowed=allowed,
            options=options,
            leaves_online=bool(mounts) and _leaves_online(root),
        )
    # As an argument, which of several may be any where they are looked at one by one; for
    # ``steps --try``; and ``rehearse`` calls what is no volume a directory.
    one = given.get("directory_of_volume" if "directory_of_volume" in given else "directory")
    alone = [word for word in (one, given.get("volume")) if word] or given.get("directories") or ()
    alone = alone if len(alone) < 2 else [_ANY_DIRECTORY]
    return Reader(
        place=place,
        mounts=mounts or (_USUAL_MOUNT,),
        root="" if root == "/" else root,
        image=image,
        engine=given.get("engine") or engine_of(os.environ),
        volumes=(*_as_volumes(alone, mounts), *(given.get("volumes") or ())),
        names=given.get("names") or (),
        allowed=allowed,
        options=options,
    )


def _as_volumes(directories: Sequence[str], mounts: Sequence[str]) -> Iterator[str]:
    """Yield directories of primary volumes as ``--volume`` takes them."""
    usual = next(iter(mounts), _USUAL_MOUNT)
    for directory in directories:
        # What has an equals sign would be taken for a mount and a directory.
        yield f"{usual}={directory}" if "=" in directory else directory


def _mounts_of(root: str) -> tuple[str, ...]:
    # What an image is wrong in is told by its own error.
    with contextlib.suppress(IpaVolumeError, OSError):
        return places.mounts_of(root)
    return ()


def _leaves_online(root: str) -> bool:
    asked = places.leaves_online if root == "/" else places.leaves_online_to_init
    with contextlib.suppress(IpaVolumeError, OSError):
        return asked(root)
    return False


def place_of(
    root: str, environment: Mapping[str, str], *, prepared: bool, image: str | None = None
) -> Place:
    """Return where a command runs.

    Args:
        root: The image tree that it was given.
        environment: The process's.
        prepared: The system it runs in is an image of ours.
        image: The image of an engine that it was given.
    """
    if root != "/" or image:
        return Place.HOST
    if "KUBERNETES_SERVICE_HOST" in environment:
        return Place.POD
    return Place.CONTAINER if prepared else Place.HOST


def engine_of(environment: Mapping[str, str]) -> str:
    """Return the engine whose container a command runs in, or whose user namespace.

    podman says which it is, in a container and by ``podman unshare``; docker does not.
    """
    is_podman = environment.get("container") == "podman" or _UNSHARED in environment
    return "podman" if is_podman else "docker"


def fit(hint: str, to: Reader) -> str:
    """Return *hint* with its options and commands in the form that *to* can use."""

    def fitted(found: re.Match[str]) -> str:
        if found["fitted"]:
            # Whoever knows no more than that it is in that container says it of docker.
            return found["fitted"].replace(_WITHIN, f"{_within(to)} ")
        if found["options"]:
            return _options(found["options"], to)
        if found["setting"]:
            return _setting(found["setting"], to)
        if found["look"]:
            # On hold it is there to look around in, and on a host there is none.
            return "" if to.held or to.place is Place.HOST else found["look"]
        asked, inside = found["asked"] or "", found["inside"] or ""
        words = [*found["name"].split(), *found["words"].split()]
        if "--allow" in words:
            # What was overridden to come so far has to be, again.
            for code in to.allowed:
                words += () if code in words else ("--allow", code)
        if inside and to.held:
            inside = f"{inside.removesuffix(': ')}, once this one is stopped: "
        lost = found["lost"].split(" and ") if asked else ()
        is_other = found["whose"] == "of the image"
        return asked + inside + _command(words, to, other=is_other, lost=lost)

    return _advice().sub(fitted, hint)


def forms(hint: str) -> list[tuple[str, str]]:
    """Return each place and what of *hint* is put in another form there, if anything is."""
    # How a variable is set where a container is started is said beside it.
    found = [match.group() for match in _advice().finditer(hint) if not match["setting"]]
    if not found:
        return []
    # Read in an image it is about that one.
    leaves = bool(_mounts_of("/")) and _leaves_online("/")
    readers = [Reader(place=place, leaves_online=leaves) for place in Place]
    return [
        (
            to.place.value,
            "; ".join(text if to.place is Place.HOST else fit(text, to) for text in found),
        )
        for to in readers
    ]


def _options(text: str, to: Reader) -> str:
    words = text.split()
    is_typed = to.place is Place.HOST or to.typed
    if is_typed and to.options.issuperset(words[::2]):
        return text
    values: dict[str, list[str]] = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        values.setdefault(option, []).append(value)
    is_of_start = not _OF_EACH_START.isdisjoint(values.get("--allow", ()))
    if "--allow" in values:
        # A variable has one value, and an option is heeded in the place of its variable.
        values["--allow"] = list(dict.fromkeys((*to.allowed, *values["--allow"])))
    if is_typed or (to.held and to.again and not is_of_start):
        given = [word for option, each in values.items() for one in each for word in (option, one)]
        return _command(["upgrade", *["--retry"] * to.held, *given], to)
    return _started_with(
        [f"{_VARIABLES[option]}={','.join(each)}" for option, each in values.items()], to
    )


def _started_with(settings: Sequence[str], to: Reader) -> str:
    """Return how a container is started with variables."""
    if to.place is Place.POD:
        return f"{' and '.join(settings)} in the env of the pod's container"
    return "a new container with " * to.held + " ".join(f"-e {setting}" for setting in settings)


def _setting(text: str, to: Reader) -> str:
    """Return a variable of the environment in the form that *to* can use."""
    if text.startswith(_OF_STARTS):
        # Whoever looks from a host is not where the start is.
        return f"{to.engine} run -e {text}" if to.place is Place.HOST else _started_with([text], to)
    if to.place is Place.HOST:
        return text
    if not (to.held and to.again):
        return _started_with([text], to)
    if to.place is Place.POD:
        return f"kubectl exec POD -- env {text} ipavolume upgrade --retry"
    return f"{to.engine} exec -e {text} CONTAINER ipavolume upgrade --retry"


def _within(to: Reader) -> str:
    return "kubectl exec POD --" if to.place is Place.POD else f"{to.engine} exec CONTAINER"


def _command(
    words: Sequence[str], to: Reader, *, other: bool = False, lost: Sequence[str] = ()
) -> str:
    """Return a command in the form that *to* can use.

    Args:
        words: Its name and its arguments.
        to: Who reads it.
        other: It is one in a container of another image than the one at hand.
        lost: Where something was mounted for snapshots that it needs, and nothing is.
    """
    if words[0] == "manual":
        return _manual(words[1], to)
    if words[0] == "running":
        # What is done once the application of that container is ready.
        return f"{_within(to)} {shlex.join(['ipavolume', *words])}"
    if to.leaves_online and not (other or to.held) and words[0] == "upgrade":
        # What has to run under systemd fails in a container that has none.
        words = [*words, *(() if "--dry-run" in words else ("--phase", "offline"))]
    is_new = other or bool(lost)
    is_inside = is_new or (words[0] in _OF_THE_IMAGE and not to.root)
    # Others take no name on a host, and what steps have done only an image can tell.
    is_named = bool(to.names and to.image) and words[0] not in _TAKING_NAMES
    if to.place is Place.HOST and not (is_inside or is_named):
        # What names the volume itself takes no option that does.
        options = () if _ANY_VOLUME in words else _located(words[0], to)
        return shlex.join(["ipavolume", *words, *options])
    mounted = _mounted_here(to)
    inside = ["ipavolume", *_without_volume(words, next(iter(to.mounts), _USUAL_MOUNT))]
    # Which volume that is need not be the one that this container has.
    if to.held and not is_new and _ANY_VOLUME not in words:
        return f"{_within(to)} {shlex.join(inside)}"
    if to.place is Place.POD:
        args = ", ".join(f'"{word}"' for word in inside)
        which = "that" if other else "this"
        also = f", what was mounted at {' and '.join(lost)}," if lost else ""
        return f"a pod of {which} image with the same volume{also} and args [{args}]"
    mounted += zip(lost, _numbered(_ANY_SNAPSHOTS, len(lost)), strict=True)
    mounts = "".join(f"-v {shlex.quote(f'{source}:{mount}')} " for mount, source in mounted)
    image = _ANY_IMAGE if other or not to.image else to.image
    return f"{to.engine} run --rm {mounts}{shlex.quote(image)} {shlex.join(inside)}"


def _located(command: str, to: Reader) -> Iterator[str]:
    """Yield the options that tell a command on a host what it is about."""
    if to.root:
        yield from ("--root", to.root)
    elif to.image and command == "check":
        yield from ("--image", to.image)
    for volume in to.volumes:
        yield from ("--volume", volume)
    if command in _TAKING_NAMES:
        for name in to.names:
            yield from ("--volume-name", name)
        return
    # Others take no names; of several without a mount it may be any.
    mounts = {name: name.rpartition("=")[0] for name in to.names}
    for mount in dict.fromkeys(mounts.values()):
        yield from ("--volume", f"{mount}={_ANY_DIRECTORY}" if mount else _ANY_DIRECTORY)


def _without_volume(words: Sequence[str], mount: str) -> Iterator[str]:
    """Yield the words of a command in a container, where the volume is the one it has."""
    for before, word in itertools.pairwise(("", *words)):
        if word != _ANY_VOLUME:
            yield word
        elif before.startswith("--"):
            yield mount


def _mounted_here(to: Reader) -> list[tuple[str, str]]:
    """Return each mount with what is to be mounted there."""
    if to.place is Place.HOST and (to.volumes or to.names):
        usual = next(iter(to.mounts), _USUAL_MOUNT)
        found = {}
        for one in to.volumes:
            mount, equals, directory = one.partition("=")
            mount, directory = (mount, directory) if equals else ("", one)
            # A relative one would be taken for the name of a volume, which would be made.
            source = directory if directory == _ANY_DIRECTORY else os.path.abspath(directory)
            # No engine mounts what has a colon in its path that way.
            found[mount or usual] = _ANY_DIRECTORY if ":" in source else source
        for one in to.names:
            mount, _, name = one.rpartition("=")
            found[mount or usual] = name if (mount or usual) not in found else _ANY_VOLUME
        return list(found.items())
    return list(zip(to.mounts, _numbered(_ANY_VOLUME, len(to.mounts)), strict=True))


def _numbered(name: str, count: int) -> list[str]:
    """Return names for so many, with a number where there are several."""
    return [name] if count == 1 else [f"{name}{number}" for number in range(1, count + 1)]
