"""A hint can be followed where it is read: on a host, in a container, in a pod."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import pytest
from support import inside
from support.command import run_ipavolume
from support.images import MANIFEST, Packaged, build_rpm, make_image

from ipavolume.cli import output, text
from ipavolume.cli.advice import About, Place, Reader, fit, fit_here, place_of
from ipavolume.cli.data import report_data
from ipavolume.cli.main import main
from ipavolume.commands.check import Finding, Inspection, Severity
from ipavolume.commands.rehearse import Report
from ipavolume.model.actions import Plan
from ipavolume.plan.draft import Draft
from ipavolume.plan.rehearsed import Ending, Rehearsed
from ipavolume.plan.snapshot import WayBack
from ipavolume.plan.verdict import State

HOST = Reader(place=Place.HOST, root="/srv/image", volumes=["/srv/ipa data"])
WITH_IMAGE = Reader(place=Place.HOST, image="example/ipa:4.12", volumes=["/srv/ipa"])
WITH_NAMES = Reader(
    place=Place.HOST, image="example/ipa:4.12", names=["/data=ipa", "/logs=ipa-logs"]
)
CONTAINER = Reader(place=Place.CONTAINER)
POD = Reader(place=Place.POD)
LOOK = "To look around in the container meanwhile, start it with IPAVOLUME_ON_FAILURE=hold."


@pytest.mark.parametrize(
    ("reader", "hint", "told"),
    [
        (HOST, "To try it anyway: --allow newer.", "To try it anyway: --allow newer."),
        (CONTAINER, "anyway: --allow newer.", "anyway: -e IPAVOLUME_ALLOW=newer."),
        (
            CONTAINER,
            "from there: --allow blocked --allow newer.",
            "from there: -e IPAVOLUME_ALLOW=blocked,newer.",
        ),
        (CONTAINER, "--allow s0700:no-bdb.", "-e IPAVOLUME_ALLOW=s0700:no-bdb."),
        (
            CONTAINER,
            "over with --allow stateless --from debian:12.",
            "over with -e IPAVOLUME_ALLOW=stateless -e IPAVOLUME_FROM=debian:12.",
        ),
        (
            POD,
            "over with --allow stateless --from debian:12.",
            "over with IPAVOLUME_ALLOW=stateless and IPAVOLUME_FROM=debian:12 in the env of the "
            "pod's container.",
        ),
        (
            HOST,
            "then: ipavolume upgrade --retry.",
            "then: ipavolume upgrade --retry --root /srv/image --volume '/srv/ipa data'.",
        ),
        (
            CONTAINER,
            "then: ipavolume upgrade --retry.",
            "then: docker run --rm -v VOLUME:/data IMAGE ipavolume upgrade --retry.",
        ),
        (
            POD,
            "then: ipavolume upgrade --retry.",
            'then: a pod of this image with the same volume and args ["ipavolume", "upgrade", '
            '"--retry"].',
        ),
        (
            replace(CONTAINER, held=True),
            "then: ipavolume upgrade --retry. To try it anyway: --allow newer.",
            "then: docker exec CONTAINER ipavolume upgrade --retry. To try it anyway: docker exec "
            "CONTAINER ipavolume upgrade --retry --allow newer.",
        ),
        (
            replace(CONTAINER, held=True),
            "over with --allow stateless --from debian:12.",
            "over with docker exec CONTAINER ipavolume upgrade --retry --allow stateless --from "
            "debian:12.",
        ),
        # No command does that, which comes after the upgrade.
        (
            replace(CONTAINER, held=True),
            "all the same: --allow partial.",
            "all the same: a new container with -e IPAVOLUME_ALLOW=partial.",
        ),
        (
            replace(CONTAINER, held=True, again=False),
            "all the same: --allow s5010:no.",
            "all the same: a new container with -e IPAVOLUME_ALLOW=s5010:no.",
        ),
        (
            replace(CONTAINER, held=True),
            "go on without a snapshot: IPAVOLUME_SNAPSHOT=never",
            "go on without a snapshot: docker exec -e IPAVOLUME_SNAPSHOT=never CONTAINER ipavolume "
            "upgrade --retry",
        ),
        (
            replace(POD, held=True),
            "let it happen with IPAVOLUME_UPGRADE=auto.",
            "let it happen with kubectl exec POD -- env IPAVOLUME_UPGRADE=auto ipavolume upgrade "
            "--retry.",
        ),
        (
            CONTAINER,
            "go on without a snapshot: IPAVOLUME_SNAPSHOT=never",
            "go on without a snapshot: -e IPAVOLUME_SNAPSHOT=never",
        ),
        (
            POD,
            "let it happen with ipavolume rollback, or IPAVOLUME_ROLLBACK=auto.",
            'let it happen with a pod of this image with the same volume and args ["ipavolume", '
            '"rollback"], or IPAVOLUME_ROLLBACK=auto in the env of the pod\'s container.',
        ),
        (HOST, "let it happen with IPAVOLUME_UPGRADE=auto.", None),
        (
            CONTAINER,
            "at once with IPAVOLUME_RETRY=0002-v2, or by ipavolume upgrade --retry.",
            "at once with -e IPAVOLUME_RETRY=0002-v2, or by docker run --rm -v VOLUME:/data IMAGE "
            "ipavolume upgrade --retry.",
        ),
        (CONTAINER, f"the next start. {LOOK} Or", None),
        (POD, f"the next start. {LOOK} Or", None),
        (replace(CONTAINER, held=True), f"the next start. {LOOK} Or", "the next start. Or"),
        (HOST, f"the next start. {LOOK}", "the next start."),
        (
            replace(CONTAINER, leaves_online=True),
            "by ipavolume upgrade --retry. To look: ipavolume upgrade --dry-run.",
            "by docker run --rm -v VOLUME:/data IMAGE ipavolume upgrade --retry --phase offline. "
            "To look: docker run --rm -v VOLUME:/data IMAGE ipavolume upgrade --dry-run.",
        ),
        (
            replace(CONTAINER, held=True, leaves_online=True),
            "by ipavolume upgrade --retry.",
            "by docker exec CONTAINER ipavolume upgrade --retry.",
        ),
        (
            replace(CONTAINER, held=True),
            "at once with IPAVOLUME_RETRY=first-run, or by ipavolume upgrade --retry.",
            "at once with a new container with -e IPAVOLUME_RETRY=first-run, or by docker exec "
            "CONTAINER ipavolume upgrade --retry.",
        ),
        (
            POD,
            "at once with IPAVOLUME_RETRY=start.",
            "at once with IPAVOLUME_RETRY=start in the env of the pod's container.",
        ),
        (
            replace(WITH_IMAGE, engine="podman"),
            "To start it at once: IPAVOLUME_RETRY=0002-v2.",
            "To start it at once: podman run -e IPAVOLUME_RETRY=0002-v2.",
        ),
        # Another volume than the one that is mounted there.
        (
            replace(CONTAINER, held=True),
            "Mount the right volume; ipavolume status VOLUME says the uuid of one.",
            "Mount the right volume; docker run --rm -v VOLUME:/data IMAGE ipavolume status says "
            "the uuid of one.",
        ),
        # Who typed a command can type it again, if it has such an option.
        (replace(CONTAINER, held=True, typed=True), "anyway: --allow newer.", None),
        (
            replace(CONTAINER, held=True, typed=True, options=frozenset()),
            "anyway: --allow newer.",
            "anyway: docker exec CONTAINER ipavolume upgrade --retry --allow newer.",
        ),
        (
            replace(HOST, options=frozenset({"--allow"})),
            "over with --allow stateless --from debian:12.",
            "over with ipavolume upgrade --allow stateless --from debian:12 --root /srv/image "
            "--volume '/srv/ipa data'.",
        ),
        # What was overridden to come so far is not refused the next time.
        (
            replace(CONTAINER, allowed=["foreign"]),
            "anyway: --allow newer.",
            "anyway: -e IPAVOLUME_ALLOW=foreign,newer.",
        ),
        (
            replace(CONTAINER, held=True, allowed=["foreign"]),
            "anyway: --allow newer.",
            "anyway: docker exec CONTAINER ipavolume upgrade --retry --allow foreign --allow "
            "newer.",
        ),
        (
            replace(HOST, allowed=["shared-path", "newer"]),
            "all the same: ipavolume rollback --allow newer.",
            "all the same: ipavolume rollback --allow newer --allow shared-path --root /srv/image "
            "--volume '/srv/ipa data'.",
        ),
        (
            replace(POD, held=True),
            "then: ipavolume upgrade --retry.",
            "then: kubectl exec POD -- ipavolume upgrade --retry.",
        ),
        (
            replace(HOST, held=True),
            "ipavolume check",
            "ipavolume check --root /srv/image --volume '/srv/ipa data'",
        ),
        (
            CONTAINER,
            "ipavolume status VOLUME says the uuid",
            "docker run --rm -v VOLUME:/data IMAGE ipavolume status says the uuid",
        ),
        (
            Reader(place=Place.CONTAINER, mounts=("/srv", "/opt")),
            "ipavolume check",
            "docker run --rm -v VOLUME1:/srv -v VOLUME2:/opt IMAGE ipavolume check",
        ),
        (
            Reader(place=Place.CONTAINER, mounts=("/my data",)),
            "ipavolume check",
            "docker run --rm -v 'VOLUME:/my data' IMAGE ipavolume check",
        ),
        # The options of a command stay with it, which is whole then.
        (
            CONTAINER,
            "all the same: ipavolume rollback --allow first-run-since.",
            "all the same: docker run --rm -v VOLUME:/data IMAGE ipavolume rollback --allow "
            "first-run-since.",
        ),
        (
            POD,
            "all the same: ipavolume rollback --allow first-run-since.",
            "all the same: a pod of this image with the same volume and args "
            '["ipavolume", "rollback", "--allow", "first-run-since"].',
        ),
        (
            HOST,
            "all the same: ipavolume rollback --allow first-run-since.",
            "all the same: ipavolume rollback --allow first-run-since --root /srv/image "
            "--volume '/srv/ipa data'.",
        ),
        # What needs the files of an image has them in a container, where no tree was given.
        (
            WITH_IMAGE,
            "ipavolume upgrade --retry. To look: ipavolume rollback --dry-run, or ipavolume check.",
            "docker run --rm -v /srv/ipa:/data example/ipa:4.12 ipavolume upgrade --retry. To "
            "look: ipavolume rollback --dry-run --volume /srv/ipa, or ipavolume check --image "
            "example/ipa:4.12 --volume /srv/ipa.",
        ),
        (
            WITH_NAMES,
            "ipavolume upgrade --retry or ipavolume rollback",
            "docker run --rm -v ipa:/data -v ipa-logs:/logs example/ipa:4.12 ipavolume upgrade "
            "--retry or docker run --rm -v ipa:/data -v ipa-logs:/logs example/ipa:4.12 ipavolume "
            "rollback",
        ),
        (
            HOST,
            "In a container of the image that began the upgrade: ipavolume rollback",
            "In a container of the image that began the upgrade: docker run --rm -v "
            "'/srv/ipa data:/data' IMAGE ipavolume rollback",
        ),
        (
            WITH_IMAGE,
            "In a container of the image that has the step: ipavolume rollback. Where",
            "In a container of the image that has the step: docker run --rm -v /srv/ipa:/data "
            "IMAGE ipavolume rollback. Where",
        ),
        (
            replace(HOST, root=""),
            "In a container of the image: ipavolume steps --try VOLUME",
            "In a container of the image: docker run --rm -v '/srv/ipa data:/data' IMAGE "
            "ipavolume steps --try /data",
        ),
        (
            HOST,
            "which there are: ipavolume snapshot list. To go back: ipavolume rollback RUN.",
            "which there are: ipavolume snapshot list --root /srv/image --volume '/srv/ipa data'. "
            "To go back: ipavolume rollback RUN --root /srv/image --volume '/srv/ipa data'.",
        ),
        (
            CONTAINER,
            "by ipavolume snapshot drop 0003-two and ipavolume snapshot drop RUN; then",
            "by docker run --rm -v VOLUME:/data IMAGE ipavolume snapshot drop 0003-two and "
            "docker run --rm -v VOLUME:/data IMAGE ipavolume snapshot drop RUN; then",
        ),
        (
            replace(HOST, mounts=("/data", "/logs"), volumes=["/logs=/srv/l", "/data=/srv/d"]),
            "In a container of the image: ipavolume steps --try VOLUME",
            "In a container of the image: docker run --rm -v /srv/l:/logs -v /srv/d:/data IMAGE "
            "ipavolume steps --try /data",
        ),
        # What is done in the container that runs, whoever reads it.
        *(
            (
                reader,
                "in the container: docker exec CONTAINER ipavolume conflicts --keep /data/x. Other",
                f"in the container: {within} ipavolume conflicts --keep /data/x. Other",
            )
            for reader, within in (
                (CONTAINER, "docker exec CONTAINER"),
                (replace(CONTAINER, engine="podman"), "podman exec CONTAINER"),
                (POD, "kubectl exec POD --"),
            )
        ),
        (
            WITH_IMAGE,
            "in the container that runs: ipavolume running.",
            "in the container that runs: docker exec CONTAINER ipavolume running.",
        ),
        (
            POD,
            "in the container that runs: ipavolume running.",
            "in the container that runs: kubectl exec POD -- ipavolume running.",
        ),
        (
            CONTAINER,
            "see ipavolume manual freeipa",
            "see docker run --rm IMAGE ipavolume manual freeipa",
        ),
        (HOST, "see ipavolume manual freeipa", None),
        (HOST, "(ipavolume manual CODE explains it)", None),
        # A mount that is missing is one of the command that needs it.
        (
            CONTAINER,
            "Is the mount at /data/.ipavolume/snapshots missing? In a container that has it: "
            "ipavolume rollback. Otherwise: Start it.",
            "Is the mount at /data/.ipavolume/snapshots missing? In a container that has it: "
            "docker run --rm -v VOLUME:/data -v SNAPSHOTS:/data/.ipavolume/snapshots IMAGE "
            "ipavolume rollback. Otherwise: Start it.",
        ),
        (
            WITH_IMAGE,
            "Is the mount at /data/.ipavolume/snapshots and /logs/.ipavolume/snapshots missing? In "
            "a container that has it: ipavolume rollback",
            "Is the mount at /data/.ipavolume/snapshots and /logs/.ipavolume/snapshots missing? In "
            "a container that has it: docker run --rm -v /srv/ipa:/data -v "
            "SNAPSHOTS1:/data/.ipavolume/snapshots -v SNAPSHOTS2:/logs/.ipavolume/snapshots "
            "example/ipa:4.12 ipavolume rollback",
        ),
        (
            POD,
            "Is the mount at /data/.ipavolume/snapshots missing? In a container that has it: "
            "ipavolume rollback",
            "Is the mount at /data/.ipavolume/snapshots missing? In a container that has it: a pod "
            "of this image with the same volume, what was mounted at /data/.ipavolume/snapshots, "
            'and args ["ipavolume", "rollback"]',
        ),
        (
            replace(CONTAINER, held=True),
            "Is the mount at /data/.ipavolume/snapshots missing? In a container that has it: "
            "ipavolume rollback",
            "Is the mount at /data/.ipavolume/snapshots missing? In a container that has it, once "
            "this one is stopped: docker run --rm -v VOLUME:/data -v "
            "SNAPSHOTS:/data/.ipavolume/snapshots IMAGE ipavolume rollback",
        ),
        # In another container than the one at hand.
        (
            POD,
            "In a container of the image that began the upgrade: ipavolume rollback",
            "In a container of the image that began the upgrade: a pod of that image with the same "
            'volume and args ["ipavolume", "rollback"]',
        ),
        (
            replace(CONTAINER, held=True),
            "In a container of the image that began the upgrade: ipavolume rollback",
            "In a container of the image that began the upgrade, once this one is stopped: docker "
            "run --rm -v VOLUME:/data IMAGE ipavolume rollback",
        ),
        # What an engine takes for what it is.
        (
            replace(WITH_IMAGE, volumes=["ipa-data"], engine="podman"),
            "ipavolume upgrade --retry",
            f"podman run --rm -v {shlex.quote(f'{os.getcwd()}/ipa-data:/data')} example/ipa:4.12 "
            "ipavolume upgrade --retry",
        ),
        (
            replace(WITH_IMAGE, volumes=["/srv/a:b"], mounts=("/srv/app",)),
            "ipavolume upgrade --retry",
            "docker run --rm -v DIR:/srv/app example/ipa:4.12 ipavolume upgrade --retry",
        ),
        (
            replace(WITH_IMAGE, volumes=["/data=/srv/a=b"]),
            "ipavolume upgrade",
            "docker run --rm -v /srv/a=b:/data example/ipa:4.12 ipavolume upgrade",
        ),
        (
            replace(WITH_NAMES, names=["ipa", "web"]),
            "ipavolume check or ipavolume rollback",
            "ipavolume check --image example/ipa:4.12 --volume-name ipa --volume-name web or "
            "docker run --rm -v VOLUME:/data example/ipa:4.12 ipavolume rollback",
        ),
        (
            replace(WITH_NAMES, image="", root="/srv/image"),
            "ipavolume rollback",
            "ipavolume rollback --root /srv/image --volume /data=DIR --volume /logs=DIR",
        ),
        (
            replace(HOST, root=""),
            "Settle the copies: ipavolume conflicts.",
            "Settle the copies: docker run --rm -v '/srv/ipa data:/data' IMAGE ipavolume "
            "conflicts.",
        ),
        # What has its form, or is no command.
        (HOST, "inside: podman run --rm -v a:/data:ro example.org/i:1 ipavolume check", None),
        (CONTAINER, "it ipavolume checks", None),
        (CONTAINER, "'/srv/ipavolume rollback/x' is no directory", None),
        (
            HOST,
            "ipavolume status list of",
            "ipavolume status --root /srv/image --volume '/srv/ipa data' list of",
        ),
        (POD, "with --from arch:.", "with IPAVOLUME_FROM=arch: in the env of the pod's container."),
        (CONTAINER, "with --from debian:13~rc1.", "with -e IPAVOLUME_FROM=debian:13~rc1."),
        (
            CONTAINER,
            "wait with --lock-timeout SECONDS.",
            "wait with -e IPAVOLUME_LOCK_TIMEOUT=SECONDS.",
        ),
        (CONTAINER, "ipavolume prepare when the image is built", None),
        (CONTAINER, "Mount it at /data, without --read-only.", None),
        (CONTAINER, "start the container by ipavolume start, or stop it.", None),
    ],
)
def test_options_and_commands_are_those_of_the_place(
    reader: Reader, hint: str, told: str | None
) -> None:
    assert fit(hint, reader) == (hint if told is None else told)


def test_where_a_command_runs_is_told_by_what_it_was_given_and_by_the_system() -> None:
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert place_of("/", {}, prepared=True) is Place.CONTAINER
    assert place_of("/", pod, prepared=True) is Place.POD
    assert place_of("/", {}, prepared=False) is Place.HOST
    assert place_of("/srv/image", pod, prepared=True) is Place.HOST
    assert place_of("/", {}, prepared=True, image="example/ipa") is Place.HOST


def test_what_was_fitted_is_not_fitted_again() -> None:
    hint = "ipavolume upgrade --retry. In a container of the image: ipavolume steps --try VOLUME"
    inside = (CONTAINER, replace(CONTAINER, held=True), POD)
    for reader in (WITH_IMAGE, WITH_NAMES, *inside):
        assert fit(fit(hint, reader), reader) == fit(hint, reader)
    for one in (
        "To go on: --allow newer.",
        "ipavolume rollback --allow first-run-since",
        "Is the mount at /data/.ipavolume/snapshots missing? In a container that has it: ipavolume "
        "rollback.",
    ):
        for reader in inside:
            assert fit(fit(one, reader), reader) == fit(one, reader)


def test_a_directory_with_an_equals_sign_in_its_name_is_named_with_its_mount() -> None:
    with click.Context(main.commands["status"]) as called:
        called.params = {"root": "/", "directories": ("/srv/app=1", "/srv/app=2")}
        about = About(directories=["/srv/app=2"])
        hint = fit_here("ipavolume rollback --dry-run", about=about)
    assert hint == "ipavolume rollback --dry-run --volume /data=/srv/app=2"


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.parametrize(
    ("execs", "more"), [("/usr/sbin/init", " --phase offline"), ("/usr/sbin/app", "")]
)
def test_of_an_engines_image_with_systemd_a_host_is_told_to_leave_to_the_start_what_it_does(
    tmp_path: Path, execs: str, more: str
) -> None:
    """A check has a copy of what it needs of the image, and of systemd there is nothing in it."""
    rpm = build_rpm(tmp_path, "app", [Packaged(path="/etc/app.conf", content="conf")])
    image = make_image(tmp_path / "image", [rpm])
    image.list("/etc/app.conf")
    image.prepare()
    image.write("/etc/ipavolume.toml", f'[start]\nexec = ["{execs}"]\n')
    words = ["--image", "app:2", "--volume-name", "app"]
    with main.commands["check"].make_context("check", words):
        about = About(names=["app"], root=str(image.root))
        told = fit_here("at once by ipavolume upgrade --retry", about=about)
    assert told == f"at once by docker run --rm -v app:/data app:2 ipavolume upgrade --retry{more}"


def _nothing(root: Path) -> None:
    root.rmdir()


def _no_tree(root: Path) -> None:
    root.rmdir()
    root.write_text("an archive")


def _damaged(root: Path) -> None:
    (root / MANIFEST).parent.mkdir(parents=True)
    (root / MANIFEST).write_text("{}\n")


def _a_directory(root: Path) -> None:
    (root / MANIFEST).mkdir(parents=True)


def _a_loop(root: Path) -> None:
    (root / "usr").symlink_to("usr")


@pytest.mark.parametrize("spoil", [_nothing, _no_tree, _damaged, _a_directory, _a_loop])
def test_a_hint_is_told_whatever_ails_the_image(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    root = tmp_path / "image"
    root.mkdir()
    spoil(root)
    words = ["--root", str(root), "--volume", "/srv/ipa"]
    with main.commands["rollback"].make_context("rollback", words):
        told = fit_here("ipavolume rollback, or ipavolume upgrade --retry")
    where = f"--root {root} --volume /srv/ipa"
    assert told == f"ipavolume rollback {where}, or ipavolume upgrade --retry {where}"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("check", "--allow stateless --from debian:12"),
        (
            "rollback",
            "docker run --rm -v /srv/ipa:/data IMAGE ipavolume upgrade --allow stateless --from "
            "debian:12",
        ),
    ],
)
def test_options_that_a_command_has_not_are_those_of_an_upgrade(command: str, told: str) -> None:
    with main.commands[command].make_context(command, ["--volume", "/srv/ipa"]):
        assert fit_here("--allow stateless --from debian:12") == told


def test_what_refuses_a_rehearsal_is_told_with_the_volume_that_was_to_be_rehearsed_with() -> None:
    refused = Report(
        volume="/srv/ipa",
        image={},
        rehearsed=Rehearsed(
            ending=Ending.FAILED,
            code="no-snapshot",
            message="a start is refused",
            lines=("Make room by ipavolume snapshot drop 0001-one. To see: ipavolume rollback",),
        ),
    )
    started = replace(refused, network="internal")
    with click.Context(main.commands["rehearse"]) as called:
        called.params = {"reference": "example/ipa:4.13", "directory_of_volume": "/srv/ipa"}
        shown, data = text.report_lines(refused, verbose=False), report_data(refused)
        as_printed = report_data(started)["lines"]
        rehearsed = text.report_lines(started, verbose=False)
    fitted = (
        "Make room by ipavolume snapshot drop 0001-one --volume /srv/ipa. To see: ipavolume "
        "rollback --volume /srv/ipa"
    )
    assert f"    | {fitted}" in shown
    assert data["lines"] == [fitted]
    # What a container printed stays as it is.
    assert as_printed == list(refused.rehearsed.lines)
    # Nothing was rehearsed, so there is nothing to be said of what that cannot show.
    limits = "  what a rehearsal cannot show:"
    assert (limits in shown, limits in rehearsed) == (False, True)


def test_what_is_to_be_reviewed_after_a_rehearsal_is_shown_by_the_image_that_was_tried() -> None:
    copies = {"copies": [["/data/etc/app.conf", "/data/etc/app.conf.rpmnew", "rpmnew"]]}
    rehearsed = Rehearsed(ending=Ending.FINE, message="ready")
    run = {"run": "r", "warnings": ["s5000: look at the cache"], **copies}
    report = Report(volume="ipa", image={}, rehearsed=rehearsed, runs=(run,))
    with click.Context(main.commands["rehearse"]) as called:
        called.params = {"reference": "example/ipa:4.13", "names": ("ipa",)}
        shown = text.report_lines(report, verbose=False)
    inside = "docker run --rm -v ipa:/data example/ipa:4.13 ipavolume conflicts --diff"
    assert f"  to review after the upgrade ({inside}):" in shown
    assert "\n".join(shown).count("s5000: look at the cache") == 1


def test_what_there_is_to_go_back_to_is_told_with_commands_that_can_be_typed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    way = WayBack(why="no room", hint="Make room, for instance by ipavolume snapshot drop 0001-one")
    plan = Plan(run="0002-two", kind="upgrade", from_build="one", to_build="two", fingerprint="")
    found = Inspection(
        volume="/srv/ipa",
        state=State.OUTDATED,
        reason="",
        recorded=None,
        image={},
        draft=Draft(plan=plan, positions={}, way_back=way),
        findings=(),
        exit_status=100,
    )
    drop = "ipavolume snapshot drop 0001-one --volume /srv/ipa"
    with click.Context(main.commands["check"]) as called:
        called.params = {"root": "/", "directories": ("/srv/ipa",)}
        told = output.inspection_data(found)["way_back"]["hint"]
        output.print_inspection(found, full=False, verbose=False)
    assert told == f"Make room, for instance by {drop}"
    assert f"way back: none: no room. {told}\n" in capsys.readouterr().out


def test_a_hint_for_many_findings_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A user who may read little of a volume has as many findings as files of root."""
    unreadable, other = (
        Finding(code="unreadable", severity=Severity.WARNING, path="", message="no", hint=hint)
        for hint in ("Run it as root.", "Another.")
    )
    found = Inspection(
        volume="/srv/ipa",
        state=State.CURRENT,
        reason="",
        recorded=None,
        image={},
        draft=None,
        findings=(
            *(replace(unreadable, path=f"/data/{number}") for number in range(3)),
            *(replace(other, hint="", path="/data/none"), replace(other, path="/data/other")),
            replace(unreadable, path="/data/last"),
        ),
        exit_status=100,
    )
    with click.Context(main.commands["check"]):
        output.print_inspection(found, full=True, verbose=True)
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] if ": " in line else line.strip() for line in lines] == [
        *("/data/0", "/data/1", "/data/2", "Run it as root."),
        *("/data/none", "/data/other", "Another."),
        *("/data/last", "Run it as root."),
    ]


@pytest.mark.root
@pytest.mark.rpm
@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_in_a_container_the_engine_is_the_one_that_runs_it(tmp_path: Path, engine: str) -> None:
    rpm = build_rpm(tmp_path, "app", [Packaged(path="/etc/app.conf", content="conf")])
    image = make_image(tmp_path / "image", [rpm])
    image.list("/etc/app.conf")
    image.prepare(build_id="one")
    volume = tmp_path / "volume"
    volume.mkdir()
    env = {"container": engine} if engine == "podman" else {}
    inside.run(image.root, volume, [*inside.IPAVOLUME, "upgrade"], env=env)
    said = inside.run(image.root, volume, [*inside.IPAVOLUME, "rollback"], env=env).stderr
    assert f"{engine} run --rm -v VOLUME:/data IMAGE ipavolume snapshot list" in said
    assert f"{engine} run --rm IMAGE ipavolume manual no-way-back" in said


def test_by_podman_unshare_the_engine_is_podman(tmp_path: Path) -> None:
    words = ("conflicts", "--keep", "/data/etc/app.conf", tmp_path)
    said = run_ipavolume(*words, status=2, env={"_CONTAINERS_USERNS_CONFIGURED": "done"}).stderr
    assert f"podman run --rm -v {tmp_path}:/data IMAGE ipavolume conflicts" in said
    assert "docker run" in run_ipavolume(*words, status=2).stderr
