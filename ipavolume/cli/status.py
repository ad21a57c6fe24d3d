"""``ipavolume status``."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from ipavolume.cli import options, output, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.commands import places
from ipavolume.commands.check import worst
from ipavolume.commands.status import read_card
from ipavolume.context import Context, Options
from ipavolume.errors import IpaVolumeError, UsageError


@click.command(cls=HelpedCommand)
@options.located
@options.as_json
@options.quiet
@click.option(
    "--probe",
    type=click.Choice(("startup", "ready")),
    default=None,
    help="Only answer by the exit status: 0 yes, 75 not yet, 13 it failed.",
)
@click.argument("directories", nargs=-1, metavar="[VOLUME]...")
def status(
    *,
    root: str,
    volumes: tuple[str, ...],
    as_json: bool,
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
    """
    if probe is not None:
        if len(directories) > 1:
            raise UsageError("a probe is about the volumes of one container")
        where = options.places(directories or volumes)
        _probe(Options(root=root, volumes=where), probe, silent=silent)
    statuses = []
    for number, one in enumerate(directories or (None,)):
        try:
            card = read_card(places.place_of(root, volumes, one))
        except IpaVolumeError as err:
            if len(directories) < 2:
                raise
            # One that cannot be read does not stop the others.
            output.show_error(err)
            statuses.append(err.exit_status)
            continue
        lines = [text.dump_json(text.card_data(card))] if as_json else text.card_lines(card)
        for line in ["", *lines] if number and not as_json else lines:
            click.echo(line)
    sys.exit(worst(statuses))


def _probe(asked: Options, name: str, *, silent: bool) -> NoReturn:
    from ipavolume.commands import probe

    with Context(asked) as context:
        answer = probe.ask(context, probe.Probe(name))
    if not silent:
        click.echo(text.escape(answer.text))
    sys.exit(answer.exit_status)
