"""Which state a volume is in, as a pure function of what was found (design, section 5)."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Final

from ipavolume.config import releases
from ipavolume.context import EXISTING
from ipavolume.errors import IpaVolumeError, RefusedError, UnsafeVolumeError
from ipavolume.model.files import BUILD_ID_NAME, STATE_DIRECTORY
from ipavolume.model.images import ImageHeader, name_of, named
from ipavolume.model.packages import Package
from ipavolume.model.paths import CONFIG_PATH
from ipavolume.model.snapshots import Snapshot
from ipavolume.model.values import dataclass
from ipavolume.plan.backoff import of_another
from ipavolume.plan.snapshot import is_mounted, missing
from ipavolume.rpm import versions
from ipavolume.volume.facts import UNDOING, Facts, Transaction
from ipavolume.volume.history import REPLACING_NOTHING
from ipavolume.volume.layout import REHEARSAL
from ipavolume.volume.refused import UNDONE, UNVERIFIED, Refused
from ipavolume.volume.room import NOT_MOUNTED
from ipavolume.volume.roots import FS_GROUP

if TYPE_CHECKING:
    from ipavolume.plan.application import Application

_MAX_NAMED: Final = 5
_ID_SHOWN: Final = 12


class State(enum.StrEnum):
    """The state of a volume, by the words of the design."""

    UNSAFE = "unsafe"
    FOREIGN = "foreign"
    GOING_BACK = "going back"
    UPGRADING = "upgrading"
    TAKEN_OVER = "taken over"
    BLOCKED = "blocked"
    CURRENT = "current"
    REBUILT = "rebuilt"
    NEWER = "newer"
    INCOMPATIBLE = "incompatible"
    OUTDATED = "outdated"
    LEGACY = "legacy"
    UNCONFIGURED = "unconfigured"
    WAITING = "waiting"
    PARTIAL = "partial"
    STATELESS = "stateless"
    OCCUPIED = "occupied"
    EMPTY = "empty"
    OBSTRUCTED = "obstructed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A state and why.

    Attributes:
        state: The state.
        reason: Why, in an operator's words.
        error: What a start raises for it, or ``None``.
        overrides: Codes of the refusals that were overridden to get here.
        refills: Mounts of volumes that are filled again: where all others are of this image, or
            where they were emptied amid a run, which goes on without them.
    """

    state: State
    reason: str
    error: IpaVolumeError | None = None
    overrides: tuple[str, ...] = ()
    refills: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """All that the verdict depends on.

    Attributes:
        mounts: The upgraded volumes, the primary one first.
        facts: What was found, by mount.
        image: Header of the image's manifest.
        accept: Rules of releases a volume may come from.
        guard: Packages that must not go back.
        application: What the image calls its application; empty: nobody said.
        profile: Profile of the image's configuration, or "".
        owners: Of the volumes and of the image, whose application each is, by their packages;
            ``None``: it is told by other means.
        allow: Codes of refusals that the operator overrides.
        instance: A path of the template that is on the volume, by mount, or of somebody's data on
            one that was filled before; "" for none.
        strangers: By mount of a volume that would be populated, paths on it that are data of
            something else, and whose.
        kept: By mount of a volatile volume what only one has whose content is kept; "" for none.
        refilled: Volumes whose place an empty one may take.
        unmounted: Volumes at which nothing is mounted: they are directories of the container.
        anonymous: By mount of a volume that nobody gave a name, the one that the engine gave it.
        elsewhere: What else people have mounted in the container.
        directories: Where the volumes are, by mount; in a container that is the mount.
        installs: A first run follows on an empty volume.
        legacy: What could be learned of a legacy or stateless volume's last image.
        expect: What the operator expects: see :class:`ipavolume.context.Options`.
        consent: The operator lets upgrades happen.
        rehearsal: What is done is rehearsed, for which a copy may have been made.
        refused: What the image was gone back from for, and when it is tried again, as text;
            ``None``: it may be tried now.
        retry: The run that the operator asks to be tried at once, or "".
        names: What images are called that are known by their ids.
        way_back: The snapshot that the chain of runs which was never committed began with.
        undoable: The snapshot that the last run which was committed began with.
        missing: The run whose snapshot would be gone back to, where that was made and is not here.
        lost_mounts: Where snapshots were mounted, and nothing is now.
        way_refused: What refuses to go back to it by itself.
        goes_back: The operator lets that happen.
    """

    mounts: Sequence[str]
    facts: Mapping[str, Facts]
    image: ImageHeader
    accept: Sequence[str]
    guard: Sequence[str]
    allow: Collection[str]
    instance: Mapping[str, str]
    kept: Mapping[str, str]
    refilled: Collection[str] = ()
    application: Collection[str] = ()
    profile: str = ""
    owners: tuple[Application, Application] | None = None
    strangers: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    unmounted: Collection[str] = ()
    anonymous: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Sequence[str] = ()
    directories: Mapping[str, str] = field(default_factory=dict)
    installs: bool = False
    legacy: ImageHeader | None = None
    expect: str = ""
    consent: bool = True
    rehearsal: bool = False
    refused: tuple[Refused, str] | None = None
    retry: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    way_back: Snapshot | None = None
    undoable: Snapshot | None = None
    missing: str = ""
    lost_mounts: Sequence[str] = ()
    way_refused: IpaVolumeError | None = None
    goes_back: bool = True

    def place(self, mount: str) -> str:
        """Return where the volume of *mount* is, as who reads of it finds it."""
        return self.directories.get(mount, mount)


def judge(question: Question) -> Verdict:
    """Name the state of the volumes; the rows of the design, tested from the top."""
    primary = question.facts[question.mounts[0]]
    unsafe = (
        _judge_roots(question, primary)
        or _judge_volatile(question)
        or _judge_secondaries(question, primary)
    )
    if unsafe is not None:
        return Verdict(state=State.UNSAFE, reason=str(unsafe), error=unsafe)
    copied = _judge_copies(question)
    # What goes back to this very image, or is on the way back, is not taken over by it.
    back = _judge_going_back(question, primary)
    if back is not None:
        back = _judge_unknowing(question, primary, back)
    is_own = back is not None and _is_left_by(question)
    foreign = None if is_own else _judge_application(question, primary)
    if foreign is not None and State.FOREIGN not in question.allow:
        return Verdict(state=State.FOREIGN, reason=str(foreign), error=foreign)
    found = back or _judge_primary(question, primary, foreign=foreign is not None)
    # What would have been refused above was overridden, whatever the state: a rollback does not
    # ask for what is refused below.
    taken = () if foreign is None else (str(State.FOREIGN),)
    kept = ("kept-volume",) if any(question.kept.values()) else ()
    lost = ("lost-secondary",) if _has_lost(question, primary, wanted=False) else ()
    found = replace(found, overrides=(*kept, *lost, *taken, *found.overrides))
    if copied is not None:
        return replace(found, reason=str(copied), error=copied)
    if found.error is None and (other := _judge_identity(question, primary)) is not None:
        return replace(found, reason=str(other), error=other)
    if found.error is None and (gone := _judge_gone_back_from(question, found.state)) is not None:
        return replace(found, reason=str(gone), error=gone)
    if found.error is not None:
        return found
    occupied = _judge_strangers(question)
    if occupied is not None and State.OCCUPIED not in question.allow:
        return replace(found, state=State.OCCUPIED, reason=str(occupied), error=occupied)
    regrouped = _judge_fs_group(question)
    if regrouped is not None and FS_GROUP not in question.allow:
        return replace(found, reason=str(regrouped), error=regrouped)
    beside = () if occupied is None else (str(State.OCCUPIED),)
    grouped = (FS_GROUP,) if regrouped is not None else ()
    return replace(
        found,
        reason=found.reason + _becoming_roots(question),
        overrides=(*beside, *grouped, *found.overrides),
    )


def _has_lost(question: Question, primary: Facts, *, wanted: bool = True) -> bool:
    """Tell whether secondaries are lost; *wanted*: those count that the image has filled again."""
    return any(
        _is_lost(question, primary, mount) and (wanted or not _is_refilled(question, mount))
        for mount in question.mounts[1:]
    )


def _is_refilled(question: Question, mount: str) -> bool:
    """Tell whether the image has an empty volume filled there, and this one is empty."""
    facts = question.facts[mount]
    return (
        mount in question.refilled
        and mount not in question.unmounted
        and not (facts.build_id or facts.legacy)
        and not question.instance[mount]
    )


def is_told_by_packages(image: ImageHeader, application: Collection[str], primary: Facts) -> bool:
    """Tell whether only packages can say that volumes are of another application.

    Args:
        image: Header of the image's manifest.
        application: What the image calls its application.
        primary: What was found on the primary volume.
    """
    if primary.application and application:
        return False
    if primary.transaction is not None:
        return not _leads_to(image, primary.transaction)
    known = primary.baseline
    return known is None or not (
        known.build_id == image.build_id or known.fingerprint == image.fingerprint != ""
    )


def _leads_to(image: ImageHeader, open_: Transaction) -> bool:
    return open_.to_build == image.build_id or open_.fingerprint == image.fingerprint != ""


def _judge_application(question: Question, primary: Facts) -> IpaVolumeError | None:
    image = question.image
    where = question.place(question.mounts[0])
    recorded = primary.application
    if recorded and question.application:
        if recorded in question.application:
            return None
        ours = " or ".join(map(repr, question.application))
        return RefusedError(
            f"the volume at {where} belongs to the application {recorded!r}; this image, "
            f"{name_of(image)}, is of {ours}",
            code="foreign",
            hint=f"Mount the volume of {ours}, or start an image of {recorded!r}. If both are the "
            f"same application, add {recorded!r} to application in {CONFIG_PATH} of the image. To "
            "take the volume over anyway: --allow foreign.",
        )
    if question.owners is None:
        return None
    # Nobody asks it where nothing is to be done.
    from ipavolume.plan.application import are_strangers, names_of

    theirs, ours_ = question.owners
    if not are_strangers(theirs, ours_):
        return None
    known = primary.target or primary.baseline or question.legacy
    of = f" ({recorded!r})" if recorded else ""
    return RefusedError(
        f"the volume at {where} belongs to another application{of}: it is of "
        f"{name_of(known) if known and known.build_id else 'an unknown image'} with "
        f"{names_of(theirs)}, none of which has anything to do with {names_of(ours_)} of this "
        f"image, {name_of(image)}",
        code="foreign",
        hint="Mount the volume that belongs to this image. If both are the same application, take "
        "it over once with --allow foreign; an image that names it (application in "
        f"{CONFIG_PATH}) is not told by its packages.",
    )


def _judge_primary(question: Question, primary: Facts, *, foreign: bool) -> Verdict:
    if primary.transaction is not None:
        return _judge_transaction(question, primary, primary.transaction)
    image = question.image
    if primary.baseline is not None:
        # A volume that is new to the image has nothing to agree with.
        known = {question.mounts[0], *primary.baseline.kept_mounts}
        ids = {question.facts[mount].build_id for mount in question.mounts if mount in known}
        # A lost secondary may have its id still; it is filled, and gets its state again.
        consistent = ids == {primary.baseline.build_id} and not _has_lost(question, primary)
        # Where it is another one's all the same, everything is recorded anew.
        if consistent and primary.baseline.build_id == image.build_id and not foreign:
            return Verdict(state=State.CURRENT, reason=f"of this image, {image.build_id}")
        if (
            consistent
            and primary.baseline.fingerprint == image.fingerprint != ""
            and primary.baseline.accounts == image.accounts
        ):
            return Verdict(
                state=State.REBUILT,
                reason=f"of {name_of(primary.baseline)}, which ships the same"
                + (
                    ""
                    if primary.baseline.records_digest == image.records_digest
                    else " but for content that no package has; that stays as it is here"
                ),
            )
        return _judge_known(question, primary.baseline, consistent=consistent)
    if primary.legacy:
        return _judge_unknown(question, primary, State.LEGACY)
    if primary.build_id is not None or _sign_of_instance(question):
        return _judge_unknown(question, primary, State.STATELESS)
    if question.expect:
        where = question.place(question.mounts[0])
        error = RefusedError(
            f"the volume at {where} is empty, but IPAVOLUME_EXPECT={question.expect} says that it "
            "has data: wrong or unmounted volume",
            code="expected-existing",
            hint="Mount the right volume, or unset IPAVOLUME_EXPECT to populate this one.",
        )
        return Verdict(state=State.EMPTY, reason=str(error), error=error)
    overrides: tuple[str, ...] = ()
    if question.unmounted and question.installs:
        if NOT_MOUNTED not in question.allow:
            error = _not_mounted(question)
            return Verdict(state=State.EMPTY, reason=str(error), error=error)
        overrides = (NOT_MOUNTED,)
    reason = "no file of the template is there" + _passing(question)
    return Verdict(state=State.EMPTY, reason=reason, overrides=overrides)


def _not_mounted(question: Question) -> RefusedError:
    mount = next(iter(question.unmounted))
    others = ", ".join(map(repr, question.elsewhere[:_MAX_NAMED]))
    return RefusedError(
        f"nothing is mounted at {mount}" + (f", only at {others}" if others else "") + ": what "
        "would be installed there is lost with the container",
        code=NOT_MOUNTED,
        hint=f"Mount a volume there: -v NAME:{mount}. To install into the container all the same: "
        f"--allow {NOT_MOUNTED}.",
    )


def _passing(question: Question) -> str:
    """Say which volumes are easily lost."""
    said = [
        f"; nothing is mounted at {mount}, so what is put there is lost with the container"
        for mount in question.unmounted
    ]
    said += [
        f"; the volume at {mount} is an anonymous one ({name[:_ID_SHOWN]}), which goes with the "
        "container by --rm and rm -v, and is not found again by another one: -v NAME:" + mount
        for mount, name in question.anonymous.items()
    ]
    return "".join(said)


def _judge_identity(question: Question, primary: Facts) -> IpaVolumeError | None:
    """Refuse another volume than the one that the operator expects, by its uuid."""
    uuid = primary.identity.uuid if primary.identity else ""
    if primary.transaction is not None:
        uuid = uuid or primary.transaction.primary
    if question.expect in ("", EXISTING, uuid):
        return None
    return RefusedError(
        f"the volume at {question.place(question.mounts[0])} is {uuid or 'one without a uuid'}, "
        f"but IPAVOLUME_EXPECT={question.expect}: wrong or unmounted volume",
        code="expected-other",
        hint="Mount the right volume; ipavolume status VOLUME says the uuid of one. Or set "
        f"IPAVOLUME_EXPECT={uuid or EXISTING}.",
    )


def _judge_copies(question: Question) -> IpaVolumeError | None:
    """Refuse the use of what was made to be rehearsed with."""
    for mount in question.mounts:
        original = question.facts[mount].rehearsal_of
        if original is None or question.rehearsal:
            continue
        where = question.place(mount)
        return RefusedError(
            f"the volume at {where} is a copy that was made for a rehearsal of "
            f"{original or 'a volume without a uuid'}: two with the same keys and names must not "
            "be used beside each other",
            code="clone",
            path=f"{where}/{STATE_DIRECTORY}/{REHEARSAL}",
            hint="Mount the original. What a rehearsal has left on this host the next one removes; "
            "a claim that was cloned for one is to be deleted.",
        )
    return None


def _judge_gone_back_from(question: Question, state: State) -> IpaVolumeError | None:
    """Refuse the image that the volume was taken back from.

    A run of it that is open goes on, and so does going back, which whoever comes finishes; not one
    that was taken from it, as it was not found to be right.
    """
    open_ = question.facts[question.mounts[0]].transaction
    is_taken = open_ is not None and open_.kind == UNVERIFIED
    goes_on = state is State.UPGRADING and not is_taken
    if question.refused is None or goes_on or state is State.GOING_BACK:
        return None
    record, until = question.refused
    where = question.place(question.mounts[0])
    what = {
        # That of an earlier run, or one that somebody made, as well as that of a run of this image.
        UNDONE: f"it went back to the snapshot of run {record.run}",
        UNVERIFIED: f"what run {record.run} of it had made was not found to be right",
    }[record.code]
    other = "the one that the volume is of (ipavolume status VOLUME names it)"
    if open_ is not None and is_taken:
        # It is of none, and the only one that is recorded is this one.
        before = named(open_.from_build, question.names)
        other = f"the one before it, {before}, which goes back to what it left"
    which, counts = f"this image, {name_of(question.image)}", ""
    if record.image != question.image.build_id:
        which = (
            f"{named(record.image, question.names)}, which ships the same as this image, "
            f"{name_of(question.image)}"
        )
        counts = "What is corrected in no listed path counts by another version of its package. "
    return RefusedError(
        f"the volume at {where} was taken back from {which}: {what} "
        f"at {record.at}" + (f": {record.cause}" if record.cause else ""),
        code="refused",
        hint=f"Start a corrected image, or {other}. {counts}This one is tried again from {until} "
        f"on, and at once with IPAVOLUME_RETRY={record.run}, or by ipavolume upgrade --retry. "
        f"{of_another(question.retry)}".rstrip(),
    )


def _judge_strangers(question: Question) -> IpaVolumeError | None:
    for mount, paths in question.strangers.items():
        if paths:
            where = question.place(mount)
            named = ", ".join(f"{path!r} ({whose})" for path, whose in paths)
            return RefusedError(
                f"the volume at {where} is not empty, and what is on it is data of something "
                f"else: {named}",
                code="occupied",
                path=f"{where}/{paths[0][0]}",
                hint="Mount an empty volume, or the right one. What an image wants to find there, "
                f"it names: seed = [globs] at its [[volume]] in {CONFIG_PATH}. To populate beside "
                "what is there: --allow occupied.",
            )
    return None


def _judge_roots(question: Question, primary: Facts) -> IpaVolumeError | None:
    """Refuse a volume that others can write to, unless there is nothing on it."""
    for mount in question.mounts:
        odd = question.facts[mount].odd
        if odd is None:
            continue
        there = [f"{path!r} ({whose})" for path, whose in question.strangers.get(mount, ())]
        if question.instance[mount]:
            there.insert(0, repr(question.instance[mount]))
        # An open run may be of an image without the volume, which is filled once that is done.
        if there or (primary.transaction is not None and not _has_nothing(question, mount)):
            return odd.refusal(there)
    return None


def _judge_fs_group(question: Question) -> IpaVolumeError | None:
    """Refuse what Kubernetes would give to a group anew at every mount."""
    for mount in question.mounts:
        odd = question.facts[mount].odd
        if odd is not None and odd.is_of_fs_group:
            return UnsafeVolumeError(
                f"the volume at {question.place(mount)} is empty, and its root directory is as "
                f"Kubernetes leaves it with an fsGroup ({odd}): at every mount all files would be "
                f"given to group {odd.metadata.gid}, keys included, and it could write to them",
                code=FS_GROUP,
                path=odd.path,
                hint="Take fsGroup out of the pod's securityContext: who runs as root needs none "
                "(OpenShift: a security context constraint whose fsGroup is RunAsAny). What it "
                "has left on this directory, or what is none, is then taken over once with "
                f"--allow {FS_GROUP}.",
            )
    return None


def _becoming_roots(question: Question) -> str:
    """Say of which volumes the root directory is given to root."""
    odd = [(mount, question.facts[mount].odd) for mount in question.mounts]
    return "".join(
        f"; the root directory of {question.place(mount)} ({root}) becomes root's alone"
        for mount, root in odd
        if root
    )


def _judge_volatile(question: Question) -> IpaVolumeError | None:
    for mount, mark in question.kept.items():
        if mark and "kept-volume" not in question.allow:
            return UnsafeVolumeError(
                f"the image empties what is mounted at {mount} at each start, but that is a volume "
                f"whose content is kept: {question.place(mount)} has {mark!r}",
                code="kept-volume",
                path=f"{question.place(mount)}/{mark}",
                hint="Mount another one there. If the image made a volume volatile that was kept, "
                "save first what you need of it; to have it emptied: --allow kept-volume.",
            )
    return None


def _judge_secondaries(question: Question, primary: Facts) -> IpaVolumeError | None:
    first = question.place(question.mounts[0])
    for mount in question.mounts[1:]:
        where, facts = question.place(mount), question.facts[mount]
        owner = facts.identity.primary if facts.identity else ""
        if facts.transaction is not None:
            owner = facts.transaction.primary
        ours = primary.identity.uuid if primary.identity else ""
        if primary.transaction is not None:
            ours = primary.transaction.primary
        if owner and owner != ours and not (facts.transaction and not ours):
            if primary.identity and facts.identity and primary.identity.primary == owner:
                return UnsafeVolumeError(
                    f"the volume at {where} is a primary volume, and the one at {first} belongs to "
                    "it",
                    code="foreign-volume",
                    hint="They are in each other's place: mount them the other way round.",
                )
            anew = "" if ours else f" To begin anew with an empty {first}, empty {where}, too."
            return UnsafeVolumeError(
                f"the volume at {where} belongs to another primary volume ({owner}) than the "
                f"one at {first} ({ours or 'which is empty'})",
                code="foreign-volume",
                hint=f"Mount the volumes that belong together.{anew}",
            )
        is_lost = _is_lost(question, primary, mount) and not _is_refilled(question, mount)
        if is_lost and "lost-secondary" not in question.allow:
            return _lost_secondary(question, mount)
    if whose := further_of(primary):
        return UnsafeVolumeError(
            f"the volume at {first} is a further one, which belongs to the primary volume {whose}",
            code="foreign-volume",
            hint="Mount the volumes that belong together.",
        )
    return None


def further_of(facts: Facts) -> str:
    """Return the uuid of the primary volume that a further one belongs to; "" for any other one."""
    identity = facts.identity
    if identity is None or facts.baseline is not None or identity.primary == identity.uuid:
        return ""
    return identity.primary


def _lost_secondary(question: Question, mount: str) -> UnsafeVolumeError:
    where, first = question.place(mount), question.place(question.mounts[0])
    if mount in question.unmounted:
        return UnsafeVolumeError(
            f"nothing is mounted at {mount}, where a volume was that belongs to {first}",
            code="lost-secondary",
            hint=f"Mount it: -v NAME:{mount}. To fill the container's own directory, which is "
            "lost with it, all the same: --allow lost-secondary.",
        )
    return UnsafeVolumeError(
        f"the volume at {where} is not the one that belongs to {first}: it has no state of ours",
        code="lost-secondary",
        hint="Mount the right volume, or have this one filled with --allow lost-secondary.",
    )


def _is_lost(question: Question, primary: Facts, mount: str) -> bool:
    """Tell whether a secondary that the primary volume knows has no state of ours.

    One that is filled again may have some of a run that was undone before it had filled it.
    """
    facts = question.facts[mount]
    return (
        facts.identity is None
        and (facts.transaction is None or mount in question.refilled)
        and primary.transaction is None
        and primary.baseline is not None
        and mount in primary.baseline.kept_mounts
    )


def _unknowing(question: Question, primary: Facts) -> Iterator[str]:
    """Yield the secondaries that belong to the open run and know nothing of it."""
    open_, target = primary.transaction, primary.target
    if open_ is None or target is None:
        return
    for mount in question.mounts[1:]:
        facts = question.facts[mount]
        knows = facts.transaction is not None and facts.transaction.run == open_.run
        if mount in target.kept_mounts and not knows and facts.build_id != open_.to_build:
            yield mount


def _is_emptied(question: Question, primary: Facts, mount: str) -> bool:
    """Tell whether a volume that the image has filled again was emptied amid the open run."""
    recorded = primary.target or primary.baseline
    return (
        _has_nothing(question, mount)
        and primary.transaction is not None
        and recorded is not None
        and mount in recorded.kept_mounts
    )


def _has_nothing(question: Question, mount: str) -> bool:
    """Tell whether nothing at all is on a volume that the image has filled again."""
    facts = question.facts[mount]
    return _is_refilled(question, mount) and facts.identity is None and facts.transaction is None


def leads_elsewhere(image: ImageHeader, primary: Facts) -> bool:
    """Tell whether the runs that are not committed lead to another image than this one."""
    if primary.transaction is not None:
        return not _leads_to(image, primary.transaction)
    return primary.pending is not None


def _is_left_by(question: Question) -> bool:
    """Tell whether what is gone back to is what this very image left, or that is under way."""
    open_ = question.facts[question.mounts[0]].transaction
    snapshot = question.way_back
    return (open_ is not None and open_.phase == UNDOING) or (
        snapshot is not None and snapshot.fingerprint == question.image.fingerprint
    )


def _judge_going_back(question: Question, primary: Facts) -> Verdict | None:
    """Tell whether the volumes are brought back to what this image left."""
    open_, image, snapshot = primary.transaction, question.image, question.way_back
    if open_ is not None and open_.phase == UNDOING:
        return Verdict(
            state=State.GOING_BACK, reason=f"the rollback of run {open_.run} is not finished"
        )
    refused = question.way_refused
    if snapshot is not None and not (
        leads_elsewhere(image, primary) and snapshot.from_build == image.build_id != ""
    ):
        return None
    if snapshot is None:
        if refused is None:
            return None
        return Verdict(state=State.GOING_BACK, reason=str(refused), error=refused)
    known = primary.target or primary.baseline
    to = name_of(known) if known else "another image"
    amid = f"the upgrade to {to} was not completed"
    if open_ is not None and open_.kind == UNVERIFIED:
        amid = f"what the upgrade to {to} had made was not found to be right"
    if snapshot.fingerprint != image.fingerprint:
        refused = RefusedError(
            f"{amid}, and it began from an image with the id of this one, {image.build_id}, that "
            "was another one",
            code="reused-build-id",
            hint="Start the very image that was used before the upgrade, or go back to what it "
            f"left with this one: ipavolume rollback. Or start {to} again, which can finish it.",
        )
    elif snapshot.accounts != image.accounts:
        return None
    elif refused is None and not question.goes_back:
        refused = RefusedError(
            f"{amid}, and IPAVOLUME_ROLLBACK=refuse, or the image's configuration, keeps this "
            "image from going back to what it left",
            code="uncommitted",
            hint="See what it would do with ipavolume rollback --dry-run, and let it happen with "
            f"ipavolume rollback, or IPAVOLUME_ROLLBACK=auto. Or start {to} again, which can "
            "finish it.",
        )
    reason = f"{amid}; this image goes back to what it left, the snapshot of run {snapshot.run}"
    if refused is not None:
        return Verdict(state=State.GOING_BACK, reason=str(refused), error=refused)
    return Verdict(state=State.GOING_BACK, reason=reason)


def _judge_transaction(question: Question, primary: Facts, open_: Transaction) -> Verdict:
    return _judge_unknowing(question, primary, _judge_open(question, primary, open_))


_WITH_EMPTIED: Final = {
    State.UPGRADING: "filled first",
    State.TAKEN_OVER: "filled once that is done",
    State.GOING_BACK: "left as it is",
}


def _judge_unknowing(question: Question, primary: Facts, found: Verdict) -> Verdict:
    """Judge volumes that belong to the open run and know nothing of it."""
    open_ = primary.transaction
    if open_ is None or found.error is not None or open_.kind == UNVERIFIED:
        return found
    emptied = [one for one in question.mounts[1:] if _is_emptied(question, primary, one)]
    for mount in _unknowing(question, primary) if open_.phase != UNDOING else ():
        if mount not in emptied:
            where = question.place(mount)
            error = UnsafeVolumeError(
                f"nothing is mounted at {mount}, where a volume was of the open run {open_.run}"
                if mount in question.unmounted
                else f"the volume at {where} does not know of the open run {open_.run}",
                code="foreign-volume",
                hint=f"Mount it: -v NAME:{mount}"
                if mount in question.unmounted
                else "Mount the volumes that belong together.",
            )
            return replace(found, reason=str(error), error=error)
    if not emptied:
        return found
    places = " and ".join(question.place(mount) for mount in emptied)
    are = "are" if len(emptied) > 1 else "is"
    reason = f"{found.reason}; {places} {are} empty, and {_WITH_EMPTIED[found.state]}"
    return replace(found, reason=reason, refills=tuple(emptied))


def _judge_open(question: Question, primary: Facts, open_: Transaction) -> Verdict:
    target = primary.target
    to = name_of(target) if target else named(open_.to_build, question.names)
    if _leads_to(question.image, open_):
        if open_.kind == UNVERIFIED:
            return Verdict(
                state=State.UPGRADING,
                reason=f"{to} is tried again, whose run was not found to be right",
            )
        return Verdict(
            state=State.UPGRADING,
            reason=f"run {open_.run} to {to} is not finished ({open_.phase})",
        )
    newer = None if target is None else _went_back(question, target)
    if newer is not None and not {"blocked", "newer"} <= set(question.allow):
        way = question.way_back
        back = "or restore a backup"
        if way is not None:
            back = (
                f"or undo it, which goes back to the snapshot of run {way.run} ({way.made}), of "
                f"the image {_left_by(question, way)}: ipavolume rollback"
            )
        elif open_.kind in REPLACING_NOTHING:
            back = "and then go back, where that is wanted: ipavolume rollback"
        amid = f"the volume is in the middle of an upgrade to {to}, which has {newer[0]}"
        which = f"{to} again, which can finish it"
        this = "finish it and go back from there"
        if open_.kind == UNVERIFIED:
            amid = (
                f"what the upgrade to {to} had made was not found to be right, and it has "
                f"{newer[0]}"
            )
            which = f"{named(open_.from_build, question.names)}, which goes back to what it left"
            this = "take the volume as it is"
        error = RefusedError(
            f"{amid}; this image has {newer[1]}",
            code="blocked",
            hint=f"{_find_missing(question)}Start the image {which}, {back}. "
            f"To have this image {this}: --allow blocked --allow newer.",
        )
        return Verdict(state=State.BLOCKED, reason=str(error), error=error)
    refused = None if target is None else _refuse_what_follows(question, open_, target)
    if refused is not None:
        return Verdict(state=State.TAKEN_OVER, reason=str(refused), error=refused)
    if open_.kind == UNVERIFIED:
        return Verdict(
            state=State.TAKEN_OVER,
            reason=f"what the upgrade to {to} had made was not found to be right",
            overrides=("blocked",) if newer is not None else (),
        )
    return Verdict(
        state=State.TAKEN_OVER,
        reason=f"run {open_.run} to {to} of another image is not finished",
        overrides=("blocked",) if newer is not None else (),
    )


def _find_missing(question: Question) -> str:
    """Say how the snapshot is found that would be gone back to; "" where it is here."""
    if not question.missing:
        return ""
    said = missing(question.missing)
    text = f"{said[:1].upper()}{said[1:]}. "
    if asked := is_mounted(question.lost_mounts):
        text += f"{asked} In a container that has it: ipavolume rollback. Otherwise: "
    return text


def _refuse_what_follows(
    question: Question, open_: Transaction, target: ImageHeader
) -> IpaVolumeError | None:
    """Return what refuses the upgrade that follows once the open run is finished.

    What is overridden is recorded by that upgrade, not by the run that is finished.
    """
    refused, _ = _refuse_direction(question, target)
    if refused is None:
        amid = f"in the middle of an upgrade to {name_of(target)}"
        if open_.kind == UNVERIFIED:
            amid = f"as the upgrade to {name_of(target)} has left it"
        refused = _with_consent(question, State.TAKEN_OVER, amid, ())
    error = refused.error
    if error is None:
        return None
    if open_.kind == UNVERIFIED:
        return RefusedError(
            f"what the upgrade to {name_of(target)} had made was not found to be right, and what "
            f"follows it is refused: {error}",
            code=error.code,
            hint=f"The image {named(open_.from_build, question.names)} goes back to what it left. "
            f"{error.hint}",
        )
    return RefusedError(
        f"run {open_.run} to {name_of(target)} is not finished, and what follows it is refused: "
        f"{error}",
        code=error.code,
        hint=f"The image {name_of(target)} can finish it. {error.hint}",
    )


def _judge_known(question: Question, baseline: ImageHeader, *, consistent: bool) -> Verdict:
    refused, overrides = _refuse_direction(question, baseline)
    if refused is not None:
        return refused
    reason = f"of {name_of(baseline)}; this image is {name_of(question.image)}"
    primary = question.facts[question.mounts[0]]
    empty = tuple(
        mount
        for mount in question.mounts[1:]
        if _is_lost(question, primary, mount) and _is_refilled(question, mount)
    )
    if empty:
        places = " and ".join(question.place(mount) for mount in empty)
        reason += f"; {places} {'are' if len(empty) > 1 else 'is'} empty and filled again"
    elif not consistent:
        reason += "; recorded id and baseline disagree, so everything is compared"
    others = {question.facts[mount].build_id for mount in question.mounts if mount not in empty}
    is_same = baseline.build_id == question.image.build_id and (
        baseline.fingerprint == question.image.fingerprint
    )
    if empty and is_same and others == {baseline.build_id}:
        # No upgrade, to which somebody would have to agree.
        return Verdict(state=State.OUTDATED, reason=reason, overrides=overrides, refills=empty)
    return _with_consent(question, State.OUTDATED, reason, overrides)


def _judge_unknown(question: Question, primary: Facts, state: State) -> Verdict:
    overrides: tuple[str, ...] = ()
    where = question.place(question.mounts[0])
    error: IpaVolumeError
    if state is State.STATELESS:
        found = repr(_sign_of_instance(question))
        if primary.build_id:
            found = f"the recorded id {primary.build_id!r}"
        if "stateless" not in question.allow:
            error = UnsafeVolumeError(
                f"the volume at {where} holds {found}, but not our state directory: lost, or "
                "restored from a backup without it, or not ours",
                code="stateless",
                hint="Restore .ipavolume from the backup, or mount the right volume. To take "
                "the volume over with nothing known of the old files: --allow stateless.",
            )
            return Verdict(state=state, reason=str(error), error=error)
        overrides = ("stateless",)
    known, image = question.legacy, question.image
    if known is None or not known.os_id:
        error = RefusedError(
            f"nothing on the volume at {where} says which release it comes from; this image "
            f"is {name_of(image)}",
            code="unknown-version",
            hint="Say it as ID:VERSION of its os-release; where it was made by an image of this "
            f"one's release: --from {image.os_id}:{image.os_version}.",
        )
        return Verdict(state=State.INCOMPATIBLE, reason=str(error), error=error)
    refused, more = _refuse_direction(question, known)
    if refused is not None:
        return refused
    return _with_consent(
        question,
        state,
        f"populated without ipavolume, from {known.os_id}:{known.os_version}",
        (*overrides, *more),
    )


def _sign_of_instance(question: Question) -> str:
    """Return a path of the template that is there, or one that says that a volume was used."""
    for mount, facts in question.facts.items():
        if question.instance[mount]:
            return question.instance[mount]
        if mount != question.mounts[0] and (facts.build_id is not None or facts.legacy):
            return f"{mount}/{BUILD_ID_NAME}"
    return ""


def _with_consent(
    question: Question, state: State, reason: str, overrides: tuple[str, ...]
) -> Verdict:
    if question.consent:
        return Verdict(state=state, reason=reason, overrides=overrides)
    error = RefusedError(
        f"an upgrade waits, but IPAVOLUME_UPGRADE=refuse: the volume is {reason}",
        code="no-consent",
        hint="See what it would do with ipavolume upgrade --dry-run; let it happen with "
        "IPAVOLUME_UPGRADE=auto.",
    )
    return Verdict(state=state, reason=str(error), error=error)


def _refuse_direction(
    question: Question, recorded: ImageHeader
) -> tuple[Verdict | None, tuple[str, ...]]:
    overrides: list[str] = []
    image = question.image
    back = _went_back(question, recorded)
    if back is not None:
        if "newer" not in question.allow:
            restore = "or restore the backup made before that"
            if (way := question.undoable) is not None:
                restore = (
                    "or undo that while the application is stopped, which goes back to the "
                    f"snapshot of run {way.run} ({way.made}), of the image "
                    f"{_left_by(question, way)}: ipavolume rollback"
                )
            # What the application says of itself names no image.
            older = name_of(recorded) if recorded.build_id else "that the volume comes from"
            unwritten = "the profile's" if question.profile else "all"
            error = RefusedError(
                f"the volume has {back[0]}, this image, {name_of(image)}, has {back[1]}: going "
                "back is not supported",
                code="newer",
                hint=f"{_find_missing(question)}Start the image {older} or a newer one, {restore}. "
                f"Which packages must not go back the image says: guard in [accept] of "
                f"{CONFIG_PATH} (not written: {unwritten}; []: none). To try it anyway: "
                "--allow newer.",
            )
            return Verdict(state=State.NEWER, reason=str(error), error=error), ()
        overrides.append("newer")
    volume_os = (recorded.os_id, recorded.os_version)
    image_os = (image.os_id, image.os_version)
    if recorded.os_id and not releases.accepts(
        question.accept, volume_os=volume_os, image_os=image_os
    ):
        if "incompatible" not in question.allow:
            rules = ", ".join(question.accept) or "same release, same major version"
            replica = ""
            if question.profile == "freeipa":
                replica = ", or add a replica made from this image and retire this one"
            error = RefusedError(
                f"the volume comes from {volume_os[0]} {volume_os[1]}, this image is "
                f"{image_os[0]} {image_os[1]}; it accepts: {rules}",
                code="incompatible",
                hint=f"Go by an image in between{replica}. An image that is to take such volumes "
                f"says so in [accept] of {CONFIG_PATH}: from = "
                f'["{volume_os[0]}>={volume_os[1] or "VERSION"}"]. To try it anyway: '
                "--allow incompatible.",
            )
            return Verdict(state=State.INCOMPATIBLE, reason=str(error), error=error), ()
        overrides.append("incompatible")
    return None, tuple(overrides)


def _went_back(question: Question, recorded: ImageHeader) -> tuple[str, str] | None:
    """Return a guarded package that is newer on the volume than in the image, both as text."""
    for pattern in question.guard:
        ours: dict[str, list[Package]] = {}
        for package in question.image.packages:
            if versions.matches_package(pattern, package):
                ours.setdefault(package.name, []).append(package)
        for package in recorded.packages:
            if not versions.matches_package(pattern, package):
                continue
            for other in _counterparts(package, ours, pattern):
                if versions.compare_evr(package.evr, other.evr) > 0:
                    return (
                        f"{package.name} {package.evr}",
                        f"{other.name} {other.evr}",
                    )
    return None


def _counterparts(
    package: Package, ours: Mapping[str, Sequence[Package]], pattern: str
) -> Iterator[Package]:
    if package.name in ours:
        yield from ours[package.name]
    elif not any(mark in pattern for mark in "*?["):
        # The same software under another name: both provide what the pattern names.
        for same in ours.values():
            yield from same


def _left_by(question: Question, snapshot: Snapshot) -> str:
    """Return the image that left what *snapshot* has, as people know it."""
    return named(snapshot.from_build or snapshot.build_id, question.names)
