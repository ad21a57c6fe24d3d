"""The one document of JSON that a command prints: what came of it, and what failed.

The fields are in the manual's topic ``json``; within a format some are only added.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click

from ipavolume.cli import advice
from ipavolume.errors import IpaVolumeError, UsageError

FORMAT: Final = 1
OF_VOLUMES: Final = frozenset({"check", "list", "status"})
"""Commands that say something of each of several volumes."""
_HERE: Final = "ipavolume.document"


class Document:
    """What a command has to say, until all of it is known.

    Attributes:
        is_wanted: Somebody asked for JSON; otherwise nothing is printed.
    """

    def __init__(self, command: str | None, *, is_wanted: bool) -> None:
        """Begin the document of *command*; ``None``: there is none of that name."""
        self.is_wanted = is_wanted
        self._command = command
        self._volumes: list[Mapping[str, Any]] = []
        self._result: Mapping[str, Any] | None = None
        self._errors: list[Mapping[str, Any]] = []

    def add_volume(self, data: Mapping[str, Any]) -> None:
        """Take what there is to say of a volume."""
        self._volumes.append(data)

    def set_result(self, data: Mapping[str, Any]) -> None:
        """Take what came of the command."""
        self._result = data

    def add_error(self, err: IpaVolumeError, *, volume: str = "") -> None:
        """Take what failed, of *volume* where it is that of one of several."""
        self._errors.append(
            {
                "code": err.code,
                "exit_status": err.exit_status,
                "message": str(err),
                "path": err.path,
                "volume": volume,
                "state": err.state,
                "hint": advice.fit_here(
                    err.hint, about=advice.About(directories=[volume]) if volume else None
                ),
                "details": list(err.details),
            }
        )

    def line(self) -> str:
        """Return all that is known as the line that is printed."""
        of_volumes = self._command in OF_VOLUMES
        came: Mapping[str, Any] = (
            {"volumes": self._volumes} if of_volumes else {"result": self._result}
        )
        document = {"format": FORMAT, "command": self._command, **came, "errors": self._errors}
        return dump_json(with_bytes(document))

    @contextlib.contextmanager
    def printed(self) -> Iterator[None]:
        """Print it when the command has ended, with whatever status it did so.

        Raises:
            VolumeIOError: If it cannot be written.
        """
        try:
            yield
        except (SystemExit, click.exceptions.Exit):
            self.print()
            raise
        self.print()

    def print(self) -> None:
        """Print it, once.

        Raises:
            VolumeIOError: If it cannot be written.
        """
        if self.is_wanted:
            # Once, even if this fails.
            self.is_wanted = False
            click.echo(self.line())


def begin(called: click.Context) -> Document:
    """Begin the document of the command that is called."""
    given = called.params
    is_wanted = bool(given.get("as_json")) or given.get("form") == "json"
    document = Document(called.command.name, is_wanted=is_wanted)
    called.meta[_HERE] = document
    return document


def current() -> Document:
    """Return the document of the command that is being run."""
    found: Document = click.get_current_context().meta[_HERE]
    return found


def of_misuse(
    err: click.ClickException, words: Sequence[str], meant: click.Command | None
) -> Document:
    """Return the document for a command line that cannot be understood.

    Args:
        err: Why.
        words: The command line, without the program.
        meant: The command that it calls, where it names one.
    """
    command = None if meant is None else meant.name
    words = words[: words.index("--")] if "--" in words else words
    pairs = itertools.pairwise(words)
    is_wanted = "--json" in words or "--format=json" in words or ("--format", "json") in pairs
    document = Document(command, is_wanted=is_wanted)
    document.add_error(misuse(err, meant))
    return document


def misuse(err: click.ClickException, meant: click.Command | None) -> UsageError:
    """Return as an error of ours what click has to say of the command line.

    Args:
        err: Why it cannot be understood.
        meant: The command that it calls, which click does not always know yet.
    """
    called = getattr(err, "ctx", None)
    path = "ipavolume" if meant is None else f"ipavolume {meant.name}"
    if isinstance(called, click.Context):
        path = called.command_path
    state = getattr(meant, "state", "")
    hint = f"{path} --help has what it knows."
    told = UsageError(err.format_message(), hint=hint, state=state)
    told.exit_status = err.exit_code
    return told


def with_bytes(value: Any) -> Any:  # noqa: ANN401 - any data of JSON
    """Return *value* with the bytes of each name that is no text, in base64, beside it.

    Beside ``path`` that is ``path_b64``; a list of names, or an object of them, has a list.
    """
    if isinstance(value, Mapping):
        named: dict[str, Any] = {}
        for key, one in value.items():
            named[key] = with_bytes(one)
            # Of attributes of a file it is what they are called that may be no text.
            names = list(one) if isinstance(one, Mapping) else one
            if not all(map(_is_text, _names(names))):
                named[f"{key}_b64"] = _encoded(names)
        return named
    if isinstance(value, list | tuple):
        return [with_bytes(one) for one in value]
    return value


def _names(value: object) -> Iterator[str]:
    """Yield a name, or those of a list; what an object has it has beside it itself."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _names(one)


def _is_text(name: str) -> bool:
    return not any("\udc80" <= letter <= "\udcff" for letter in name)


def _encoded(value: object) -> object:
    # Hardly ever needed, and a start loads this module.
    import base64

    if isinstance(value, str):
        try:
            data = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            # With surrogates of another kind, too: out of a file that somebody made up.
            data = value.encode("utf-8", "surrogatepass")
        return base64.b64encode(data).decode("ascii")
    if isinstance(value, list | tuple):
        return [_encoded(one) for one in value]
    return value


def dump_json(data: object) -> str:
    """Return *data* as one line of JSON; undecodable bytes as their surrogates' escapes."""
    return json.dumps(data, ensure_ascii=True)
