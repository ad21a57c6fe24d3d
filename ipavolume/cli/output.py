"""What is printed, and where: results to standard output, the rest to standard error."""

from __future__ import annotations

import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from ipavolume import fastpath
from ipavolume.cli import advice, document, streams, text
from ipavolume.errors import IpaVolumeError, UsageError
from ipavolume.linux import clock
from ipavolume.model.actions import Verb, describe, verb
from ipavolume.model.packed import Packed, described
from ipavolume.model.progress import Printed, Tick, say_nothing
from ipavolume.model.tasks import tasks_text

# What a command needs is loaded with the command.
if TYPE_CHECKING:
    from ipavolume.commands.check import Inspection, Severity
    from ipavolume.commands.upgrade import Outcome
    from ipavolume.commands.work import Shown
    from ipavolume.plan.rehearsed import Rehearsed
    from ipavolume.prepare.findings import Finding


def fail(err: IpaVolumeError) -> NoReturn:
    """Print *err* and end with its status."""
    if not isinstance(err, streams.UnreadError):
        show_error(err)
    sys.exit(err.exit_status)


_DETAIL_LINES: Final = 10
_TAIL_BYTES: Final = 2048
"""What an orchestrator may keep of the log of a container that failed: Kubernetes'
``FallbackToLogsOnError``. Cause, state and hint are to be in it."""
_LABEL_BYTES: Final = len("ipavolume: error: \n")
_FIELDS_BYTES: Final = 200
"""What the fields of an error take in a log of objects, besides what they say."""
_LEAST_CHARACTERS: Final = 200


def show_error(
    err: IpaVolumeError,
    *,
    held: bool = False,
    again: bool = True,
    about: advice.About | None = None,
) -> None:
    """Print what failed, the last lines of the command that did, the state, and what to do.

    Args:
        err: What failed.
        held: The container stays up and keeps the lock.
        again: A command in it tries again what failed then.
        about: The volumes of which it is said, where there are several.
    """
    hint = advice.fit_here(err.hint, held=held, again=again, about=about)
    if hint and not isinstance(err, UsageError) and _is_explained(err.code):
        hint = f"{hint} (more: {advice.more_of(err.code)})"
    if fastpath.is_logged_as_json():
        state = {"state": err.state, "hint": hint}
        others = sum(map(len, map(document.dump_json, (str(err), *state.values())))) + _FIELDS_BYTES
        last = _last(err.details, room=_TAIL_BYTES - others)
        _log("error", str(err), code=err.code, lines=last, **state)
        return
    message = f"{err} [{err.code}]"
    labelled = (message, err.state, hint)
    others = sum(len(text.escape(one).encode()) + _LABEL_BYTES for one in labelled)
    _labelled("error", message, "red")
    for line in _last(err.details, room=_TAIL_BYTES - others):
        click.echo(f"ipavolume:   | {line}", err=True)
    _labelled("state", err.state, "blue")
    _labelled("hint", hint, "green")


def _is_explained(code: str) -> bool:
    """Tell whether the manual has a code. An error is said whatever ails the program's files."""
    try:
        from ipavolume.commands import manual

        return code in manual.codes()
    except (ImportError, OSError, ValueError):
        return False


def _last(details: Sequence[str], *, room: int) -> list[str]:
    """Return the last lines of *details*: most were shown as they came, and are in the log.

    Args:
        details: The lines.
        room: Bytes for them; the very last is shown in any case, its beginning at least.
    """
    lines: list[str] = []
    for detail in reversed(details[-_DETAIL_LINES:]):
        line = text.escape_content(detail.expandtabs())
        needed = len(line.encode()) + len("ipavolume:   | \n")
        if needed > room:
            if not lines:
                lines = [f"{line[:_LEAST_CHARACTERS]} ..."]
            break
        room -= needed
        lines.insert(0, line)
    return lines


def show_findings(findings: Sequence[Finding], *, refused: Collection[Finding] = ()) -> None:
    """Print what a build found, a line each.

    Args:
        findings: What it found.
        refused: Those of them that stop it: one alone is the error, and said by that.
    """
    stops = frozenset(refused)
    for one in findings:
        if fastpath.is_logged_as_json():
            level = "error" if one in stops else _LEVELS.get(one.severity, one.severity)
            _log(level, str(one), code=one.code, hint=one.hint)
            continue
        what = f"{one} [{one.code}]"
        if one not in stops:
            _labelled(one.severity, what, "blue" if one.severity == "note" else "yellow")
        elif len(refused) > 1:
            _labelled("error", what, "red")


_LEVELS: Final = {"note": "info"}


def _log(level: str, said: str, **more: object) -> None:
    """Write an object of the log; what is empty is left out."""
    more = {name: one for name, one in more.items() if one}
    data = {"time": clock.now(), "level": level, "text": said, **more}
    click.echo(document.dump_json(data), err=True)


def _log_line(line: str) -> None:
    """Log a line of progress."""
    if isinstance(line, Printed):
        _log("info", line, output=line.line, task=line.task)
    elif isinstance(line, Tick):
        _log("info", line, progress={"share": line.share if line.share >= 0 else None})
    else:
        # As the lines of a run begin that warn.
        warned = line.removeprefix("warning: ")
        _log("info" if warned == line else "warning", warned)


def show_misuse(err: click.ClickException, meant: click.Command | None) -> None:
    """Print what click has to say of a command line that calls *meant*, where it names one."""
    told = document.misuse(err, meant)
    if fastpath.is_logged_as_json() or told.state or getattr(err, "ctx", None) is None:
        show_error(told)
    else:
        err.show()


def _labelled(label: str, what: str, colour: str) -> None:
    _teller().clear()
    if what and fastpath.is_logged_as_json():
        _log(label, what)
    elif what:
        label = click.style(f"{label}:", fg=colour)
        click.echo(f"ipavolume: {label} {text.escape(what)}", err=True)


class Teller:
    """Shows lines of progress: with the time in a log, with a bar on a terminal.

    Of ticks a log gets one every ten seconds in which nothing else was said.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        terminal: bool,
        seconds: Callable[[], float] = time.monotonic,
        now: Callable[[], str] = clock.now,
        columns: Callable[[], int] = streams.width,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """Show lines by *write*.

        Args:
            write: Takes text, with its line breaks.
            terminal: A person looks at it.
            seconds: A clock that only goes forward.
            now: The time as logs have it.
            columns: How wide the terminal is.
            log: Takes lines in the place of *write*, which gets none.
        """
        self._write = write
        self._terminal = terminal
        self._seconds = seconds
        self._now = now
        self._columns = columns
        self._log = log
        self._said = seconds()
        self._has_bar = False

    def tell(self, line: str) -> None:
        """Show *line*; what it says may be ticks."""
        if isinstance(line, Tick):
            self._tell_tick(line)
            return
        self._write_line(line)
        self._said = self._seconds()

    def _write_line(self, line: str) -> None:
        if self._log is not None:
            self._log(line)
            return
        self.clear()
        stamp = "" if self._terminal else f"{self._now()} "
        shown = (text.escape_content if isinstance(line, Printed) else text.escape)(line)
        self._write(f"ipavolume: {stamp}{shown}\n")

    def clear(self) -> None:
        """Make room for something else where the bar is."""
        if self._has_bar:
            self._write("\r\x1b[K")
            self._has_bar = False

    def _tell_tick(self, tick: Tick) -> None:
        passed = self._seconds() - self._said
        if not self._terminal:
            if passed >= _EVERY_S:
                self._write_line(tick)
                self._said = self._seconds()
        elif passed >= _BAR_EVERY_S:
            bar = ""
            if tick.share >= 0:
                done = round(tick.share * _BAR_COLUMNS)
                bar = f"[{'#' * done}{'.' * (_BAR_COLUMNS - done)}] {tick.share:4.0%} "
            shown = f"ipavolume: {bar}{text.escape(tick)}"[: self._columns() - 1]
            self._write(f"\r{shown}\x1b[K")
            self._has_bar = True
            self._said = self._seconds()


_EVERY_S: Final = 10.0
_BAR_EVERY_S: Final = 0.2
_BAR_COLUMNS: Final = 20


@functools.cache
def _teller() -> Teller:
    as_json = fastpath.is_logged_as_json()
    return Teller(
        lambda said: click.echo(said, nl=False, err=True, color=True),
        terminal=not as_json and os.isatty(2) and os.environ.get("TERM", "dumb") != "dumb",
        log=_log_line if as_json else None,
    )


def progress(line: str) -> None:
    """Print a line of progress; a command in it is one that can be typed here."""
    is_ours = not isinstance(line, Printed | Tick)
    _teller().tell(advice.fit_here(line) if is_ours else line)


def shown(*, as_json: bool, silent: bool, one_stream: bool = False) -> Shown:
    """Return where a command says what happens; who cannot be told does not end it.

    Args:
        as_json: The outcome is printed as JSON.
        silent: Only results and errors.
        one_stream: The outcome goes where progress goes: an engine keeps the order of the lines of
            one stream, not that of two.
    """
    from ipavolume.commands.work import Shown

    streams.only_tell()

    def result(outcome: Outcome, lines: Sequence[str]) -> None:
        _teller().clear()
        if as_json:
            from ipavolume.cli.data import outcome_data

            said = document.current()
            said.set_result(outcome_data(outcome))
            if one_stream:
                # What follows is printed by what is executed.
                said.print()
        elif not silent:
            for line in lines:
                if one_stream and fastpath.is_logged_as_json():
                    _log("info", line)
                else:
                    click.echo(line, err=one_stream)

    return Shown(
        say=say_nothing if silent else progress,
        tell=progress,
        error=show_error,
        held=functools.partial(show_error, held=True),
        summary=text.summary_lines,
        result=result,
    )


def rehearsed(found: Rehearsed) -> None:
    """Print from inside its container what a rehearsal came to, in one line."""
    from ipavolume.cli.data import rehearsed_data

    _teller().clear()
    # What the application printed last may have no end of a line.
    click.echo(f"\n{document.dump_json(rehearsed_data(found))}")


def inspection_data(found: Inspection, *, about: advice.About | None = None) -> dict[str, Any]:
    """Return what a look at volumes found as plain data, with hints that can be used here.

    Args:
        found: What it found.
        about: The volumes that it looked at, where there are several.
    """
    from ipavolume.cli import data

    return data.inspection_data(_fitted(found, about))


def _fitted(found: Inspection, about: advice.About | None) -> Inspection:
    findings = tuple(
        replace(item, hint=advice.fit_here(item.hint, about=about)) for item in found.findings
    )
    draft = found.draft
    if draft is not None and (way := draft.way_back) is not None:
        way = replace(way, hint=advice.fit_here(way.hint, about=about))
        draft = replace(draft, way_back=way)
    return replace(found, findings=findings, draft=draft)


def print_inspection(
    found: Inspection, *, full: bool, verbose: bool, about: advice.About | None = None
) -> None:
    """Print what a look at volumes found.

    Args:
        found: What it found.
        full: With every action of the plan.
        verbose: With what tasks would do, in full.
        about: The volumes that it looked at, where there are several.
    """
    _teller().clear()
    found = _fitted(found, about)
    click.echo(
        f"{text.escape(found.volume)}: {click.style(str(found.state or 'unknown'), bold=True)}"
    )
    if all(item.message != found.reason for item in found.findings):
        click.echo(f"  {text.escape(found.reason)}")
    # A hint for many paths, as those that cannot be read, is said behind the last one.
    for hint, items in itertools.groupby(found.findings, key=lambda item: item.hint):
        for item in items:
            label = click.style(f"{item.severity}:", fg=_colour_of(item.severity))
            where = f"{text.escape(item.path)}: " if item.path else ""
            click.echo(f"  {label} {where}{text.escape(item.message)} [{item.code}]")
        if hint:
            click.echo(f"    {text.escape(hint)}")
    if found.draft is None:
        return
    plan = found.draft.plan
    totals = ", ".join(f"{number} {word}" for word, number in text.counts(plan.actions).items())
    nothing = "no file has to change" if plan.tasks else "record the new id, change nothing"
    if found.draft.is_followed:
        nothing = "finish the open run"
    then = "; what follows is planned when that is done" if found.draft.is_followed else ""
    click.echo(f"  plan: {totals or nothing}{then}")
    if found.draft.way_back is not None:
        click.echo(f"  {text.escape(found.draft.way_back.line)}")
    for action in described(plan.actions) if full else ():
        word = verb(action)
        head = click.style(f"{word:<9}", fg=_colour(word))
        click.echo(f"    {head} {text.escape(describe(action))}")
    if full and isinstance(plan.actions, Packed):
        head = click.style(f"{Verb.METADATA:<9}", fg=_colour(Verb.METADATA))
        for line in text.translated_lines(plan.actions):
            click.echo(f"    {head} {line}")
    for one in found.differences or ():
        click.echo(f"  {text.escape(one.path)}")
        print_difference(one.lines, indented="    ")
    if plan.tasks:
        click.echo(f"  then: {tasks_text(plan.tasks)}")
    for task in plan.tasks if full else ():
        preview = found.draft.previews.get(task.key)
        for line in text.preview_lines(task, preview, verbose=verbose):
            click.echo(f"    {line}")


def print_difference(lines: Iterable[str], *, indented: str) -> None:
    """Print the lines of a difference in the colours that they have elsewhere."""
    for line in lines:
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        click.echo(click.style(f"{indented}{text.escape_content(line)}", fg=colour))


def _colour_of(severity: Severity) -> str:
    match severity.value:
        case "error":
            return "red"
        case "warning":
            return "yellow"
        case "note":
            return "blue"


def _colour(word: Verb) -> str:
    match word:
        case Verb.CREATE:
            return "green"
        case Verb.REPLACE | Verb.RPMNEW | Verb.SAVE:
            return "yellow"
        case Verb.ERASE | Verb.RMDIR:
            return "red"
        case Verb.METADATA:
            return "cyan"
        case Verb.KEEP | Verb.LEFT | Verb.ACL:
            return "blue"
