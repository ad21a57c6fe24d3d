"""What ``prepare`` found the steps of an image to declare, so that no run has to parse them again.

A declaration counts for the very text that it was read from; where that is another one, or the
record is of another format, the text is read.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final

from ipavolume.errors import IpaVolumeError
from ipavolume.formats import checks
from ipavolume.formats.jsonlines import dump_line
from ipavolume.image.tree import ImageTree
from ipavolume.model.paths import is_within
from ipavolume.steps.api import Declaration

PATH: Final = "/usr/share/ipavolume/steps"
MAX_BYTES: Final = 1 << 20
FORMAT: Final = 1
"""Another one whenever there is something new that a step declares, or that is a fault in one."""


def dump(steps: Iterable[Declaration]) -> bytes:
    """Return the record of what *steps* declare."""
    lines = [dump_line({"format": FORMAT})]
    # Masked and replaced is what a file beside it makes of a step.
    lines += [dump_line(checks.dump(replace(one, masked=False, replaces=""))) for one in steps]
    return b"".join(lines)


def read(tree: ImageTree, closed: Collection[str]) -> Mapping[str, Declaration]:
    """Return the recorded declarations by the paths of their files; none where they do not count.

    Args:
        tree: The image.
        closed: Where nothing may come from that says what a run does.
    """
    try:
        location = tree.resolve(PATH)
        st = tree.lstat(location)
        # Of a running container it has to be root's, as the steps have to.
        is_others = st is not None and (st.st_uid != 0 or stat.S_IMODE(st.st_mode) & 0o022 != 0)
        if (tree.root == "/" and is_others) or any(is_within(location, one) for one in closed):
            return {}
        head, *lines = (tree.read_file(PATH, limit_bytes=MAX_BYTES) or b"").splitlines() or [b""]
        if head != dump_line({"format": FORMAT}).rstrip():
            return {}
        load = checks.loader(Declaration)
        steps = [load(checks.decode(line)) for line in lines]
    except (IpaVolumeError, ValueError, OSError):
        return {}
    return {one.source: one for one in steps if _can_be_of_a_text(one)}


def _can_be_of_a_text(step: Declaration) -> bool:
    """Tell whether the record can have been written by us; a range is judged where it is used."""
    texts = (step.summary, step.component, step.applies_from)
    return (
        step.source.endswith(f"/{step.name}.py")
        and all(text.isprintable() for text in texts)
        and bool(step.summary and step.component and step.when)
        and not (step.masked or step.replaces)
    )
