"""The examples that are in the package: images to build from, with steps of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

from ipavolume.errors import CannotCreateError, UsageError
from ipavolume.linux import files


def titles() -> dict[str, str]:
    """Return the title of each example, by its name."""
    return {
        name: (example / "README.rst").read_text("utf-8").partition("\n")[0]
        for name, example in sorted(_examples().items())
    }


def copy(name: str, to: str) -> list[str]:
    """Copy the example *name* to a directory, which is made unless it is there, empty.

    Returns:
        What was copied, relative to *to*.

    Raises:
        UsageError: If there is no example of that name.
        CannotCreateError: If the directory has something in it, or cannot be written to.
    """
    example = _examples().get(name)
    if example is None:
        raise UsageError(
            f"there is no example {name!r}", hint="ipavolume examples lists those there are."
        )
    members = list(_members(example, ""))
    try:
        above, last = os.path.split(to.rstrip("/") or "/")
        parent = os.open(above or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if last:
                files.make_directory(parent, last, mode=0o755)
        finally:
            os.close(parent)
        top = os.open(to, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if files.listdir(top):
                raise CannotCreateError(
                    f"{to!r} is not empty", hint="Name a directory that is not there yet: --to DIR."
                )
            for path, data in members:
                above, _, last = path.rpartition("/")
                directory = files.make_directories(top, above)
                try:
                    # An archive keeps no modes.
                    mode = 0o755 if data.startswith(b"#!") else 0o644
                    files.write_file(directory, last, data, mode=mode)
                finally:
                    os.close(directory)
        finally:
            os.close(top)
    except OSError as err:
        raise CannotCreateError(
            f"cannot write to {to!r}: {err.strerror}", hint="Name another directory: --to DIR."
        ) from err
    return [path for path, _ in members]


def _examples() -> dict[str, Traversable]:
    top = resources.files("ipavolume") / "examples"
    return {example.name: example for example in top.iterdir() if example.is_dir()}


def _members(directory: Traversable, above: str) -> Iterator[tuple[str, bytes]]:
    for member in sorted(directory.iterdir(), key=lambda one: one.name):
        if member.name == "__pycache__":
            # Of a step: who installs a package compiles all that is in it.
            continue
        if member.is_dir():
            yield from _members(member, f"{above}{member.name}/")
        else:
            yield above + member.name, member.read_bytes()
