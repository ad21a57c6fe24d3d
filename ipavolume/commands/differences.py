"""What is there against what is to be there: of a copy that waits, and of each file of a plan.

Only looks. What is shown is content, also of files that not everybody may read.
"""

from __future__ import annotations

import difflib
import itertools
import re
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
from ipavolume.model.progress import count_text
from ipavolume.model.values import dataclass
from ipavolume.volume.tree import Tree
from ipavolume.volume.volumes import Volumes

_MAX_SHOWN_BYTES: Final = 1 << 20
_MAX_SHOWN_LINES: Final = 1000
"""Of one file of a plan, which may have thousands."""
_MAX_COMPARED: Final = 4000 * 4000
"""Lines of one file by lines of the other: where they repeat, the time grows with the cube."""
_CONTEXT: Final = 3
_NO_END: Final = "\\ No newline at end of file"
_HUNK: Final = re.compile(r"^@@ -(\d+)(,\d+)? \+(\d+)(,\d+)? @@")

Content = Sequence[str] | str
"""The lines of a file, or a text that says what it is instead. A last line without an end has a
second one that says so: it is another line than the one with an end."""


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
        yield from _compare_lines(mine[0], mine[1], theirs[0], theirs[1])


def _compare_lines(
    mine_name: str, mine: Sequence[str], theirs_name: str, theirs: Sequence[str]
) -> Iterator[str]:
    """Yield the difference in the unified form; what both begin and end with is not compared."""
    shorter = min(len(mine), len(theirs))
    head = _count_equal(mine, theirs, shorter)
    tail = _count_equal(mine[::-1], theirs[::-1], shorter - head)
    head, tail = max(head - _CONTEXT, 0), max(tail - _CONTEXT, 0)
    mine, theirs = mine[head : len(mine) - tail], theirs[head : len(theirs) - tail]
    if len(mine) * len(theirs) > _MAX_COMPARED:
        lines = count_text(len(mine), "line")
        yield f"{mine_name}: too many differences to show, in {lines} from line {head + 1} on"
        return

    def moved(hunk: re.Match[str]) -> str:
        first, count, second, other = hunk.groups(default="")
        return f"@@ -{int(first) + head}{count} +{int(second) + head}{other} @@"

    for line in difflib.unified_diff(
        mine, theirs, fromfile=mine_name, tofile=theirs_name, n=_CONTEXT, lineterm=""
    ):
        yield from _HUNK.sub(moved, line).split("\n")


def _count_equal(one: Sequence[str], other: Sequence[str], limit: int) -> int:
    return next((at for at in range(limit) if one[at] != other[at]), limit)


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
        return f"is {found.type.noun}"
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
        return f"is a binary file of {count_text(len(data), 'byte')}"
    # Lines as "diff" has them; "splitlines" would take a carriage return for an end as well.
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    if lines[-1] == "":
        return lines[:-1]
    return [*lines[:-1], f"{lines[-1]}\n{_NO_END}"]


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
            lines = list(
                compare((record, mine), (path if path != record else f"{path} (new)", theirs))
            )
            yield from lines or [f"{path}: is replaced, with the same content"]
        case SetMetadata(path=path, before=before, metadata=new):
            yield from list(_of_metadata(path, before, new)) or [f"{path}: attributes are set"]
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
