"""``ipavolume status``."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from ipavolume.cli import options, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.commands import places
from ipavolume.commands.status import read_card
from ipavolume.context import Context, Options


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
@click.argument("directory", required=False, metavar="[VOLUME]")
def status(
    *,
    root: str,
    volumes: tuple[str, ...],
    as_json: bool,
    silent: bool,
    directory: str | None,
    probe: str | None,
) -> None:
    r"""Print the identity card of a volume and its last run, as recorded.

    \b
    Example:
        ipavolume status /srv/ipa-data
    """
    if probe is not None:
        where = options.places((directory,) if directory else volumes)
        _probe(Options(root=root, volumes=where), probe, silent=silent)
    card = read_card(places.place_of(root, volumes, directory))
    if as_json:
        click.echo(text.dump_json(text.card_data(card)))
        return
    for line in text.card_lines(card):
        click.echo(line)


def _probe(asked: Options, name: str, *, silent: bool) -> NoReturn:
    from ipavolume.commands import probe

    with Context(asked) as context:
        answer = probe.ask(context, probe.Probe(name))
    if not silent:
        click.echo(text.escape(answer.text))
    sys.exit(answer.exit_status)
