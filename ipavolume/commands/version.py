"""Which version this is, and what belongs to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata

from ipavolume.engines.engine import NAMES, Engine
from ipavolume.errors import IpaVolumeError
from ipavolume.formats import manifest, plan


def lines() -> Iterator[str]:
    """Yield the version, the interpreter, the formats of files and the engines of this machine."""
    yield f"ipavolume {metadata.version('ipavolume')}"
    python = ".".join(map(str, sys.version_info[:3]))
    yield f"Python {python}, {sys.executable}"
    yield f"formats: manifest {manifest.FORMAT}, plan {plan.FORMAT}"
    engines = list(_engines())
    yield f"engines: {'; '.join(engines) if engines else 'neither ' + ' nor '.join(NAMES)}"


def _engines() -> Iterator[str]:
    for name in NAMES:
        try:
            yield Engine(name).version()
        except IpaVolumeError as err:
            if err.code != "no-command":
                yield f"{name} does not answer"
