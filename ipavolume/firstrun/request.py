"""What a container was started with, as far as the first run cares.

The existing FreeIPA images take the installer's options from the container's arguments, from
a file on the volume and from the environment; whoever moves from them finds the same here.

Source: ``init-data`` and ``ipa-server-configure-first`` of the freeipa-container project, and
its README. Deliberately different: an argument reaches the installer as it is, whatever is in
it; a file with options that others than root can write is refused; every option whose name
speaks of a secret is known as one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from os import fsdecode
from typing import Final

from ipavolume import fastpath
from ipavolume.errors import UsageError
from ipavolume.model.redaction import Redactor
from ipavolume.model.values import dataclass

SERVER: Final = "ipa-server-install"
REPLICA: Final = "ipa-replica-install"

HOLD: Final = "no-exit"
LEAVE: Final = "exit-on-finished"
ALWAYS: Final = fastpath.ALWAYS

SECRETS: Final = ("PASSWORD", "IPA_SERVER_INSTALL_OPTS")
"""Variables with secrets in them; each may name a file instead, by the variable NAME_FILE."""

VARIABLES: Final = (
    *SECRETS,
    *(f"{name}_FILE" for name in SECRETS),
    "IPA_SERVER_HOSTNAME",
    "IPA_SERVER_IP",
    "DEBUG",
    "DEBUG_NO_EXIT",
    "DEBUG_TRACE",
    "SHOW_LOG",
)
"""The variables that the FreeIPA images know, and where their secrets may come from."""

# What parts words has no group. shlex takes a newline inside quotes, and is slow on a long word.
_PIECE: Final = r"""[ \t\n]+ | '([^'\n]*)' | "([^"\n]*)" | \\(.) | ([^ \t\n'"\\]+)"""
_SECRET_WORDS: Final = ("pass", "pin", "secret")
SHORT_SECRETS: Final = {SERVER: ("-p", "-a"), REPLICA: ("-p", "-w")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a container was started with, as far as the first run cares.

    What it holds is not shown by ``repr``: there are passwords in it.

    Attributes:
        arguments: The container's arguments, without the word that only we understand.
        environment: The variables of :data:`VARIABLES` that are set and not empty.
        hold: Stay for debugging when something fails.
        leave: End the container once what there was to do is done: "" for no, :data:`LEAVE`, or
            :data:`ALWAYS`, also where there was nothing.
    """

    arguments: tuple[str, ...] = field(default=(), repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    hold: bool = False
    leave: str = ""

    def secrets(self) -> tuple[str, ...]:
        """Return the secrets in it, as far as they are known before anything is read."""
        words = list(self.arguments)
        with contextlib.suppress(UsageError):
            # What is wrong with them is said when they are used.
            words += split_words(self.environment.get("IPA_SERVER_INSTALL_OPTS", ""), where="")
        short = {option for options in SHORT_SECRETS.values() for option in options}
        return secrets_of(words, self.environment, sorted(short))

    def dump(self) -> bytes:
        """Return it as bytes; there are passwords in them."""
        return json.dumps(
            {
                "arguments": self.arguments,
                "environment": dict(self.environment),
                "hold": self.hold,
                "leave": self.leave,
            }
        ).encode("ascii")

    @classmethod
    def load(cls, data: bytes) -> Request:
        """Return the request in *data*.

        Raises:
            UsageError: If it is not what :meth:`dump` made; says nothing of its content.
        """
        try:
            value = json.loads(data)
            arguments = value["arguments"]
            environment = value["environment"]
            hold = value["hold"]
            leave = value["leave"]
            if (
                isinstance(arguments, list)
                and all(isinstance(word, str) for word in arguments)
                and isinstance(environment, dict)
                and all(name in VARIABLES for name in environment)
                and all(isinstance(text, str) for text in environment.values())
                and isinstance(hold, bool)
                and leave in ("", LEAVE, ALWAYS)
            ):
                return cls(
                    arguments=tuple(arguments), environment=environment, hold=hold, leave=leave
                )
        except (ValueError, KeyError, TypeError, RecursionError):
            # Its text would show what it holds.
            pass
        raise UsageError(
            "what the container's start left for the first run was altered",
            hint="Start the container again.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRunCommand:
    """A command of the first run.

    Attributes:
        words: The command and its arguments; passwords are among them.
        secrets: Those that are known.
        answers: It hands over the answer that a waiting first run waits for.
        host: Name of the server that is asked for, or "": the container's own.
    """

    words: tuple[str, ...] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    answers: bool
    host: str

    @property
    def name(self) -> str:
        """Base name of the command, which may be shown."""
        return self.words[0].rpartition("/")[2]


def base_name(path: str) -> str:
    """Return the last component of *path*."""
    return path.rpartition("/")[2]


# -- what comes in -----------------------------------------------------------------------


def redactor() -> Redactor:
    """Return what takes out secrets that the environment gives, for other commands than a start.

    Whether what is given makes sense is no matter of theirs.
    """
    return Redactor(Request(environment=_known(os.environ)).secrets())


def _known(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in VARIABLES if environment.get(name)}


def make_request(arguments: Sequence[str], environment: Mapping[str, str]) -> Request:
    """Return what the container was started with.

    Args:
        arguments: Its arguments, where they are for the first run.
        environment: Its whole environment.

    Raises:
        UsageError: If a secret is given twice.
    """
    known = _known(environment)
    for name in SECRETS:
        if name in known and f"{name}_FILE" in known:
            raise UsageError(
                f"both {name} and {name}_FILE are set",
                hint="Set one of the two.",
            )
    words = tuple(arguments)
    first = words[0] if words else ""
    return Request(
        arguments=words[1:] if first in (HOLD, LEAVE, ALWAYS) else words,
        environment=known,
        hold=first == HOLD or "DEBUG_NO_EXIT" in known,
        leave=first if first in (LEAVE, ALWAYS) else "",
    )


def split_words(text: str, *, where: str) -> list[str]:
    """Split text into words as ``xargs`` does, which read these options before.

    Blanks and newlines part words; quotes of both kinds keep what is in them as it is, a
    backslash before a quote included, and end on the line on which they begin; outside of
    them a backslash keeps the next character. There are no comments. Unlike for ``xargs``, a
    line may end with CR LF.

    Raises:
        UsageError: If a quote is not closed, or nothing follows a backslash; names *where*
            and the line, and shows nothing of the text.
    """
    text = text.replace("\r\n", "\n")
    words: list[str] = []
    pieces: list[str] = []
    at = 0
    pattern = re.compile(_PIECE, re.DOTALL | re.VERBOSE)
    while at < len(text):
        piece = pattern.match(text, at)
        if piece is None:
            fault = f"a quote ({text[at]}) is not closed"
            if text[at] == "\\":
                fault = "nothing follows the backslash"
            line = text.count("\n", 0, at) + 1
            raise UsageError(
                f"{where}, line {line}: {fault}",
                hint="Put quotes around each whole option, and a backslash before a quote in it.",
            )
        if piece.lastindex is not None:
            pieces.append(piece[piece.lastindex])
        elif pieces:
            words.append("".join(pieces))
            pieces = []
        at = piece.end()
    if "\0" in text:
        raise UsageError(f"{where} holds a NUL character", hint="Write it as plain text.")
    return [*words, "".join(pieces)] if pieces else words


# -- what goes out -----------------------------------------------------------------------


def options_in(name: str, mount: str, read: Callable[[str], bytes | None]) -> list[str]:
    """Return the words of the options file *name* below *mount*; none where there is no file."""
    data = read(name)
    return split_words(fsdecode(data or b""), where=f"{mount}/{name}")


def is_given(words: Sequence[str], long: str, short: str) -> bool:
    """Tell whether an option is among *words*, by its long or its short name."""
    return any(
        word == long
        or word.startswith(f"{long}=")
        or (word.startswith(short) and not word.startswith("--"))
        for word in words
    )


def value_of(words: Sequence[str], option: str) -> str:
    """Return the last value of an option, or ""."""
    found = ""
    for word, following in zip(words, (*words[1:], ""), strict=False):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def secrets_of(
    words: Sequence[str], environment: Mapping[str, str], short: Sequence[str]
) -> tuple[str, ...]:
    """Return every value on the command line that is a secret, and the password."""
    found = {environment.get("PASSWORD", "")}
    for word, following in zip(words, (*words[1:], ""), strict=False):
        name, assigned, value = word.partition("=")
        head, rest = word[:2], word[2:]
        if name.startswith("--") and any(part in name.lower() for part in _SECRET_WORDS):
            found.add(value if assigned else following)
        elif head in short:
            found |= {rest or following, rest.removeprefix("=")}
    return tuple(sorted(found - {""}))
