"""Drop the caches of sssd, which another version of it has written.

Symptom: sssd does not start, "Lower version of database is expected!" in its log, where the
image has an older sssd than the one before, which nothing else forbids; or users and groups
are found as they were when the cache was written (P49).

Source: sssd 2.9 to 2.13, src/db/sysdb_init.c: sysdb_domain_cache_connect brings the cache of an
older version up and gives up on that of a newer one; which has which, their own versions do not
say. The %post scriptlet of sssd-common removes the memory caches in /var/lib/sss/mc, and the
freeipa-container images emptied /var/lib/sss/db at each upgrade. All of it is fetched anew,
which takes a minute or two; what is lost is the right to log in while no server can be
reached, until the next login with one. So nothing goes where the version is the same.

Since 2.10 sssd runs as its own account. What root has left in /etc/sssd, /var/lib/sss/db and
/var/log/sssd, its unit gives it before each start (ExecStartPre of
src/sysv/systemd/sssd.service.in; since 2.10.2 also where /etc/sssd is a link).
"""

from __future__ import annotations

from collections.abc import Iterator

from ipavolume.steps import Remove, StepAction, View

COMPONENT = "sssd-common"
APPLIES_FROM = ""
WHEN = "upgrade"
PHASE = "offline"


def plan(volume: View, template: View) -> Iterator[StepAction]:
    """Remove the files of another version; directories below are not caches."""
    before = volume.package(COMPONENT)
    if before is not None and before == template.package(COMPONENT):
        return
    for path in (*volume.glob("/var/lib/sss/db/*"), *volume.glob("/var/lib/sss/mc/*")):
        if volume.kind(path) == "file":
            yield Remove(path=path, reason="a cache of the old version", keep_copy=False)
