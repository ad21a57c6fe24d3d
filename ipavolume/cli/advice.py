"""Hints in the form in which they can be followed where they are read.

What is raised names options and commands as on a host: ``--allow newer``, ``ipavolume upgrade
--retry``. Who reads that in the log of a container has neither a command line nor a shell there.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import click

from ipavolume.commands import places
from ipavolume.context import parse_volume_option
from ipavolume.errors import IpaVolumeError
from ipavolume.model.values import dataclass

_USUAL_MOUNT: Final = "/data"
_CODE: Final = r"[A-Za-z0-9]+(?:[:._-][A-Za-z0-9]+)*"
_OPTIONS: Final = rf"--(?:allow|from) {_CODE}(?: --(?:allow|from) {_CODE})*"
_RUN: Final = r"\d{4}-[0-9a-f]{8}(?![\w-])"
_WORD: Final = rf"--(?:allow|from) {_CODE}|--[a-z-]+|[A-Z]+(?![\w-])|{_RUN}"
_COMMAND: Final = (
    r"(?P<inside>In a container of the image[^:;]*: )?"
    r"ipavolume (?P<name>upgrade|rollback|conflicts|history|status|check|snapshot|steps)"
    rf"(?P<words>(?: (?:list|create|drop)(?![\w-]))?(?: (?:{_WORD}))*)"
)
_ADVICE: Final = re.compile(rf"{_COMMAND}|(?P<options>{_OPTIONS})")
_ANY_VOLUME: Final = "VOLUME"
_ANY_DIRECTORY: Final = "DIR"
_ANY_IMAGE: Final = "IMAGE"
_OF_THE_IMAGE: Final = frozenset({"upgrade", "steps"})
"""Commands that need the files of an image, on a host its tree."""
_VARIABLES: Final = {"--allow": "IPAVOLUME_ALLOW", "--from": "IPAVOLUME_FROM"}


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
        volumes: On a host, the volumes that it was given and the hint is about, ``[MOUNT=]DIR``.
        names: Those of them that are named volumes of the engine, ``[MOUNT=]NAME``.
        held: The container stays up and keeps the lock: what works is a command in it.
    """

    place: Place
    mounts: Sequence[str] = (_USUAL_MOUNT,)
    root: str = ""
    image: str = ""
    volumes: Sequence[str] = ()
    names: Sequence[str] = ()
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The volumes that a hint is about, where a command was given several.

    Attributes:
        volumes: Directories, ``[MOUNT=]DIR``.
        names: Named volumes of an engine, ``[MOUNT=]NAME``.
    """

    volumes: Sequence[str] = ()
    names: Sequence[str] = ()


def fit_here(hint: str, *, held: bool = False, about: About | None = None) -> str:
    """Return *hint* in the form that can be used where the command at hand runs.

    Args:
        hint: As on a host.
        held: The container stays up and keeps the lock.
        about: What it is about; ``None``: all that the command was given.
    """
    if not _ADVICE.search(hint):
        return hint
    reader = replace(_reader(), held=held)
    if about is not None:
        reader = replace(reader, volumes=about.volumes, names=about.names)
    return fit(hint, reader)


def more_of(code: str) -> str:
    """Return the command that says more of *code* where the command at hand runs."""
    command = f"ipavolume manual {code}"
    is_in_container = _reader().place is Place.CONTAINER
    return f"docker run --rm IMAGE {command}" if is_in_container else command


def _reader() -> Reader:
    called = click.get_current_context(silent=True)
    given = called.params if called is not None else {}
    root = given.get("root", "/")
    mounts: Sequence[str] = ()
    # What an image is wrong in is told by its own error.
    with contextlib.suppress(IpaVolumeError, OSError):
        mounts = places.mounts_of("/") if root == "/" else ()
    image = given.get("reference") or ""
    place = place_of(root, os.environ, prepared=bool(mounts), image=image)
    if place is not Place.HOST:
        return Reader(place=place, mounts=mounts or (_USUAL_MOUNT,))
    # Of several that are looked at one by one it may be any.
    one = given.get("directory_of_volume" if "directory_of_volume" in given else "directory")
    alone = [*([one] if one else ()), *(given.get("directories") or ())]
    return Reader(
        place=place,
        root="" if root == "/" else root,
        image=image,
        volumes=given.get("volumes") or (alone if len(alone) < 2 else [_ANY_DIRECTORY]),
        names=given.get("names") or (),
    )


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


def fit(hint: str, to: Reader) -> str:
    """Return *hint* with its options and commands in the form that *to* can use."""

    def fitted(found: re.Match[str]) -> str:
        if found["options"]:
            return _options(found["options"], to)
        inside = found["inside"] or ""
        return inside + _command(found["name"], found["words"].split(), to, other=bool(inside))

    return _ADVICE.sub(fitted, hint)


def forms(hint: str) -> list[tuple[str, str]]:
    """Return each place and what of *hint* is put in another form there, if anything is."""
    found = [match.group() for match in _ADVICE.finditer(hint)]
    return [
        (
            place.value,
            "; ".join(
                text if place is Place.HOST else fit(text, Reader(place=place)) for text in found
            ),
        )
        for place in Place
        if found
    ]


def _options(text: str, to: Reader) -> str:
    if to.place is Place.HOST:
        return text
    words = text.split()
    values: dict[str, list[str]] = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        values.setdefault(_VARIABLES[option], []).append(value)
    settings = [f"{name}={','.join(value)}" for name, value in values.items()]
    if to.place is Place.POD:
        return f"{' and '.join(settings)} in the env of the pod's container"
    return " ".join(f"-e {setting}" for setting in settings)


def _command(name: str, words: Sequence[str], to: Reader, *, other: bool) -> str:
    """Return a command in the form that *to* can use.

    Args:
        name: Its name.
        words: Its arguments.
        to: Who reads it.
        other: It is one in a container of another image than the one at hand.
    """
    is_inside = other or (name in _OF_THE_IMAGE and not to.root)
    if to.place is Place.HOST and not is_inside:
        # What names the volume itself takes no option that does.
        options = () if _ANY_VOLUME in words else _located(name, to)
        return shlex.join(["ipavolume", name, *words, *options])
    mounts = [one for one, _ in _mounted_here(to)]
    inside = shlex.join(["ipavolume", name, *_without_volume(words, mounts[0])])
    if to.place is Place.HOST:
        image = _ANY_IMAGE if other else shlex.quote(to.image or _ANY_IMAGE)
        return f"docker run --rm {_mounted(_mounted_here(to))}{image} {inside}"
    if to.held:
        within = "kubectl exec POD --" if to.place is Place.POD else "docker exec CONTAINER"
        return f"{within} {inside}"
    if to.place is Place.POD:
        args = ", ".join(f'"{word}"' for word in shlex.split(inside))
        return f"a pod of this image with the same volume and args [{args}]"
    return f"docker run --rm {_mounted(_mounted_here(to))}{_ANY_IMAGE} {inside}"


def _located(command: str, to: Reader) -> Iterator[str]:
    """Yield the options that tell a command on a host what it is about."""
    if to.root:
        yield from ("--root", to.root)
    elif to.image and command == "check":
        yield from ("--image", to.image)
    for volume in to.volumes:
        yield from ("--volume", volume)
    for name in to.names:
        # That takes no names.
        mount, equals, _ = name.rpartition("=")
        yield from ("--volume", f"{mount}{equals}{_ANY_DIRECTORY}")


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
        given = [parse_volume_option(one) for one in (*to.volumes, *to.names)]
        return [(mount or _USUAL_MOUNT, source) for mount, source in given]
    if len(to.mounts) == 1:
        return [(to.mounts[0], _ANY_VOLUME)]
    return [(mount, f"{_ANY_VOLUME}{number}") for number, mount in enumerate(to.mounts, 1)]


def _mounted(mounts: Sequence[tuple[str, str]]) -> str:
    return "".join(f"-v {shlex.quote(f'{source}:{mount}')} " for mount, source in mounts)
