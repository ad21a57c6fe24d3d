"""Names in the configuration that mean nothing in this image.

What a profile sets is for many images and not looked at. A later layer may bring what is named, so
each of these is a warning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final

from ipavolume.config.model import Config
from ipavolume.config.profiles import PROFILES
from ipavolume.image.tree import ImageTree
from ipavolume.model.packages import Package
from ipavolume.model.paths import CONFIG_PATH
from ipavolume.prepare import systemd
from ipavolume.prepare.findings import Code, Findings
from ipavolume.rpm import versions

_PATH: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def check(
    tree: ImageTree, config: Config, packages: Sequence[Package], *, findings: Findings
) -> None:
    """Look up guarded packages, programs and units.

    Args:
        tree: The image.
        config: Its configuration.
        packages: Its packages.
        findings: Takes what is found.
    """
    usual = PROFILES[config.profile]
    if config.accept_guard != usual.accept_guard:
        for name in config.accept_guard or ():
            if name not in config.guard_optional and not any(
                versions.matches_package(name, package) for package in packages
            ):
                findings.add(
                    Code.UNKNOWN_GUARD,
                    f"[accept] guard: no package of the image is called {name!r} or provides it",
                    path=CONFIG_PATH,
                )
    for key, words in _commands(config, usual):
        if words and not _is_program(tree, words[0]):
            findings.add(
                Code.NO_PROGRAM, f"{key}: {words[0]!r} is no program in the image", path=words[0]
            )
    goes_back = config.verify is not None and config.verify.goes_back
    if goes_back and config.snapshot.before_upgrade != "always":
        findings.add(
            Code.SNAPSHOT_NOT_SURE,
            "[verify] on-failure is 'rollback', and [snapshot] before-upgrade is not 'always'",
            path=CONFIG_PATH,
        )
    if config.ready.units != usual.ready.units:
        known = systemd.unit_names(tree)
        for pattern in config.ready.units:
            if not any(_is_named(pattern, unit) for unit in known):
                findings.add(
                    Code.UNKNOWN_UNIT,
                    f"[ready] units: the image has no unit {pattern!r}",
                    path=CONFIG_PATH,
                )


def _commands(config: Config, usual: Config) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the commands that the image's own configuration names, by their keys."""
    if config.start_exec != usual.start_exec:
        yield "[start] exec", config.start_exec
    if config.first_run is not None and (
        usual.first_run is None or config.first_run.command != usual.first_run.command
    ):
        yield "[first-run] command", config.first_run.command
    if config.ready.command != usual.ready.command:
        yield "[ready] command", config.ready.command
    if config.verify is not None and config.verify != usual.verify:
        yield "[verify] command", config.verify.command


def _is_program(tree: ImageTree, word: str) -> bool:
    if "/" in word:
        return tree.exists(word)
    # The image's own PATH is not known: what would be found by this process's is enough.
    inside = os.environ.get("PATH", "").split(":") if tree.root == "/" else []
    return any(tree.exists(f"{directory}/{word}") for directory in (*_PATH, *inside))


def _is_named(pattern: str, unit: str) -> bool:
    """Tell whether *pattern* means *unit*, or instances of it where it is a template."""
    name, at, _ = pattern.partition("@")
    template = f"{name}@.{pattern.rpartition('.')[2]}"
    return fnmatchcase(unit, pattern) or (bool(at) and unit == template)
