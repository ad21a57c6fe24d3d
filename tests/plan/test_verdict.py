"""In which state a volume is, compared as values: each state, each refusal, each override."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pytest
from support.values import image

from ipavolume.model.images import Accounts, ImageHeader
from ipavolume.model.packages import Package, Provide
from ipavolume.model.snapshots import Method, Snapshot
from ipavolume.plan import verdict
from ipavolume.plan.application import Application
from ipavolume.plan.conduct import Does, conduct
from ipavolume.plan.verdict import Question, State, Verdict, is_told_by_packages, judge
from ipavolume.volume.facts import Facts, Identity, Transaction
from ipavolume.volume.refused import Refused

PRIMARY: Final = "/data"
SECOND: Final = "/more"


def release(
    build_id: str, *, os: tuple[str, str] = ("fedora", "43"), version: str = "1", **more: Any
) -> ImageHeader:
    """Return the header of an image with FreeIPA in it."""
    package = Package(name="freeipa-server", epoch=0, version=version, release="1", arch="noarch")
    values: dict[str, Any] = {"fingerprint": f"f-{build_id}", "packages": (package,)}
    return image(build_id, os_id=os[0], os_version=os[1], **{**values, **more})


OLD: Final = release("old")
NEW: Final = release("new", version="2", image_name="ipa:2")
NEWER: Final = release("newer", version="3")
FEDORA_41: Final = release("f41", os=("fedora", "41"))
UNNAMED: Final = image("unnamed")


def identity(uuid: str, primary: str = "") -> Identity:
    return Identity(uuid=uuid, primary=primary or uuid, created="", image="old")


def transaction(
    to: ImageHeader, *, phase: str = "marked", primary: str = "p", **more: Any
) -> Transaction:
    values: dict[str, Any] = {"kind": "upgrade", "from_build": "old", "run": "r"}
    return Transaction(
        phase=phase,
        to_build=to.build_id,
        fingerprint=to.fingerprint,
        primary=primary,
        **{**values, **more},
    )


NOTHING: Final = Facts(
    build_id=None, identity=None, baseline=None, transaction=None, target=None, legacy=False
)


def of(baseline: ImageHeader, **more: Any) -> Facts:
    """Return what is found on a volume that an image has filled."""
    values: dict[str, Any] = {"build_id": baseline.build_id, "identity": identity("p")}
    return replace(NOTHING, baseline=baseline, **{**values, **more})


def amid(to: ImageHeader, **more: Any) -> Facts:
    """Return what is found on a volume of *OLD* in the middle of an upgrade."""
    values: dict[str, Any] = {"build_id": None, "transaction": transaction(to), "target": to}
    return of(OLD, **{**values, **more})


def owners(*names: str, files: bool = True, provides: tuple[str, ...] = ()) -> Application:
    """Return packages, which own files, or only directories."""
    packages = tuple(
        Package(
            name=name,
            epoch=0,
            version="1",
            release="1",
            arch="x",
            provides=tuple(Provide(name=one) for one in (name, *provides)),
        )
        for name in names
    )
    return Application(files=packages if files else (), all=packages)


LEGACY: Final = replace(NOTHING, build_id="theirs", legacy=True)
NO_STATE: Final = replace(NOTHING, build_id="theirs")


def question(primary: Facts, second: Facts | None = None, **more: Any) -> Question:
    facts = {PRIMARY: primary} | ({SECOND: second} if second else {})
    values: dict[str, Any] = {
        "image": NEW,
        "accept": ("fedora:same-or-previous",),
        "guard": ("freeipa-server",),
        "allow": frozenset(),
        "instance": dict.fromkeys(facts, ""),
        "kept": {"/tmp": ""},
    }
    return Question(mounts=tuple(facts), facts=facts, **{**values, **more})


POSTGRES: Final = (("PG_VERSION", "PostgreSQL"), ("base/1", "user 26"))


SNAPSHOT: Final = Snapshot(
    run="0002-newer",
    by_hand=False,
    primary="p",
    from_build="new",
    build_id="forced",
    fingerprint=NEW.fingerprint,
    made="2026-11-28T18:00:00Z",
    mounts=(PRIMARY, SECOND),
    method=Method.REFLINK,
    files=1,
    bytes=1,
    copied=0,
    devices=0,
)
"""What image *NEW* had left when the upgrade to *NEWER* began."""


# -- states ------------------------------------------------------------------------------

OF_OLD: Final = "of old; this image is ipa:2 (new)"
STATES: Final[Mapping[State, tuple[Question, str]]] = {
    State.UNSAFE: (
        question(of(OLD), replace(NOTHING, identity=identity("s", "q"))),
        "the volume at /more belongs to another primary volume (q) than the one at /data (p)",
    ),
    State.FOREIGN: (
        question(of(replace(OLD, application="dns")), application=("ipa", "idm")),
        "the volume at /data belongs to the application 'dns'; this image, ipa:2 (new), is of "
        "'ipa' or 'idm'",
    ),
    State.GOING_BACK: (
        question(amid(NEWER), way_back=SNAPSHOT),
        "the upgrade to newer was not completed; this image goes back to what it left, the "
        "snapshot of run 0002-newer",
    ),
    State.UPGRADING: (question(amid(NEW)), "run r to ipa:2 (new) is not finished (marked)"),
    State.TAKEN_OVER: (question(amid(OLD)), "run r to old of another image is not finished"),
    State.BLOCKED: (
        question(amid(NEWER)),
        "the volume is in the middle of an upgrade to newer, which has freeipa-server 3-1; this "
        "image has freeipa-server 2-1",
    ),
    State.CURRENT: (question(of(NEW)), "of this image, new"),
    State.REBUILT: (
        question(of(release("twin", fingerprint=NEW.fingerprint))),
        "of twin, which ships the same",
    ),
    State.NEWER: (
        question(of(NEWER)),
        "the volume has freeipa-server 3-1, this image, ipa:2 (new), has freeipa-server 2-1: "
        "going back is not supported",
    ),
    State.INCOMPATIBLE: (
        question(of(FEDORA_41)),
        "the volume comes from fedora 41, this image is fedora 43; it accepts: "
        "fedora:same-or-previous",
    ),
    State.OUTDATED: (question(of(OLD)), OF_OLD),
    State.LEGACY: (
        question(LEGACY, legacy=OLD),
        "populated without ipavolume, from fedora:43",
    ),
    State.STATELESS: (
        question(NO_STATE),
        "the volume at /data holds the recorded id 'theirs', but not our state directory: lost, "
        "or restored from a backup without it, or not ours",
    ),
    State.OCCUPIED: (
        question(NOTHING, strangers={PRIMARY: POSTGRES}),
        "the volume at /data is not empty, and what is on it is data of something else: "
        "'PG_VERSION' (PostgreSQL), 'base/1' (user 26)",
    ),
    State.EMPTY: (question(NOTHING), "no file of the template is there"),
}
ELSEWHERE: Final = {
    State.OBSTRUCTED: "told by a plan that cannot be carried out",
    State.UNCONFIGURED: "told by the first run's own record, of a volume that is current",
    State.WAITING: "as UNCONFIGURED",
    State.PARTIAL: "as UNCONFIGURED",
}
"""What is never the answer here, and why."""
REFUSED: Final = {
    State.UNSAFE,
    State.FOREIGN,
    State.BLOCKED,
    State.NEWER,
    State.INCOMPATIBLE,
    State.STATELESS,
    State.OCCUPIED,
}
"""States that nothing starts in without an override."""


def test_every_state_has_a_case_or_a_reason_to_have_none() -> None:
    assert set(STATES) | set(ELSEWHERE) == set(State)
    assert set(STATES) & set(ELSEWHERE) == set()


@pytest.mark.parametrize("state", [pytest.param(state, id=state) for state in STATES])
def test_each_state(state: State) -> None:
    asked, reason = STATES[state]
    found = judge(asked)
    assert (found.state, found.reason, found.overrides) == (state, reason, ())
    assert (found.error is not None) == (state in REFUSED)
    if found.error is not None:
        assert str(found.error) == reason


def test_where_something_has_to_be_done() -> None:
    found = {state: conduct(state).does for state in STATES}
    assert {state for state in STATES if found[state] is Does.REFUSE} == REFUSED
    assert {state for state in STATES if found[state] is Does.NOTHING} == {State.CURRENT}


# -- refusals ----------------------------------------------------------------------------

FOREIGN: Final = replace(NOTHING, identity=identity("s", "q"))
GONE_BACK: Final = (
    Refused(
        image="new",
        fingerprint="f",
        code="undone",
        run="0002-new",
        at="2026-11-28T12:00:00Z",
        cause="step s5010_fails",
    ),
    "2026-11-28T13:00:00Z",
)
REFUSALS: Final = [
    pytest.param(
        question(amid(NEWER), way_back=replace(SNAPSHOT, fingerprint="of another one")),
        "reused-build-id",
        77,
        State.GOING_BACK,
        id="an image with its id was another one",
    ),
    pytest.param(
        question(amid(NEWER), way_back=SNAPSHOT, goes_back=False),
        "uncommitted",
        77,
        State.GOING_BACK,
        id="not by itself",
    ),
    pytest.param(STATES[State.UNSAFE][0], "foreign-volume", 65, State.UNSAFE, id="foreign"),
    pytest.param(
        question(NOTHING, FOREIGN), "foreign-volume", 65, State.UNSAFE, id="foreign, primary empty"
    ),
    pytest.param(
        # Never taken over as one whose state is lost, which is what it would look like.
        question(replace(FOREIGN, build_id="old"), allow=frozenset({"stateless"})),
        "foreign-volume",
        65,
        State.UNSAFE,
        id="a further one alone",
    ),
    pytest.param(
        question(amid(NEW), replace(NOTHING, transaction=transaction(NEW, primary="q"))),
        "foreign-volume",
        65,
        State.UNSAFE,
        id="foreign, both in transactions",
    ),
    pytest.param(
        question(of(NEW), kept={"/tmp": "build-id"}), "kept-volume", 65, State.UNSAFE, id="kept"
    ),
    pytest.param(STATES[State.FOREIGN][0], "foreign", 77, State.FOREIGN, id="of another"),
    pytest.param(
        question(of(NEW), owners=(owners("dns"), owners("freeipa-server"))),
        "foreign",
        77,
        State.FOREIGN,
        id="of another, by its packages",
    ),
    pytest.param(
        question(of(OLD), refused=GONE_BACK), "refused", 77, State.OUTDATED, id="gone back"
    ),
    pytest.param(
        question(amid(OLD), refused=GONE_BACK), "refused", 77, State.TAKEN_OVER, id="amid another"
    ),
    pytest.param(
        question(of(NEW), refused=GONE_BACK), "refused", 77, State.CURRENT, id="about to go back"
    ),
    pytest.param(
        question(amid(OLD), consent=False), "no-consent", 77, State.TAKEN_OVER, id="taken over"
    ),
    pytest.param(
        question(amid(FEDORA_41)),
        "incompatible",
        77,
        State.TAKEN_OVER,
        id="taken over, from a release that is not accepted",
    ),
    pytest.param(question(of(OLD), NOTHING), "lost-secondary", 65, State.UNSAFE, id="lost"),
    pytest.param(
        question(of(OLD), NOTHING, refilled=[SECOND], unmounted=[SECOND]),
        *("lost-secondary", 65, State.UNSAFE),
        id="nothing mounted where an empty one would be filled",
    ),
    pytest.param(
        question(amid(NEW), NOTHING),
        *("foreign-volume", 65, State.UPGRADING),
        id="an empty one amid a run",
    ),
    pytest.param(
        question(amid(NEW), NOTHING, refilled=[SECOND], unmounted=[SECOND]),
        *("foreign-volume", 65, State.UPGRADING),
        id="nothing mounted amid a run",
    ),
    pytest.param(
        question(amid(NEW), NOTHING, refilled=[SECOND], instance={SECOND: "/more/x"}),
        *("foreign-volume", 65, State.UPGRADING),
        id="not an empty one amid a run",
    ),
    pytest.param(
        question(NOTHING, expect="existing"),
        "expected-existing",
        77,
        State.EMPTY,
        id="empty, but expected to exist",
    ),
    pytest.param(
        question(NOTHING, expect="5e1f"), "expected-existing", 77, State.EMPTY, id="empty, no uuid"
    ),
    pytest.param(
        question(of(OLD), expect="5e1f"), "expected-other", 77, State.OUTDATED, id="another uuid"
    ),
    pytest.param(
        question(LEGACY, legacy=OLD, expect="5e1f"),
        "expected-other",
        77,
        State.LEGACY,
        id="another one, which has no uuid",
    ),
    pytest.param(
        question(replace(amid(NEW), identity=None, baseline=None), expect="5e1f"),
        "expected-other",
        77,
        State.UPGRADING,
        id="another one, which is being populated",
    ),
    pytest.param(STATES[State.OCCUPIED][0], "occupied", 77, State.OCCUPIED, id="occupied"),
    pytest.param(
        question(NOTHING, NOTHING, strangers={PRIMARY: (), SECOND: POSTGRES}),
        "occupied",
        77,
        State.OCCUPIED,
        id="the second of two is occupied",
    ),
    pytest.param(
        question(of(replace(OLD, volumes=())), NOTHING, strangers={SECOND: POSTGRES}),
        "occupied",
        77,
        State.OCCUPIED,
        id="a volume that is new to the image is occupied",
    ),
    pytest.param(
        question(NOTHING, NO_STATE), "stateless", 65, State.STATELESS, id="the second has an id"
    ),
    pytest.param(
        question(NOTHING, strangers={PRIMARY: POSTGRES}, expect="existing"),
        "expected-existing",
        77,
        State.EMPTY,
        id="occupied, but expected to be ours",
    ),
    pytest.param(STATES[State.BLOCKED][0], "blocked", 77, State.BLOCKED, id="blocked"),
    pytest.param(
        question(amid(NEWER), allow={"newer"}), "blocked", 77, State.BLOCKED, id="half allowed"
    ),
    pytest.param(
        question(amid(NEWER), allow={"blocked"}),
        "blocked",
        77,
        State.BLOCKED,
        id="half allowed, the other half",
    ),
    pytest.param(STATES[State.STATELESS][0], "stateless", 65, State.STATELESS, id="stateless"),
    pytest.param(
        question(NOTHING, instance={PRIMARY: "/data/etc/krb5.conf"}),
        "stateless",
        65,
        State.STATELESS,
        id="files, and no id",
    ),
    pytest.param(
        question(LEGACY), "unknown-version", 77, State.INCOMPATIBLE, id="nobody knows the release"
    ),
    pytest.param(
        question(LEGACY, legacy=UNNAMED),
        "unknown-version",
        77,
        State.INCOMPATIBLE,
        id="packages are known, the release is not",
    ),
    pytest.param(
        question(NO_STATE, allow={"stateless"}),
        "unknown-version",
        77,
        State.INCOMPATIBLE,
        id="stateless and allowed, the release is not known",
    ),
    pytest.param(
        question(of(OLD), consent=False), "no-consent", 77, State.OUTDATED, id="no consent"
    ),
    pytest.param(
        question(of(OLD, rehearsal_of="p")), "clone", 77, State.OUTDATED, id="a copy to rehearse"
    ),
    pytest.param(
        question(of(OLD), of(OLD, rehearsal_of="")),
        "clone",
        77,
        State.OUTDATED,
        id="a copy of a further volume",
    ),
    pytest.param(
        question(LEGACY, legacy=OLD, consent=False),
        "no-consent",
        77,
        State.LEGACY,
        id="no consent to adopt",
    ),
    pytest.param(STATES[State.NEWER][0], "newer", 77, State.NEWER, id="newer"),
    pytest.param(
        question(of(NEWER), consent=False),
        "newer",
        77,
        State.NEWER,
        id="before consent",
    ),
    pytest.param(
        question(LEGACY, legacy=NEWER), "newer", 77, State.NEWER, id="newer, by what is told of it"
    ),
    pytest.param(
        STATES[State.INCOMPATIBLE][0], "incompatible", 77, State.INCOMPATIBLE, id="incompatible"
    ),
    pytest.param(
        question(of(release("c10", os=("centos", "10"))), accept=()),
        "incompatible",
        77,
        State.INCOMPATIBLE,
        id="incompatible without a rule",
    ),
]


def test_every_refusal_has_a_case() -> None:
    assert {param.values[1] for param in REFUSALS} == set(
        re.findall(r'code="([a-z-]+)"', inspect.getsource(verdict))
    )


@pytest.mark.parametrize(("asked", "code", "exit_status", "state"), REFUSALS)
def test_each_refusal(asked: Question, code: str, exit_status: int, state: State) -> None:
    found = judge(asked)
    assert found.error is not None
    assert (found.state, found.error.code, found.error.exit_status) == (state, code, exit_status)
    assert found.reason == str(found.error)
    assert found.error.hint


def test_what_is_left_of_wiped_volumes_is_told_how_to_begin_anew() -> None:
    """Who wiped the volume of a first run that failed, as its refusal says, was told nothing."""
    anew = "To begin anew with an empty /data, empty /more, too."
    for primary, told in ((NOTHING, True), (of(OLD), False)):
        found = judge(question(primary, FOREIGN)).error
        assert found is not None
        assert (found.code, anew in found.hint) == ("foreign-volume", told)


def test_volumes_in_each_others_place_are_told_so() -> None:
    """It was said that a primary volume belongs to another one, with the number of itself."""
    found = judge(question(of(OLD, identity=identity("s", "p")), of(OLD))).error
    assert found is not None
    assert found.code == "foreign-volume"
    assert (
        str(found) == "the volume at /more is a primary volume, and the one at /data belongs to it"
    )
    assert "the other way round" in found.hint


@pytest.mark.parametrize("primary", [of(OLD), amid(NEW)], ids=["lost", "amid a run"])
def test_where_a_mount_was_forgotten_that_is_said_and_not_that_a_volume_is_a_wrong_one(
    primary: Facts,
) -> None:
    forgotten = judge(question(primary, NOTHING, unmounted=[SECOND])).error
    assert forgotten is not None
    assert str(forgotten).startswith(f"nothing is mounted at {SECOND}, ")
    assert f"-v NAME:{SECOND}" in forgotten.hint
    wrong = judge(question(primary, NOTHING)).error
    assert wrong is not None
    assert wrong.code == forgotten.code
    assert "nothing is mounted" not in str(wrong)


@pytest.mark.parametrize(
    ("asked", "state"),
    [
        pytest.param(question(amid(NEW), way_back=SNAPSHOT), State.UPGRADING, id="its own"),
        pytest.param(
            question(amid(release("twin", fingerprint=NEW.fingerprint)), way_back=SNAPSHOT),
            State.UPGRADING,
            id="that of a rebuild",
        ),
        pytest.param(
            question(amid(NEWER), way_back=replace(SNAPSHOT, from_build="old")),
            State.BLOCKED,
            id="began from another image",
        ),
        pytest.param(
            question(amid(NEWER), way_back=replace(SNAPSHOT, accounts=Accounts(users={"svc": 1}))),
            State.BLOCKED,
            id="accounts had other numbers",
        ),
        pytest.param(
            question(of(NEWER, build_id=None, pending=NEW), way_back=SNAPSHOT),
            State.GOING_BACK,
            id="finished without its steps, nothing open",
        ),
        pytest.param(
            question(amid(NEWER, transaction=transaction(NEWER, phase="undoing"))),
            State.GOING_BACK,
            id="begun by somebody, whoever comes",
        ),
    ],
)
def test_whether_it_is_gone_back(asked: Question, state: State) -> None:
    assert judge(asked).state is state


def test_direction_and_consent_do_not_keep_an_image_from_going_back() -> None:
    found = judge(question(amid(NEWER), way_back=SNAPSHOT, consent=False, accept=()))
    assert (found.state, found.error) == (State.GOING_BACK, None)


RENAMED: Final = replace(NEWER, application="other")


@pytest.mark.parametrize(
    ("primary", "more", "state"),
    [
        pytest.param(amid(RENAMED), {}, State.GOING_BACK, id="back to what the image left"),
        pytest.param(amid(RENAMED), {"goes_back": False}, State.GOING_BACK, id="not by itself"),
        pytest.param(
            amid(RENAMED),
            {"way_back": replace(SNAPSHOT, fingerprint="another")},
            State.FOREIGN,
            id="it was an image with the same id",
        ),
        pytest.param(amid(RENAMED), {"way_back": None}, State.FOREIGN, id="no snapshot"),
        pytest.param(
            amid(RENAMED, transaction=transaction(RENAMED, phase="undoing")),
            {"way_back": None},
            State.GOING_BACK,
            id="on the way back already",
        ),
    ],
)
def test_an_upgrade_that_renamed_the_application_is_gone_back_from(
    primary: Facts, more: dict[str, Any], state: State
) -> None:
    """What the image left itself is its own, whatever the upgrade calls it."""
    asked = {"way_back": SNAPSHOT, "application": ("ipa",), **more}
    assert judge(question(primary, **asked)).state is state


def test_an_image_that_was_gone_back_from_first_finishes_that() -> None:
    """Killed at the very end it is recorded already that the image is not to be started again."""
    undoing = amid(NEW, transaction=transaction(NEW, phase="undoing"))
    found = judge(question(undoing, refused=GONE_BACK))
    assert (found.state, found.error) == (State.GOING_BACK, None)


def test_what_can_be_gone_back_to_is_named_with_the_command() -> None:
    blocked = judge(question(amid(NEWER), way_back=replace(SNAPSHOT, from_build="old"))).error
    newer = judge(question(of(NEWER), undoable=SNAPSHOT)).error
    for error, of_image in ((blocked, "old"), (newer, "new")):
        assert error is not None
        assert "goes back to the snapshot of run 0002-newer (2026-11-28T18:00:00Z)" in error.hint
        assert f"of the image {of_image}: ipavolume rollback" in error.hint


@pytest.mark.parametrize("primary", [amid(NEWER), of(NEWER)], ids=["amid", "committed"])
def test_a_mount_is_asked_for_only_where_a_snapshot_was_on_one(primary: Facts) -> None:
    lost = "/data/.ipavolume/snapshots"
    there, gone = (
        judge(question(primary, missing="0002-newer", lost_mounts=mounts)).error
        for mounts in ((), (lost,))
    )
    assert there is not None
    assert gone is not None
    assert there.hint.startswith("The snapshot of run 0002-newer is not here. Start the image new")
    assert f"Is the mount at {lost} missing?" in gone.hint


def test_what_is_in_the_way_is_named_on_whichever_volume_it_is() -> None:
    found = judge(question(NOTHING, NOTHING, instance={PRIMARY: "", SECOND: "/more/srv/x"}))
    assert found.state is State.STATELESS
    assert found.reason.startswith("the volume at /data holds '/more/srv/x', but not our state")


def test_what_was_taken_from_an_image_is_not_amid_an_upgrade() -> None:
    """Between two images: which of them goes back, or that somebody has to agree."""
    taken = {"kind": "unverified", "phase": "swapped", "from_build": "before"}
    blocked = judge(question(amid(NEWER, transaction=transaction(NEWER, **taken)))).error
    waits = judge(question(amid(OLD, transaction=transaction(OLD, **taken)), consent=False)).error
    for error, code in ((blocked, "blocked"), (waits, "no-consent")):
        assert error is not None
        said = f"{error} {error.hint}"
        assert error.code == code
        assert "had made was not found to be right" in said
        assert "before" in error.hint
        for word in ("middle of an upgrade", "finish"):
            assert word not in said


def test_a_blocked_volume_says_which_image_can_finish() -> None:
    named = replace(NEWER, image_name="ipa:3")
    for target, name in ((NEWER, "newer"), (named, "ipa:3 (newer)")):
        error = judge(question(amid(target))).error
        assert error is not None
        assert f"Start the image {name} again" in error.hint


@pytest.mark.parametrize(("profile", "unwritten"), [("", "all"), ("freeipa", "the profile's")])
def test_what_must_not_go_back_where_nothing_is_written_depends_on_the_profile(
    profile: str, unwritten: str
) -> None:
    error = judge(question(of(NEWER), profile=profile)).error
    assert error is not None
    assert f"(not written: {unwritten}; []: none)" in error.hint


# -- overrides ---------------------------------------------------------------------------

ADOPTED: Final = "populated without ipavolume, from fedora:43"


@pytest.mark.parametrize(
    ("asked", "state", "reason", "overrides"),
    [
        pytest.param(
            question(of(NEWER), allow={"newer"}),
            State.OUTDATED,
            "of newer; this image is ipa:2 (new)",
            ("newer",),
            id="newer",
        ),
        pytest.param(
            question(of(FEDORA_41), allow={"incompatible"}),
            State.OUTDATED,
            "of f41; this image is ipa:2 (new)",
            ("incompatible",),
            id="incompatible",
        ),
        pytest.param(
            question(
                of(release("f45", os=("fedora", "45"), version="3")),
                allow={"incompatible", "newer"},
            ),
            State.OUTDATED,
            "of f45; this image is ipa:2 (new)",
            ("newer", "incompatible"),
            id="both directions",
        ),
        pytest.param(
            question(of(OLD), NOTHING, allow={"lost-secondary"}),
            State.OUTDATED,
            f"{OF_OLD}; recorded id and baseline disagree, so everything is compared",
            ("lost-secondary",),
            id="lost secondary",
        ),
        pytest.param(
            question(of(NEW), replace(NOTHING, build_id=NEW.build_id), allow={"lost-secondary"}),
            State.OUTDATED,
            "of ipa:2 (new); this image is ipa:2 (new); recorded id and baseline disagree, so "
            "everything is compared",
            ("lost-secondary",),
            id="lost secondary that has its id still",
        ),
        pytest.param(
            question(of(replace(NEW, application="dns")), application=("ipa",), allow={"foreign"}),
            State.REBUILT,
            "of ipa:2 (new), which ships the same",
            ("foreign",),
            id="foreign",
        ),
        pytest.param(
            question(of(OLD), owners=(owners("dns"), owners("freeipa-server")), allow={"foreign"}),
            State.OUTDATED,
            OF_OLD,
            ("foreign",),
            id="foreign, by its packages",
        ),
        pytest.param(
            question(NOTHING, strangers={PRIMARY: POSTGRES}, allow={"occupied"}),
            State.EMPTY,
            "no file of the template is there",
            ("occupied",),
            id="occupied",
        ),
        pytest.param(
            question(amid(FEDORA_41), allow={"incompatible"}),
            State.TAKEN_OVER,
            "run r to f41 of another image is not finished",
            (),
            id="incompatible with what is taken over, which is recorded when it is upgraded",
        ),
        pytest.param(
            question(of(OLD), kept={"/tmp": "build-id"}, allow={"kept-volume"}),
            State.OUTDATED,
            OF_OLD,
            ("kept-volume",),
            id="kept volume",
        ),
        pytest.param(
            question(
                of(OLD),
                NOTHING,
                kept={"/tmp": "build-id"},
                allow={"kept-volume", "lost-secondary"},
            ),
            State.OUTDATED,
            f"{OF_OLD}; recorded id and baseline disagree, so everything is compared",
            ("kept-volume", "lost-secondary"),
            id="kept volume and lost secondary",
        ),
        pytest.param(
            question(NO_STATE, allow={"stateless"}, legacy=OLD),
            State.STATELESS,
            ADOPTED,
            ("stateless",),
            id="stateless",
        ),
        pytest.param(
            question(NO_STATE, allow={"stateless", "newer"}, legacy=release("x", version="3")),
            State.STATELESS,
            ADOPTED,
            ("stateless", "newer"),
            id="stateless and newer",
        ),
        pytest.param(
            question(amid(NEWER), allow={"blocked", "newer"}),
            State.TAKEN_OVER,
            "run r to newer of another image is not finished",
            ("blocked",),
            id="blocked",
        ),
        pytest.param(
            question(of(OLD), allow={"newer", "incompatible", "stateless", "lost-secondary"}),
            State.OUTDATED,
            OF_OLD,
            (),
            id="what need not be overridden is not recorded",
        ),
    ],
)
def test_what_an_override_makes_of_a_refusal(
    asked: Question, state: State, reason: str, overrides: tuple[str, ...]
) -> None:
    assert judge(asked) == Verdict(state=state, reason=reason, overrides=overrides)


def test_what_was_overridden_is_known_where_something_else_is_refused() -> None:
    """A rollback goes on where an upgrade does not, and records that it was asked to."""
    found = judge(
        question(of(replace(NEWER, application="dns")), application=("ipa",), allow={"foreign"})
    )
    assert (found.state, found.overrides) == (State.NEWER, ("foreign",))
    assert found.error is not None


# -- which row comes first, and what tells them apart ------------------------------------

SECONDARY: Final = of(OLD, identity=identity("s", "p"))


def providing(name: str, version: str) -> tuple[Package, ...]:
    """Return a package that is FreeIPA's server under another name."""
    provides = (Provide(name="freeipa-server"),)
    return (Package(name=name, epoch=0, version=version, release="1", arch="x", provides=provides),)


@pytest.mark.parametrize(
    ("asked", "state"),
    [
        pytest.param(question(of(OLD), SECONDARY), State.OUTDATED, id="two that belong together"),
        pytest.param(
            question(of(NEW), replace(SECONDARY, build_id="new")),
            State.CURRENT,
            id="two that are current",
        ),
        pytest.param(
            question(of(NEW), SECONDARY), State.OUTDATED, id="only the primary one is current"
        ),
        pytest.param(question(of(OLD, build_id="new")), State.OUTDATED, id="another baseline"),
        pytest.param(question(of(NEW, build_id="old")), State.OUTDATED, id="another id"),
        pytest.param(question(of(NEW, build_id=None)), State.OUTDATED, id="the id is lost"),
        pytest.param(
            question(of(replace(OLD, fingerprint="")), image=replace(NEW, fingerprint="")),
            State.OUTDATED,
            id="no fingerprint is no same fingerprint",
        ),
        pytest.param(
            question(
                of(release("twin", fingerprint="f-new", accounts=Accounts(users={"svc": 990})))
            ),
            State.OUTDATED,
            id="ships the same, but for other accounts",
        ),
        pytest.param(
            question(amid(release("twin", fingerprint="f-new"))),
            State.UPGRADING,
            id="a transaction to an image that ships the same",
        ),
        pytest.param(question(amid(NEW), consent=False), State.UPGRADING, id="asked only before"),
        pytest.param(
            question(of(OLD, rehearsal_of="p"), rehearsal=True), State.OUTDATED, id="rehearsed"
        ),
        pytest.param(
            question(amid(NEWER, target=None)), State.TAKEN_OVER, id="a transaction to nobody knows"
        ),
        pytest.param(
            question(amid(NEW), replace(NOTHING, transaction=transaction(NEW))),
            State.UPGRADING,
            id="both in the same transaction",
        ),
        pytest.param(
            question(NOTHING, replace(NOTHING, transaction=transaction(NEW, primary="q"))),
            State.EMPTY,
            id="populating began with the secondary one",
        ),
        pytest.param(
            question(of(replace(OLD, volumes=())), NOTHING),
            State.OUTDATED,
            id="a secondary that is new to the image",
        ),
        pytest.param(
            question(LEGACY, legacy=OLD, instance={PRIMARY: "/data/etc/x"}),
            State.LEGACY,
            id="legacy comes before stateless",
        ),
        pytest.param(question(of(OLD), expect="p"), State.OUTDATED, id="it is the expected one"),
        pytest.param(question(of(OLD), expect="existing"), State.OUTDATED, id="it does exist"),
        pytest.param(
            question(of(release("x", packages=providing("ipa-server", "3")))),
            State.NEWER,
            id="newer, under another name",
        ),
        pytest.param(
            question(of(release("x", packages=providing("ipa-server", "1")))),
            State.OUTDATED,
            id="older, under another name",
        ),
        pytest.param(
            question(of(release("x", packages=providing("ipa-server", "3"))), guard=("*ipa-*",)),
            State.OUTDATED,
            id="a glob compares only the same name",
        ),
        pytest.param(question(of(NEWER), guard=()), State.OUTDATED, id="newer, but not guarded"),
        pytest.param(
            question(of(release("f42", os=("fedora", "42")))),
            State.OUTDATED,
            id="the release before",
        ),
        pytest.param(
            question(of(release("f42", os=("fedora", "42"))), accept=()),
            State.INCOMPATIBLE,
            id="the release before, without a rule",
        ),
        pytest.param(
            question(of(image("x"))), State.OUTDATED, id="a baseline without a release is let pass"
        ),
        pytest.param(
            question(amid(replace(NEW, fingerprint="another"))),
            State.UPGRADING,
            id="a transaction to this image, prepared anew",
        ),
        pytest.param(
            question(amid(NEW), NOTHING), State.UPGRADING, id="the secondary one is not filled yet"
        ),
        pytest.param(
            question(of(OLD), replace(NOTHING, transaction=transaction(NEW))),
            State.OUTDATED,
            id="a transaction began on the secondary one",
        ),
    ],
)
def test_which_state_it_is(asked: Question, state: State) -> None:
    assert judge(asked).state is state


# -- whose volume it is ------------------------------------------------------------------

APPLICATION: Final = replace(OLD, application="ipa")


@pytest.mark.parametrize(
    ("facts", "application", "is_foreign"),
    [
        pytest.param(of(APPLICATION), ("ipa",), False, id="the same"),
        pytest.param(of(APPLICATION), ("idm", "ipa"), False, id="renamed, the old name accepted"),
        pytest.param(of(APPLICATION), ("idm",), True, id="another"),
        pytest.param(of(APPLICATION), (), False, id="the image does not say"),
        pytest.param(of(OLD), ("ipa",), False, id="the volume does not say"),
        pytest.param(LEGACY, ("freeipa",), False, id="legacy"),
        pytest.param(LEGACY, ("dns",), True, id="legacy, and another"),
        pytest.param(
            of(OLD, identity=replace(identity("p"), application="ipa")),
            ("dns",),
            True,
            id="said by the identity alone",
        ),
        pytest.param(
            of(replace(OLD, application="dns"), identity=replace(identity("p"), application="ipa")),
            ("ipa",),
            False,
            id="the identity counts",
        ),
        pytest.param(amid(replace(NEW, application="ipa")), ("ipa",), False, id="resumed"),
        pytest.param(
            amid(replace(OLD, application="dns")), ("ipa",), True, id="taken over from another"
        ),
        pytest.param(
            replace(amid(replace(OLD, application="ipa")), baseline=None, identity=None),
            ("dns",),
            True,
            id="another populates it",
        ),
    ],
)
def test_a_recorded_application_tells_whose_a_volume_is(
    facts: Facts, application: tuple[str, ...], *, is_foreign: bool
) -> None:
    """F20: the wrong application was installed over the volume of another one."""
    found = judge(question(facts, application=application, legacy=OLD))
    assert (found.state is State.FOREIGN) == is_foreign, found
    # Where both say it, packages are not looked at.
    both = bool(facts.application and application)
    assert not (both and is_told_by_packages(NEW, application, facts))


DATA_ONLY: Final = owners("postgresql-server", files=False)


@pytest.mark.parametrize(
    ("theirs", "ours", "is_foreign"),
    [
        pytest.param(owners("dns"), owners("ipa"), True, id="nothing in common"),
        pytest.param(owners("dns", "krb5"), owners("ipa", "krb5"), False, id="one in common"),
        pytest.param(
            owners("dogtag-pki-server", provides=("pki-server",)),
            owners("idm-pki-server", provides=("pki-server",)),
            False,
            id="both provide the same",
        ),
        pytest.param(
            owners("ipa-server"),
            owners("freeipa-server", provides=("ipa-server",)),
            False,
            id="ours provides theirs",
        ),
        pytest.param(
            owners("freeipa-server", provides=("ipa-server",)),
            owners("ipa-server"),
            False,
            id="theirs provides ours",
        ),
        pytest.param(
            owners("dns", provides=("bundled(gnulib)", "/bin/sh", "config(x)")),
            owners("ipa", provides=("bundled(gnulib)", "/bin/sh", "config(x)")),
            True,
            id="both provide what says nothing",
        ),
        pytest.param(owners(), owners("ipa"), False, id="their distribution has no packages"),
        pytest.param(owners("ipa"), owners(), False, id="ours has none"),
        pytest.param(DATA_ONLY, owners("mariadb-server", files=False), True, id="data alone"),
        pytest.param(DATA_ONLY, DATA_ONLY, False, id="data alone, the same"),
        pytest.param(
            Application(files=owners("dns").files, all=owners("dns", "filesystem").all),
            Application(files=owners("ipa").files, all=owners("ipa", "filesystem").all),
            True,
            id="the package with the usual directories says nothing",
        ),
        pytest.param(
            owners("app"),
            Application(files=owners("app-config").files, all=owners("app", "app-config").all),
            False,
            id="split, the directory is the old package's still",
        ),
    ],
)
def test_packages_tell_whose_a_volume_is_where_nobody_said(
    theirs: Application, ours: Application, *, is_foreign: bool
) -> None:
    """F47: an image of another application erased what that one had shipped."""
    found = judge(question(of(OLD), owners=(theirs, ours)))
    assert (found.state is State.FOREIGN) == is_foreign, found


def test_what_is_of_this_image_is_not_told_by_packages() -> None:
    for facts in (of(NEW), amid(NEW), of(release("twin", fingerprint=NEW.fingerprint))):
        assert not is_told_by_packages(NEW, (), facts)
    for facts in (of(OLD), amid(OLD), LEGACY):
        assert is_told_by_packages(NEW, (), facts)


def test_a_run_of_a_refused_image_that_is_open_goes_on() -> None:
    """Who asked for it has begun it; between two images it would help nobody."""
    found = judge(question(amid(NEW), refused=GONE_BACK))
    assert (found.state, found.error) == (State.UPGRADING, None)


def test_a_refused_image_names_run_cause_time_and_the_way_to_have_it_tried() -> None:
    error = judge(question(of(OLD), refused=GONE_BACK)).error
    assert error is not None
    said = f"{error} {error.hint}"
    for word in ("0002-new", "s5010_fails", "12:00:00Z", "2026-11-28T13:00:00Z"):
        assert word in said
    assert "IPAVOLUME_RETRY=0002-new" in said
    assert "ipavolume upgrade --retry" in said
