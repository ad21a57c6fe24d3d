"""Acting on an image: what is listed goes to the templates, links take its place."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence

from ipavolume.config.model import VolumeConfig
from ipavolume.errors import ConfigurationError
from ipavolume.image.release import AccountNames
from ipavolume.image.tree import ImageTree
from ipavolume.linux import files, libc
from ipavolume.model.files import Metadata
from ipavolume.model.progress import Progress, count_text
from ipavolume.prepare.files import (
    PLAIN,
    DigestCache,
    make_missing,
    metadata_of,
    reported,
)
from ipavolume.prepare.findings import Findings
from ipavolume.prepare.originals import (
    WORK_DIRECTORY,
    Replacement,
    forget_journal,
    read_journal,
    replace_originals,
    write_journal,
)
from ipavolume.prepare.packages import PackageFacts
from ipavolume.prepare.placement import Placement
from ipavolume.prepare.records import packaged_metadata
from ipavolume.prepare.template import Template


class Relocation:
    """Moves entries; counts the links it makes and notes whether anything was changed."""

    def __init__(
        self,
        tree: ImageTree,
        volumes: Sequence[VolumeConfig],
        *,
        digests: DigestCache,
        findings: Findings,
        progress: Progress,
    ) -> None:
        """Work on the image *tree* and the templates of its volumes, the first the primary.

        Args:
            tree: The image.
            volumes: Its volumes.
            digests: Takes the digests of what is copied.
            findings: Takes what a person should look at.
            progress: Told of each phase.
        """
        self._tree = tree
        self._progress = progress
        self._templates = {
            volume.mount: Template(
                tree,
                tree.resolve(volume.template),
                digests=digests,
                findings=findings,
                say=progress,
            )
            for volume in volumes
        }
        # Its working directory holds the journal of all.
        self._primary = self._templates[volumes[0].mount]
        self.changed = False
        self.made = 0

    @property
    def locations(self) -> Mapping[str, str]:
        """Locations of the templates by mount."""
        return {mount: template.location for mount, template in self._templates.items()}

    def finish_interrupted(self) -> None:
        """Replace what an earlier run had copied and was about to replace; clear its work."""
        for template in sorted(self._templates.values(), key=lambda one: one is self._primary):
            location = template.location
            if self._tree.lstat(location) is None:
                continue
            with reported(f"finish the interrupted prepare in {location!r}"):
                top = self._tree.open_directory(location)
                try:
                    self._finish(top)
                finally:
                    os.close(top)
        self._tree.forget()

    def _finish(self, top: int) -> None:
        if files.lstat(top, WORK_DIRECTORY) is None:
            return
        self.changed = True
        replacements = read_journal(top)
        if replacements:
            self._progress("finishing an interrupted prepare")
            self.made += replace_originals(self._tree, replacements)
        forget_journal(top)

    def make(self, location: str, wanted: Callable[[str], Metadata] | None = None) -> None:
        """Make the directory at *location*, and those above it, as far as they are missing."""
        with reported(f"make the directory {location!r}"):
            self.changed |= make_missing(self._tree, location, wanted or _plain)

    def move(
        self, placements: Sequence[Placement], facts: PackageFacts, names: AccountNames
    ) -> None:
        """Copy, wave after wave, and put links in the place of what was copied."""

        def packaged(location: str) -> Metadata:
            file = facts.directories.get(location)
            return packaged_metadata(file, names) if file else PLAIN

        for wave in sorted({placement.wave for placement in placements}):
            todo = [one for one in placements if one.wave == wave and not one.covered]
            for placement in todo:
                self._make_parents(placement, packaged)
            todo = [one for one in todo if not one.linked]
            if not todo:
                continue
            self._progress(f"copying {count_text(len(todo), 'path')} to the templates")
            with contextlib.ExitStack() as stack:
                tops = [self._open(mount, stack) for mount in self._templates]
                replacements = [self._copy(one, facts, names) for one in todo]
                self._replace(replacements, tops)

    def _make_parents(self, placement: Placement, packaged: Callable[[str], Metadata]) -> None:
        """Make the directories above an entry, in the image and alike in the template."""
        tree = self._tree
        above = placement.location.rpartition("/")[0]
        self.make(above, packaged)
        tree.forget()

        def wanted(path: str) -> Metadata | None:
            location = tree.resolve(path)
            st = tree.lstat(location)
            if st is None or not location:
                return packaged(path)
            parent = tree.open_directory(location.rpartition("/")[0])
            try:
                return metadata_of(parent, location.rpartition("/")[2])
            finally:
                os.close(parent)

        with reported(f"make the directories above {placement.target!r} in the template"):
            template = self._templates[placement.volume.mount]
            self.changed |= template.make_parents(placement.place, wanted)

    def _copy(self, placement: Placement, facts: PackageFacts, names: AccountNames) -> Replacement:
        template = self._templates[placement.volume.mount]
        st = self._tree.lstat(placement.location)
        with reported(f"copy {placement.path!r} to {template.location + placement.place!r}"):
            if st is None:
                if placement.directory:
                    template.make_directory(
                        placement.place,
                        self._ghost_directory(placement, facts, names),
                    )
            else:
                template.adopt(placement.location, placement.place, target=placement.target)
        return Replacement(
            location=placement.location,
            target=placement.target,
            inode=st.st_ino if st else 0,
        )

    @staticmethod
    def _ghost_directory(
        placement: Placement, facts: PackageFacts, names: AccountNames
    ) -> Metadata:
        file = facts.files.get(placement.target)
        if file is not None and stat.S_ISDIR(file.file.mode):
            return packaged_metadata(file.file, names)
        return PLAIN

    def _open(self, mount: str, stack: contextlib.ExitStack) -> int:
        template = self._templates[mount]
        with reported(f"make the template {template.location!r}"):
            top = template.open()
        stack.callback(os.close, top)
        return top

    def _replace(self, replacements: Sequence[Replacement], tops: Sequence[int]) -> None:
        """Replace originals; *tops* are the templates, opened before they were written to."""
        self._progress(f"putting links in the place of {count_text(len(replacements), 'path')}")
        with reported("make the templates durable"):
            for top in tops:
                libc.sync_file_system(top)
        with reported("write the journal"):
            write_journal(tops[0], replacements)
        self.made += replace_originals(self._tree, replacements)
        with reported("remove the journal"):
            forget_journal(tops[0])
        self.changed = True
        self._tree.forget()

    def make_covered(
        self, placements: Sequence[Placement], facts: PackageFacts, names: AccountNames
    ) -> None:
        """Make what is listed inside another entry and is missing there."""
        for placement in placements:
            if not placement.covered:
                continue
            template = self._templates[placement.volume.mount]
            with reported(f"make {placement.target!r} in the template"):
                self.changed |= template.make_parents(
                    placement.place, self._where_missing(placement.volume.mount, facts, names)
                )
                if placement.directory:
                    self.changed |= template.make_directory(
                        placement.place,
                        self._ghost_directory(placement, facts, names),
                    )

    def _where_missing(
        self, mount: str, facts: PackageFacts, names: AccountNames
    ) -> Callable[[str], Metadata | None]:
        """Return what a missing directory of a template gets; one that is there is left."""

        def wanted(path: str) -> Metadata | None:
            if self._tree.lstat(self._templates[mount].location + path) is not None:
                return None
            packaged = facts.files.get(mount + path)
            if packaged is None or not stat.S_ISDIR(packaged.file.mode):
                return PLAIN
            return packaged_metadata(packaged.file, names)

        return wanted

    def find_links(
        self,
        placements: Sequence[Placement],
        points: frozenset[str],
        facts: PackageFacts,
        names: AccountNames,
    ) -> tuple[tuple[str, str], ...]:
        """Find the links of the image into mounts; make the directories they lead to."""
        tree = self._tree
        mounts = {template: mount for mount, template in self.locations.items()}
        found: list[tuple[str, str]] = []
        with reported("look for links in the image"):
            for location, target in tree.links(leave_out=points):
                # From its directory: through the link itself ".." is beside what it leads to.
                above = location.rpartition("/")[0]
                text = target if target.startswith("/") else f"{above}/{target}"
                try:
                    leads = tree.resolve(text, follow=False)
                except ConfigurationError:
                    continue
                for template, mount in mounts.items():
                    if leads.startswith(template + "/"):
                        found.append((location, mount + leads[len(template) :]))
        found.sort(key=lambda link: os.fsencode(link[0]))
        covering = frozenset(one.target for one in placements)
        for location, target in found:
            if any(above in covering for above in and_above(target)):
                continue
            mount = next(one for one in self._templates if target.startswith(one + "/"))
            with reported(f"make the directories that {location!r} leads to"):
                self.changed |= self._templates[mount].make_parents(
                    target[len(mount) :], self._where_missing(mount, facts, names)
                )
        return tuple(found)


def _plain(_: str) -> Metadata:
    return PLAIN


def and_above(path: str) -> list[str]:
    """Return *path* and the paths above it, without the root."""
    result = []
    while path:
        result.append(path)
        path = path.rpartition("/")[0]
    return result
