"""The command line: commands parse, call one function, print. Errors are caught once, here."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn, TypeVar

import click

from ipavolume import fastpath
from ipavolume.apply import run as lifecycle
from ipavolume.apply.run import PHASES, Outcome, Speaker
from ipavolume.cli import text as report
from ipavolume.commands import check as inspection
from ipavolume.commands import places as entry
from ipavolume.commands.check import Inspection
from ipavolume.context import OVERRIDES, Options, Session, parse_volume_option
from ipavolume.errors import EXIT_CANNOT_CREATE, EXIT_CONFIGURATION, IpaVolumeError, UsageError
from ipavolume.linux import signals as interruption
from ipavolume.model.redaction import Redactor

_F = TypeVar("_F", bound=Callable[..., Any])
_SEVERITY_COLOURS: Final = {"error": "red", "warning": "yellow", "note": "blue"}
_VERB_COLOURS: Final = {
    "create": "green",
    "replace": "yellow",
    "rpmnew": "yellow",
    "save": "yellow",
    "erase": "red",
    "rmdir": "red",
    "metadata": "cyan",
    "keep": "blue",
}


class HelpedCommand(click.Command):
    r"""Shows examples as they are written: what follows a ``\b`` in a raw docstring."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help text; click wants the character itself as the mark."""
        self.help = (self.help or "").replace("\\b\n", "\b\n")
        super().format_help_text(ctx, formatter)


class ErrorReportingGroup(HelpedCommand, click.Group):
    """Reports a deliberate error as lines on standard error and by its exit status."""

    command_class = HelpedCommand

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; no command needs a ``try`` of its own."""
        try:
            return super().invoke(ctx)
        except IpaVolumeError as err:
            fail(err)


def fail(err: IpaVolumeError) -> NoReturn:
    """Print *err* and end with its status."""
    show_error(err)
    sys.exit(err.exit_status)


def show_error(err: IpaVolumeError) -> None:
    """Print what failed, the last lines of the command that did, the state, and what to do."""
    _labelled("error", f"{err} [{err.code}]", "red")
    for line in err.details:
        click.echo(f"ipavolume:   | {report.escape(line)}", err=True)
    _labelled("state", err.state, "blue")
    _labelled("hint", err.hint, "green")


def _labelled(label: str, text: str, colour: str) -> None:
    if text:
        label = click.style(f"{label}:", fg=colour)
        click.echo(f"ipavolume: {label} {report.escape(text)}", err=True)


def progress(text: str) -> None:
    """Print a line of progress."""
    click.echo(f"ipavolume: {report.escape(text)}", err=True)


def quiet(_text: str) -> None:
    """Print nothing."""


# -- options -----------------------------------------------------------------------------


def _common(function: _F) -> _F:
    for option in reversed(
        (
            click.option(
                "--root",
                default="/",
                metavar="DIR",
                help="The image tree.",
                show_default=True,
            ),
            click.option(
                "--volume",
                "volumes",
                multiple=True,
                metavar="[MOUNT=]DIR",
                help="Where a volume is, when not at its mount below the root.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
            click.option("-v", "--verbose", is_flag=True, help="Say more."),
            click.option("-q", "--quiet", "silent", is_flag=True, help="Only results and errors."),
        )
    ):
        function = option(function)
    return function


def _deciding(function: _F) -> _F:
    """Options of the commands that decide on an upgrade."""
    for option in reversed(
        (
            click.option(
                "--allow",
                multiple=True,
                envvar="IPAVOLUME_ALLOW",
                metavar="CODE",
                help="Override a refusal; recorded in the history. Codes: "
                + ", ".join(sorted(OVERRIDES)),
            ),
            click.option(
                "--from",
                "came_from",
                envvar="IPAVOLUME_FROM",
                default="",
                metavar="ID:VERSION",
                help="The release that a volume of unknown origin comes from, as fedora:43.",
            ),
            click.option(
                "--lock-timeout",
                envvar="IPAVOLUME_LOCK_TIMEOUT",
                type=click.FloatRange(min=0),
                default=0.0,
                metavar="SECONDS",
                help="Wait so long for another container or command.",
            ),
            click.option("--checksum", is_flag=True, help="Hash everything, trust no index."),
        )
    ):
        function = option(function)
    return function


def _on_failure(function: _F) -> _F:
    return click.option(
        "--on-failure",
        type=click.Choice(("exit", "hold")),
        envvar="IPAVOLUME_ON_FAILURE",
        default="exit",
        show_default=True,
        help="When it fails: end the container, or keep it for a look around.",
    )(function)


def _engine(function: _F) -> _F:
    return click.option(
        "--engine",
        type=click.Choice(("docker", "podman")),
        envvar="IPAVOLUME_ENGINE",
        default=None,
        help="The container engine.  [default: the first that has what is asked for]",
    )(function)


def _options(
    *,
    root: str,
    volumes: Sequence[str],
    called: str = "",
    allow: Sequence[str] = (),
    came_from: str = "",
    lock_timeout: float = 0.0,
    checksum: bool = False,
) -> Options:
    codes = frozenset(code for item in allow for code in item.replace(",", " ").split())
    unknown = {code for code in codes - set(OVERRIDES) if not _is_code_of_step(code)}
    if unknown:
        raise UsageError(
            f"--allow {sorted(unknown)[0]!r}: there is no such refusal",
            hint="Known: " + ", ".join(sorted(OVERRIDES)),
        )
    if came_from and (":" not in came_from or came_from.startswith(":")):
        raise UsageError(f"--from {came_from!r}: write it as ID:VERSION, for example fedora:43")
    return Options(
        root=root,
        called=called,
        volumes=_places(root, volumes, called),
        allow=codes,
        lock_timeout_s=lock_timeout,
        came_from=came_from,
        checksum=checksum,
        expect_existing=_choice("IPAVOLUME_EXPECT", ("", "existing", "any")) == "existing",
        consent=_choice("IPAVOLUME_UPGRADE", ("", "auto", "refuse")) != "refuse",
    )


def _is_code_of_step(code: str) -> bool:
    """Tell whether *code* is written as the refusals of steps are: ``s0700:no-bdb``."""
    step, colon, word = code.partition(":")
    return bool(colon and word) and step[:1] == "s" and step[1:].isdigit()


def _choice(name: str, known: tuple[str, ...]) -> str:
    value = os.environ.get(name, "")
    if value not in known:
        raise UsageError(
            f"{name}={value!r}: it can be " + " or ".join(word for word in known if word)
        )
    return value


def _places(root: str, volumes: Sequence[str], called: str = "") -> dict[str, str]:
    if not volumes:
        return {}
    mounts = entry.mounts_of(root, called=called)
    return dict(parse_volume_option(value, mounts) for value in volumes)


# -- commands ----------------------------------------------------------------------------


@click.group(cls=ErrorReportingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ipavolume")
def main() -> None:
    r"""Keep the state of a containerised application in one volume, across image upgrades.

    \b
    ipavolume prepare                    when the image is built
    ipavolume audit CONTAINER            when it has run: what its path list lacks
    ipavolume check --image REF VOLUME   on the host, before a container starts
    ipavolume start -- CMD...            when it starts
    """


@main.command()
@_common
@click.option("--list", "lists", multiple=True, metavar="FILE", help="Path list of the volume.")
@click.option("--mount", default=None, metavar="DIR", help="Mount of the volume.  [default: /data]")
@click.option("--template", default=None, metavar="DIR", help="Template of the volume.")
@click.option("--rpm", "rpms", multiple=True, metavar="FILE", help="Read packages from files.")
@click.option("--build-id", default=None, metavar="ID", help="Id of the build.")
@click.option("--image-name", default=None, metavar="REF", help="What people call the image.")
def prepare(
    *,
    root: str,
    volumes: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    silent: bool,
    lists: tuple[str, ...],
    mount: str | None,
    template: str | None,
    rpms: tuple[str, ...],
    build_id: str | None,
    image_name: str | None,
) -> None:
    r"""Prepare an image: move the listed paths to the template and write the manifest.

    May be run again, also in a derived image.

    \b
    Example, in a Dockerfile:
        RUN ipavolume prepare --image-name registry.example/ipa:4.12
    """
    # Not in the way of a start: reading packages takes as many modules as all the rest.
    from ipavolume.prepare import run as preparation

    del verbose
    if volumes:
        raise UsageError("prepare works on an image; it has no --volume")
    entry.clear_umask()
    result = preparation.prepare(
        root,
        lists=lists,
        mount=mount,
        template=template,
        rpms=rpms,
        build_id=build_id,
        image_name=image_name,
        progress=quiet if silent else progress,
    )
    for warning in result.warnings:
        click.echo(
            f"ipavolume: {click.style('warning:', fg='yellow')} {report.escape(warning)}", err=True
        )
    if as_json:
        click.echo(
            report.dump_json(
                {
                    "build_id": result.build_id,
                    "changed": result.changed,
                    "fingerprint": result.fingerprint,
                    "links": result.links,
                    "entries": result.entries,
                    "records": result.records,
                    "packages": result.packages,
                    "warnings": list(result.warnings),
                }
            )
        )
    elif not silent:
        done = "prepared" if result.changed else "nothing to do for"
        click.echo(
            f"{done} image {result.build_id}: {result.entries} entries, {result.records} paths, "
            f"{result.packages} packages"
        )


@main.command(context_settings={"ignore_unknown_options": False})
@_common
@_deciding
@_on_failure
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def start(
    *,
    root: str,
    volumes: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    silent: bool,
    allow: tuple[str, ...],
    came_from: str,
    lock_timeout: float,
    checksum: bool,
    on_failure: str,
    arguments: tuple[str, ...],
) -> None:
    r"""Bring the volume to this image, then execute the container's command.

    \b
    Example, in a Dockerfile:
        ENTRYPOINT ["ipavolume", "start", "--"]
        CMD ["/usr/sbin/named", "-f"]
    """
    from ipavolume.commands import start as starting

    del verbose
    options = _options(
        root=root,
        volumes=volumes,
        allow=allow,
        came_from=came_from,
        lock_timeout=lock_timeout,
        checksum=checksum,
    )
    interruption.install()
    with Session(options) as session:
        speaker = _speaker(starting.redactor(session, arguments), silent=silent)
        beginning = starting.prepare(session, arguments)
        session.lock(speaker.say)
        entry.clear_umask()
        hold = on_failure == "hold" or beginning.request.hold
        outcome = _held(
            session, speaker, lambda: starting.start(session, beginning, speaker), hold=hold
        )
        _print_outcome(session, outcome, as_json=as_json, silent=silent)
        if not beginning.words or outcome.waits:
            return
        progress(starting.last_words(session, outcome, beginning))
        command = [os.fsencode(word) for word in starting.command_line(session, outcome, beginning)]
        locks = [volume.fd for volume in session.volumes.values()]
        interruption.restore()
        keeper = fastpath.keep(command, locks)
        starting.hand_over(session, beginning, keeper=keeper)
        entry.restore_umask()
        try:
            fastpath.execute(command, locks, keeper)
        except OSError as err:
            click.echo(
                f"ipavolume: error: cannot execute {report.escape(beginning.words[0])}: "
                f"{err.strerror} [cannot-execute]",
                err=True,
            )
            sys.exit(EXIT_CANNOT_CREATE)


def _held(
    session: Session, speaker: Speaker, attempt: Callable[[], Outcome], *, hold: bool
) -> Outcome:
    """Return what *attempt* returns; with *hold* a failure keeps the container up instead.

    Raises:
        IpaVolumeError: If it fails and is not held on.
    """
    from ipavolume.volume import lock as holding

    while True:
        try:
            return attempt()
        except IpaVolumeError as err:
            if not hold or not holding.is_held_on(err):
                raise
            show_error(err)
            holding.hold(session, speaker.say)


def _speaker(redactor: Redactor, *, silent: bool) -> Speaker:
    say = quiet if silent else progress
    return Speaker(say=say, show=say, redactor=redactor)


def _print_outcome(session: Session, outcome: Outcome, *, as_json: bool, silent: bool) -> None:
    lines = report.summary_lines(outcome)
    lifecycle.keep_summary(session, outcome, lines)
    if as_json:
        click.echo(report.dump_json(report.outcome_data(outcome)))
    elif not silent:
        for line in lines:
            click.echo(line)


@main.command()
@_common
@_deciding
@click.option("--dry-run", is_flag=True, help="Print the plan, change nothing.")
@click.option(
    "--phase",
    type=click.Choice(PHASES),
    default=None,
    help="Only this phase: files and what runs before init, or what runs under it.",
)
@click.option("--retry", is_flag=True, help="Try again what failed in the same way three times.")
@click.option("--again", is_flag=True, help="Run every step for the same image again.")
def upgrade(
    *,
    root: str,
    volumes: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    silent: bool,
    allow: tuple[str, ...],
    came_from: str,
    lock_timeout: float,
    checksum: bool,
    dry_run: bool,
    phase: str | None,
    retry: bool,
    again: bool,
) -> None:
    r"""Bring the volume to this image, an empty one included, or print the plan.

    \b
    Example:
        ipavolume upgrade --dry-run --root /srv/image --volume /srv/ipa-data
    """
    from ipavolume.commands import start as starting

    options = replace(
        _options(
            root=root,
            volumes=volumes,
            allow=allow,
            came_from=came_from,
            lock_timeout=lock_timeout,
            checksum=checksum,
        ),
        retry=retry,
        again=again,
    )
    if dry_run:
        _print_inspection(inspection.inspect(options), as_json=as_json, verbose=verbose, full=True)
        return
    interruption.install()
    with Session(options) as session:
        speaker = _speaker(starting.redactor(session, ()), silent=silent)
        session.lock(speaker.say)
        entry.clear_umask()
        phases = PHASES if phase is None else (phase,)
        outcome = lifecycle.bring_up(session, speaker, phases=phases)
        _print_outcome(session, outcome, as_json=as_json, silent=silent)
        if as_json or silent:
            return
        mount = session.primary.mount
        if outcome.waiting:
            click.echo(
                f"the files of {session.image.build_id} are in place at {mount}; "
                f"{report.tasks_count(outcome.waiting)} left to the online phase"
            )
        else:
            click.echo(f"the volume at {mount} is current ({outcome.recorded})")


@main.command(hidden=True)
@_common
@_deciding
@_on_failure
def online(
    *,
    root: str,
    volumes: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    silent: bool,
    allow: tuple[str, ...],
    came_from: str,
    lock_timeout: float,
    checksum: bool,
    on_failure: str,
) -> None:
    """Do what is left to the online phase; ipavolume-online.service runs this."""
    from ipavolume.commands import start as starting
    from ipavolume.systemd import console

    del verbose
    # Before the options are read: the container's environment does not reach a service.
    beginning = starting.taken_over()
    console.show_by_engine(beginning.keeper)
    options = _options(
        root=root,
        volumes=volumes,
        allow=allow or tuple(os.environ.get("IPAVOLUME_ALLOW", "").split()),
        came_from=came_from,
        lock_timeout=lock_timeout,
        checksum=checksum,
    )
    on_failure = os.environ.get("IPAVOLUME_ON_FAILURE") or on_failure
    interruption.install()
    with Session(options) as session:
        redactor = starting.redactor(session, beginning.arguments)
        speaker = _speaker(redactor, silent=silent)
        session.lock(speaker.say)
        entry.clear_umask()
        hold = on_failure == "hold" or beginning.request.hold
        outcome = _held(
            session, speaker, lambda: starting.go_online(session, beginning, speaker), hold=hold
        )
        _print_outcome(session, outcome, as_json=as_json, silent=silent)
        starting.go_on(outcome, speaker.say)


@main.command()
@_common
@_deciding
@click.option(
    "--image",
    "reference",
    default="",
    metavar="REF",
    help="Check with an image that docker or podman has; nothing of it is run.",
)
@_engine
@click.option(
    "--volume-name",
    "names",
    multiple=True,
    metavar="[MOUNT=]NAME",
    help="A named volume of docker or podman, in the place of its directory.",
)
@click.argument("directories", nargs=-1, metavar="[VOLUME]...")
def check(
    *,
    root: str,
    volumes: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    silent: bool,
    allow: tuple[str, ...],
    came_from: str,
    lock_timeout: float,
    checksum: bool,
    reference: str,
    engine: str | None,
    names: tuple[str, ...],
    directories: tuple[str, ...],
) -> None:
    r"""Say what VOLUME is, whether it is healthy, and what the image would do to it.

    Changes nothing and runs nothing. Exits with 0 when it is current, with 100 when an
    upgrade is needed, otherwise with the status that a start would end with.

    Several volumes are checked one by one, with one JSON object a line, and one that cannot
    be checked does not stop the others. The worst status counts; from the best: 0, 100, 75,
    77, 73, 74, 65, any other.

    State, plan of the files and findings are those that the image's own check has, from
    inside; only there upgrade steps are asked what they would do, and may refuse.

    \b
    Examples:
        ipavolume check --image example/ipa:4.12 /srv/ipa-data
        ipavolume check --image example/ipa:4.12 --volume-name ipa-data --json
        ipavolume check --root /srv/image /srv/ipa-data

    \b
    From the image itself:
        docker run --rm -v ipa-data:/data:ro IMAGE ipavolume check
    """
    from ipavolume.commands import check_image as containers

    del silent
    if reference and root != "/":
        raise UsageError("--image and --root exclude each other")
    checks = containers.wanted(directories, volumes, names)
    if reference and not any(one.mounts for one in checks):
        raise UsageError("say which volume the image is to be checked with: VOLUME")
    statuses = []
    with contextlib.ExitStack() as stack:
        chosen = engine or ""
        looker = containers.Looker(root=root, engine=chosen)
        if reference:
            looker = stack.enter_context(containers.looking_with(chosen, reference, checks))
        for one in checks:
            found = looker.look(
                one,
                lambda places: _options(
                    root=looker.root,
                    called=reference,
                    volumes=places,
                    allow=allow,
                    came_from=came_from,
                    lock_timeout=lock_timeout,
                    checksum=checksum,
                ),
            )
            _print_inspection(found, as_json=as_json, verbose=verbose, full=False, leave=False)
            statuses.append(found.exit_status)
            interruption.check()
    sys.exit(inspection.worst(statuses))


@main.command()
@_engine
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.argument("container")
def audit(*, engine: str | None, as_json: bool, container: str) -> None:
    r"""Say what CONTAINER wrote outside its volumes, and which list lines would keep it.

    Also says which paths of the list are not the links onto the volume any more. The
    container may be running or stopped; nothing is run in it, and nothing is changed.

    Exits with 0 when all that it wrote is on a volume, on a tmpfs, or below /run and /tmp;
    with 78 when the image's path list, or what is mounted, has to be corrected.

    \b
    Example:
        ipavolume audit ipa
    """
    from ipavolume.commands import check_image as containers

    found = containers.audit_container(engine or "", container)
    if as_json:
        click.echo(report.dump_json(report.audit_data(found)))
    else:
        click.echo(f"{report.escape(found.name)}: {report.audit_heading(found)}")
        for finding in found.findings:
            label = click.style(f"{finding.fault}:", fg="red" if finding.is_wrong else "blue")
            for number, line in enumerate(report.audit_lines(finding)):
                click.echo(f"  {label} {line}" if number == 0 else f"    {line}")
        for line in report.audit_advice(found):
            click.echo(line)
    sys.exit(0 if found.is_clean else EXIT_CONFIGURATION)


def _print_inspection(
    found: Inspection, *, as_json: bool, verbose: bool, full: bool, leave: bool = True
) -> None:
    if as_json:
        click.echo(
            report.dump_json(
                {
                    "volume": found.volume,
                    "state": str(found.state),
                    "reason": found.reason,
                    "recorded": found.recorded,
                    "image": found.image,
                    "plan": report.plan_data(found.draft.plan)["actions"] if found.draft else [],
                    "tasks": report.tasks_data(found.draft),
                    "findings": [
                        {
                            "code": item.code,
                            "severity": item.severity,
                            "path": item.path,
                            "message": item.message,
                            "hint": item.hint,
                        }
                        for item in found.findings
                    ],
                }
            )
        )
    else:
        click.echo(f"{report.escape(found.volume)}: {click.style(str(found.state), bold=True)}")
        click.echo(f"  {report.escape(found.reason)}")
        for item in found.findings:
            label = click.style(f"{item.severity}:", fg=_SEVERITY_COLOURS[item.severity])
            where = f"{report.escape(item.path)}: " if item.path else ""
            click.echo(f"  {label} {where}{report.escape(item.message)} [{item.code}]")
            if item.hint:
                click.echo(f"    {report.escape(item.hint)}")
        if found.draft is not None:
            plan = found.draft.plan
            totals = report.counts(plan.actions)
            text = ", ".join(f"{number} {word}" for word, number in totals.items())
            click.echo(f"  plan: {text or 'record the new id, change nothing'}")
            if full or verbose:
                for line in report.plan_lines(plan):
                    word, _, rest = line.partition(" ")
                    colour = _VERB_COLOURS.get(word)
                    click.echo(f"    {click.style(f'{word:<9}', fg=colour)} {rest.strip()}")
            if plan.tasks:
                click.echo(f"  then: {report.tasks_count(plan.tasks)}")
            for task in plan.tasks if full or verbose else ():
                preview = found.draft.previews.get(task.key)
                for line in report.preview_lines(task, preview, verbose=verbose):
                    click.echo(f"    {line}")
    if leave:
        sys.exit(found.exit_status)


@main.command()
@_common
@click.option(
    "--probe",
    type=click.Choice(("startup", "ready")),
    default=None,
    help="Only answer by the exit status: 0 yes, 75 not yet, 13 it failed.",
)
@click.argument("directory", required=False, metavar="[VOLUME]")
def status(
    *,
    root: str,
    volumes: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    silent: bool,
    directory: str | None,
    probe: str | None,
) -> None:
    r"""Print the identity card of a volume and its last run, as recorded.

    \b
    Example:
        ipavolume status /srv/ipa-data
    """
    del verbose
    if probe is not None:
        _probe(_options(root=root, volumes=[directory] if directory else volumes), probe, silent)
    card = inspection.read_card(entry.place_of(root, volumes, directory))
    if as_json:
        click.echo(
            report.dump_json(
                {
                    "volume": card.volume,
                    "recorded": card.recorded,
                    "first_run": card.first_run,
                    "last_run": card.last_run,
                }
            )
        )
        return
    for line in report.card_lines(card):
        click.echo(line)


def _probe(options: Options, name: str, silent: bool) -> NoReturn:  # noqa: FBT001 - passed on
    from ipavolume.commands import probe

    with Session(options) as session:
        answer = probe.ask(session, probe.Probe(name))
    if not silent:
        click.echo(report.escape(answer.text))
    sys.exit(answer.exit_status)


@main.command(hidden=True)
@_common
def lock(
    *, root: str, volumes: tuple[str, ...], as_json: bool, verbose: bool, silent: bool
) -> None:
    """Hold the volumes for this container; ipavolume-lock.service runs this."""
    from ipavolume.systemd import lockservice

    del as_json, verbose
    with Session(_options(root=root, volumes=volumes)) as session:
        lockservice.keep_lock(session, quiet if silent else progress)


@main.command()
@_common
@click.argument("directory", required=False, metavar="[VOLUME]")
def history(
    *,
    root: str,
    volumes: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    silent: bool,
    directory: str | None,
) -> None:
    r"""Print the runs that a volume has seen, oldest first.

    \b
    Example:
        ipavolume history /srv/ipa-data
    """
    del verbose, silent
    runs = inspection.read_runs(entry.place_of(root, volumes, directory))
    if as_json:
        for run in runs:
            click.echo(report.dump_json(run))
        return
    for line in report.history_lines(runs):
        click.echo(line)


@main.command()
@_common
@click.option("--diff", is_flag=True, help="Show the differences.")
@click.option("--keep", default=None, metavar="PATH", help="Settle it: yours stays or comes back.")
@click.option("--take-new", default=None, metavar="PATH", help="Settle it: the package's it is.")
@click.option("--lock-timeout", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS")
def conflicts(
    *,
    root: str,
    volumes: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    silent: bool,
    diff: bool,
    keep: str | None,
    take_new: str | None,
    lock_timeout: float,
) -> None:
    r"""List the .rpmnew, .rpmsave, .rpmorig and saved copies that runs left, and settle them.

    \b
    Example:
        ipavolume conflicts --diff
        ipavolume conflicts --take-new /data/etc/krb5.conf
    """
    from ipavolume.commands import conflicts as settle

    del verbose, silent
    if keep and take_new:
        raise UsageError("--keep and --take-new exclude each other")
    options = _options(root=root, volumes=volumes, lock_timeout=lock_timeout)
    with Session(options) as session:
        chosen = keep or take_new
        if chosen:
            session.lock(progress)
            entry.clear_umask()
            conflict = settle.find(session, chosen, shown=report.escape)
            done = settle.settle(session, conflict, take_new=take_new is not None)
            click.echo(report.dump_json({"done": done}) if as_json else report.escape(done))
            return
        for conflict in settle.conflicts(session):
            lines = list(settle.difference(session, conflict)) if diff else []
            if as_json:
                data = {"path": conflict.path, "copy": conflict.copy, "kind": conflict.kind}
                data["run"] = conflict.run
                click.echo(report.dump_json(data | ({"diff": lines} if diff else {})))
                continue
            click.echo(
                f"{conflict.kind:<8} {report.escape(conflict.path)}  {report.escape(conflict.copy)}"
            )
            for line in lines:
                colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
                click.echo(click.style(f"  {report.escape(line)}", fg=colour))


@main.command()
@_common
@click.option("--again", is_flag=True, help="As if everything were run again.")
def steps(
    *,
    root: str,
    volumes: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    silent: bool,
    again: bool,
) -> None:
    r"""List the upgrade steps of the image, whether they would run on the volume, and why.

    \b
    Example:
        ipavolume steps --root /srv/image --volume /srv/ipa-data
    """
    from ipavolume.commands import listing

    del verbose, silent
    options = replace(_options(root=root, volumes=volumes), again=again)
    for step in listing.list_steps(options):
        if as_json:
            click.echo(report.dump_json(report.step_data(step)))
            continue
        word = {True: "runs", False: "not", None: "may"}[step.runs]
        colour = {"runs": "green", "not": None, "may": "yellow"}[word]
        for number, line in enumerate(report.step_lines(step)):
            head = f"{word:<5}" if number == 0 else " " * 5
            click.echo(f"{click.style(head, fg=colour)}{line}")


@main.command("scriptlets")
@_common
def list_scriptlets(
    *, root: str, volumes: tuple[str, ...], as_json: bool, verbose: bool, silent: bool
) -> None:
    r"""List every scriptlet of the image's packages: run at an upgrade or not, and why.

    \b
    Example:
        ipavolume scriptlets --root /srv/image --volume /srv/ipa-data
    """
    from ipavolume.commands import listing

    del verbose, silent
    for found in listing.list_scriptlets(_options(root=root, volumes=volumes)):
        if as_json:
            click.echo(report.dump_json(report.scriptlet_data(found)))
            continue
        word = "runs" if found.runs else "not"
        head = click.style(f"{word:<5}", fg="green" if found.runs else None)
        click.echo(head + report.scriptlet_line(found))


def run() -> int:
    """Run the command line; return its exit status."""
    return int(main(prog_name="ipavolume", standalone_mode=True) or 0)
