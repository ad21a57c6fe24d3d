"""What an image ships: the content of its templates together with what packages say of it."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence

from ipavolume.config.pathlist import normalise
from ipavolume.errors import ConfigurationError
from ipavolume.formats import manifest
from ipavolume.image.release import AccountNames
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files
from ipavolume.linux.trees import Visit, walk
from ipavolume.model.files import FileFlags, FileType, Metadata, Record
from ipavolume.model.images import ImageHeader, TopLevel
from ipavolume.model.packages import RpmFile
from ipavolume.model.paths import CONFIG_PATH
from ipavolume.prepare.declared import DECLARED_FLAGS, Owners
from ipavolume.prepare.files import (
    DigestCache,
    digests_of,
    reported,
    xattrs_of,
)
from ipavolume.prepare.findings import Code, Findings
from ipavolume.prepare.globs import matches
from ipavolume.prepare.packages import PackagedFile, PackageFacts
from ipavolume.prepare.placement import is_reserved
from ipavolume.prepare.relatives import is_harmless


def packaged_metadata(file: RpmFile, names: AccountNames) -> Metadata:
    """Return owner and mode as the package has them; an unknown owner is root, as in rpm."""
    return Metadata(
        uid=names.accounts.users.get(file.owner, 0),
        gid=names.accounts.groups.get(file.group, 0),
        mode=stat.S_IMODE(file.mode),
    )


def _stays(record: Record) -> bool:
    """Tell whether *record* is of a file that stays on a volume as it first came there."""
    return record.type is FileType.FILE and not record.package and not record.refresh


class Shipped:
    """Makes the records of an image."""

    def __init__(
        self,
        tree: ImageTree,
        *,
        facts: PackageFacts,
        names: AccountNames,
        digests: DigestCache,
        refresh: Sequence[str],
        declared: Owners,
        harmless: Collection[str],
        findings: Findings,
    ) -> None:
        """Keep what records are made of.

        Args:
            tree: The image.
            facts: What packages say.
            names: The image's accounts.
            digests: Digests of files that were read already.
            refresh: Globs of the configuration.
            declared: Whose configuration files are what no other package owns.
            harmless: Links, by their path in the image, that nothing needs.
            findings: Takes what is left out, and links that lead nowhere on a volume.
        """
        self._tree = tree
        self._facts = facts
        self._names = names
        self._digests = digests
        self._refresh = refresh
        self._used: set[str] = set()
        self._declared = declared
        self._harmless = harmless
        self._findings = findings
        self._top: dict[str, dict[str, list[int]]] = {}
        self.unowned: list[str] = []
        """Files that no package owns and that no newer image refreshes, by the image's paths."""
        self._nobodys: dict[tuple[str, int], tuple[str, int]] = {}
        """What belongs to numbers without a name: the first path, and how many there are."""

    def records(self, templates: Mapping[str, str]) -> Iterator[Record]:
        """Yield the records of all templates, sorted by the bytes of their paths.

        Args:
            templates: Location of the template by mount.
        """
        for mount in sorted(templates, key=lambda path: os.fsencode(path) + b"/"):
            self._top[mount] = {}
            with reported(f"read the template of {mount!r}"):
                yield from self._below(mount, templates[mount])

    def _below(self, mount: str, template: str) -> Iterator[Record]:
        ghosts = sorted(
            (
                path
                for path, packaged in self._facts.files.items()
                if path.startswith(mount + "/")
                and packaged.file.flags & FileFlags.GHOST
                and not is_reserved(path[len(mount) + 1 :].partition("/")[0])
            ),
            key=os.fsencode,
            reverse=True,
        )
        paths_by_inode: dict[tuple[int, int], str] = {}
        if self._tree.lstat(template) is not None:
            top = self._tree.open_directory(template)
            try:
                for visit in walk(top, skip=lambda path: "/" not in path and is_reserved(path)):
                    if visit.leaving:
                        continue
                    path = f"{mount}/{visit.path}"
                    key = os.fsencode(path)
                    while ghosts and os.fsencode(ghosts[-1]) < key:
                        yield from self._absent(ghosts.pop())
                    if ghosts and ghosts[-1] == path:
                        ghosts.pop()
                    if files.type_of(visit.st.st_mode) is FileType.OTHER:
                        self._findings.add(
                            Code.SPECIAL_FILE,
                            f"{path!r} is a socket or device in the template; left out",
                            path=path,
                        )
                        continue
                    record = self._present(path, mount, visit, paths_by_inode)
                    self._count(mount, record)
                    if _stays(record):
                        self.unowned.append(path[len(mount) :])
                    yield record
            finally:
                os.close(top)
        while ghosts:
            yield from self._absent(ghosts.pop())

    def _count(self, mount: str, record: Record) -> None:
        """Count a record of which the template has content to what is right below the mount."""
        end = record.path.find("/", len(mount) + 1)
        path = record.path if end < 0 else record.path[:end]
        # A directory comes before what is in it.
        counted = self._top[mount].setdefault(path, [record.type is FileType.DIRECTORY, 0, 0])
        counted[1] += 1
        counted[2] += 0 if record.hard_link else record.size

    def top(self, mount: str) -> tuple[TopLevel, ...]:
        """Return what was counted right below *mount*, once all records were yielded."""
        return tuple(
            TopLevel(path=path, is_directory=bool(is_directory), entries=entries, bytes=size)
            for path, (is_directory, entries, size) in self._top[mount].items()
        )

    def check_accounts(self, before: ImageHeader | None, templates: Mapping[str, str]) -> None:
        """Warn of what belongs to a number that an account had before, once all were yielded.

        Args:
            before: What the image was when it was prepared before, if it was.
            templates: Location of the template by mount.
        """
        if before is None:
            return
        known = {"user": before.accounts.users, "group": before.accounts.groups}
        now = {"user": self._names.accounts.users, "group": self._names.accounts.groups}
        for (what, number), (first, count) in self._nobodys.items():
            for name in sorted(one for one, had in known[what].items() if had == number):
                has = now[what].get(name)
                mount = next(one for one in templates if first.startswith(f"{one}/"))
                place = templates[mount] + first[len(mount) :]
                more = f" and {count - 1} more in the template" if count > 1 else ""
                self._findings.add(
                    Code.NO_ACCOUNT,
                    f"{place!r}{more}: the {what} is {number}, which was {name!r} when the image "
                    "was prepared before, and is nobody's now"
                    + ("" if has is None else f" ({name} is {has})"),
                    path=place,
                )

    def _present(
        self,
        path: str,
        mount: str,
        visit: Visit,
        paths_by_inode: dict[tuple[int, int], str],
    ) -> Record:
        st = visit.st
        kind = files.type_of(st.st_mode)
        for what, names, number in (
            ("user", self._names.users, st.st_uid),
            ("group", self._names.groups, st.st_gid),
        ):
            if number not in names:
                first, count = self._nobodys.get((what, number), (path, 0))
                self._nobodys[what, number] = first, count + 1
        if len(path) > manifest.MAX_PATH_CHARACTERS:
            raise ConfigurationError(
                f"{path[:80]!r}... has {len(path)} characters; a path has at most "
                f"{manifest.MAX_PATH_CHARACTERS}",
                hint="No process can open it by its path: remove it from the image.",
            )
        known = self._facts.files.get(path)
        packaged = known or self._declare(path, mount, visit)
        content = rpm_digest = hard_link = ""
        if kind is FileType.FILE:
            content, rpm_digest = self._content(visit, packaged)
        elif kind is FileType.SYMLINK:
            content = files.readlink(visit.directory, visit.name)
            self._check_link(path, mount, content)
        if packaged is not None and known is None:
            self._declared.note(packaged.package, path, content)
            if kind is FileType.SYMLINK:
                self._declared.note_link(packaged.package, path, mount, content)
        if kind is not FileType.FILE and packaged and packaged.file.digest:
            rpm_digest = f"{packaged.file.digest_algorithm}:{packaged.file.digest}"
        if st.st_nlink > 1 and kind is not FileType.DIRECTORY:
            first = paths_by_inode.setdefault((st.st_dev, st.st_ino), path)
            hard_link = "" if first == path else first
        record = Record(
            path=path,
            type=kind,
            mode=stat.S_IMODE(st.st_mode),
            owner=self._names.users.get(st.st_uid, str(st.st_uid)),
            group=self._names.groups.get(st.st_gid, str(st.st_gid)),
            uid=st.st_uid,
            gid=st.st_gid,
            size=st.st_size if kind is FileType.FILE else 0,
            content=content,
            xattrs=xattrs_of(visit.directory, visit.name),
            flags=packaged.file.flags if packaged else FileFlags.NONE,
            package=packaged.package if packaged else "",
            rpm_digest=rpm_digest,
            hard_link=hard_link,
            refresh=kind is FileType.FILE and packaged is None and self._refreshed(path, mount),
        )
        if len(path) > 1024 and len(manifest.dump_record(record)) > manifest.MAX_RECORD_BYTES:
            raise ConfigurationError(
                f"{path[:80]!r}... is too long a path for a volume",
                hint="Take it out of the image or of the path lists.",
            )
        return record

    def _declare(self, path: str, mount: str, visit: Visit) -> PackagedFile | None:
        st = visit.st
        package = self._declared.owner(path, mount, files.type_of(st.st_mode))
        if not package:
            return None
        file = RpmFile(
            path=path,
            mode=st.st_mode,
            size=st.st_size,
            digest="",
            digest_algorithm="",
            target="",
            owner="",
            group="",
            flags=DECLARED_FLAGS,
        )
        return PackagedFile(package=package, file=file)

    def _content(self, visit: Visit, packaged: PackagedFile | None) -> tuple[str, str]:
        """Return the SHA-256 of a file, and the package's digest where it differs."""
        digest = packaged.file.digest if packaged else ""
        algorithm = packaged.file.digest_algorithm if packaged else ""
        algorithms = ["sha256"]
        if digest and algorithm != "sha256" and algorithm in hashlib.algorithms_available:
            algorithms.append(algorithm)
        known = self._digests.get(visit.st) if len(algorithms) == 1 else ""
        found = (known,) if known else digests_of(visit.directory, visit.name, algorithms)
        compared = found[-1] if algorithm == algorithms[-1] else ""
        differs = bool(digest) and digest != compared
        return found[0], f"{algorithm}:{digest}" if differs else ""

    def _refreshed(self, path: str, mount: str) -> bool:
        found = [glob for glob in self._refresh if matches(path, mount, glob)]
        self._used.update(found)
        return bool(found)

    def check_used(self) -> None:
        """Warn of globs that were for none of the records, once all were yielded."""
        for glob in dict.fromkeys(self._refresh):
            if glob not in self._used:
                self._findings.add(
                    Code.UNUSED_REFRESH,
                    f"[files] refresh: no listed file without a package matches {glob!r}",
                    path=CONFIG_PATH,
                )

    def _check_link(self, path: str, mount: str, target: str) -> None:
        """Warn of a relative link that led somewhere in the image and no longer does."""
        if target.startswith("/"):
            return
        below = path[len(mount) :]
        # From where it was: the directory that is there now is a link to the one on the volume.
        led = normalise(posixpath.join(posixpath.dirname(below), target))
        leads = normalise(posixpath.join(posixpath.dirname(path), target))
        if is_harmless(below, led, self._harmless):
            return
        if not self._tree.exists(leads) and self._tree.exists(led):
            self._findings.add(
                Code.RELATIVE_LINK,
                f"the relative link {below!r} led to {led!r}, on the volume it leads "
                f"to {leads!r}, where nothing is; make it absolute in the template",
                path=below,
            )

    def _absent(self, path: str) -> Iterator[Record]:
        """Yield the record of a ghost of which the template holds nothing."""
        packaged = self._facts.files[path]
        kind = files.type_of(packaged.file.mode)
        if kind is FileType.OTHER:
            return
        metadata = packaged_metadata(packaged.file, self._names)
        yield Record(
            path=path,
            type=kind,
            mode=metadata.mode,
            owner=packaged.file.owner,
            group=packaged.file.group,
            uid=metadata.uid,
            gid=metadata.gid,
            content=packaged.file.target if kind is FileType.SYMLINK else "",
            flags=packaged.file.flags,
            package=packaged.package,
            present=False,
        )
