"""What state the volumes are in: everything that the verdict asks about, looked up."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ipavolume.context import Context
from ipavolume.errors import IpaVolumeError
from ipavolume.formats import manifest
from ipavolume.formats.manifest import parse_record
from ipavolume.image.image import Image
from ipavolume.image.owning import Owning
from ipavolume.linux import clock, files, mounts
from ipavolume.model.files import DiskState, FileType, Record
from ipavolume.model.images import ImageHeader
from ipavolume.model.paths import WRITTEN_BY_ENGINES
from ipavolume.model.snapshots import Snapshot
from ipavolume.plan import verdict
from ipavolume.plan.moved import LEFT_BEHIND, left_behind
from ipavolume.plan.verdict import Question, State, Verdict
from ipavolume.rpm import versions
from ipavolume.volume.facts import Facts, mark_of_kept
from ipavolume.volume.failures import attempt
from ipavolume.volume.history import image_names
from ipavolume.volume.index import read_baseline, read_target
from ipavolume.volume.members import Volume
from ipavolume.volume.refused import Refused, refused_of
from ipavolume.volume.room import is_of_root
from ipavolume.volume.snapshots import (
    chain_run,
    chain_snapshot,
    check_snapshot,
    has_part,
    last_undoable,
    lost_mounts,
    undoable_run,
)
from ipavolume.volume.strangers import AT_THE_TOP, is_named, strangers_data
from ipavolume.volume.volumes import Volumes

if TYPE_CHECKING:
    from ipavolume.plan.application import Application

_ANONYMOUS: Final = r"/volumes/([0-9a-f]{64})/_data$"
_OF_ENGINES: Final = ("/proc", "/sys", "/dev", "/run", "/tmp")  # noqa: S108 # mounted there


def judge(context: Context, facts: Mapping[str, Facts]) -> Verdict:
    """Name the state the volumes are in."""
    primary = facts[context.volumes.primary.mount]
    legacy = None
    instance = dict.fromkeys(context.volumes, "")
    strangers: dict[str, Sequence[tuple[str, str]]] = {}
    if primary.transaction is not None:
        for mount in context.volumes:
            is_nobodys = _is_nobodys(facts[mount]) and facts[mount].transaction is None
            if is_nobodys and mount in context.image.config.refilled:
                instance[mount] = _anything(context, mount)
    else:
        for mount in context.volumes:
            if primary.baseline is None or _is_nobodys(facts[mount]):
                instance[mount] = _instance(context.image, context.volumes, mount)
            if (
                not instance[mount]
                and _is_nobodys(facts[mount])
                and _may_be_refilled(context, mount, primary.baseline)
            ):
                instance[mount] = _content(context, mount)
            if _is_nobodys(facts[mount]) and not instance[mount]:
                strangers[mount] = _strangers(context, mount, joins=primary.baseline is not None)
    if primary.baseline is None and primary.transaction is None:
        others = [one for one in facts.values() if one.legacy or one.build_id is not None]
        if others or any(instance.values()):
            from ipavolume.volume import adopt

            legacy = adopt.learn(context.volumes.primary, operator_says=context.options.came_from)
    guard = context.image.config.accept_guard
    way_back, way_refused = _way_back(context, primary)
    undoable = _undoable(context, primary)
    found = verdict.judge(
        Question(
            mounts=tuple(context.volumes),
            facts=facts,
            image=context.image.header,
            accept=context.image.config.accept_from,
            guard=("*",) if guard is None else guard,
            application=_called(context.image),
            profile=context.image.config.profile,
            owners=_owners(context, primary, legacy),
            allow=context.options.allow,
            instance=instance,
            strangers=strangers,
            refilled=context.image.config.refilled,
            kept={mount: mark_of_kept(volume) for mount, volume in context.volatile.items()},
            unmounted=_unmounted(context),
            anonymous=_anonymous(context),
            elsewhere=_elsewhere(context),
            directories={
                mount: one.directory
                for mount, one in [*context.volumes.items(), *context.volatile.items()]
            },
            installs=context.image.config.first_run is not None,
            legacy=legacy,
            expect=context.options.expect,
            consent=context.options.consent,
            rehearsal=context.options.rehearsal,
            refused=_refused(context),
            retry=context.options.retry_run,
            names=_names(context, primary),
            way_back=way_back,
            way_refused=way_refused,
            undoable=undoable,
            missing=_missing(context, primary, way_back or undoable),
            lost_mounts=lost_mounts(context.volumes),
            goes_back=(context.options.rollback or context.image.config.uncommitted) != "refuse",
        )
    )
    found = replace(found, overrides=(*context.overridden, *found.overrides))
    return found if found.error is not None else _judge_moved(context, primary, found)


def _names(context: Context, primary: Facts) -> dict[str, str]:
    """Return what images are called that a refusal may name; none where nothing is to be done."""
    image = context.image.header
    if primary.transaction is None and primary.build_id == image.build_id:
        return {}
    return image_names(context.volumes.primary, image, primary.baseline, primary.target)


def _refused(context: Context) -> tuple[Refused, str] | None:
    """Return what this image was gone back from for, where it is not to be tried now."""
    options = context.options
    if options.retry or options.rehearsal:
        return None
    found = refused_of(
        context.volumes.primary,
        context.image.header,
        now_s=clock.seconds(),
        retry=options.retry_run,
    )
    return None if found is None else (found[0], clock.text_of(found[1]))


def _way_back(context: Context, primary: Facts) -> tuple[Snapshot | None, IpaVolumeError | None]:
    """Return the snapshot that is gone back to, and what refuses to do that by itself."""
    image, volumes = context.image.header, context.volumes
    if not verdict.leads_elsewhere(image, primary):
        return None, None
    try:
        snapshot = chain_snapshot(volumes, primary)
        if snapshot is None or snapshot.from_build != image.build_id:
            return snapshot, None
        from ipavolume.plan import rollback

        check_snapshot(volumes, snapshot)
        since = rollback.find_first_run_since(volumes.primary, snapshot)
        return snapshot, (
            rollback.find_partial(snapshot) or since or rollback.find_held(primary, snapshot)
        )
    except IpaVolumeError as err:
        open_ = primary.transaction
        is_ours = open_ is not None and open_.from_build == image.build_id
        return None, err if is_ours else None


def _undoable(context: Context, primary: Facts) -> Snapshot | None:
    """Return the snapshot by which the last run that was completed can be undone."""
    if primary.transaction is not None or primary.baseline is None:
        return None
    try:
        return last_undoable(context.volumes, primary)
    except IpaVolumeError:
        # No upgrade depends on it: who goes back is told.
        return None


def _missing(context: Context, primary: Facts, found: Snapshot | None) -> str:
    """Return the run whose snapshot is the way back, where it was made and is not *found*."""
    if found is not None:
        return ""
    try:
        if verdict.leads_elsewhere(context.image.header, primary):
            run = chain_run(context.volumes, primary)
        elif primary.transaction is None and primary.baseline is not None:
            run = undoable_run(context.volumes.primary)
        else:
            return ""
        return "" if has_part({"": context.volumes.primary}, run) else run
    except IpaVolumeError:
        return ""


def _judge_moved(context: Context, primary: Facts, found: Verdict) -> Verdict:
    """Refuse an upgrade after which nobody would find what is on the volumes."""
    if found.state not in (State.OUTDATED, State.TAKEN_OVER):
        return found
    old = primary.target if found.state is State.TAKEN_OVER else primary.baseline
    if old is None:
        return found
    image = context.image.header
    # Who was let empty them and was killed then has left no mark of it.
    emptied = frozenset(context.volatile) if "kept-volume" in context.options.allow else ()

    def asked(emptied: Collection[str] = ()) -> IpaVolumeError | None:
        shipped = _shipped(context.volumes.primary, primary)
        return left_behind(old, image, context.volumes, shipped, emptied=emptied)

    error = asked(emptied)
    if error is not None and LEFT_BEHIND not in context.options.allow:
        return replace(found, reason=str(error), error=error)
    if found.state is State.TAKEN_OVER:
        # Recorded by the upgrade that follows.
        return found
    if error is not None:
        return replace(found, overrides=(*found.overrides, LEFT_BEHIND))
    if emptied and "kept-volume" not in found.overrides and asked() is not None:
        return replace(found, overrides=(*found.overrides, "kept-volume"))
    return found


def _shipped(volume: Volume, primary: Facts) -> Iterator[bytes]:
    """Yield the records of what the last image and the one of an open run put on the volumes."""
    if primary.baseline is not None:
        _, stream = read_baseline(volume)
        with stream:
            yield from manifest.read_lines(stream)
    if primary.transaction is not None:
        _, stream = read_target(volume, primary)
        with stream:
            yield from manifest.read_lines(stream)


def _called(image: Image) -> tuple[str, ...]:
    """Return what the image calls its application, as configured and as it will be recorded."""
    prepared = image.header.application
    return tuple(dict.fromkeys((*image.config.application, *([prepared] if prepared else []))))


def _owners(
    context: Context, primary: Facts, legacy: ImageHeader | None
) -> tuple[Application, Application] | None:
    """Return whose application volumes and image are by their packages, where that is asked."""
    image = context.image
    if not verdict.is_told_by_packages(image.header, _called(image), primary):
        return None
    if primary.is_going_back:
        # Everything that is needed for that is on the volume; what follows is judged after it.
        return None
    guard = image.config.accept_guard or ()
    known = primary.baseline
    if primary.transaction is not None:
        known = primary.target
        if known is None:
            known, stream = read_target(context.volumes.primary, primary)
            stream.close()
    if known is not None:
        theirs = _owners_of(known, _listed(context.volumes.primary, primary), guard)
    elif legacy is not None and legacy.packages:
        from ipavolume.plan.application import Application

        # What the application itself says of its version is there because it is that one.
        theirs = Application(files=legacy.packages, all=legacy.packages)
    else:
        return None
    return theirs, _owners_of(image.header, image.lines(), guard)


def _listed(volume: Volume, primary: Facts) -> Iterator[bytes]:
    """Yield the records that the volume was brought to, or is being brought to."""
    is_open = primary.transaction is not None
    _, stream = read_target(volume, primary) if is_open else read_baseline(volume)
    with stream:
        yield from manifest.read_lines(stream)


def _owners_of(header: ImageHeader, lines: Iterable[bytes], guard: Sequence[str]) -> Application:
    """Return the packages of what is listed, and those that the configuration guards."""
    from ipavolume.plan.application import Application

    owning = header.owning
    if owning is None:
        found = Owning(header.volumes)
        for line in lines:
            found.add(manifest.parse_record(line))
        owning = found.found()
    owners = dict(owning) | {
        package.name: True
        for package in header.packages
        for pattern in guard
        if versions.matches_package(pattern, package)
    }
    packages = [package for package in header.packages if package.name in owners]
    return Application(
        files=tuple(package for package in packages if owners[package.name]),
        all=tuple(packages),
    )


def _unmounted(context: Context) -> tuple[str, ...]:
    """Return the volumes at which nothing is mounted, in a container that does not say where."""
    if not context.image.is_inside or context.options.volumes:
        return ()
    return tuple(mount for mount, volume in context.volumes.items() if is_of_root(volume))


def _anonymous(context: Context) -> dict[str, str]:
    """Return the names that docker or podman gave to volumes which nobody named."""
    if not context.image.is_inside:
        return {}
    found = {
        mount: re.search(_ANONYMOUS, mounts.origin_of(volume.directory)[1])
        for mount, volume in context.volumes.items()
    }
    return {mount: match[1] for mount, match in found.items() if match}


def _elsewhere(context: Context) -> tuple[str, ...]:
    """Return where else people have mounted something in the container."""
    declared = {*context.volumes, *context.volatile}
    return tuple(
        sorted(
            where
            for where, _, _ in mounts.mounts()
            if where not in declared and not _is_of_engine(where)
        )
    )


def _is_of_engine(where: str) -> bool:
    above = {"/", *_OF_ENGINES, *WRITTEN_BY_ENGINES}
    return where in above or where.startswith(tuple(f"{one}/" for one in _OF_ENGINES))


def _is_nobodys(facts: Facts) -> bool:
    """Tell whether a volume has nothing of ours, and nothing of the freeipa-container project.

    A transaction is none where the primary volume knows of none.
    """
    return not (facts.identity or facts.build_id or facts.legacy)


def _may_be_refilled(context: Context, mount: str, recorded: ImageHeader | None) -> bool:
    """Tell whether an empty volume may take the place of the one at *mount*, which was known."""
    known = recorded.kept_mounts if recorded is not None else ()
    return mount in context.image.config.refilled and mount in known


def _content(context: Context, mount: str) -> str:
    """Return something that is on a volume which an empty one may take the place of, or ""."""
    if found := _instance(context.image, context.volumes, mount):
        return found
    # Nobody moved there what the lists move to it: it was of the image before.
    theirs = _strangers(context, mount, joins=False)
    return next((f"{mount}/{path}" for path, _ in theirs), "")


def _anything(context: Context, mount: str) -> str:
    """Return what is on a volume that only an empty one may take the place of amid a run, or ""."""
    (spec,) = (one for one in context.image.header.volumes if one.mount == mount)
    volume = context.volumes[mount]
    with attempt("look at", volume.directory):
        names = [one for one in files.listdir(volume.fd) if not is_named(one, AT_THE_TOP)]
    if names:
        return f"{mount}/{min(names)}"
    # It is filled by whole directories, which can be told to be complete.
    return next((top.path for top in spec.top or () if not top.is_directory), "") or (
        "" if spec.top else mount
    )


def _strangers(context: Context, mount: str, *, joins: bool) -> Sequence[tuple[str, str]]:
    """Return what of the volume at *mount* is data of something else."""
    seed = next((one.seed for one in context.image.config.volumes if one.mount == mount), ())
    if joins:
        # It is new beside a volume that is ours: people put on it what the lists move to it.
        spec = next(one for one in context.image.header.volumes if one.mount == mount)
        seed = (*seed, *(re.sub(r"([*?[])", r"[\1]", entry[1:]) for entry in spec.entries))
    return strangers_data(
        context.volumes[mount], mounted=context.volumes.mounted_below(), seed=seed
    )


def _instance(image: Image, volumes: Volumes, mount: str) -> str:
    """Return a path of the template that is on the volume, with content, or ""."""
    (spec,) = (one for one in image.header.volumes if one.mount == mount)
    mounted = volumes.mounted_below()
    with volumes.tree() as tree:
        if spec.top is not None and not any(tree.state(top.path) for top in spec.top):
            return ""
        for record in _records(image, mount):
            found = tree.state(record.path)
            if found is not None and not (
                (found.type is FileType.DIRECTORY is record.type)
                or record.path in mounted
                or _is_empty(found)
            ):
                return record.path
    return ""


def _is_empty(found: DiskState) -> bool:
    """Tell whether it is such a file as an engine makes to mount something on."""
    return (
        found.type is FileType.FILE and (found.size, found.uid) == (0, 0) and not found.mode & 0o022
    )


def _records(image: Image, mount: str) -> Iterator[Record]:
    for line in image.lines():
        record = parse_record(line)
        if record.path.startswith(mount + "/"):
            yield record


def asked_again(context: Context, found: Verdict) -> Verdict:
    """Return what volumes are of which everything is to be run again (``--again``)."""
    if found.state is State.CURRENT and context.options.again:
        return replace(found, state=State.OUTDATED, reason="everything is run again")
    return found


def refuse(found: Verdict) -> None:
    """Raise what a start raises for *found*, if it refuses.

    Raises:
        IpaVolumeError: The verdict's error.
    """
    if found.error is not None:
        raise found.error
