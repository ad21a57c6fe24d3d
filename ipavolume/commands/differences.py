"""What is there against what is to be there: of a copy that waits, and of each file of a plan.

Only looks. What is shown is content, also of files that not everybody may read.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from typing import Final

from ipavolume.image.image import Image
from ipavolume.linux import files
from ipavolume.model.actions import (
    ROLLBACK,
    Action,
    CreateTree,
    Erase,
    Install,
    Keep,
    Plan,
    RemoveDirectory,
    Save,
    SetMetadata,
)
from ipavolume.model.files import DiskState, FileType, Metadata
from ipavolume.model.packed import described
from ipavolume.model.values import dataclass
from ipavolume.volume.tree import Tree
from ipavolume.volume.volumes import Volumes

_MAX_SHOWN_BYTES: Final = 1 << 20
_MAX_SHOWN_LINES: Final = 1000
"""Of one file of a plan, which may have thousands."""

Content = Sequence[str] | str
"""The lines of a file, or a text that says what it is instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a plan changes at a path.

    Attributes:
        path: The path.
        lines: The difference, without line ends.
    """

    path: str
    lines: tuple[str, ...]


def compare(mine: tuple[str, Content], theirs: tuple[str, Content]) -> Iterator[str]:
    """Yield the lines of the difference between two files, each with its name."""
    for name, content in (mine, theirs):
        if isinstance(content, str):
            yield f"{name}: {content}"
    if not isinstance(mine[1], str) and not isinstance(theirs[1], str):
        yield from difflib.unified_diff(
            mine[1], theirs[1], fromfile=mine[0], tofile=theirs[0], lineterm=""
        )


def content_of(tree: Tree, path: str) -> Content:
    """Return what *path* is."""
    try:
        return _content_of(tree, path)
    except OSError as err:
        return f"cannot be read: {err.strerror}"


def _content_of(tree: Tree, path: str) -> Content:
    found = tree.state(path)
    if found is None:
        return "is not there"
    if found.type is FileType.SYMLINK:
        return [f"-> {tree.target(path)}"]
    if found.type is not FileType.FILE:
        return f"is a {found.type.value}"
    if found.size > _MAX_SHOWN_BYTES:
        return f"has {found.size} bytes, too many to show"
    parent, _, name = path.rpartition("/")
    directory = tree.directory(parent)
    fd = None if directory is None else files.open_regular(directory, name)
    if fd is None:
        return "cannot be read"
    with files.reader(fd) as stream:
        data = stream.read(_MAX_SHOWN_BYTES)
    if b"\0" in data:
        return f"is a binary file of {len(data)} bytes"
    return data.decode("utf-8", "surrogateescape").splitlines()


def of_plan(plan: Plan, volumes: Volumes, image: Image) -> tuple[Difference, ...]:
    """Return what a plan changes of each path that is there already; what is new is in the plan.

    Args:
        plan: A plan that brings the volumes to *image*; for one that goes back there is nothing.
        volumes: The volumes.
        image: The image, with its templates.

    Raises:
        ConfigurationError: If a template is missing.
    """
    if plan.kind == ROLLBACK:
        return ()
    with volumes.tree() as tree, Tree(image.templates(), inside=False) as template:
        found = []
        for action in described(plan.actions):
            lines = tuple(
                itertools.islice(_of_action(action, tree, template), _MAX_SHOWN_LINES + 1)
            )
            if len(lines) > _MAX_SHOWN_LINES:
                lines = (*lines[:-1], "... and more, too much to show")
            if lines:
                found.append(Difference(path=action.path, lines=lines))
        return tuple(found)


def _of_action(action: Action, tree: Tree, template: Tree) -> Iterator[str]:
    match action:
        case Install(path=path, record=record, before=before, metadata=new):
            if before is None and path == record:
                return
            if before is not None and path == record:
                yield from _of_metadata(path, before, new)
            mine, theirs = content_of(tree, record), content_of(template, record)
            yield from compare(
                (record, mine), (path if path != record else f"{path} (new)", theirs)
            )
        case SetMetadata(path=path, before=before, metadata=new):
            yield from _of_metadata(path, before, new)
        case Save(path=path, to=to):
            yield f"{path}: is moved to {to}"
        case Erase(path=path):
            yield f"{path}: is removed, as it was shipped"
        case RemoveDirectory(path=path):
            yield f"{path}: is removed, if it is empty"
        case CreateTree() | Keep():
            return


def _of_metadata(path: str, before: DiskState, new: Metadata) -> Iterator[str]:
    was = f"{before.uid}:{before.gid} {before.mode:04o}"
    now = f"{new.uid}:{new.gid} {new.mode:04o}"
    if was != now:
        yield f"{path}: {was} -> {now}"
