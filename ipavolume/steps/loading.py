"""Executing a step's file and asking it for its plan: in the image's own container only."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import sys
import traceback
import types
from collections.abc import Iterable
from typing import Final, TypeVar, get_args

from ipavolume.errors import ConfigurationError, IpaVolumeError, VolumeIOError
from ipavolume.image.tree import ImageTree
from ipavolume.linux.timer import TimeUpError, limited
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.paths import OWN_STEPS
from ipavolume.model.redaction import encodable
from ipavolume.model.tasks import MAX_TIMEOUT_S, Phase
from ipavolume.steps.api import (
    Command,
    Declaration,
    MakeLink,
    Refuse,
    Remove,
    RollbackView,
    Step,
    StepAction,
    View,
    Warn,
    Write,
)
from ipavolume.steps.declaration import HINT, MASK, FaultyError, read_step

MAX_CONTENT_BYTES: Final = 16 << 20
"""What a step may write into one file, and read from one (see :mod:`ipavolume.steps.views`)."""
_MAX_ACTIONS: Final = 100_000
_CODE: Final = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_PLANNED: Final = get_args(StepAction)
_Allowed = TypeVar(
    "_Allowed",
    Write | Remove | MakeLink | Command | Warn | Refuse,
    Command | Warn,
    Command,
    Warn | Refuse,
)


PLAN_LIMIT_S: Final = 300.0
"""Seconds that a function of a step may take; it only reads."""


def load_step(tree: ImageTree, declaration: Declaration, *, limit_s: float = PLAN_LIMIT_S) -> Step:
    """Execute the text of a step and return its functions.

    Only inside the container, where all that can be executed is the image's anyhow. What
    the functions return is checked before anybody gets to see it.

    Args:
        tree: The image.
        declaration: The step, as :func:`ipavolume.steps.declaration.find_steps` gave it.
        limit_s: Seconds that one of its functions may take.

    Raises:
        ConfigurationError: If its text is no longer that of the declaration, or if it
            cannot be executed. The functions raise it for every exception in them, for
            everything wrong that they return, and when their time is up, with the name of the
            step and the line.
        VolumeIOError: If it cannot be read.
    """
    path = declaration.source
    data = _read_again(tree, path)
    if hashlib.sha256(data).hexdigest() != declaration.digest:
        raise broken(path, 1, "is not the text that the image was prepared with or planned on")
    module = types.ModuleType(f"ipavolume_upgrade_step.{declaration.name}")
    module.__file__ = path
    # Where dataclasses look up the names in annotations.
    sys.modules[module.__name__] = module
    try:
        with limited(limit_s):
            exec(compile(data, path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - that is what a step is for; see above
    except (Exception, SystemExit, TimeUpError) as err:
        raise _raised(path, err, limit_s) from err
    plan, verify, going_back = (
        module.__dict__.get(name) for name in ("plan", "verify", "going_back")
    )
    for function in (plan, verify, going_back):
        if function is not None and not isinstance(function, types.FunctionType):
            raise broken(path, 1, "gives another value to the name of its function")

    def checked_plan(volume: View, template: View) -> tuple[StepAction, ...]:
        assert plan is not None
        views = (volume, template)
        if declaration.phase is Phase.RUNNING:
            # The files are the application's now, and a run is not to be refused by then.
            return _called(path, plan, views, (Command, Warn), limit_s)
        return _called(path, plan, views, _PLANNED, limit_s)

    def checked_verify(volume: View) -> tuple[Command, ...]:
        assert verify is not None
        return _called(path, verify, (volume,), (Command,), limit_s)

    def checked_going_back(volume: RollbackView) -> tuple[Warn | Refuse, ...]:
        assert going_back is not None
        return _called(path, going_back, (volume,), (Warn, Refuse), limit_s)

    return Step(
        declaration=declaration,
        plan=checked_plan,
        verify=checked_verify if verify is not None else None,
        going_back=checked_going_back if going_back is not None else None,
    )


def _read_again(tree: ImageTree, path: str) -> bytes:
    directory, _, name = path.rpartition("/")
    try:
        fd = tree.open_directory(tree.resolve(directory))
        try:
            return read_step(tree, fd, name)
        finally:
            os.close(fd)
    except FaultyError as err:
        raise ConfigurationError(f"{path}{err.faults[0]}", hint=HINT, path=path) from err
    except OSError as err:
        raise VolumeIOError(
            f"cannot read the step {path!r}: {err.strerror}", path=path, hint=HINT
        ) from err


def _called(
    path: str,
    function: types.FunctionType,
    views: tuple[View, ...],
    allowed: tuple[type[_Allowed], ...],
    limit_s: float,
) -> tuple[_Allowed, ...]:
    """Call a function of a step and return the actions that it returns, checked."""
    name, line = function.__name__, function.__code__.co_firstlineno
    try:
        with limited(limit_s):
            returned = function(*views)
            actions: tuple[object, ...] | None = None
            if not isinstance(returned, str | bytes) and isinstance(returned, Iterable):
                actions = tuple(itertools.islice(returned, _MAX_ACTIONS + 1))
    except IpaVolumeError:
        raise
    except (Exception, SystemExit, TimeUpError) as err:
        raise _raised(path, err, limit_s) from err
    if actions is None:
        what = type(returned).__name__
        raise broken(path, line, f"{name}() returned {what}, not a sequence of actions")
    if len(actions) > _MAX_ACTIONS:
        raise broken(path, line, f"{name}() returned more than {_MAX_ACTIONS} actions")
    faults = [
        f"{name}() returned {type(action).__name__} as action {number}, which is none for it"
        if not isinstance(action, allowed)
        else f"{name}() returned as action {number} {type(action).__name__}, {fault}"
        for number, action in enumerate(actions, 1)
        if not isinstance(action, allowed) or (fault := _action_fault(action))
    ]
    if faults:
        raise broken(path, line, "; ".join(faults[:10]))
    return tuple(action for action in actions if isinstance(action, allowed))


def _raised(path: str, err: BaseException, limit_s: float) -> ConfigurationError:
    line = 1
    for frame, number in traceback.walk_tb(err.__traceback__):
        if frame.f_code.co_filename == path:
            line = number
    if isinstance(err, SyntaxError) and err.filename == path:
        line = err.lineno or line
    if isinstance(err, TimeUpError):
        return broken(path, line, f"took longer than {limit_s:g} s and was ended here")
    return broken(path, line, f"raised {type(err).__name__}: {err}")


def broken(path: str, line: int, what: str) -> ConfigurationError:
    """Return the error that names what is wrong with the step at *path*; line 0: with all of it."""
    where = f"{path}:{line}" if line else path
    return ConfigurationError(
        f"the upgrade step {where}: {what}",
        code="broken-step",
        hint="Correct it in the image, or mask it: "
        f"ln -s {MASK} {OWN_STEPS}/{path.rpartition('/')[2]}",
        path=path,
    )


def _action_fault(action: StepAction) -> str:
    """Say what is wrong with what a step returned; "" when nothing is."""
    match action:
        case Write(path=path, content=content, reason=reason, mode=mode):
            return (
                path_fault(path)
                or _content_fault(content)
                or _mode_fault(mode)
                or _text_fault("reason", reason)
                or _keep_fault(action)
            )
        case Remove(path=path, reason=reason):
            return path_fault(path) or _text_fault("reason", reason) or _keep_fault(action)
        case MakeLink(path=path, target=target, reason=reason):
            odd = "" if _is_encodable(target) else f"target {target!r} is in no encoding"
            return (
                path_fault(path)
                or _text_fault("target", target)
                or odd
                or _text_fault("reason", reason)
            )
        case Command(reason=reason):
            return _text_fault("reason", reason) or _command_fault(action)
        case Warn(code=code, text=text, hint=hint):
            hinted = "" if hint == "" else _text_fault("hint", hint)
            return _code_fault(code) or _text_fault("text", text) or hinted
        case Refuse(code=code, text=text, hint=hint):
            return _code_fault(code) or _text_fault("text", text) or _text_fault("hint", hint)


def path_fault(path: object) -> str:
    """Say why *path* cannot be changed by a step; "" when it can."""
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        return f"path {path!r} is not an absolute path"
    if not _is_encodable(path):
        return f"path {path!r} is in no encoding"
    parts = path.split("/")[1:]
    if any(part in ("", ".", "..") for part in parts):
        return f"path {path!r} is not written plainly: no '..', no '//', no '/' at the end"
    if STATE_DIRECTORY in parts:
        return f"path {path!r} lies in ipavolume's own directory"
    return ""


def _is_encodable(value: object) -> bool:
    """Tell whether a text can be a file name or a word of a command."""
    return not isinstance(value, str) or encodable(value) == value


def _text_fault(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return f"{name} {value!r} is not a text"
    return ""


def _code_fault(code: object) -> str:
    if not isinstance(code, str) or not re.fullmatch(_CODE, code):
        return f"code {code!r} is not a word such as no-backend"
    return ""


def _content_fault(content: object) -> str:
    if not isinstance(content, bytes):
        return "content is not bytes"
    if len(content) > MAX_CONTENT_BYTES:
        return f"content is larger than {MAX_CONTENT_BYTES} bytes"
    return ""


def _mode_fault(mode: object) -> str:
    if not isinstance(mode, int) or isinstance(mode, bool) or mode & ~0o777:
        return f"mode {mode!r} is no permission bits"
    return ""


def _keep_fault(action: Write | Remove) -> str:
    # A step is no typed code, and what it gives may be no truth value.
    keep: object = action.keep_copy
    return "" if isinstance(keep, bool) else "keep_copy is neither True nor False"


def _command_fault(command: Command) -> str:
    # A step is no typed code: it may have put anything there.
    words: object = command.words
    timeout_s: object = command.timeout_s
    if not isinstance(words, tuple) or not words:
        return f"words {words!r} are not a tuple of words"
    if (
        any(not isinstance(word, str) or "\0" in word for word in words)
        or not words[0]
        or not all(map(_is_encodable, words))
    ):
        return f"words {words!r} are not words of a command"
    if type(timeout_s) is not int or not 1 <= timeout_s <= MAX_TIMEOUT_S:
        return f"timeout_s {timeout_s!r} is not a number of seconds"
    flags: tuple[tuple[str, object], ...] = (
        ("may_fail", command.may_fail),
        ("repeat", command.repeat),
    )
    for name, flag in flags:
        if not isinstance(flag, bool):
            return f"{name} is neither True nor False"
    return ""
