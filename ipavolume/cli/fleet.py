"""Volumes of a list as a table, as plain data and as metrics of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ipavolume.cli import text
from ipavolume.linux import clock

if TYPE_CHECKING:
    from ipavolume.commands.fleet import Row

_HEADS: Final = ("VOLUME", "APPLICATION", "STATE", "IMAGE", "LAST RUN", "VERIFIED", "WAITING")
_ID_SHOWN: Final = 12
_METRICS: Final = {
    "ipavolume_volume_info": "What a volume says of itself.",
    "ipavolume_readable": "Whether a volume could be looked at.",
    "ipavolume_run_open": "Whether a run was begun and is not finished.",
    "ipavolume_failures": "How often in a row an image failed to bring the volume up.",
    "ipavolume_last_run_timestamp_seconds": "When the last run was finished.",
    "ipavolume_last_run_done": "Whether the last run did all it had to.",
    "ipavolume_last_run_verified": "Whether the last run was verified, where that was wanted.",
    "ipavolume_conflicts": "Copies that wait for somebody to look at them.",
    "ipavolume_snapshots": "Snapshots that are kept.",
    "ipavolume_content_bytes": "What the content takes on the disk.",
}
_COMPLETED: Final = ("done", "undone")
"""What the history says of a run, and of a rollback, that came to its end."""


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table."""
    names = {row.uuid: row.place.name for row in rows if row.uuid}
    cells = [_HEADS, *(_cells(row, names) for row in rows)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(_HEADS))]
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(padded).rstrip()
    for row in rows:
        if row.reason and row.code:
            yield text.escape(f"{row.place.name}: {row.reason} [{row.code}]")


def _cells(row: Row, names: Mapping[str, str]) -> tuple[str, ...]:
    build_id, name = row.recorded
    first = f"part of {names.get(row.primary, 'another')}" if row.primary else ""
    last = row.last_run or {}
    return tuple(
        text.escape(cell) or "-"
        for cell in (
            row.place.name,
            row.application,
            row.state or row.code or first,
            name or build_id[:_ID_SHOWN] or "open" * row.open,
            f"{str(last.get('finished', ''))[:10]} {last.get('result', '')}".strip(),
            {None: "", True: "yes", False: "no"}[row.verified],
            f"{row.conflicts} to look at" if row.conflicts else "",
        )
    )


def data(row: Row) -> dict[str, Any]:
    """Return a volume as plain data."""
    build_id, name = row.recorded
    return {
        "name": row.place.name,
        "directory": row.place.directory,
        "engine": row.place.engine,
        "container": row.place.container,
        "image": row.place.image or None,
        "quadlet": row.place.quadlet,
        "application": row.application,
        "uuid": row.uuid,
        "primary": row.primary or None,
        "recorded": {"id": build_id, "name": name},
        "state": row.state or None,
        "reason": row.reason,
        "code": row.code,
        "open": row.open,
        "failures": row.failures,
        "last_run": row.last_run,
        "verified": row.verified,
        "conflicts": row.conflicts,
        "snapshots": row.snapshots,
        "bytes": row.bytes,
    }


def metrics(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of Prometheus' text format, each metric with its help and type."""
    for metric, help_ in _METRICS.items():
        samples = [sample for row in rows for sample in _samples(metric, row)]
        if samples:
            yield f"# HELP {metric} {help_}"
            yield f"# TYPE {metric} gauge"
            yield from samples


def _samples(metric: str, row: Row) -> Iterator[str]:
    labels = {"volume": row.place.name, "engine": row.place.engine}
    value: float | None = None
    last = row.last_run or {}
    match metric.removeprefix("ipavolume_"):
        case "readable":
            value = not row.code
        case _ if row.code:
            return
        case "volume_info":
            build_id, name = row.recorded
            labels |= {"application": row.application, "uuid": row.uuid}
            labels |= {"image": name, "build_id": build_id}
            value = 1
        case "run_open":
            value = row.open
        case "failures":
            value = row.failures
        case "last_run_timestamp_seconds":
            value = _seconds(str(last.get("finished", "")))
        case "last_run_done":
            value = last.get("result") in _COMPLETED if last else None
        case "last_run_verified":
            value = row.verified
        case "conflicts":
            value = row.conflicts
        case "snapshots":
            value = row.snapshots
        case "content_bytes":
            value = row.bytes
        case name:
            raise AssertionError(name)
    if value is not None:
        shown = ",".join(f'{key}="{_label(one)}"' for key, one in labels.items())
        yield f"{metric}{{{shown}}} {int(value)}"


def _label(value: str) -> str:
    told = text.escape(value)
    return told.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _seconds(value: str) -> float | None:
    try:
        return clock.seconds_of(value)
    except ValueError:
        return None
