"""``ipavolume prepare``: what is done to an image when it is built.

Where every listed path is and where it goes is decided first; then content is copied to
the templates, links take its place, and the manifest is written last. Run again, it
changes nothing; run after an interruption, it finishes; run in a derived image, it adds
what is new. A path that once was listed and is a link stays an entry, whatever the lists
say now, because the image's processes will go on following that link.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ipavolume.config.model import (
    MAX_CONFIGURATION_BYTES,
    Config,
    VolumeConfig,
    default_volume,
)
from ipavolume.config.pathlist import ListEntry, normalise, parse_path_list
from ipavolume.config.reading import application_fault, parse_config, place_fault
from ipavolume.errors import ConfigurationError
from ipavolume.formats import manifest
from ipavolume.image.release import read_accounts
from ipavolume.image.tree import ImageTree
from ipavolume.linux import mounts, temporary
from ipavolume.model.images import ImageHeader
from ipavolume.model.paths import CONFIG_PATH, MANIFEST_PATH, is_within
from ipavolume.model.progress import Progress, count_text
from ipavolume.model.values import dataclass
from ipavolume.prepare import (
    databases,
    hidden,
    leftovers,
    mentioned,
    pathlists,
    predecessor,
    profile,
    programs,
    relatives,
    scriptlets,
    secrets,
    systemd,
)
from ipavolume.prepare.declared import Owners
from ipavolume.prepare.declared import read_packages as read_declared
from ipavolume.prepare.files import DigestCache, reported
from ipavolume.prepare.findings import Code, Finding, Findings
from ipavolume.prepare.manifest import (
    ImageFacts,
    check_build_id,
    describe,
    read_previous,
    write,
)
from ipavolume.prepare.packages import PackageFacts, read_facts
from ipavolume.prepare.placement import Listed, Placement, place_entries, record_path
from ipavolume.prepare.records import Shipped
from ipavolume.prepare.relocation import Relocation, and_above
from ipavolume.prepare.replacing import passed_by, replaced
from ipavolume.prepare.steps import check_steps, running_steps, ship_steps
from ipavolume.rpm.catalogue import substance

_MAX_LIST_BYTES: Final = profile.MAX_LIST_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareResult:
    """What ``prepare`` did.

    Attributes:
        build_id: Id of the image.
        changed: Anything in the image was changed.
        fingerprint: Fingerprint of the image.
        links: Links that were made.
        entries: Entries of all lists.
        records: Records of the manifest.
        packages: Packages of the image.
        findings: What a person should look at.
        unowned: Listed files that no package owns and ``files.refresh`` does not name: a
            volume that has them keeps its own.
    """

    build_id: str
    changed: bool
    fingerprint: str
    links: int
    entries: int
    records: int
    packages: int
    findings: tuple[Finding, ...]
    unowned: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings as lines."""
        return tuple(str(finding) for finding in self.findings)


def prepare(
    root: str,
    *,
    lists: Sequence[str],
    mount: str | None,
    template: str | None,
    rpms: Sequence[str],
    build_id: str | None,
    image_name: str | None,
    progress: Progress,
    strict: bool = False,
    accepted: Collection[str] = (),
    no_packages: bool = False,
) -> PrepareResult:
    """Prepare the image tree at *root*.

    Args:
        root: Directory of the image's root file system.
        lists: Path lists, as files of the caller, instead of those configured for *mount*.
        mount: Mount that *lists* and *template* are about; by default the primary one.
        template: Template of that mount.
        rpms: Package files to read instead of the image's rpm database.
        build_id: Id of the image; by default the one it has, or a new one.
        image_name: What people call the image.
        progress: Told of each phase.
        strict: What probably was not meant is an error, too.
        accepted: Codes of findings that are none.
        no_packages: The image may have none at all.

    Returns:
        What was done.

    Raises:
        UnfitImageError: If something was found that stops the build.
        ConfigurationError: If configuration, lists or packages are wrong; nothing changed.
        VolumeIOError: If reading or writing failed; running it again finishes the job.
        CannotCreateError: If something is in the way.
    """
    findings = Findings(strict=strict, accepted=accepted)
    if build_id is not None:
        check_build_id(build_id)
    with reported(f"prepare the image {root!r}"), ImageTree(root, {}) as tree:
        data = tree.read_file(CONFIG_PATH, limit_bytes=MAX_CONFIGURATION_BYTES)
        config, new_lists = profile.complete(
            tree, parse_config(data), configured=not lists and mount is None
        )
        systemd.check_supervision(tree, config)
    config = _with_options(config, mount=mount, template=template)
    templates = {volume.mount: volume.template for volume in config.volumes}
    with reported(f"prepare the image {root!r}"), ImageTree(root, templates) as tree:
        return _Run(tree, config, progress, findings).run(
            configuration=data or b"",
            new_lists=new_lists,
            lists=lists,
            mount=mount,
            rpms=rpms,
            no_packages=no_packages,
            build_id=build_id,
            image_name=image_name,
        )


def _with_options(config: Config, *, mount: str | None, template: str | None) -> Config:
    """Return the configuration with the command line's volume."""
    if mount is None and template is None:
        return config
    volumes = list(config.volumes)
    number = 0
    if mount is not None:
        mount = _place(mount)
        known = [one.mount for one in volumes]
        if mount in known:
            number = known.index(mount)
        elif config.volumes_given:
            raise ConfigurationError(
                f"{mount!r} is not a volume of {CONFIG_PATH}",
                hint=f"Add a [[volume]] with this mount, or name one of {', '.join(known)}.",
            )
        else:
            volumes[0] = default_volume(mount)
    if template is not None:
        volumes[number] = replace(volumes[number], template=_place(template))
    volume = volumes[number]
    for path in (volume.mount, volume.template):
        for other in volumes:
            for taken in (other.mount, other.template):
                if taken is not path and (is_within(path, taken) or is_within(taken, path)):
                    raise ConfigurationError(
                        f"{path!r} and {taken!r} are in one another's way",
                        hint="Mounts and templates have to lie apart.",
                    )
    return replace(config, volumes=tuple(volumes))


def _place(path: str) -> str:
    fault = place_fault(normalise(path)) if path.startswith("/") else "must be absolute"
    if fault or "\0" in path:
        raise ConfigurationError(f"{path!r} {fault}", hint="Give another directory.")
    return normalise(path)


class _Run:
    """One run: what it decides, and the order of what it does."""

    def __init__(
        self, tree: ImageTree, config: Config, progress: Progress, findings: Findings
    ) -> None:
        self._tree = tree
        self._config = config
        self._progress = progress
        self._findings = findings
        self._harmless = profile.HARMLESS_LINKS.get(config.profile, ())
        self._digests = DigestCache()
        self._lists: list[str] = []
        self._check_templates()
        self._relocation = Relocation(
            tree,
            config.volumes,
            digests=self._digests,
            findings=findings,
            progress=progress,
        )

    def run(
        self,
        *,
        configuration: bytes,
        new_lists: Mapping[str, bytes],
        lists: Sequence[str],
        mount: str | None,
        rpms: Sequence[str],
        no_packages: bool,
        build_id: str | None,
        image_name: str | None,
    ) -> PrepareResult:
        tree, relocation, found = self._tree, self._relocation, self._findings
        relocation.finish_interrupted()
        before = read_previous(tree, findings=found)
        theirs = predecessor.look(tree, self._config.profile, found)
        listed = self._read_lists(lists, mount, before, new_lists)
        placements = place_entries(tree, listed, self._config.volumes)
        points = self._check_mount_points(placements)
        relatives.check(
            tree,
            placements,
            relocation.locations,
            harmless=self._harmless,
        )
        entries = len({(item.volume.mount, item.entry.path) for item in listed})
        self._progress(count_text(entries, "listed path"))
        names = read_accounts(tree)
        needed = not (no_packages or self._config.packages)
        facts = self._read_packages(placements, rpms, before, needed=needed)
        declared = read_declared(
            tree,
            self._config.packages,
            facts,
            list(relocation.locations),
            findings=found,
        )
        packages = tuple(sorted((*facts.packages, *declared), key=lambda one: one.name))
        described = scriptlets.describe(
            tree, facts.installed, self._config.scriptlets, findings=found
        )
        own = profile.own_paths(self._config.profile)
        pathlists.check(
            tree,
            listed,
            placements,
            relocation.locations,
            facts,
            profile=own,
            findings=found,
        )
        pathlists.check_absent_files(
            tree,
            placements,
            relocation.locations,
            profile=own,
            freeipa=self._config.profile == "freeipa",
            findings=found,
        )
        pathlists.note_single_files(
            tree, placements, relocation.locations, profile=own, findings=found
        )
        databases.check(
            tree,
            placements,
            relocation.locations,
            facts,
            refresh=self._config.files_refresh,
            findings=found,
        )
        secrets.check(
            tree,
            placements,
            relocation.locations,
            facts,
            meant=(
                *self._config.files_refresh,
                *(glob for one in self._config.packages for glob in one.config),
            ),
            findings=found,
        )
        mentioned.check(tree, self._config, packages, findings=found)
        # Of package files that are named, nobody knows which others rpm has replaced.
        known = None if rpms else before
        leftovers.check(tree, placements, relocation.locations, facts, known, findings=found)
        self._find_replaced(placements, described)
        self._find_first_run(listed)
        found.settle()
        taken_out = predecessor.take_out(tree, theirs, self._progress)
        lists_changed = profile.write(
            tree, new_lists, make=relocation.make, progress=self._progress
        )
        self._make_mounts()
        relocation.move(placements, facts, names)
        relocation.make_covered(placements, facts, names)
        for location in tree.places:
            relocation.make(location)
        tree.forget()
        self._progress("looking for links into the volumes")
        links = relocation.find_links(placements, points, facts, names)
        steps, steps_changed = ship_steps(tree, make=relocation.make, findings=found)
        scriptlets_changed = scriptlets.ship(tree, described, make=relocation.make)
        running = running_steps(steps, packages)
        systemd.check_running(tree, self._config, running)
        if systemd.is_replaced(tree, self._config):
            self._progress(
                "systemd is in the image, and [start] exec is another program "
                f"({self._config.start_exec[0]}): prepare installs no units (and takes out those "
                "of a base image), and all of an upgrade comes before that program"
            )
        init_changed = systemd.install(
            tree,
            self._config,
            running=bool(running),
            make=relocation.make,
            findings=found,
        )
        self._progress("writing the manifest")
        owners = Owners(self._config.packages, findings=found)
        shipped = Shipped(
            tree,
            facts=facts,
            names=names,
            digests=self._digests,
            refresh=self._config.files_refresh,
            declared=owners,
            harmless=self._harmless,
            findings=found,
        )
        image = ImageFacts(
            config=self._config,
            configuration=configuration,
            listed=listed,
            lists=self._lists,
            packages=packages,
            names=names,
            links=links,
            units=systemd.units(tree, [item.entry.path for item in listed]),
            locations=relocation.locations,
            scriptlets=substance(described.catalogue),
            before=before,
            steps=steps,
            programs=programs.look(tree, leave_out=points),
        )
        with temporary.anonymous_file() as spool:
            header = describe(tree, image, shipped, spool, build_id=build_id, image_name=image_name)
            check_steps(tree, steps, header)
            shipped.check_used()
            shipped.check_accounts(before, relocation.locations)
            owners.check(tree, header, before)
            found.settle()
            written = write(tree, image, header, spool, make=relocation.make)
        if not header.application:
            self._suggest(header, facts)
        return PrepareResult(
            build_id=header.build_id,
            changed=written
            or taken_out
            or lists_changed
            or relocation.changed
            or steps_changed
            or scriptlets_changed
            or init_changed,
            fingerprint=header.fingerprint,
            links=relocation.made,
            entries=entries,
            records=header.records,
            packages=len(header.packages),
            findings=found.found,
            unowned=tuple(shipped.unowned),
        )

    def _suggest(self, header: ImageHeader, facts: PackageFacts) -> None:
        """Suggest what to call the application, where nobody said."""
        named = header.image_name.partition("@")[0].rpartition("/")[2].partition(":")[0]
        owners = Counter(one.package for one in facts.files.values())
        words = (named, *(package for package, _ in owners.most_common(1)))
        word = next((word for word in words if not application_fault(word)), "my-server")
        self._progress(
            f'application = ["{word}"] in {CONFIG_PATH} would say whose volumes these are: without '
            "it only packages tell those of another application"
        )

    def _check_templates(self) -> None:
        faults = []
        for volume in self._config.volumes:
            location = self._tree.resolve(volume.template)
            st = self._tree.lstat(location)
            if st is not None and not stat.S_ISDIR(st.st_mode):
                faults.append(f"the template {volume.template!r} is not a directory")
        if faults:
            raise ConfigurationError("; ".join(faults), hint="Choose other templates.")

    def _read_lists(
        self,
        lists: Sequence[str],
        mount: str | None,
        before: ImageHeader | None,
        new_lists: Mapping[str, bytes],
    ) -> list[Listed]:
        result: list[Listed] = []
        faults: list[str] = []
        chosen = normalise(mount) if mount is not None else self._config.volumes[0].mount
        for volume in self._config.volumes:
            given = bool(lists) and volume.mount == chosen
            for name in lists if given else volume.lists:
                try:
                    data = _read_given(name) if given else new_lists.get(name)
                    data = self._read_list(name) if data is None else data
                    entries = parse_path_list(data, name=name)
                except ConfigurationError as err:
                    faults.append(str(err))
                    continue
                if not given:
                    self._lists.append(name)
                result += [Listed(volume=volume, entry=entry, name=name) for entry in entries]
        if faults:
            raise ConfigurationError(
                "; ".join(faults), hint="Correct the path lists, or name others with --list."
            )
        return result + self._inherited(result, before)

    def _make_mounts(self) -> None:
        """Make where volatile volumes are: a container that may write needs no mount for them."""
        for volume in self._config.volumes:
            if volume.volatile:
                self._relocation.make(self._tree.resolve_outside(volume.mount))

    def _read_list(self, name: str) -> bytes:
        data = self._tree.read_file(name, limit_bytes=_MAX_LIST_BYTES)
        if data is None:
            raise ConfigurationError(f"there is no path list {name!r} in the image")
        return data

    def _inherited(self, listed: Sequence[Listed], before: ImageHeader | None) -> list[Listed]:
        """Return the entries of the image that this one is derived from."""
        known = {(item.volume.mount, item.entry.path) for item in listed}
        volumes = {volume.mount: volume for volume in self._config.volumes}
        return [
            Listed(
                volume=volumes[spec.mount],
                entry=ListEntry(path=path, directory=False, line=0),
                name=MANIFEST_PATH,
            )
            for spec in (before.volumes if before else ())
            if spec.mount in volumes
            for path in spec.entries
            if (spec.mount, path) not in known and manifest.is_safe_path(path)
        ]

    def _check_mount_points(self, placements: Sequence[Placement]) -> frozenset[str]:
        """Refuse what a mounted file system would hide; return the mount points."""
        points = frozenset("/" + path for path in mounts.mount_points_below(self._tree.root))
        faults = []
        if os.path.realpath(self._tree.root) == "/":
            faults = [
                f"something is mounted on {volume.mount!r}, and holds "
                + hidden.describe(self._tree, volume.mount, placements)
                for volume in self._config.volumes
                if not volume.volatile
                and self._tree.resolve_outside(volume.mount) in points
                # Builders mount something empty on what the image derived from calls a VOLUME.
                and hidden.count(self._tree, volume.mount)
            ]
        for placement in placements:
            if placement.covered or placement.linked:
                continue
            faults += [
                f"{placement.path!r} cannot be moved: something is mounted on {point!r}"
                for point in sorted(points)
                if is_within(point, placement.location)
            ]
        if faults:
            raise ConfigurationError(
                "; ".join(faults),
                hint="Run prepare while the image is built, with nothing mounted there; what a "
                "builder mounts for a VOLUME has to be empty.",
            )
        for volume in self._config.volumes:
            self._find_hidden(volume, placements)
        return points

    def _find_hidden(self, volume: VolumeConfig, placements: Sequence[Placement]) -> None:
        count = 0 if volume.volatile else hidden.count(self._tree, volume.mount)
        if count:
            self._findings.add(
                Code.HIDDEN_CONTENT,
                f"{volume.mount!r} in the image holds "
                f"{count_text(count, 'entry', 'entries')} that a volume hides: "
                + hidden.describe(self._tree, volume.mount, placements),
                path=volume.mount,
            )

    def _read_packages(
        self,
        placements: Sequence[Placement],
        rpms: Sequence[str],
        before: ImageHeader | None,
        *,
        needed: bool,
    ) -> PackageFacts:
        self._progress("reading the packages")
        by_location = {placement.location: placement for placement in placements}
        templates = {template: mount for mount, template in self._relocation.locations.items()}
        missing = {path for one in placements for path in and_above(one.location)}
        missing = {path for path in missing if self._tree.lstat(path) is None}
        facts = read_facts(
            self._tree,
            rpms=rpms,
            before=before,
            needed=needed,
            progress=self._progress,
            place=lambda location: record_path(location, by_location, templates),
            missing=frozenset(missing),
        )
        self._progress(
            f"rpm knows {count_text(len(facts.packages), 'package')}; "
            f"{count_text(len(facts.files), 'listed file')} from them"
        )
        return facts

    def _find_replaced(
        self, placements: Sequence[Placement], described: scriptlets.Described
    ) -> None:
        """Warn of scriptlets that replace a listed file, which is a link, instead of writing to it.

        At an upgrade what they write is taken over; on a read-only root they cannot write it. And
        of those that go through a listed directory, and do not through a link to it.
        """
        config = self._config.scriptlets
        if config is None:
            return
        templates = self._relocation.locations
        paths = set()
        directories = {}
        for one in placements:
            st = pathlists.content(self._tree, one, templates)
            is_directory = one.directory if st is None else stat.S_ISDIR(st.st_mode)
            if not (one.covered or is_directory):
                paths.add(one.path)
            elif not one.covered:
                directories[one.path] = one.target
        for scriptlet, text in scriptlets.that_may_run(described, config):
            for path, command in replaced(text, paths):
                self._findings.add(
                    Code.REPLACED_BY_SCRIPTLET,
                    f"%{scriptlet.kind} of {scriptlet.package} ({scriptlet.name}) replaces the "
                    f"listed file {path!r}, which is a link to the volume: {command}. With a "
                    "read-only root that fails; else what it writes is taken over to the volume "
                    "each time. Have it write to the link's target ([scriptlets] substitute), or "
                    "list the directory",
                    path=path,
                )
            for path, command in passed_by(text, directories):
                self._findings.add(
                    Code.PASSED_BY_SCRIPTLET,
                    f"%{scriptlet.kind} of {scriptlet.package} ({scriptlet.name}) does not come to "
                    f"what is in the listed directory {path!r}, which is a link to the volume: "
                    f"{command}. Have it go to the link's target, {directories[path]!r} "
                    "([scriptlets] substitute)",
                    path=path,
                )

    def _find_first_run(self, listed: Sequence[Listed]) -> None:
        """Warn of what the first run is judged by, where a volume would not keep it."""
        config = self._config.first_run
        if config is None:
            return
        kept = [item.entry.path for item in listed if not item.volume.volatile]
        kept += [volume.mount for volume in self._config.volumes if not volume.volatile]
        for key, path in (
            ("done-when", config.done_when),
            ("waiting-when", config.waiting_when),
            ("ruins-when", config.ruins_when),
        ):
            if path and not any(is_within(path, above) for above in kept):
                self._findings.add(
                    Code.UNSEEN_MARK,
                    f"[first-run] {key}: {path!r} is on no volume, so it will not be seen",
                    path=path,
                )


def _read_given(name: str) -> bytes:
    try:
        with open(name, "rb") as stream:
            data = stream.read(_MAX_LIST_BYTES + 1)
    except OSError as err:
        raise ConfigurationError(f"cannot read the path list {name!r}: {err.strerror}") from err
    if len(data) > _MAX_LIST_BYTES:
        raise ConfigurationError(f"the path list {name!r} is larger than {_MAX_LIST_BYTES} bytes")
    return data
