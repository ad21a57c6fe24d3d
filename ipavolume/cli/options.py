"""Options that several commands have, made into what the commands are called with."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from ipavolume.config.model import ROLLBACK_WORDS, SNAPSHOT_WORDS
from ipavolume.context import EXISTING, OVERRIDES, Options, parse_volume_options
from ipavolume.errors import UsageError

_F = TypeVar("_F", bound=Callable[..., Any])
_UUID: Final = "(?ai)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def root(function: _F) -> _F:
    """Add ``--root``."""
    option = click.option(
        "--root", default="/", metavar="DIR", help="The image tree.", show_default=True
    )
    return option(function)


def located(function: _F) -> _F:
    """Add ``--root`` and ``--volume``."""
    option = click.option(
        "--volume",
        "volumes",
        multiple=True,
        metavar="[MOUNT=]DIR",
        help="Where a volume is, when not at its mount below the root.",
    )
    return root(option(function))


def volume_name(function: _F) -> _F:
    """Add ``--volume-name``, with ``--engine``."""
    option = click.option(
        "--volume-name",
        "names",
        multiple=True,
        metavar="[MOUNT=]NAME",
        help="A named volume of docker or podman, in the place of its directory.",
    )
    return engine(option(function))


def as_json(function: _F) -> _F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(
        function
    )


def form(help_: str) -> Callable[[_F], _F]:
    """Return what adds ``--format``, with ``--json`` for that of JSON.

    Args:
        help_: What there is to know of it.
    """

    def add(function: _F) -> _F:
        @functools.wraps(function)
        def command(*, form: str | None, **others: object) -> object:
            is_json = others.pop("as_json")
            if is_json and form not in (None, "json"):
                raise UsageError(f"--json and --format {form} exclude each other")
            return function(form="json" if is_json else form or "table", **others)

        option = click.option(
            "--format",
            "form",
            type=click.Choice(("table", "json", "metrics")),
            help=f"{help_}  [default: table]",
        )
        return as_json(option(command))  # type: ignore[return-value] # as below

    return add


def diff(function: _F) -> _F:
    """Add ``--diff`` to a command that shows what would be done."""
    return click.option(
        "--diff", is_flag=True, help="Show what is there against what would be, of each file."
    )(function)


def verbose(function: _F) -> _F:
    """Add ``-v``."""
    return click.option("-v", "--verbose", is_flag=True, help="Say more.")(function)


def quiet(function: _F) -> _F:
    """Add ``-q``."""
    return click.option("-q", "--quiet", "silent", is_flag=True, help="Only results and errors.")(
        function
    )


def on_failure(function: _F) -> _F:
    """Add ``--on-failure``."""
    return click.option(
        "--on-failure",
        type=click.Choice(("exit", "hold")),
        envvar="IPAVOLUME_ON_FAILURE",
        show_envvar=True,
        default="exit",
        show_default=True,
        help="When it fails: end the container, or keep it for a look around.",
    )(function)


def engine(function: _F) -> _F:
    """Add ``--engine``."""
    return click.option(
        "--engine",
        type=click.Choice(("docker", "podman")),
        envvar="IPAVOLUME_ENGINE",
        show_envvar=True,
        default=None,
        help="The container engine.  [default: the first that has what is asked for]",
    )(function)


def lock_timeout(function: _F) -> _F:
    """Add ``--lock-timeout``."""
    return click.option(
        "--lock-timeout",
        envvar="IPAVOLUME_LOCK_TIMEOUT",
        show_envvar=True,
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="SECONDS",
        help="Wait so long for another container or command.",
    )(function)


def located_options(function: _F) -> _F:
    """Add ``--root`` and ``--volume``; the command is called with ``options`` instead."""

    @functools.wraps(function)
    def command(*, root: str, volumes: Sequence[str], **others: object) -> object:
        return function(options=Options(root=root, volumes=places(volumes)), **others)

    return located(command)  # type: ignore[return-value] # click looks at the options alone


def deciding(function: _F) -> _F:
    """Add what commands have that decide on an upgrade of volumes that are somewhere.

    They are called with ``options``.
    """

    @functools.wraps(function)
    def command(*, root: str, volumes: Sequence[str], options: Options, **others: object) -> object:
        options = replace(options, root=root, volumes=places(volumes))
        return function(options=options, **others)

    return located(deciding_without_places(command))  # type: ignore[return-value] # as above


def deciding_without_places(function: _F) -> _F:
    """Add what commands have that decide on an upgrade and take the lock.

    They are called with ``options``.
    """

    @functools.wraps(function)
    def command(*, options: Options, lock_timeout: float, **others: object) -> object:
        return function(options=replace(options, lock_timeout_s=lock_timeout), **others)

    return lock_timeout(judging(command))  # type: ignore[return-value] # as above


_ALLOW: Final = click.option(
    "--allow",
    multiple=True,
    envvar="IPAVOLUME_ALLOW",
    show_envvar=True,
    metavar="CODE",
    help="Override a refusal; recorded in the history. Several: once each; in the variable "
    "separated by commas or blanks. Codes: " + ", ".join(sorted(OVERRIDES)),
)


def allowing(function: _F) -> _F:
    """Add ``--allow`` to a command that takes the lock; it is called with ``options``."""

    @functools.wraps(function)
    def command(*, allow: Sequence[str], options: Options, **others: object) -> object:
        return function(options=replace(options, allow=codes(allow)), **others)

    return _ALLOW(command)  # type: ignore[return-value] # as above


def judging(function: _F) -> _F:
    """Add what commands have that judge volumes; they are called with ``options``."""

    @functools.wraps(function)
    def command(
        *,
        allow: Sequence[str],
        came_from: str,
        checksum: bool,
        **others: object,
    ) -> object:
        options = decided(allow=allow, came_from=came_from, checksum=checksum)
        return function(options=options, **others)

    decorated: Any = command
    for option in reversed(
        (
            _ALLOW,
            click.option(
                "--from",
                "came_from",
                envvar="IPAVOLUME_FROM",
                show_envvar=True,
                default="",
                metavar="ID:VERSION",
                help="The release that a volume of unknown origin comes from, as fedora:43.",
            ),
            click.option("--checksum", is_flag=True, help="Hash everything, trust no index."),
        )
    ):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return] # as above


def decided(
    *,
    allow: Sequence[str],
    came_from: str = "",
    checksum: bool = False,
) -> Options:
    """Return what the operator asks for, by the command line and by variables.

    Raises:
        UsageError: If something of it makes no sense.
    """
    if came_from and (":" not in came_from or came_from.startswith(":")):
        given = _given("--from", "came_from", "IPAVOLUME_FROM")
        raise UsageError(f"{given}{came_from!r}: write it as ID:VERSION, for example fedora:43")
    return Options(
        allow=codes(allow),
        came_from=came_from,
        checksum=checksum,
        expect=_expected(),
        consent=_choice("IPAVOLUME_UPGRADE", ("", "auto", "refuse")) != "refuse",
        retry_run=os.environ.get("IPAVOLUME_RETRY", ""),
        waits=_choice("IPAVOLUME_BACKOFF", ("", "wait", "exit")) != "exit",
        rehearsal=is_rehearsal(),
        rollback=_choice("IPAVOLUME_ROLLBACK", ("", *ROLLBACK_WORDS)),
        snapshot=_choice("IPAVOLUME_SNAPSHOT", ("", *SNAPSHOT_WORDS)),
    )


_PREFIX: Final = "IPAVOLUME_"
_VARIABLES: Final = (
    *("ALLOW", "BACKOFF", "ENGINE", "EXPECT", "FROM", "LOCK_TIMEOUT", "LOG_FORMAT", "ON_FAILURE"),
    *("REHEARSAL", "REHEARSAL_TIMEOUT", "RETRY", "ROLLBACK", "SNAPSHOT", "UPGRADE"),
)
_ALIKE: Final = 0.75
"""From here on ``difflib`` has the likes of a misspelling."""


def misspelt() -> Iterator[str]:
    """Yield what is to be said of each variable that is called nearly as one that is heeded.

    Of others nothing: Kubernetes has variables of every service, whatever that is called.
    """
    given = (name.removeprefix(_PREFIX) for name in os.environ if name.startswith(_PREFIX))
    for name in sorted(set(given).difference(_VARIABLES)):
        # Hardly ever needed.
        from difflib import get_close_matches

        for meant in get_close_matches(name, _VARIABLES, n=1, cutoff=_ALIKE):
            yield f"warning: {_PREFIX}{name} is not heeded; {_PREFIX}{meant} may be meant"


def is_rehearsal() -> bool:
    """Tell whether a start is a rehearsal, as its variable says.

    Raises:
        UsageError: If that makes no sense.
    """
    return _choice("IPAVOLUME_REHEARSAL", ("", "1")) == "1"


def places(volumes: Sequence[str]) -> dict[str, str]:
    """Return where each volume is, by mount, of ``[MOUNT=]DIR``.

    Raises:
        UsageError: If one is malformed, or two are for one mount.
    """
    return parse_volume_options(volumes)


def codes(allow: Sequence[str]) -> frozenset[str]:
    """Return the codes of the refusals that are overridden.

    Raises:
        UsageError: If there is no such refusal.
    """
    found = frozenset(code for item in allow for code in item.replace(",", " ").split())
    unknown = {code for code in found - set(OVERRIDES) if not _is_code_of_step(code)}
    if unknown:
        raise UsageError(
            f"{_given('--allow', 'allow', 'IPAVOLUME_ALLOW')}{sorted(unknown)[0]!r}: there is no "
            "such refusal",
            hint="Known: " + ", ".join(sorted(OVERRIDES)),
        )
    return found


def _given(option: str, parameter: str, variable: str) -> str:
    """Return how a value was given, in front of it: by an option or by its variable."""
    called = click.get_current_context(silent=True)
    source = called.get_parameter_source(parameter) if called is not None else None
    return f"{variable}=" if source is ParameterSource.ENVIRONMENT else f"{option} "


def _is_code_of_step(code: str) -> bool:
    """Tell whether *code* is written as the refusals of steps are: ``s0700:no-bdb``."""
    step, colon, word = code.partition(":")
    return bool(colon and word) and step[:1] == "s" and step[1:].isdigit()


def _expected() -> str:
    value = os.environ.get("IPAVOLUME_EXPECT", "")
    if re.fullmatch(_UUID, value):
        return value.lower()
    known = _choice("IPAVOLUME_EXPECT", ("", EXISTING, "any"), "the uuid of a volume")
    return "" if known == "any" else known


def _choice(name: str, known: tuple[str, ...], *more: str) -> str:
    value = os.environ.get(name, "")
    if value not in known:
        raise UsageError(
            f"{name}={value!r}: it can be " + " or ".join((*filter(None, known), *more))
        )
    return value
