"""Make the cluster of this version of PostgreSQL out of the one before.

Symptom: the server does not start: "The data directory was initialized by PostgreSQL version
15, which is not compatible with this version 17".

The work is done by /usr/local/sbin/upgrade-postgresql, which can be killed at any moment and
run again. Here is decided whether there is anything to do, and refused what would fail.

Source: the chapter "pg_upgrade" of PostgreSQL's documentation, and the release notes of each
version for the settings that it no longer has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ipavolume.steps import Command, Refuse, StepAction, View, Warn

COMPONENT = "postgresql"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "offline"

TOP = "/var/lib/postgresql"
PROGRAMS = "/usr/lib/postgresql"
SOCKETS = "/run/postgresql"
AS_SERVER = (
    *("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--no-new-privs"),
    "--",
)
TIMEOUT_S = 12 * 3600
# An empty cluster and the log of what is written while indexes are made.
EMPTY_BYTES = 300_000_000
# Settings, and the first version that does not start with them.
REMOVED = {
    "force_parallel_mode": 16,
    "promote_trigger_file": 16,
    "vacuum_defer_cleanup_age": 16,
    "db_user_namespace": 17,
    "old_snapshot_threshold": 17,
    "trace_recovery_messages": 17,
}


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Upgrade the newest cluster, if it is older than the image's server."""
    clusters = _versions(volume, TOP, "PG_VERSION")
    servers = _versions(template, PROGRAMS, "bin/postgres")
    if not clusters or not servers or clusters[-1] >= servers[-1]:
        return
    old, new = clusters[-1], servers[-1]
    yield from _refusals(volume, old, new, has_programs=old in servers)
    yield Command(
        words=("install", "-d", "-o", "postgres", "-g", "postgres", "-m", "2775", SOCKETS),
        reason="where the two servers and pg_upgrade talk to each other",
        # It is gone with the container.
        repeat=True,
    )
    yield Command(
        words=(*AS_SERVER, "/usr/local/sbin/upgrade-postgresql", str(old), str(new)),
        reason=f"the cluster of version {new}, out of the one of version {old}",
        timeout_s=TIMEOUT_S,
    )
    yield Warn(
        code="old-cluster",
        text=f"the cluster of version {old} stays as it was in {TOP}/{old}",
        hint=f"When all is well: docker exec CONTAINER rm -rf {TOP}/{old}",
    )


def verify(volume: View) -> Iterator[Command]:
    """Ask whether the server takes connections."""
    if _versions(volume, TOP, "PG_VERSION"):
        yield Command(
            words=(*AS_SERVER, "pg_isready", "--quiet", f"--host={SOCKETS}"),
            reason="the server takes connections",
            timeout_s=30,
        )


def _versions(view: View, directory: str, file: str) -> list[int]:
    """Return the versions of which a directory has this file."""
    return sorted(
        int(name)
        for name in view.list(directory)
        if re.fullmatch("[1-9][0-9]", name) and view.kind(f"{directory}/{name}/{file}") == "file"
    )


def _refusals(volume: View, old: int, new: int, *, has_programs: bool) -> Iterator[Refuse]:
    """Refuse what would fail half-way, or is not for a program to decide."""
    cluster = f"{TOP}/{old}"
    if not has_programs:
        yield Refuse(
            code="no-old-programs",
            text=f"the volume has a cluster of PostgreSQL {old}, and the image has no programs of "
            f"that version, without which it cannot be upgraded to {new}",
            hint=f"Build the image with OLD={old}, or go over a version that lies between.",
        )
    for name in ("standby.signal", "recovery.signal"):
        if volume.kind(f"{cluster}/{name}") is not None:
            yield Refuse(
                code="standby",
                text=f"the cluster is a standby server's, or recovers: there is {cluster}/{name}",
                hint="Upgrade the primary server, and make the standby anew from it.",
            )
    if volume.list(f"{cluster}/pg_tblspc"):
        yield Refuse(
            code="tablespaces",
            text=f"the cluster has tablespaces ({cluster}/pg_tblspc), which lie outside of it",
            hint="Start the image before and move what is in them: ALTER TABLE ... SET TABLESPACE "
            "pg_default; then DROP TABLESPACE.",
        )
    for path in (
        "/etc/postgresql/postgresql.conf",
        *volume.glob("/etc/postgresql/conf.d/*.conf"),
        f"{cluster}/postgresql.auto.conf",
    ):
        text = (volume.read(path) or b"").decode("utf-8", "replace")
        for name in re.findall(r"(?m)^\s*(\w+)", text):
            if old < REMOVED.get(name.lower(), 0) <= new:
                yield Refuse(
                    code="removed-setting",
                    text=f"{path} sets {name}, which PostgreSQL {REMOVED[name.lower()]} and later "
                    "do not start with",
                    hint="Start the image before, remove the line (or ALTER SYSTEM RESET "
                    f"{name}), and stop it.",
                )
    needed = volume.size(cluster) + EMPTY_BYTES - volume.size(f"{TOP}/{new}.new")
    free = volume.free(TOP)
    if free < needed:
        yield Refuse(
            code="no-space",
            text=f"the cluster is copied, which takes about {needed // 1_000_000} MB, and "
            f"{free // 1_000_000} MB are free",
            hint="Make room on the volume, or move it to a larger one; the old cluster stays until "
            "you remove it.",
        )
