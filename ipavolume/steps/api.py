"""What an upgrade step is made of: its declarations, and what it may return.

A step is a file ``sNNNN_what_it_does.py``. It reads through the views that it is given and
returns what is to be done; it does nothing itself, so that a dry run can show it. Done twice
is done once: on a volume where it is done it returns nothing.

Paths are those of the application (``/etc/sssd/sssd.conf``); where such a path is on the
volumes is not the step's concern. A path below a mount (``/data/hostname``) is taken as it is.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Callable, Iterable
from dataclasses import field
from typing import Protocol

from ipavolume.model.progress import count_text
from ipavolume.model.tasks import Phase
from ipavolume.model.values import dataclass

DEFAULT_TIMEOUT_S = 600
"""Seconds that a command may take when its step says nothing else."""


class When(enum.StrEnum):
    """At which runs a step is asked."""

    UPGRADE = "upgrade"
    POPULATE = "populate"
    START = "start"
    """At every start, once the volume is current: outside of any transaction."""


class View(Protocol):
    """A read-only view of a tree by the application's paths; nothing is followed.

    Of the volumes it shows what they hold once the files of the image are in place, so that
    a step sees the same in a dry run and when its turn comes. Of the image it shows the
    templates where the lists cover a path, and everywhere else the image itself, so that a
    step can find out whether a program or library is in it.
    """

    def read(self, path: str) -> bytes | None:
        """Return the content of a regular file, or ``None`` when there is none.

        Raises:
            IpaVolumeError: If it cannot be read, or is larger than any configuration file.
        """

    def kind(self, path: str) -> str | None:
        """Return ``file``, ``directory``, ``symlink``, ``fifo``, ``other``, or ``None``."""

    def readlink(self, path: str) -> str | None:
        """Return the target of a symbolic link, or ``None`` when there is none."""

    def list(self, path: str) -> tuple[str, ...]:
        """Return the names in a directory, sorted; none when it is none."""

    def glob(self, pattern: str) -> tuple[str, ...]:
        """Return the paths that match, sorted; ``*``, ``?`` and ``[`` match within a name."""

    def size(self, path: str) -> int:
        """Return the bytes of what is at *path* and below it, nothing followed."""

    def free(self, path: str) -> int:
        """Return the bytes that are free on the file system of *path*; 0 where unknown."""

    def covers(self, path: str) -> bool:
        """Tell whether *path* is kept on the volumes, as the lists of the image say.

        What is not, no step can change.
        """

    def package(self, name: str) -> str | None:
        """Return ``epoch:version-release`` of a package by its name or what it provides.

        On the volumes' view it is the recorded one, before this upgrade; on the template's,
        the image's. ``None`` when it is not there or not known.
        """

    @property
    def os(self) -> tuple[str, str]:
        """``ID`` and ``VERSION_ID`` of the release: the recorded one, or the image's."""


class RollbackView(View, Protocol):
    """The volumes before a rollback: as they are, and what of them comes back."""

    def before(self, path: str) -> bytes | None:
        """Return the content that a regular file has in the snapshot, or ``None``.

        Raises:
            IpaVolumeError: As ``read`` does.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Put a file with this content; its owner, mode and ACL stay where there is one.

    Attributes:
        path: The file; its directory has to be there.
        content: All of it.
        reason: Why, in an administrator's words.
        mode: Permission bits of a new file.
        keep_copy: Keep what is replaced in the volume's ``saved`` directory; not wanted where
            nobody may have it back.
    """

    path: str
    content: bytes
    reason: str
    mode: int = 0o644
    keep_copy: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Remove a file, a link or an empty directory.

    Attributes:
        path: What.
        reason: Why, in an administrator's words.
        keep_copy: Keep a file in the volume's ``saved`` directory; not wanted for a cache.
    """

    path: str
    reason: str
    keep_copy: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeLink:
    """Make a symbolic link; a link that is there with another target is replaced.

    Attributes:
        path: Where.
        target: Where it leads.
        reason: Why, in an administrator's words.
    """

    path: str
    target: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Run a command of the image; it runs at least once.

    Attributes:
        words: The command, by its path or its name, and its arguments; no shell is involved.
        reason: Why, in an administrator's words.
        timeout_s: Seconds that it may take.
        may_fail: A failure is a warning and the run goes on.
        repeat: When its step was interrupted, run it again although it had ended well: what
            it does is gone with the container, or was half of something.
    """

    words: tuple[str, ...]
    reason: str
    timeout_s: int = DEFAULT_TIMEOUT_S
    may_fail: bool = False
    repeat: bool = False

    def __post_init__(self) -> None:
        """Take a list of words for the tuple that is meant."""
        words: object = self.words
        if isinstance(words, list):
            object.__setattr__(self, "words", tuple(words))


@dataclass(frozen=True, slots=True, kw_only=True)
class Warn:
    """Tell the administrator something and go on.

    Attributes:
        code: Stable word for scripts.
        text: What.
        hint: What to do, or "".
    """

    code: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Refuse the upgrade, or the rollback, before its first write.

    Attributes:
        code: Stable word; the operator overrides the refusal by it.
        text: What was found.
        hint: The way out.
    """

    code: str
    text: str
    hint: str


StepAction = Write | Remove | MakeLink | Command | Warn | Refuse

PlanFunction = Callable[[View, View], Iterable[StepAction]]
VerifyFunction = Callable[[View], Iterable[Command]]
GoingBackFunction = Callable[[RollbackView], Iterable[Warn | Refuse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What is known of a step without running a line of it.

    Attributes:
        name: Name of the file without ``.py``, such as ``s0300_drop_sssd_caches``.
        source: Path of the file in the image.
        digest: SHA-256 of the file.
        summary: First line of its docstring.
        component: Package whose recorded version decides; "" never: it is always named.
        applies_from: Range of that version; "" is every version.
        when: At which runs it is asked, at least one.
        phase: When its turn comes.
        is_optional: The image need not have that package: it was written ``?name``.
        verifies: It has a ``verify`` function.
        judges_going_back: It has a ``going_back`` function.
        replaces: Path of the shipped step that it replaces, or "".
        masked: It is masked by a link to ``/dev/null``.
    """

    name: str
    source: str
    digest: str
    summary: str
    component: str
    applies_from: str
    when: tuple[When, ...]
    phase: Phase
    is_optional: bool = False
    verifies: bool = False
    judges_going_back: bool = False
    replaces: str = ""
    masked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step whose functions can be called.

    Attributes:
        declaration: What it says of itself.
        plan: Returns what is to be done.
        verify: Returns commands for after the application has started, or ``None``.
        going_back: Returns what is against undoing what it did, or ``None``.
    """

    declaration: Declaration
    plan: PlanFunction
    verify: VerifyFunction | None = field(default=None)
    going_back: GoingBackFunction | None = field(default=None)


def told(warning: Warn) -> str:
    """Return what is said of a warning: its text, and what is to be done."""
    return f"{warning.text}. {warning.hint}" if warning.hint else warning.text


def in_a_line(words: Iterable[str]) -> str:
    """Return a command as it is shown: of a script among its words the first line that has text."""
    shown = []
    for word in words:
        lines = word.strip().splitlines()
        shown.append(f"{lines[0]} ..." if len(lines) > 1 else word)
    return shlex.join(shown)


def describe(action: StepAction) -> str:
    """Return the line that a dry run prints for what a step wants done."""
    match action:
        case Write(path=path, content=content, reason=reason):
            return f"write {path}, {count_text(len(content), 'byte')} ({reason})"
        case Remove(path=path, reason=reason):
            return f"remove {path} ({reason})"
        case MakeLink(path=path, target=target, reason=reason):
            return f"link {path} -> {target} ({reason})"
        case Command(words=words, reason=reason):
            return f"run {in_a_line(words)} ({reason})"
        case Warn(text=text):
            return f"warn: {text}"
        case Refuse(text=text):
            return f"refuse: {text}"
