"""Temporary files and directories, outside of any image and volume."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from ipavolume.linux.copying import clone_file
from ipavolume.linux.files import CREATE_FLAGS, DIRECTORY_FLAGS, lstat, write_all


def anonymous_file() -> BinaryIO:
    """Return a file without a name, readable and writable, outside of any image."""
    import tempfile

    return tempfile.TemporaryFile()


@contextlib.contextmanager
def private_directory() -> Iterator[str]:
    """Make a temporary directory of this user alone, outside of any volume; yield its path.

    It is removed at the end.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ipavolume-") as path:
        yield path


def spool(directory: int, name: str, content: Iterator[bytes]) -> None:
    """Write *content* to the new file *name* in a private directory, not durably."""
    fd = os.open(name, CREATE_FLAGS, 0o600, dir_fd=directory)
    try:
        for data in content:
            write_all(fd, data)
    finally:
        os.close(fd)


@contextlib.contextmanager
def snapshot(directory: int) -> Iterator[str]:
    """Copy the regular files of *directory* to a private temporary directory; yield its path.

    The copy is removed at the end.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ipavolume-") as path:
        target = os.open(path, DIRECTORY_FLAGS)
        try:
            for name in sorted(os.listdir(directory)):
                st = lstat(directory, name)
                if st is not None and stat.S_ISREG(st.st_mode):
                    clone_file(directory, name, target, name)
        finally:
            os.close(target)
        yield path
