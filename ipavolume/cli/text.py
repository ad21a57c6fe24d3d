"""Results as lines of text for people."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ipavolume.cli import advice
from ipavolume.model.actions import (
    DELETED_HERE,
    ROLLBACK,
    Action,
    CreateTree,
    Install,
    Keep,
    Plan,
    Verb,
    describe,
    past,
    verb,
)
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.model.images import named
from ipavolume.model.packed import counts_of, described, translated, without_metadata
from ipavolume.model.progress import count_text, size_text
from ipavolume.model.tasks import Task
from ipavolume.steps.api import describe as describe_step
from ipavolume.volume import layout
from ipavolume.volume.refused import UNVERIFIED

if TYPE_CHECKING:
    from ipavolume.apply.run import Finish
    from ipavolume.commands.audit import Audited
    from ipavolume.commands.listing import ListedStep
    from ipavolume.commands.rehearse import Report
    from ipavolume.commands.status import Card
    from ipavolume.commands.upgrade import Outcome
    from ipavolume.engines.audit import Finding as AuditFinding
    from ipavolume.plan.rehearsed import Rehearsed
    from ipavolume.plan.tasks import Preview
    from ipavolume.prepare.run import PrepareResult
    from ipavolume.rpm.transaction import Explanation

_MAX_LEFT_ALONE: Final = 20
"""More paths are not named at the end of a run."""
_MAX_UNOWNED: Final = 5
_DIFFERENCES: Final = "ipavolume conflicts --diff"
_FILES_OF_RUNS: Final = "ipavolume history --json"


def escape(text: str) -> str:
    """Return *text* fit for a terminal: control characters and undecodable bytes escaped."""
    if text.isprintable() and "\\" not in text:
        return text
    result = []
    for character in text:
        if character == "\\":
            result.append("\\\\")
        elif "\udc80" <= character <= "\udcff":
            result.append(f"\\x{ord(character) - 0xDC00:02x}")
        elif character.isprintable():
            result.append(character)
        else:
            result.append(character.encode("unicode_escape").decode("ascii"))
    return "".join(result)


def escape_content(text: str) -> str:
    """Return a line of a file fit for a terminal, as one has to write it to find or change it.

    Tabs and backslashes, which configurations are full of, are what they are.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter in "\t\\" else escape(letter) for letter in text)


def audit_heading(found: Audited) -> str:
    """Return in one line what an audit came to."""
    wrong = sum(finding.paths for finding in found.findings if finding.is_wrong)
    if not wrong:
        return "nothing that has to last was written outside of its volumes"
    return f"{count_text(wrong, 'path was', 'paths were')} written outside of its volumes"


def audit_lines(finding: AuditFinding) -> list[str]:
    """Return the lines by which an audit shows a finding."""
    more = f" (and {finding.paths - 1} below it)" if finding.paths > 1 else ""
    text = [f"{finding.path}{more}"]
    if finding.advice:
        text.append(finding.advice)
    if finding.line:
        text.append(f"kept by: {finding.line}")
    return [escape(line) for line in text]


def audit_advice(found: Audited) -> list[str]:
    """Return the lines that an audit ends with: what to add to the path list."""
    if not found.lines:
        return []
    where = escape(found.path_list or "the path list")
    return [
        f"to keep them, add to {where} when the image is built, before ipavolume prepare:",
        *(f"    {escape(line)}" for line in found.lines),
    ]


def unowned_line(result: PrepareResult, *, verbose: bool) -> str:
    """Return the line that says which listed files no package owns."""
    names = result.unowned if verbose else result.unowned[:_MAX_UNOWNED]
    more = len(result.unowned) - len(names)
    tail = f" and {more} more (all with -v)" if more else ""
    files = count_text(len(result.unowned), "listed file")
    return (
        f"{files} that no package owns: {', '.join(names)}{tail}. "
        "On a volume that has such a file it stays, whatever a newer image has, unless [files] "
        "refresh names it"
    )


def report_lines(report: Report, *, verbose: bool) -> list[str]:
    """Return what a rehearsal came to for people; what it did not show comes last."""
    found = report.rehearsed
    lines = [escape(f"{report.volume}: {found.ending} after {found.seconds} s: {found.message}")]
    lines += [f"  {label}: {escape(what)}" for label, what in _whose_fault(found)]
    lines += [f"    | {escape_content(line)}" for line in last_lines(report)]
    lines += [f"  {line}" for line in history_lines(report.runs)]
    if report.review:
        lines.append(escape(f"  to review after the upgrade ({advice.fit_here(_DIFFERENCES)}):"))
        lines += [f"    {escape(path)}: {escape(copy)}" for path, copy in report.review]
    if report.copies is not None:
        copies = report.copies
        whole = f" ({copies.copied} written in full, not by reflink)" if copies.copied else ""
        lines.append(
            f"  the copy: {size_text(copies.bytes)}, {count_text(copies.files, 'file')}{whole}, in "
            f"{copies.seconds} s; the upgrade took {size_text(max(copies.grown_bytes, 0))} more"
        )
        lines.append(f"  {report.how}")
    like = f"like {report.like}" if report.like else "like none: no container uses the volume"
    if report.network:
        lines.append(f"  the container: {escape(like)}; its network: {report.network}")
        shown = report.left_out if verbose else ()
        lines += [f"    without {escape(one.what)}: {escape(one.why)}" for one in shown]
        if report.left_out and not verbose:
            names = ", ".join(one.what for one in report.left_out)
            lines.append(f"    without {escape(names)} (why: -v)")
    if report.agreements:
        names = ", ".join(report.agreements)
        lines.append(f"  disabled in the copy: replication agreements {escape(names)}")
    if report.kept:
        lines.append(
            f"  the copies are in {escape(report.kept)}: they hold the keys of the original"
        )
    if report.network:
        lines.append("  what a rehearsal cannot show:")
        lines += [f"    {one}" for one in report.not_shown]
    return lines


def last_lines(report: Report) -> tuple[str, ...]:
    """Return what a rehearsal printed last; where none was started that is what can be done."""
    lines = report.rehearsed.lines
    return lines if report.network else tuple(map(advice.fit_here, lines))


def _whose_fault(found: Rehearsed) -> list[tuple[str, str]]:
    labelled = (("step", found.step), ("unit", found.unit), ("code", found.code))
    return [(label, what) for label, what in labelled if what]


def step_lines(step: ListedStep) -> list[str]:
    """Return the lines by which ``steps`` shows one."""
    found = step.declaration
    versions = f"{found.component} {found.applies_from or '(every version)'}"
    lines = [
        f"{found.name}: {found.summary}",
        f"  {found.phase}, at {' and '.join(found.when)}, {versions}; {found.source}",
    ]
    if found.replaces:
        lines.append(f"  in the place of {found.replaces}")
    return [escape(line) for line in (*lines, f"  {step.why}")]


def scriptlet_line(found: Explanation) -> str:
    """Return the line by which ``scriptlets`` shows one."""
    words = f" {' '.join(found.arguments)}" if found.arguments else ""
    program = " ".join(found.scriptlet.interpreter)
    return escape(f"{found.scriptlet.name}{words} ({program}): {found.why}")


def counts(actions: Sequence[Action]) -> dict[Verb, int]:
    """Return how many actions of each verb there are, in a fixed order."""
    found = counts_of(actions)
    return {word: found[word] for word in Verb if found[word]}


def translated_lines(actions: Sequence[Action]) -> list[str]:
    """Return how many files get another owner because their accounts have other numbers."""
    return [
        f"{count_text(number, 'file')} {was[0]}:{was[1]} -> {now[0]}:{now[1]} (their accounts "
        "have another number in this image)"
        for (was, now), number in sorted(translated(actions).items())
    ]


def summary_lines(outcome: Outcome) -> list[str]:
    """Return what a person wants to know at the end of a run, and can act on."""
    lines = []
    for end in outcome.ends:
        lines += _end_lines(end, outcome.names)
    if outcome.warnings:
        lines.append(f"  {count_text(len(outcome.warnings), 'warning')}:")
        lines += [f"    {escape(advice.fit_here(text))}" for text in outcome.warnings]
    if outcome.waiting:
        lines.append("  left to the online phase:")
        lines += [f"    {escape(task.name)}: {escape(task.summary)}" for task in outcome.waiting]
    return lines


def _end_lines(end: Finish, names: Mapping[str, str]) -> list[str]:
    """Return what a run did in this phase; what an earlier one did is told there."""
    plan = end.plan
    ends = [escape(named(one, names)) or "(empty)" for one in (plan.from_build, plan.to_build)]
    lines = [f"{plan.kind} {' -> '.join(ends)}"]
    if end.put:
        lines += _file_lines(plan)
    else:
        known = escape(advice.fit_here(_FILES_OF_RUNS))
        lines.append(f"  its files were put in place before (what became of them: {known})")
    for path, to in end.notes:
        if to.startswith(f"{path}.rpmnew"):
            left = f"{escape(path)}; the image's is {escape(to)}"
            lines.append(f"  changed meanwhile, left as it is: {left}")
        elif to:
            lines.append(f"  changed meanwhile, saved: {escape(path)} as {escape(to)}")
        else:
            lines.append(f"  changed meanwhile, left as it is: {escape(path)}")
    if end.tasks:
        lines.append("  executed:")
        lines += [
            f"    {escape(record.key)}: {record.state}, {record.seconds} s" for record in end.tasks
        ]
    return lines


def rollback_lines(plan: Plan) -> list[str]:
    """Return the lines by which a dry run shows what going back does."""
    lines = [f"{verb(action):<9} {escape(describe(action))}" for action in described(plan.actions)]
    if not lines:
        return ["nothing is different from the snapshot"]
    return [*lines, _undone_line(plan)]


def _undone_line(plan: Plan) -> str:
    """Say where that is which was there."""
    place = f"{STATE_DIRECTORY}/{layout.UNDONE}/{plan.run}"
    drop = advice.fit_here(f"ipavolume snapshot drop {plan.run} --undone")
    return escape(
        f"what it removes or replaces is kept in {place} of its volume; to be rid of it: {drop}"
    )


def _file_lines(plan: Plan) -> list[str]:
    totals = counts(plan.actions)
    if not totals:
        return ["  no file on the volume had to change"]
    lines = [f"  {number:>6} {past(word, number)}" for word, number in totals.items()]
    if plan.kind == ROLLBACK:
        return [*lines, f"  {_undone_line(plan)}"]
    others = tuple(without_metadata(plan.actions))
    review = [action for action in others if verb(action) in (Verb.RPMNEW, Verb.SAVE)]
    review += [
        action
        for action in others
        if isinstance(action, Install) and action.path == action.record and action.save_to
    ]
    if review:
        lines.append(escape(f"  to review ({advice.fit_here(_DIFFERENCES)}):"))
        lines += [f"    {escape(describe(action))}" for action in review]
    back = [
        action
        for action in others
        if isinstance(action, Install | CreateTree) and action.reason == DELETED_HERE
    ]
    special = [
        action
        for action in others
        if isinstance(action, Keep) and action.rule not in ("rpm", "package-unchanged")
    ]
    dropped = [action for action in special if verb(action) is Verb.ACL]
    left = [action for action in special if verb(action) is not Verb.ACL]
    lines += _named("put back:", back)
    return [*lines, *_named("ACLs dropped:", dropped), *_named("left alone:", left)]


def _named(heading: str, actions: Sequence[Action]) -> list[str]:
    if not actions:
        return []
    lines = [f"  {heading}"]
    lines += [f"    {escape(describe(action))}" for action in actions[:_MAX_LEFT_ALONE]]
    if len(actions) > _MAX_LEFT_ALONE:
        known = escape(advice.fit_here(_FILES_OF_RUNS))
        lines.append(f"    and {len(actions) - _MAX_LEFT_ALONE} more ({known})")
    return lines


def history_lines(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the recorded runs for people, oldest first."""
    lines = []
    for run in runs:
        source = run.get("from_name") or run.get("from") or "(empty)"
        target = run.get("to_name") or run.get("to", "")
        lines.append(
            escape(
                f"{run.get('finished', '')}  {run.get('kind', '')}  {source} -> {target}  "
                f"{run.get('result', '')}  ({run.get('run', '')}, {_duration(run)})"
            )
        )
        totals = run.get("counts", {})
        if totals:
            text = ", ".join(f"{totals[word]} {word}" for word in Verb if word in totals)
            lines.append(f"    {text}")
        lines += [
            escape(f"    {name} {before} -> {after}")
            for name, before, after in run.get("packages", [])
        ]
        lines += [
            escape(f"    {phase:<8} {key}: {result}, {seconds} s")
            for key, phase, result, _, seconds in run.get("tasks", [])
        ]
        lines += [escape(f"    failed at {at}: {text}") for at, text in run.get("failures", [])]
        lines += [
            escape(f"    warning: {advice.fit_here(text)}") for text in run.get("warnings", [])
        ]
        if run.get("overrides"):
            lines.append(escape(f"    overridden: {', '.join(run['overrides'])}"))
        if run.get("undone"):
            lines += _undone_lines(run)
    return lines


def _undone_lines(run: Mapping[str, Any]) -> list[str]:
    """Return what the entry of a rollback says besides."""
    undone = run["undone"]
    place = f"{STATE_DIRECTORY}/{layout.UNDONE}/{run['run']}"
    size = size_text(undone.get("bytes", 0))
    drop = advice.fit_here(f"ipavolume snapshot drop {run['run']} --undone")
    lines = [
        f"    back to the snapshot of run {undone.get('snapshot', '')}; {size} put aside in "
        f"{place} ({drop})"
    ]
    for path, to in undone.get("changed", ()):
        lines.append(f"    changed since: {path}" + (f", now {to}" if to else ""))
    return list(map(escape, lines))


def _duration(run: Mapping[str, Any]) -> str:
    """Return how long a run took from its beginning to its end, pauses included."""
    try:
        begin, end = (datetime.datetime.fromisoformat(run[key]) for key in ("started", "finished"))
        seconds = (end - begin).total_seconds()
    except (KeyError, ValueError, TypeError):
        # One with a time zone and one without are no two times that differ by something.
        return "?"
    return f"{round(seconds)} s"


def preview_lines(task: Task, preview: Preview | None, *, verbose: bool) -> list[str]:
    """Return the lines of a dry run for a task.

    Args:
        task: The task.
        preview: What it would do, or ``None`` when that is not known.
        verbose: Show the text of a scriptlet, too.
    """
    words = f" {' '.join(task.arguments)}" if task.arguments else ""
    again = "; provisional" if task.provisional else ""
    lines = [escape(f"{task.phase:<8} {task.name}{words}: {task.summary} ({task.reason}{again})")]
    if preview is None:
        return lines
    lines += [f"           {escape(describe_step(action))}" for action in preview.actions]
    if preview.changed:
        lines += [f"           {escape_content(line)}" for line in preview.changed]
    if verbose:
        lines += [f"           | {escape_content(line)}" for line in preview.text]
    return lines


def _how_it_ended(first: Mapping[str, Any]) -> str:
    """Say how an attempt at the first run ended that was not the last one."""
    attempt, status, finished = (first[key] for key in ("attempts", "exit_status", "finished"))
    if status is None:
        return f"attempt {attempt} was interrupted"
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return f"attempt {attempt} ended with {how}, {finished}"


def card_lines(card: Card) -> list[str]:
    """Return the identity card of a volume for people."""
    lines = [f"volume    {escape(card.volume)}"]
    recorded = card.recorded
    if recorded is None:
        return [*lines, "state     says nothing: empty, or not ours"]
    name = f" ({recorded['name']})" if recorded.get("name") else ""
    image = f"{recorded['id']}{name}" if recorded["id"] else "none recorded"
    if not recorded["id"] and recorded.get("baseline"):
        image += f"; before: {named(recorded['baseline'], card.names)}"
    lines.append(escape(f"image     {image}"))
    if recorded.get("application"):
        lines.append(escape(f"of        {recorded['application']}"))
    system = recorded.get("os")
    if system and system["id"]:
        lines.append(escape(f"release   {system['id']} {system['version_id']}"))
    volume = recorded.get("volume")
    if volume:
        lines.append(escape(f"uuid      {volume['uuid']}"))
        by = named(volume["image"], card.names)
        lines.append(escape(f"created   {volume['created']} by image {by}"))
    if card.first_run is not None:
        first = card.first_run
        host = f" as {first['host']}" if first["host"] else ""
        failed = first["state"] == "started" and first["finished"]
        when = first["started"] if failed else first["finished"] or first["started"]
        how = f"; not done: {_how_it_ended(first)}" if failed else ""
        lines.append(escape(f"first run {first['state']}{host}{f', {when}' if when else ''}{how}"))
    for word in ("passed", "failed") if card.verified is not None else ():
        head = "verified " if word == "passed" else "not right"
        names = card.verified[word] if card.verified is not None else ()
        lines += [escape(f"{head} {name}") for name in names]
    if card.verified is not None and card.verified["result"]:
        run, at, cause = (card.verified[key] for key in ("run", "at", "cause"))
        said = {
            "pending": f"not yet: run {run} is committed, and unverified",
            "passed": f"run {run}, {at}",
            "failed": f"not: run {run} is committed, and failed it, {at}: {cause}",
        }[card.verified["result"]]
        lines.append(escape(f"verified  {said}"))
    if card.lock is not None and (card.lock["held"] or card.lock["lost"]):
        by = f"container {card.lock['container']} of " * (card.lock["container"] != "-")
        what = (
            f"held by {by}{card.lock['host']}, since {card.lock['since']}"
            if card.lock["held"]
            else "lost: nothing in this container holds it any more; start the container again"
        )
        lines.append(escape(f"lock      {what}"))
    if card.attempts is not None:
        failed = card.attempts
        then = f"; a start waits until {failed['next']}" if failed["next"] else ""
        whose = named(failed["image"], card.names)
        what = f"{failed['count']} in a row of {whose}, last at {failed['at']}"
        lines.append(escape(f"failures  {what}: {failed['message']}{then}"))
    for one in card.refused:
        then = f"not tried again before {one['next']}" if one["next"] else "tried by its next start"
        whose = named(one["image"], card.names)
        what = f"{whose}: run {one['run']} {one['code']} at {one['at']}"
        why = f": {one['cause']}" if one["cause"] else ""
        lines.append(escape(f"refused   {what}, {then}{why}"))
    for one in card.running:
        said = f": {one['messages'][0]}" if one["messages"] else ""
        lines.append(escape(f"running   {one['name']} {one['result']}, {one['at']}{said}"))
    open_ = recorded.get("transaction")
    if open_:
        before, to = (named(open_[end], card.names) for end in ("from", "to"))
        what = (
            f"taken     from {to}, since {open_['since']}: {before} goes back to what it left once "
            "it is started"
            if open_["kind"] == UNVERIFIED
            else f"open run  {open_['run']} to {to}, {open_['phase']}, since {open_['since']}; the "
            "next start finishes it"
        )
        lines.append(escape(what))
        lines += [
            escape(f"  {task['result']:<8}{task['key']}, since {task['started']}")
            for task in open_["tasks"]
        ]
        lines += [escape(f"  failed  {one['at']}: {one['message']}") for one in open_["failures"]]
    if card.last_run is not None:
        lines.append("last run")
        lines += [f"  {line}" for line in history_lines([card.last_run])]
    return lines
