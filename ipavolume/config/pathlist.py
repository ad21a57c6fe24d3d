"""Path lists: what of an image belongs on a volume, one absolute path a line.

A trailing slash says that the path is a directory, which is then made when it is missing.
Lines that begin with ``#``, after blanks or not, and empty lines mean nothing. ``.``,
``..`` and doubled slashes are taken out of a path as it is written, without looking at the
image. A line may end with CR LF and the last one without any. Blanks at the end of a line
are refused: a name may end in one, but an accident of an editor is likelier, and the path
it names would silently not be kept.
"""

from __future__ import annotations

from os import fsdecode

from ipavolume.errors import ConfigurationError
from ipavolume.model.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ListEntry:
    """A path of a list.

    Attributes:
        path: Absolute and normalised, without a trailing slash.
        directory: The list has it with a trailing slash.
        line: Line number in the list, from 1; of the first of several equal ones.
        again: Line numbers of the others.
    """

    path: str
    directory: bool
    line: int
    again: tuple[int, ...] = ()


def normalise(path: str) -> str:
    """Return *path* without ``.``, ``..``, doubled and trailing slashes, as it is written."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def parse_path_list(data: bytes, *, name: str) -> tuple[ListEntry, ...]:
    """Return the entries of a list, in its order, each path once.

    Args:
        data: Content of the list.
        name: Path of the list, for messages.

    Raises:
        ConfigurationError: If a line is no usable path; names every such line.
    """
    entries: dict[str, ListEntry] = {}
    faults = []
    for number, raw in enumerate(data.split(b"\n"), start=1):
        line = fsdecode(raw.removesuffix(b"\r"))
        text = line.lstrip(" \t")
        if not text or text.startswith("#"):
            continue
        path = normalise(text)
        if fault := _fault(text, path):
            faults.append(f"{name}:{number}: {text!r} {fault}")
            continue
        directory = text.endswith(("/", "/.", "/.."))
        known = entries.get(path)
        entries[path] = ListEntry(
            path=path,
            directory=directory or (known is not None and known.directory),
            line=known.line if known else number,
            again=(*known.again, number) if known else (),
        )
    if faults:
        raise ConfigurationError(
            "; ".join(faults), hint=f"Correct {name}: one absolute path a line."
        )
    return tuple(entries.values())


def _fault(text: str, path: str) -> str:
    if "\0" in text:
        return "holds a NUL byte"
    if text[-1] in " \t\r\f\v":
        return "ends with a blank"
    if not text.startswith("/"):
        return "is not an absolute path"
    if path == "/":
        return "is the whole image"
    return ""
