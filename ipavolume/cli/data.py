"""Results as plain data for scripts; loaded where somebody asks for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ipavolume.cli import advice
from ipavolume.cli.text import last_lines
from ipavolume.formats.checks import dump
from ipavolume.formats.plan import action_data
from ipavolume.formats.tasks import task_data
from ipavolume.model.actions import Plan, verb
from ipavolume.model.packed import described, translated
from ipavolume.steps.api import describe as describe_step

if TYPE_CHECKING:
    from ipavolume.commands.audit import Audited
    from ipavolume.commands.check import Inspection
    from ipavolume.commands.conflicts import Conflict
    from ipavolume.commands.listing import ListedStep
    from ipavolume.commands.probe import Answer
    from ipavolume.commands.rehearse import Report
    from ipavolume.commands.snapshot import Kept
    from ipavolume.commands.status import Card
    from ipavolume.commands.trial import TriedStep
    from ipavolume.commands.upgrade import Outcome
    from ipavolume.model.snapshots import Snapshot
    from ipavolume.plan.draft import Draft
    from ipavolume.plan.rehearsed import Rehearsed
    from ipavolume.plan.snapshot import WayBack
    from ipavolume.plan.tasks import Preview
    from ipavolume.prepare.findings import Finding
    from ipavolume.prepare.run import PrepareResult
    from ipavolume.rpm.transaction import Explanation


def audit_data(found: Audited) -> dict[str, Any]:
    """Return an audit as plain data."""
    return {
        "container": found.name,
        "image": {"name": found.image, "id": found.build_id},
        "clean": found.is_clean,
        "list": found.path_list,
        "lines": list(found.lines),
        "findings": [
            {
                "fault": str(finding.fault),
                "path": finding.path,
                "paths": finding.paths,
                "line": finding.line,
                "advice": finding.advice,
            }
            for finding in found.findings
        ],
    }


def prepared_data(result: PrepareResult) -> dict[str, Any]:
    """Return what a build came to as plain data."""
    return {
        "build_id": result.build_id,
        "changed": result.changed,
        "fingerprint": result.fingerprint,
        "links": result.links,
        "entries": result.entries,
        "records": result.records,
        "packages": result.packages,
        "warnings": list(result.warnings),
        "findings": findings_data(result.findings),
        "unowned": list(result.unowned),
    }


def unfit_data(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return what there is of a build that was stopped by what it found, as plain data."""
    stopped = dict.fromkeys(("build_id", "fingerprint", "links", "entries", "records", "packages"))
    return {
        **stopped,
        "changed": False,
        "warnings": [str(one) for one in findings],
        "findings": findings_data(findings),
        "unowned": [],
    }


def findings_data(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return what a build found as plain data."""
    return [
        {
            "code": one.code,
            "severity": one.severity,
            "path": one.path,
            "place": one.place,
            "message": one.message,
            "hint": one.hint,
        }
        for one in findings
    ]


def inspection_data(found: Inspection) -> dict[str, Any]:
    """Return what a look at volumes found as plain data."""
    return {
        "volume": found.volume,
        "state": None if found.state is None else str(found.state),
        "reason": found.reason,
        "recorded": found.recorded,
        "image": found.image,
        "plan": plan_data(found.draft.plan)["actions"] if found.draft else [],
        "tasks": tasks_data(found.draft),
        "way_back": way_back_data(found.draft.way_back if found.draft else None),
        "findings": [
            {
                "code": item.code,
                "severity": item.severity,
                "path": item.path,
                "message": item.message,
                "hint": item.hint,
            }
            for item in found.findings
        ],
        **_differences_data(found),
    }


def _differences_data(found: Inspection) -> dict[str, Any]:
    if found.differences is None:
        return {}
    return {"diff": [{"path": one.path, "lines": list(one.lines)} for one in found.differences]}


def rehearsed_data(found: Rehearsed) -> dict[str, Any]:
    """Return what a rehearsal came to, as it is known inside of its container, as plain data."""
    return {
        "rehearsal": str(found.ending),
        "code": found.code,
        "message": found.message,
        "unit": found.unit,
        "step": found.step,
        "lines": list(found.lines),
        "seconds": found.seconds,
    }


def snapshot_data(one: Snapshot) -> dict[str, Any]:
    """Return a snapshot as plain data, without the accounts that its owners go by."""
    data = dump(one, {"accounts": lambda _: None})
    del data["accounts"]
    return data


def kept_data(kept: Kept) -> dict[str, Any]:
    """Return what the volumes have of a run as plain data."""
    return {
        "run": kept.run,
        "snapshot": None if kept.snapshot is None else snapshot_data(kept.snapshot),
        "fault": kept.fault,
        "undone": kept.undone,
    }


def way_back_data(way: WayBack | None) -> dict[str, Any] | None:
    """Return what there will be to go back to as plain data."""
    if way is None:
        return None
    return {
        "method": None if way.method is None else str(way.method),
        "files": way.files,
        "bytes": way.bytes,
        "inherited": way.inherited,
        "why": way.why,
        "hint": way.hint,
        "lacks": [list(one) for one in way.lacks],
    }


def report_data(report: Report) -> dict[str, Any]:
    """Return what a rehearsal came to, as who asked for it has it, as plain data."""
    copies = report.copies
    return {
        "volume": report.volume,
        "image": report.image,
        **rehearsed_data(replace(report.rehearsed, lines=last_lines(report))),
        "container": {
            "like": report.like,
            "network": report.network,
            "left_out": [{"what": one.what, "why": one.why} for one in report.left_out],
        },
        "copies": None
        if copies is None
        else {
            "taken": copies.consistent,
            "files": copies.files,
            "bytes": copies.bytes,
            "without_reflink": copies.copied,
            "seconds": copies.seconds,
            "grown_bytes": copies.grown_bytes,
            "kept": report.kept,
        },
        "runs": [dict(run) for run in report.runs],
        "review": [{"path": path, "copy": copy} for path, copy in report.review],
        "warnings": list(map(advice.fit_here, report.warnings)),
        "agreements_disabled": list(report.agreements),
        "not_shown": list(report.not_shown),
    }


def card_data(card: Card) -> dict[str, Any]:
    """Return an identity card as plain data."""
    return {
        "volume": card.volume,
        "recorded": card.recorded,
        "first_run": card.first_run,
        "last_run": card.last_run,
        "lock": card.lock,
        "attempts": card.attempts,
        "verified": card.verified,
        "refused": list(card.refused),
        "running": list(card.running),
    }


def answer_data(answer: Answer, volume: str, asked: str) -> dict[str, Any]:
    """Return as plain data what a probe found that was *asked* of the volumes of a container."""
    return {
        "volume": volume,
        "probe": asked,
        "exit_status": answer.exit_status,
        "text": answer.text,
    }


def conflict_data(conflict: Conflict) -> dict[str, Any]:
    """Return a conflict as plain data."""
    return {
        "path": conflict.path,
        "copy": conflict.copy,
        "kind": conflict.kind,
        "run": conflict.run,
        "shipped": conflict.shipped,
    }


def plan_data(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data."""
    return {
        "run": plan.run,
        "kind": plan.kind,
        "from": plan.from_build,
        "to": plan.to_build,
        "overrides": list(plan.overrides),
        "actions": [
            dict(action_data(action), verb=verb(action)) for action in described(plan.actions)
        ],
        "translated": [
            {"from": list(was), "to": list(now), "files": number}
            for (was, now), number in sorted(translated(plan.actions).items())
        ],
        "tasks": [task_data(task) for task in plan.tasks],
    }


def tasks_data(draft: Draft | None) -> list[dict[str, Any]]:
    """Return the tasks of a draft, and what they would do, as plain data."""
    if draft is None:
        return []
    return [
        {**task_data(task), **_preview_data(draft.previews.get(task.key))}
        for task in draft.plan.tasks
    ]


def _preview_data(preview: Preview | None) -> dict[str, Any]:
    if preview is None:
        return {}
    return {
        "actions": [describe_step(action) for action in preview.actions],
        "text": list(preview.text),
        "changed": list(preview.changed),
    }


def step_data(step: ListedStep) -> dict[str, Any]:
    """Return a listed step as plain data."""
    found = step.declaration
    return {
        "name": found.name,
        "source": found.source,
        "summary": found.summary,
        "component": found.component,
        "applies_from": found.applies_from,
        "when": [str(when) for when in found.when],
        "phase": str(found.phase),
        "masked": found.masked,
        "replaces": found.replaces,
        "runs": step.runs,
        "why": step.why,
    }


def tried_data(tried: TriedStep) -> dict[str, Any]:
    """Return a step and what it wants done as plain data."""
    return {
        **step_data(tried.listed),
        "actions": [describe_step(action) for action in tried.actions],
        "fault": tried.fault,
    }


def scriptlet_data(found: Explanation) -> dict[str, Any]:
    """Return a listed scriptlet as plain data."""
    one = found.scriptlet
    return {
        "name": one.name,
        "package": one.package,
        "evr": one.evr,
        "kind": one.kind,
        "interpreter": list(one.interpreter),
        "digest": one.digest,
        "runs": found.runs,
        "arguments": list(found.arguments),
        "why": found.why,
    }


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """Return the result of a run as plain data."""
    return {
        "state": str(outcome.state),
        "reason": outcome.reason,
        "recorded": outcome.recorded,
        "plans": [plan_data(plan) for plan in outcome.plans],
        "notes": [list(note) for note in outcome.notes],
        "tasks": [
            {
                "key": record.key,
                "result": str(record.state),
                "started": record.started,
                "seconds": record.seconds,
                "messages": list(record.messages),
            }
            for record in outcome.tasks
        ],
        "warnings": list(map(advice.fit_here, outcome.warnings)),
        "waiting": [task_data(task) for task in outcome.waiting],
    }
