"""``ipavolume status``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import click

from ipavolume.cli import document, options, output, text
from ipavolume.cli.advice import About
from ipavolume.cli.group import HelpedCommand
from ipavolume.commands import places
from ipavolume.context import Context, Options
from ipavolume.errors import IpaVolumeError, ManifestError, UsageError, VolumeIOError

if TYPE_CHECKING:
    from ipavolume.commands.named import Wanted


@click.command(cls=HelpedCommand)
@options.located
@options.volume_name
@options.form("metrics: for Prometheus, as ipavolume list has them.")
@options.quiet
@click.option(
    "--probe",
    type=click.Choice(("startup", "ready")),
    default=None,
    help="Only answer, by a line (not with -q) and the exit status: 0 yes, 75 not yet, 13 it "
    "failed.",
)
@click.argument("directories", nargs=-1, metavar="[VOLUME]...")
def status(
    *,
    root: str,
    volumes: tuple[str, ...],
    names: tuple[str, ...],
    engine: str | None,
    form: str,
    silent: bool,
    directories: tuple[str, ...],
    probe: str | None,
) -> None:
    r"""Print the identity card of a volume and its last run, as recorded.

    One that cannot be read does not stop the others; the worst status counts.

    \b
    Examples:
        ipavolume status /srv/ipa-data
        ipavolume status --json /srv/*-data
        ipavolume status --volume-name ipa-data
        ipavolume status --format metrics
    """
    if probe is not None:
        if len(directories) > 1:
            raise UsageError("a probe is about the volumes of one container")
        if form == "metrics":
            raise UsageError("--probe and --format metrics exclude each other")
        if names:
            raise UsageError("--probe and --volume-name exclude each other")
        if directories and volumes:
            raise UsageError("give the volume either as an argument or with --volume")
        where = {"": directories[0]} if directories else options.places(volumes)
        _probe(Options(root=root, volumes=where), probe, form=form, silent=silent)
    # A probe is asked often, and needs nothing of this.
    from ipavolume.commands import named
    from ipavolume.commands.status import read_card

    asked = named.wanted(directories, volumes, names)
    chosen = engine or ""
    if form == "metrics":
        _print_metrics(root, chosen, asked)
    statuses = []
    said = document.current()
    for number, one in enumerate(asked):
        try:
            with named.resolved(chosen, one, command="status") as given:
                card = read_card(places.place_of(root, *given))
        except IpaVolumeError as err:
            if len(asked) < 2:
                raise
            # One that cannot be read does not stop the others.
            said.add_error(err, volume=one.called)
            about = About(directories=one.directories, names=one.names)
            output.show_error(err, about=about)
            statuses.append(err.exit_status)
            continue
        card = replace(card, volume=one.called or card.volume)
        if form == "json":
            from ipavolume.cli.data import card_data

            said.add_volume(card_data(card))
            continue
        lines = text.card_lines(card)
        for line in ["", *lines] if number else lines:
            click.echo(line)
    if statuses:
        from ipavolume.commands.check import worst

        sys.exit(worst(statuses))


def _print_metrics(root: str, engine: str, asked: Sequence[Wanted]) -> NoReturn:
    from ipavolume.cli import fleet as shown
    from ipavolume.commands import fleet, named

    with contextlib.ExitStack() as stack:
        found, lost = [], []
        for one in asked:
            try:
                given = stack.enter_context(named.resolved(engine, one, command="status"))
            except VolumeIOError as err:
                # As of a directory that cannot be looked at.
                place = fleet.Place(name=one.called or one.names[0], directory="")
                lost.append(fleet.Row(place=place, code=err.code, reason=str(err)))
                output.show_error(err, about=About(names=one.names))
                continue
            directory = places.place_of(root, *given)
            found.append(fleet.Place(name=one.called or directory, directory=directory))
        looking = stack.enter_context(fleet.Fleet(count_bytes=False, all_=True))
        rows = [*looking.rows(found), *lost]
    for line in shown.metrics(rows):
        click.echo(line)
    sys.exit(fleet.status_of(rows))


def _probe(asked: Options, name: str, *, form: str, silent: bool) -> NoReturn:
    from ipavolume.commands import probe

    with _opened(asked, name) as context:
        answer = probe.ask(context, probe.Probe(name))
        volume = context.volumes.primary.directory
    if form == "json":
        from ipavolume.cli.data import answer_data

        document.current().add_volume(answer_data(answer, volume, name))
    elif not silent:
        click.echo(text.escape(answer.text))
    sys.exit(answer.exit_status)


def _opened(asked: Options, name: str) -> Context:
    """Open what is asked; on a host, where there is no image, say where a probe can ask."""
    try:
        return Context(asked)
    except ManifestError as err:
        if asked.root == "/":
            err.hint = (
                f"A container is asked in it: docker exec CONTAINER ipavolume status --probe {name}"
                ". On a host: what a volume says of itself is told by ipavolume status VOLUME, and "
                "--root gives the tree of its image. Where this is a container, run ipavolume "
                "prepare when its image is built."
            )
        raise
