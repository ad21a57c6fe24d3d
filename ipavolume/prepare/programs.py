"""What an image has besides all that its manifest knows: its programs.

They are no part of the fingerprint, because nothing on a volume depends on them; but an image in
which a program was corrected is another one, and gets another build id. No content is read: names,
modes and sizes are compared, and times, since a correction may have the same size. A builder may
give a layer other times than its files had (``SOURCE_DATE_EPOCH``), which are older then: those say
nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection
from typing import Final

from ipavolume.image.tree import NOT_SCANNED, ImageTree
from ipavolume.linux.trees import walk
from ipavolume.model.values import dataclass
from ipavolume.prepare.files import reported

PATH: Final = "/usr/share/ipavolume/programs"
_MAX_BYTES: Final = 200
# What belongs to the machine and its state, and what comes and goes while an image is built.
_ELSEWHERE: Final = (
    *("/boot", "/etc", "/home", "/media", "/mnt", "/root", "/tmp", "/var"),  # noqa: S108 - not used
    *("/usr/share/ipavolume", "/usr/lib/sysimage", "/usr/share/rpm", "/usr/src"),
)
_CACHE: Final = "__pycache__"
_RECORD: Final = re.compile(rb"([0-9a-f]{64}) ([0-9a-f]{64}) ([0-9]{1,12})\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """What is compared of an image's programs.

    Attributes:
        digest: Of their paths, modes and sizes.
        times: Digest of their modification times, to the second.
        newest_s: The latest of these, in seconds since 1970.
    """

    digest: str
    times: str
    newest_s: int

    def differ_from(self, before: Programs) -> bool:
        """Tell whether something was changed since *before*."""
        if self.digest != before.digest or self.newest_s > before.newest_s:
            return True
        # Where the newest has another time, a layer has other times.
        return self.newest_s == before.newest_s and self.times != before.times

    def dump(self) -> bytes:
        """Return what is written into the image."""
        return f"{self.digest} {self.times} {self.newest_s}\n".encode()


def look(tree: ImageTree, *, leave_out: Collection[str]) -> Programs:
    """Look at the programs of an image; mounts and templates hold none.

    Args:
        tree: The image.
        leave_out: Mount points.

    Raises:
        VolumeIOError: If that fails.
    """
    closed = {*_ELSEWHERE, *NOT_SCANNED, *leave_out, *tree.places, *tree.places.values()}
    digest, times = hashlib.sha256(), hashlib.sha256()
    newest_s = 0

    def skip(path: str) -> bool:
        return f"/{path}" in closed or path.rpartition("/")[2] == _CACHE

    with reported("look at the programs of the image"):
        for visit in walk(tree.fd, skip=skip):
            if stat.S_ISREG(visit.st.st_mode):
                st = visit.st
                digest.update(os.fsencode(f"{visit.path}\0{st.st_mode:o} {st.st_size}\n"))
                modified_s = st.st_mtime_ns // 10**9
                times.update(b"%d\n" % modified_s)
                newest_s = max(newest_s, modified_s)
    return Programs(digest=digest.hexdigest(), times=times.hexdigest(), newest_s=newest_s)


def recorded(tree: ImageTree) -> Programs | None:
    """Return what the image was when it was prepared before, or ``None`` if nothing says so."""
    data = tree.read_file(PATH, limit_bytes=_MAX_BYTES)
    found = _RECORD.fullmatch(data or b"")
    if found is None:
        return None
    return Programs(digest=found[1].decode(), times=found[2].decode(), newest_s=int(found[3]))
