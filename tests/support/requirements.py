"""What a test needs of the machine: there, or the test is skipped, or fails in CI."""

from __future__ import annotations

import os
import shutil
from typing import Final, NoReturn

import pytest

_SYSTEM_PATH: Final = ":/usr/local/sbin:/usr/sbin:/sbin"


def in_ci() -> bool:
    """Tell whether nothing may be skipped for lack of a tool or a right."""
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


def unavailable(what: str) -> NoReturn:
    """End the test because *what* is missing: skipped with that reason, failed in CI."""
    if in_ci():
        pytest.fail(f"{what}; with CI set nothing is skipped", pytrace=False)
    pytest.skip(what)


def find_tool(name: str) -> str | None:
    """Return the path of the command *name*, also where only root has it on PATH."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + _SYSTEM_PATH)


def need_tool(name: str) -> str:
    """Return the path of the command *name*; without it the test cannot run."""
    path = find_tool(name)
    if path is None:
        unavailable(f"needs the command {name}, which is not installed")
    return path


def need_root() -> None:
    """Go on only as root."""
    if os.geteuid() != 0:
        unavailable("needs root")
