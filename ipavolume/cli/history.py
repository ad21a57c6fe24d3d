"""``ipavolume history``."""

from __future__ import annotations

import click

from ipavolume.cli import options, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.commands import places
from ipavolume.commands.status import read_runs


@click.command(cls=HelpedCommand)
@options.located
@options.as_json
@click.argument("directory", required=False, metavar="[VOLUME]")
def history(*, root: str, volumes: tuple[str, ...], as_json: bool, directory: str | None) -> None:
    r"""Print the runs that a volume has seen, oldest first.

    \b
    Example:
        ipavolume history /srv/ipa-data
    """
    runs = read_runs(places.place_of(root, volumes, directory))
    lines = map(text.dump_json, runs) if as_json else text.history_lines(runs)
    for line in lines:
        click.echo(line)
