"""The kinds of scriptlets that packages can have: which can run at an upgrade, why not others."""

from __future__ import annotations

from typing import Final

GROUPS: Final = {
    "post": "post",
    "posttrans": "posttrans",
    "triggerin": "trigger",
    "triggerun": "trigger",
    "triggerpostun": "trigger",
}
"""The kinds that can run, by the words of the configuration."""

NOT_RUN: Final = {
    "pretrans": "it comes before the files, which the image has already",
    "pre": "it comes before the files, which the image has already",
    "triggerprein": "it comes before the files, which the image has already",
    "preun": "it is for when this package is replaced or erased",
    "postun": "it is for when this package is replaced or erased",
    "preuntrans": "it is for when this package is replaced or erased",
    "postuntrans": "it is for when this package is replaced or erased",
    "verifyscript": "it is for rpm --verify",
    "trigger": "rpmbuild dropped its condition, so not even rpm ever runs it",
}
"""Why other kinds do not run."""

_FILE_TRIGGER: Final = "file triggers act on the image's files, and did when it was built"

CONFIGURED: Final = tuple(dict.fromkeys(GROUPS.values()))
"""The words of the configuration for kinds that can run."""

KINDS: Final = frozenset(
    {*NOT_RUN, *GROUPS, "filetrigger", "transfiletrigger"}
    | {f"{sort}{when}" for sort in ("filetrigger", "transfiletrigger") for when in ("in", "un")}
    | {f"{sort}postun" for sort in ("filetrigger", "transfiletrigger")}
    | {f"{sort}prein" for sort in ("filetrigger", "transfiletrigger")}
)
"""Every kind, as a spec file names it."""


def cannot_run(kind: str) -> str:
    """Say why scriptlets of a kind never run; "" where they can."""
    if kind in GROUPS:
        return ""
    return NOT_RUN.get(kind, _FILE_TRIGGER)
