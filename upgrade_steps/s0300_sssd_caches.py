"""Drop the caches of sssd, which another version of it has written.

Symptom: sssd does not start, "Lower version of database is expected!" in its log; or users
and groups are found as they were when the cache was written (P49).

Source: the freeipa-container images emptied /var/lib/sss/db at each upgrade, and the
%post scriptlet of sssd-common removes the memory caches in /var/lib/sss/mc. All of it is
fetched anew, which takes a minute or two; what is lost is the right to log in while no server
can be reached, until the next login with one. So nothing goes where the version is the same.
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
