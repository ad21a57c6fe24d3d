"""Scriptlets of packages as data, and which of them never run."""

from __future__ import annotations

from typing import Final

from ipavolume.config.model import ScriptletsConfig
from ipavolume.model.packages import Condition
from ipavolume.model.scriptlets import GROUPS, cannot_run
from ipavolume.model.values import dataclass
from ipavolume.rpm import versions

LUA: Final = "<lua>"

TRIGGERS: Final = ("triggerprein", "triggerin", "triggerun", "triggerpostun")
IMAGE_PROGRAMS: Final = frozenset(
    {
        *("ldconfig", "iconvconfig", "iconvconfig.i686", "iconvconfig.x86_64"),
        *("glib-compile-schemas", "gio-querymodules-64", "gtk-update-icon-cache"),
        *("update-desktop-database", "update-mime-database", "fc-cache", "mandb"),
    }
)
"""Programs that act on the image alone; scriptlets that are no more than one do not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scriptlet:
    """A scriptlet of a package of the image.

    Attributes:
        name: Name of its file in the image, and its own: ``certmonger-triggerin-1``.
        package: Name of the package.
        evr: ``epoch:version-release`` of the package.
        arch: Architecture of the package.
        kind: ``post``, ``triggerin``, ``filetriggerun`` and so on, as the spec file has it.
        interpreter: The program and its words.
        digest: SHA-256 of its text, or "" when there is only the program.
        expand: rpm expands macros in the text when it runs (``-e``).
        queryformat: rpm then expands tags of the header in it (``-q``).
        conditions: What a trigger waits for; any of them.
        priority: Of a file trigger.
        number: Number among the package's triggers of this sort, from 1; otherwise 0.
        order: Place of the package in the order of installation, from 0.
        provides: Names of what the package provides.
        prefixes: Where the package is, if it is relocatable; rpm tells its scriptlets.
    """

    name: str
    package: str
    evr: str
    arch: str
    kind: str
    interpreter: tuple[str, ...]
    digest: str
    expand: bool = False
    queryformat: bool = False
    conditions: tuple[Condition, ...] = ()
    priority: int = 0
    number: int = 0
    order: int = 0
    provides: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The scriptlets of an image.

    Attributes:
        scriptlets: All of them, package by package in the order of installation.
        packages: Name, ``epoch:version-release`` and architecture of every package of the
            image in the order of installation, also of those without scriptlets.
        lua: What runs ``<lua>`` scriptlets in the image: ``rpmlua``, ``rpm``, or "".
    """

    scriptlets: tuple[Scriptlet, ...] = ()
    packages: tuple[tuple[str, str, str], ...] = ()
    lua: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A run of a scriptlet.

    Attributes:
        scriptlet: Which.
        arguments: What follows the file on its command line; nothing for a scriptlet that is
            only a program.
        reason: Why it runs, in an administrator's words.
    """

    scriptlet: Scriptlet
    arguments: tuple[str, ...]
    reason: str


# -- choosing ----------------------------------------------------------------------------


def is_configured(scriptlet: Scriptlet, config: ScriptletsConfig) -> bool:
    """Tell whether the configuration names the package of a scriptlet."""
    return any(named(word.removeprefix("?"), scriptlet) for word in config.packages)


def is_candidate(scriptlet: Scriptlet, config: ScriptletsConfig) -> bool:
    """Tell whether some upgrade would run a scriptlet."""
    return not never(scriptlet, config)


def named(pattern: str, scriptlet: Scriptlet) -> bool:
    """Tell whether *pattern* matches the package of *scriptlet*, or what it provides."""
    return versions.matches_name(pattern, scriptlet.package, scriptlet.provides)


def never(scriptlet: Scriptlet, config: ScriptletsConfig) -> str:
    """Say why a scriptlet does not run whatever the versions are; "" if it may."""
    if reason := cannot_run(scriptlet.kind):
        return reason
    if not is_configured(scriptlet, config):
        return "[scriptlets] does not name its package"
    if GROUPS[scriptlet.kind] not in config.kinds:
        return f"[scriptlets] kinds does not name {GROUPS[scriptlet.kind]!r}"
    program = scriptlet.interpreter[0].rpartition("/")[2]
    if not scriptlet.digest and (program in IMAGE_PROGRAMS or program == LUA):
        return f"{program} acts on the image, and did when it was built"
    return ""
