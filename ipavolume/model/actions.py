"""The closed set of things a run can do to a volume, as data.

A plan is a header and a sequence of actions in the order in which they are carried out.
Whoever handles actions matches all of them; a new one is then found by the type checker.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

from ipavolume.model.files import DiskState, Metadata
from ipavolume.model.progress import count_text
from ipavolume.model.tasks import Task
from ipavolume.model.values import dataclass

ROLLBACK: Final = "rollback"
"""The kind of a run that goes back to a snapshot."""


class Rule(enum.StrEnum):
    """Why something is done: rpm's table, or the difference from rpm that applies."""

    CREATE = "create"
    RPM = "rpm"
    METADATA = "metadata-merge"
    ACL_DROPPED = "acl-dropped"
    COPIES = "numbered-copies"
    DATA_KEPT = "data-kept"
    LIST_LOST = "list-lost"
    TYPE_CHANGE = "type-change"
    UNOWNED = "unowned"
    LEFT = "left"
    REFILLED = "refilled"
    UNIT_LINK = "unit-link"
    REFRESH = "refresh"
    OWNER_TRANSLATION = "owner-translation"
    RELOCATED = "relocated-directory"
    RELOCATED_OUTSIDE = "relocated-outside"
    PACKAGE_UNCHANGED = "package-unchanged"
    UNKNOWN_OLD = "unknown-old"
    MOUNTED_OVER = "mounted-over"
    ROLLBACK = "rollback"


DELETED_HERE: Final = "deleted here; the image has it"
"""Why what somebody deleted on the volume is put back."""


class IfEdited(enum.StrEnum):
    """What becomes of what somebody writes at a path when the plan for it is made already.

    A run may be killed between the two, and the next start goes on with its plan; what was
    written then gets what it would have got before.
    """

    SAVED = "saved"
    """It goes to the run's directory of saved files."""
    RPMSAVE = "rpmsave"
    """It goes beside, with that suffix."""
    RPMORIG = "rpmorig"
    """Likewise."""
    RPMNEW = "rpmnew"
    """It stays, and the image's goes beside with that suffix."""
    KEPT = "kept"
    """It stays, and the image's is not put anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTree:
    """Put a directory that is not there, with all the image has below it.

    Attributes:
        path: The directory.
        entries: Number of paths, the directory itself included.
        bytes: Sum of the sizes.
        omit: Paths below it that are not created.
        rule: Name of the rule that decided.
        reason: Why, in an administrator's words; "" where nobody has had it.
    """

    path: str
    entries: int
    bytes: int
    omit: tuple[str, ...] = ()
    rule: str = Rule.CREATE
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
    """Put the image's file, link, FIFO or single directory at a path.

    Attributes:
        path: Where it goes: the path of the record, or that with ``.rpmnew``.
        record: Path of the manifest's record.
        metadata: What it gets.
        bytes: Size of the content.
        before: What is there, or ``None``.
        save_to: Name that what is there gets as well before it is replaced, or "".
        if_edited: What becomes of what is there if it is not *before*.
        rule: Name of the rule that decided.
        reason: Why, in an administrator's words.
    """

    path: str
    record: str
    metadata: Metadata
    bytes: int
    before: DiskState | None
    save_to: str = ""
    if_edited: IfEdited = IfEdited.SAVED
    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Move what is at a path to another name; nothing takes its place here.

    Attributes:
        path: Where it is.
        to: Where it goes.
        before: What is there.
        rule: Name of the rule that decided.
        reason: Why, in an administrator's words.
    """

    path: str
    to: str
    before: DiskState
    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Erase:
    """Remove a file, link or FIFO that is as it was shipped.

    Attributes:
        path: Where it is.
        before: What is there.
        if_edited: What becomes of what is there if it is not *before*.
        rule: Name of the rule that decided.
        reason: Why, in an administrator's words.
    """

    path: str
    before: DiskState
    if_edited: IfEdited = IfEdited.SAVED
    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveDirectory:
    """Remove a directory if it is empty when its turn comes.

    Attributes:
        path: Where it is.
        required: Something else is to take its place: when it is not empty, it is saved.
        rule: Name of the rule that decided.
        reason: Why, in an administrator's words.
    """

    path: str
    required: bool
    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMetadata:
    """Give what is at a path another owner, mode or ACL; its content stays.

    Attributes:
        path: Where it is.
        before: What is there.
        metadata: What it gets.
        private: The inode has names that the plan does not know: change a copy of it.
        content: SHA-256 the file must have to be given set-id bits or capabilities, or "".
        rule: Name of the rule that decided.
        reason: Why, in an administrator's words.
    """

    path: str
    before: DiskState
    metadata: Metadata
    private: bool = False
    content: str = ""
    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Leave what is at a path; said because an administrator wants to know.

    Attributes:
        path: Where it is.
        rule: Name of the rule that decided.
        reason: Why, in an administrator's words.
    """

    path: str
    rule: str
    reason: str


Action = CreateTree | Install | Save | Erase | RemoveDirectory | SetMetadata | Keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do.

    Attributes:
        run: Id of the run.
        kind: ``populate``, ``upgrade``, ``adopt``, ``rebuilt`` or :data:`ROLLBACK`.
        from_build: Recorded id of the volume, or "".
        to_build: Id of the image.
        fingerprint: Fingerprint of the image.
        actions: What is done to files, in this order.
        tasks: What is executed once the files are in place, in this order.
        overrides: Refusals that were overridden, by code.
    """

    run: str
    kind: str
    from_build: str
    to_build: str
    fingerprint: str
    actions: Sequence[Action] = ()
    tasks: tuple[Task, ...] = ()
    overrides: tuple[str, ...] = ()


class Verb(enum.StrEnum):
    """The words by which people and scripts know actions, in the order of a summary."""

    CREATE = "create"
    REPLACE = "replace"
    RPMNEW = "rpmnew"
    SAVE = "save"
    ERASE = "erase"
    RMDIR = "rmdir"
    METADATA = "metadata"
    ACL = "acl"
    KEEP = "keep"
    LEFT = "left"


def verb(action: Action) -> Verb:
    """Return the word for an action."""
    match action:
        case CreateTree():
            return Verb.CREATE
        case Install(path=path, record=record, before=before):
            if path != record:
                return Verb.RPMNEW
            return Verb.CREATE if before is None else Verb.REPLACE
        case Save():
            return Verb.SAVE
        case Erase():
            return Verb.ERASE
        case RemoveDirectory():
            return Verb.RMDIR
        case SetMetadata():
            return Verb.METADATA
        case Keep(rule=Rule.REFILLED):
            return Verb.CREATE
        case Keep(rule=Rule.UNOWNED | Rule.LEFT):
            return Verb.LEFT
        case Keep(rule=Rule.ACL_DROPPED):
            return Verb.ACL
        case Keep():
            return Verb.KEEP


def past(word: Verb, number: int) -> str:
    """Return how a summary counts a *number* of actions: "3 ..."."""
    is_one = number == 1
    match word:
        case Verb.CREATE:
            return "created"
        case Verb.REPLACE:
            return "replaced"
        case Verb.RPMNEW:
            return "put beside the edited file as .rpmnew"
        case Verb.SAVE:
            return "moved to another name"
        case Verb.ERASE:
            return "removed, no longer shipped"
        case Verb.RMDIR:
            return f"{'directory' if is_one else 'directories'} removed if empty"
        case Verb.METADATA:
            return "given another owner, mode or ACL"
        case Verb.ACL:
            return f"{'ACL' if is_one else 'ACLs'} dropped that had been set here"
        case Verb.KEEP:
            return f"kept as {'it is' if is_one else 'they are'}"
        case Verb.LEFT:
            what = "it, and the image has another" if is_one else "them, and the image has others"
            return f"left: no package owns {what} or none"


def describe(action: Action) -> str:
    """Return the line that a dry run prints for *action*, without the verb."""
    match action:
        case CreateTree(path=path, entries=entries, bytes=size, reason=reason):
            more = f" and {entries - 1} below it, {count_text(size, 'byte')}" * (entries > 1)
            return f"{path}/{more}" + (f" ({reason})" if reason else "")
        case Install(path=path, reason=reason, save_to=save_to):
            saved = f"; the old one stays as {save_to}" if save_to else ""
            return f"{path} ({reason}{saved})"
        case Save(path=path, to=to, reason=reason):
            return f"{path} as {to} ({reason})"
        case SetMetadata(path=path, metadata=new, before=old, reason=reason):
            was = f"{old.uid}:{old.gid} {old.mode:04o}"
            return f"{path} {was} -> {new.uid}:{new.gid} {new.mode:04o} ({reason})"
        case Erase(path=path, reason=reason) | RemoveDirectory(path=path, reason=reason):
            return f"{path} ({reason})"
        case Keep(path=path, reason=reason):
            return f"{path} ({reason})"
