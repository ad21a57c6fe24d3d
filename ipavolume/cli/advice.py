"""Hints in the form in which they can be followed where they are read.

What is raised names options and commands as on a host: ``--allow newer``, ``ipavolume upgrade
--retry``. Who reads that in the log of a container has neither a command line nor a shell there.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import click

from ipavolume.commands import places
from ipavolume.errors import IpaVolumeError
from ipavolume.model.values import dataclass

_USUAL_MOUNT: Final = "/data"
_CODE: Final = r"[A-Za-z0-9]+(?:[:._-][A-Za-z0-9]+)*"
_OPTIONS: Final = rf"--(?:allow|from) {_CODE}(?: --(?:allow|from) {_CODE})*"
_COMMAND: Final = (
    r"ipavolume (upgrade|rollback|conflicts|history|status|check)"
    r"((?: (?:--[a-z-]+|[A-Z]+(?![\w-])))*)"
)
_ANY_VOLUME: Final = "VOLUME"
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
        options: On a host, words that the command was given and that another one needs as well.
        held: The container stays up and keeps the lock: what works is a command in it.
    """

    place: Place
    mounts: Sequence[str] = (_USUAL_MOUNT,)
    options: Sequence[str] = ()
    held: bool = False


def fit_here(hint: str, *, held: bool = False) -> str:
    """Return *hint* in the form that can be used where the command at hand runs.

    Args:
        hint: As on a host.
        held: The container stays up and keeps the lock.
    """
    if not (re.search(_OPTIONS, hint) or re.search(_COMMAND, hint)):
        return hint
    return fit(hint, replace(_reader(), held=held))


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
    place = place_of(root, os.environ, prepared=bool(mounts), image=given.get("reference"))
    if place is not Place.HOST:
        return Reader(place=place, mounts=mounts or (_USUAL_MOUNT,))
    words = ["--root", root] if root != "/" else []
    one = given.get("directory")
    for volume in given.get("volumes") or given.get("directories") or ([one] if one else []):
        words += ["--volume", volume]
    return Reader(place=place, options=words)


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
    hint = re.sub(_OPTIONS, lambda found: _options(found.group(), to), hint)
    return re.sub(_COMMAND, lambda found: _command(found[1], found[2].split(), to), hint)


def forms(hint: str) -> list[tuple[str, str]]:
    """Return each place and what of *hint* is put in another form there, if anything is."""
    found = [
        match.group() for pattern in (_OPTIONS, _COMMAND) for match in re.finditer(pattern, hint)
    ]
    return [
        (place.value, "; ".join(fit(text, Reader(place=place)) for text in found))
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


def _command(name: str, words: Sequence[str], to: Reader) -> str:
    if to.place is Place.HOST:
        # What names the volume itself takes no option that does.
        options = () if _ANY_VOLUME in words else to.options
        return shlex.join(["ipavolume", name, *words, *options])
    words = ["ipavolume", name, *(word for word in words if word != _ANY_VOLUME)]
    if to.held:
        within = "kubectl exec POD --" if to.place is Place.POD else "docker exec CONTAINER"
        return f"{within} {shlex.join(words)}"
    if to.place is Place.POD:
        args = ", ".join(f'"{word}"' for word in words)
        return f"a pod of this image with the same volume and args [{args}]"
    return f"docker run --rm {_mounted(to.mounts)}IMAGE {shlex.join(words)}"


def _mounted(mounts: Sequence[str]) -> str:
    if len(mounts) == 1:
        return f"-v {shlex.quote(f'{_ANY_VOLUME}:{mounts[0]}')} "
    return "".join(
        f"-v {shlex.quote(f'{_ANY_VOLUME}{n}:{mount}')} " for n, mount in enumerate(mounts, 1)
    )
