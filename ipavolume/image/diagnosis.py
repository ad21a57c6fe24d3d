"""What the output of a failed command says of the cause, where it is one of ours."""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Mapping
from typing import Final

from ipavolume.config.model import Config
from ipavolume.image.image import Image
from ipavolume.model.paths import WRITTEN_BY_ENGINES
from ipavolume.model.values import dataclass

_READ_ONLY: Final = "ead-only file system"
_EXISTS: Final = "ile exists"
_MISSING: Final = "o such file or directory"
_KEPT: Final = 64
_LAST_LINES: Final = 5
_OF_ITS_OWN: Final = 2
"""How deep a directory lies that may be one program's own."""
_SHARED: Final = ("/var/cache", "/var/lib", "/var/spool")
"""Directories of that depth that are everybody's."""


@functools.cache
def _patterns(error: str) -> tuple[re.Pattern[str], ...]:
    error = f"\\w{error}"
    return (
        # Python: [Errno 17] File exists: '/etc/own' -> '/etc/new', the second is what was made
        re.compile(rf"{error}: b?['\"][^'\"]+['\"] -> b?['\"](/[^'\"]+)['\"]"),
        # Python: [Errno 30] Read-only file system: '/etc/named.conf.ipa-backup'
        re.compile(rf"{error}: b?['\"](/[^'\"]+)['\"]"),
        # coreutils: cp: cannot create regular file '/root/x': Read-only file system
        re.compile(rf"['\"\u2018`](/[^'\"\u2018\u2019`]+)['\"\u2019]: {error}"),
        # mv: inter-device move failed: '/tmp/x' to '/etc/x'; unable to remove target: Read-only ...
        re.compile(rf" to ['\"\u2018`](/[^'\"\u2018\u2019`]+)['\"\u2019]; [^:]*: {error}"),
        # shells: /bin/sh: 3: cannot create /etc/x: Read-only file system
        re.compile(rf"(?:^|[\s:=])(/[^\s:'\"]+): {error}"),
    )


_ERRORS: Final = (_READ_ONLY, _EXISTS, _MISSING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A cause of a failure that the image has.

    Attributes:
        code: Code of the error.
        path: The path that it is about.
        hint: What it is, and what to do about it.
    """

    code: str
    path: str
    hint: str


class Suspects:
    """Takes the lines of a command, and remembers the paths that it had trouble with."""

    def __init__(self, text: str) -> None:
        """Begin without any; *text* is that of the command: its words, or a script's."""
        self._text = text
        self._seen: deque[tuple[int, str, str]] = deque(maxlen=_KEPT)
        self._lines = 0

    def take(self, line: str) -> None:
        """Take a line."""
        self._lines += 1
        for error in _ERRORS:
            if error in line:
                searched = (one.search(line) for one in _patterns(error))
                found = next(filter(None, searched), None)
                # Those are the engine's on any root, and what writes there mostly goes on.
                if found is not None and found.group(1) not in WRITTEN_BY_ENGINES:
                    self._seen.append((self._lines, error, found.group(1)))

    def cause(self, image: Image) -> Cause | None:
        """Return what the command failed for, when the image it ran in is the cause.

        In a container with a read-only root a path that cannot be written to is one that belongs on
        the image's volume list (P18). A path that is there already, or is not there at the very
        end, can be a link of the image to what is not on the volume (F64). The last one counts.
        """
        image.tree.forget()
        links = dict(image.header.links)
        for line, error, path in reversed(self._seen):
            # Many programs look for what need not be there.
            if error == _MISSING and line <= self._lines - _LAST_LINES:
                continue
            if error == _READ_ONLY:
                return self._read_only(path, image)
            if path in links and not image.tree.exists(path):
                return Cause(
                    code="missing-target",
                    path=path,
                    hint=_missing_target_hint(path, links[path], image.config),
                )
        return None

    def read_only(self, image: Image) -> Cause | None:
        """Return what it could not write to, also when it ended well."""
        for _, error, path in reversed(self._seen):
            if error == _READ_ONLY:
                return self._read_only(path, image)
        return None

    def _read_only(self, path: str, image: Image) -> Cause:
        links = dict(image.header.links)
        link = path if path in links else self._beside(path, links)
        hint = (
            _replaced_link_hint(link, links[link], image) if link else _read_only_hint(path, image)
        )
        return Cause(code="read-only-path", path=link or path, hint=hint)

    def _beside(self, path: str, links: Mapping[str, str]) -> str:
        """Return the link that the command names, where *path* may be its file in the making."""
        directory = path.rpartition("/")[0]
        named = set(re.findall(rf"{re.escape(directory)}/[^\s'\"`;|&<>()]+", self._text))
        # With another file of that directory in the text nobody knows which one it was.
        return next(iter(named), "") if len(named) == 1 and named <= links.keys() else ""


def _replaced_link_hint(link: str, target: str, image: Image) -> str:
    itself, instead = repr(target), ", or use an image that lists the directory"
    if image.tree.exists(f"{link}/."):
        # With / behind it a program takes what the link leads to.
        itself, instead = f"{target!r} or {link + '/'!r}", ""
    return (
        f"{link!r} is listed, so it is a link of the image to {target!r}, and what writes another "
        "file and renames it (sed -i, mv, install), or changes or removes what it is given (chown, "
        "rm), does that to the link, which a read-only image does "
        f"not let it. Nothing was written. Have it work on {itself} itself (for a scriptlet: "
        f"[scriptlets] substitute){instead}."
    )


def _read_only_hint(path: str, image: Image) -> str:
    lists = [name for volume in image.config.volumes for name in volume.lists]
    where = " or ".join(lists) or "the path list"
    line, made = _line(path, image)
    return (
        f"{path!r} is not on this image's volume list, so it is read-only. Use an image with the "
        f"line {line!r} in {where} ({made}ipavolume prepare after it); until then mount a tmpfs or "
        "a volume there."
    )


def _line(path: str, image: Image) -> tuple[str, str]:
    """Return the line of a path list by which a program can write what it could not.

    What is not there yet it makes, or makes under another name and renames: neither goes through a
    link to what is missing, so the directory has to be on the volume, or the image has to have it.
    """
    if image.tree.exists(f"{path}/."):
        return f"{path}/", ""
    directory = path.rpartition("/")[0]
    if image.tree.exists(path):
        return path, ""
    if directory in _SHARED or directory.count("/") < _OF_ITS_OWN or directory.startswith("/usr/"):
        return path, "the path made there by touch, or by mkdir and with / behind it; "
    return f"{directory}/", ""


def _missing_target_hint(path: str, target: str, config: Config) -> str:
    freeipa = (
        "; for FreeIPA with IPAPLATFORM_OVERRIDE in the environment: ipavolume manual freeipa"
        if config.profile == "freeipa"
        else ""
    )
    return (
        f"{path!r} is listed, so it is a link of the image to {target!r}, which is missing, "
        "and a program that creates its file with O_CREAT|O_EXCL, or renames another one, does not "
        "create it through a link. Use an image that has the file when ipavolume prepare runs, or "
        f"that lists its directory{freeipa}."
    )
