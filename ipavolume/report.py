"""Results as text for people and as data for scripts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ipavolume.actions import Action, Install, Keep, Plan, describe, verb
from ipavolume.inspection import Card
from ipavolume.lifecycle import Outcome
from ipavolume.planfile import action_data

_ORDER: Final = ("create", "replace", "rpmnew", "save", "erase", "rmdir", "metadata", "keep")
_WORDS: Final = {
    "create": "created",
    "replace": "replaced",
    "rpmnew": "put beside the edited file as .rpmnew",
    "save": "moved to another name",
    "erase": "removed, no longer shipped",
    "rmdir": "directories removed if empty",
    "metadata": "given another owner, mode or ACL",
    "keep": "kept as they are",
}


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


def plan_lines(plan: Plan) -> list[str]:
    """Return the lines of a dry run, one an action, without a heading."""
    return [f"{verb(action):<9} {escape(describe(action))}" for action in plan.actions]


def plan_data(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data."""
    return {
        "run": plan.run,
        "kind": plan.kind,
        "from": plan.from_build,
        "to": plan.to_build,
        "overrides": list(plan.overrides),
        "actions": [dict(action_data(action), verb=verb(action)) for action in plan.actions],
    }


def counts(actions: Sequence[Action]) -> dict[str, int]:
    """Return how many actions of each verb there are, in a fixed order."""
    found = Counter(verb(action) for action in actions)
    return {word: found[word] for word in _ORDER if found[word]}


def summary_lines(outcome: Outcome) -> list[str]:
    """Return what a person wants to know at the end of a run."""
    lines = []
    for plan in outcome.plans:
        lines.append(
            f"{plan.kind} {escape(plan.from_build) or '(empty)'} -> {escape(plan.to_build)}"
        )
        totals = counts(plan.actions)
        if not totals:
            lines.append("  nothing on the volume had to change")
        lines += [f"  {number:>6} {_WORDS[word]}" for word, number in totals.items()]
        review = [action for action in plan.actions if verb(action) in ("rpmnew", "save")]
        review += [
            action
            for action in plan.actions
            if isinstance(action, Install) and action.path == action.record and action.save_to
        ]
        if review:
            lines.append("  to review (ipavolume conflicts --diff):")
            lines += [f"    {escape(describe(action))}" for action in review]
        special = [
            action
            for action in plan.actions
            if isinstance(action, Keep) and action.rule not in ("rpm", "package-unchanged")
        ]
        if special:
            lines.append("  left alone:")
            lines += [f"    {escape(describe(action))}" for action in special]
    for path, to in outcome.notes:
        if to:
            lines.append(f"  changed meanwhile, saved: {escape(path)} as {escape(to)}")
        else:
            lines.append(f"  changed meanwhile, left as it is: {escape(path)}")
    return lines


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """Return the result of a run as plain data."""
    return {
        "state": str(outcome.state),
        "reason": outcome.reason,
        "recorded": outcome.recorded,
        "plans": [plan_data(plan) for plan in outcome.plans],
        "notes": [list(note) for note in outcome.notes],
    }


def history_lines(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the recorded runs for people, oldest first."""
    lines = []
    for run in runs:
        source = run.get("from_name") or run.get("from") or "(empty)"
        target = run.get("to_name") or run.get("to", "")
        lines.append(
            escape(
                f"{run.get('finished', '')}  {run.get('kind', '')}  {source} -> {target}  "
                f"{run.get('result', '')}  ({run.get('run', '')})"
            )
        )
        totals = run.get("counts", {})
        if totals:
            text = ", ".join(f"{totals[word]} {word}" for word in _ORDER if word in totals)
            lines.append(f"    {text}")
        lines += [
            escape(f"    {name} {before} -> {after}")
            for name, before, after in run.get("packages", [])
        ]
        if run.get("overrides"):
            lines.append(escape(f"    overridden: {', '.join(run['overrides'])}"))
    return lines


def dump_json(data: object) -> str:
    """Return *data* as one line of JSON; undecodable bytes as their surrogates' escapes."""
    return json.dumps(data, ensure_ascii=True)


def card_lines(card: Card) -> list[str]:
    """Return the identity card of a volume for people."""
    lines = [f"volume    {escape(card.volume)}"]
    recorded = card.recorded
    if recorded is None:
        return [*lines, "state     says nothing: empty, or not ours"]
    name = f" ({recorded['name']})" if recorded.get("name") else ""
    lines.append(f"image     {escape(str(recorded.get('id') or 'none recorded') + name)}")
    system = recorded.get("os")
    if system and system["id"]:
        lines.append(escape(f"release   {system['id']} {system['version_id']}"))
    volume = recorded.get("volume")
    if volume:
        lines.append(escape(f"uuid      {volume['uuid']}"))
        lines.append(escape(f"created   {volume['created']} by image {volume['image']}"))
    open_ = recorded.get("transaction")
    if open_:
        lines.append(
            escape(
                f"open run  {open_['run']} to {open_['to']}, {open_['phase']}, since "
                f"{open_['since']}; the next start finishes it"
            )
        )
    if card.last_run is not None:
        lines.append("last run")
        lines += [f"  {line}" for line in history_lines([card.last_run])]
    return lines
