"""Which image this is: its manifest, its fingerprint and its build id."""

from __future__ import annotations

import datetime
import os
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO, Final

from ipavolume import fastpath
from ipavolume.config.model import Config
from ipavolume.errors import ConfigurationError, ManifestError, UsageError
from ipavolume.firstrun.command import application_of
from ipavolume.formats import manifest
from ipavolume.image import sources
from ipavolume.image.owning import Owning
from ipavolume.image.release import AccountNames, read_os_release
from ipavolume.image.tree import ImageTree
from ipavolume.linux import clock
from ipavolume.linux.files import open_regular, reader, write_stream
from ipavolume.model.files import BUILD_ID_NAME, Record
from ipavolume.model.images import ImageHeader, VolumeSpec
from ipavolume.model.packages import Package
from ipavolume.model.paths import BUILD_ID_PATH, MANIFEST_PATH, OWN_STEPS, SHIPPED_STEPS
from ipavolume.model.progress import Progress
from ipavolume.model.tasks import Phase
from ipavolume.model.values import dataclass
from ipavolume.prepare import profile, programs
from ipavolume.prepare.files import reported
from ipavolume.prepare.findings import Code, Findings
from ipavolume.prepare.placement import Listed
from ipavolume.prepare.programs import Programs
from ipavolume.prepare.records import Shipped
from ipavolume.steps import known
from ipavolume.steps.api import Declaration, When
from ipavolume.steps.views import find_package

_PRIVATE: Final = 0o600
_MAX_BUILD_ID_CHARACTERS: Final = 256
_MAX_STEP_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What is known of an image besides the content of its templates.

    Attributes:
        config: Its configuration.
        configuration: The bytes of the file, b"" when there is none.
        listed: What its path lists say.
        lists: Paths of the lists that are files of the image.
        packages: Its packages.
        names: Its accounts.
        links: Its links into mounts.
        units: Its systemd's units, where links to units are listed.
        locations: Locations of the templates by mount.
        scriptlets: Digest of what can run as scriptlets.
        before: Header of the manifest that it had, if any.
        steps: Its steps.
        programs: Its programs.
    """

    config: Config
    configuration: bytes
    listed: Sequence[Listed]
    lists: Sequence[str]
    packages: tuple[Package, ...]
    names: AccountNames
    links: tuple[tuple[str, str], ...]
    units: tuple[str, ...]
    locations: Mapping[str, str]
    scriptlets: str
    before: ImageHeader | None
    steps: tuple[Declaration, ...]
    programs: Programs


def check_build_id(build_id: str) -> None:
    """Refuse what cannot be a build id.

    Raises:
        UsageError: If it is not one line of printable text of a sensible length.
    """
    if not build_id or len(build_id) > _MAX_BUILD_ID_CHARACTERS or not build_id.isprintable():
        raise UsageError(
            f"{build_id!r} cannot be a build id: it has to be one line of text",
            hint=f"Use at most {_MAX_BUILD_ID_CHARACTERS} printable characters.",
        )


def read_previous(tree: ImageTree, *, findings: Findings) -> ImageHeader | None:
    """Return the header of the manifest that the image has, if it is whole."""
    location = tree.resolve(MANIFEST_PATH)
    with reported(f"read {MANIFEST_PATH!r}"):
        if tree.lstat(location) is None:
            return None
        parent = tree.open_directory(location.rpartition("/")[0])
        try:
            fd = open_regular(parent, location.rpartition("/")[2])
        finally:
            os.close(parent)
        if fd is None:
            return None
        with reader(fd) as stream:
            try:
                header = manifest.read_header(stream)
                manifest.verify(stream, header)
            except ManifestError as err:
                findings.add(
                    Code.DAMAGED_MANIFEST,
                    f"the manifest that the image had is not usable, it is made anew: {err}",
                    path=MANIFEST_PATH,
                )
                return None
    return header


def describe(
    tree: ImageTree,
    facts: ImageFacts,
    shipped: Shipped,
    spool: BinaryIO,
    *,
    build_id: str | None,
    image_name: str | None,
) -> ImageHeader:
    """Write the records of the image to *spool* and return the header for them.

    The time of the build is that of the manifest before where nothing else differs.

    Args:
        tree: The image.
        facts: What is known of it.
        shipped: Makes its records.
        spool: Takes the record lines.
        build_id: Id to give it, or ``None``: the one it has, or a new one.
        image_name: What people call it, or ``None``: as before where nothing differs.

    Raises:
        ConfigurationError: If the build id that the image has is none.
    """
    config, before = facts.config, facts.before
    entries = {
        volume.mount: tuple(
            sorted(
                {one.entry.path for one in facts.listed if one.volume.mount == volume.mount},
                key=os.fsencode,
            )
        )
        for volume in config.volumes
    }
    own = profile.own_paths(config.profile)
    os_id, os_version = read_os_release(tree)
    volumes = tuple(
        VolumeSpec(
            mount=volume.mount,
            template=volume.template,
            volatile=volume.volatile,
            entries=entries[volume.mount],
            profile=tuple(path for path in entries[volume.mount] if path in own),
        )
        for volume in config.volumes
    )
    spooled = _Spooled(spool, Owning(volumes))
    fingerprint = manifest.fingerprint(
        spooled.passing(shipped.records(facts.locations)),
        facts.packages,
        _parts(tree, facts, entries, (os_id, os_version)),
    )
    known = programs.recorded(tree)
    unchanged = (
        before is not None
        and before.fingerprint == fingerprint
        and (known is None or not facts.programs.differ_from(known))
    )
    kept_name = before.image_name if before is not None and unchanged else ""
    header = ImageHeader(
        build_id=build_id or _build_id(tree, facts, unchanged=unchanged),
        image_name=kept_name if image_name is None else image_name,
        created=before.created if before else "",
        os_id=os_id,
        os_version=os_version,
        fingerprint=fingerprint,
        packages=facts.packages,
        accounts=facts.names.accounts,
        volumes=tuple(replace(volume, top=shipped.top(volume.mount)) for volume in volumes),
        links=facts.links,
        units=facts.units,
        records=spooled.count,
        records_digest=spooled.digest.hexdigest(),
        application=config.application[0] if config.application else "",
        owning=spooled.owning.found(),
    )
    if before is not None and manifest.dump_header(header) == manifest.dump_header(before):
        return header
    return replace(header, created=_now())


def _start_data(tree: ImageTree, facts: ImageFacts, header: ImageHeader) -> bytes:
    """Return what a start on a current volume has to know, in a form that needs no parser.

    Without an id every start takes the long way: where a volatile volume has to be filled, a step
    is asked, or the start stays, there is no start with nothing to do.
    """
    config = facts.config
    first_run = fastpath.NONE
    if config.first_run is not None:
        first_run = fastpath.NAMED if application_of(config.first_run).is_named else fastpath.ONCE
    busy = any(volume.volatile for volume in config.volumes) or any(
        When.START in step.when
        # What comes once the application is ready is asked by another process.
        and step.phase is not Phase.RUNNING
        and not step.masked
        and find_package(header.packages, step.component) is not None
        for step in facts.steps
    )
    return fastpath.dump(
        (
            b"" if busy or config.start_supervise else header.build_id.encode(),
            first_run,
            [os.fsencode(volume.mount) for volume in header.volumes],
            [os.fsencode(word) for word in config.start_exec],
            sources.look(tree, facts.lists),
            facts.configuration,
        )
    )


def write(
    tree: ImageTree,
    facts: ImageFacts,
    header: ImageHeader,
    spool: BinaryIO,
    *,
    make: Progress,
) -> bool:
    """Write build id and manifest, the manifest last, where they are not so already.

    Args:
        tree: The image.
        facts: What is known of it.
        header: The header.
        spool: The record lines.
        make: Makes the directory at a location if it is missing.

    Returns:
        Whether anything was written.
    """

    def content() -> Iterator[bytes]:
        yield manifest.dump_header(header)
        spool.seek(0)
        while chunk := spool.read(1 << 20):
            yield chunk

    files: list[tuple[str, Iterator[bytes]]] = []
    locked = tree.lstat(fastpath.WORK_LOCK)
    if locked is None or stat.S_IMODE(locked.st_mode) != _PRIVATE:
        files.append((fastpath.WORK_LOCK, iter([])))
    build_id = header.build_id.encode() + b"\n"
    if header.build_id != _current_build_id(tree):
        files.append((BUILD_ID_PATH, iter([build_id])))
    of_template = f"{facts.locations[facts.config.volumes[0].mount]}/{BUILD_ID_NAME}"
    if tree.read_file(of_template, limit_bytes=4 * _MAX_BUILD_ID_CHARACTERS) not in (
        None,
        build_id,
    ):
        # Scripts that the project's users have compare with this one.
        files.append((of_template, iter([build_id])))
    start = _start_data(tree, facts, header)
    if tree.read_file(sources.START_PATH, limit_bytes=sources.MAX_START_BYTES) != start:
        files.append((sources.START_PATH, iter([start])))
    declared = known.dump(facts.steps)
    if tree.read_file(known.PATH, limit_bytes=known.MAX_BYTES) != declared:
        files.append((known.PATH, iter([declared])))
    had = programs.recorded(tree)
    if had is None or facts.programs.differ_from(had):
        files.append((programs.PATH, iter([facts.programs.dump()])))
    if facts.before is None or facts.before != header:
        files.append((MANIFEST_PATH, content()))
    for path, data in files:
        above, _, name = tree.resolve(path).rpartition("/")
        make(above)
        with reported(f"write {path!r}"):
            parent = tree.open_directory(above)
            try:
                mode = _PRIVATE if path == fastpath.WORK_LOCK else 0o644
                write_stream(parent, name, data, mode=mode)
            finally:
                os.close(parent)
    return bool(files)


def _parts(
    tree: ImageTree,
    facts: ImageFacts,
    entries: Mapping[str, tuple[str, ...]],
    release: tuple[str, str],
) -> Iterator[tuple[str, bytes]]:
    """Yield what counts for the fingerprint besides records and packages."""
    # What accept judges: another one is never a rebuild that only records its id.
    yield "release", " ".join(release).encode()
    yield "configuration", facts.configuration
    yield "scriptlets", facts.scriptlets.encode()
    if facts.units:
        yield "units", os.fsencode("\0".join(facts.units))
    for volume in facts.config.volumes:
        words = (volume.template, str(volume.volatile), *entries[volume.mount])
        yield f"volume {volume.mount}", os.fsencode("\0".join(words))
    for directory in (SHIPPED_STEPS, OWN_STEPS):
        location = tree.resolve(directory)
        st = tree.lstat(location)
        if st is None or not stat.S_ISDIR(st.st_mode):
            continue
        with reported(f"read the steps in {directory!r}"):
            fd = tree.open_directory(location)
            try:
                names = sorted(os.listdir(fd), key=os.fsencode)
            finally:
                os.close(fd)
            for name in names:
                found = tree.lstat(f"{location}/{name}")
                if found is not None and stat.S_ISLNK(found.st_mode):
                    text = os.fsencode(tree.readlink(f"{location}/{name}"))
                    yield _step(directory, name), b"link " + text
                elif found is not None and stat.S_ISREG(found.st_mode):
                    path = f"{location}/{name}"
                    step = tree.read_file(path, limit_bytes=_MAX_STEP_BYTES)
                    yield _step(directory, name), step or b""


def _step(directory: str, name: str) -> str:
    return f"step {directory}/{os.fsencode(name)!r}"


def _current_build_id(tree: ImageTree) -> str:
    """Return the id that ``prepare`` or a person gave the image, "" when it has none.

    That which images of the freeipa-container project have at the top of the template is the id
    of the image that this one is derived from.
    """
    data = tree.read_file(BUILD_ID_PATH, limit_bytes=4 * _MAX_BUILD_ID_CHARACTERS)
    text = (data or b"").decode("utf-8", "replace").strip()
    if text:
        try:
            check_build_id(text)
        except UsageError as err:
            raise ConfigurationError(
                f"{BUILD_ID_PATH!r} in the image: {err}", hint="Correct it, or give --build-id."
            ) from err
    return text


def _build_id(tree: ImageTree, facts: ImageFacts, *, unchanged: bool) -> str:
    """Return the id of the image: the one it has, or a new one when it is another image.

    An id that differs from that of the manifest before was put there by someone after it,
    or by a run that was interrupted before it could write its manifest; it stays.
    """
    before = facts.before
    current = _current_build_id(tree)
    if current and (before is None or unchanged or current != before.build_id):
        return current
    return str(uuid.uuid4())


class _Spooled:
    """Writes records that pass through to a file, counted and digested, and notes who owns them."""

    def __init__(self, spool: BinaryIO, owning: Owning) -> None:
        self._spool = spool
        self.owning = owning
        self.digest = manifest.records_hash()
        self.count = 0

    def passing(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            line = manifest.dump_record(record)
            self._spool.write(line)
            self.digest.update(line)
            self.count += 1
            self.owning.add(record)
            yield record


def _now() -> str:
    """Return the time of the build; ``SOURCE_DATE_EPOCH`` stands for it in repeatable builds."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not epoch:
        return clock.now()
    try:
        built = datetime.datetime.fromtimestamp(int(epoch), tz=datetime.UTC)
    except (ValueError, OverflowError, OSError) as err:
        raise UsageError(
            f"SOURCE_DATE_EPOCH={epoch[:80]!r} is not a time",
            hint="It is a number of seconds since 1970, as 'date +%s' prints it.",
        ) from err
    return built.strftime("%Y-%m-%dT%H:%M:%SZ")
