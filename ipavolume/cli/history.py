"""``ipavolume history``."""

from __future__ import annotations

import click

from ipavolume.cli import document, options, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.commands import places


@click.command(cls=HelpedCommand)
@options.located
@options.volume_name
@options.as_json
@click.argument("directory", required=False, metavar="[VOLUME]")
def history(
    *,
    root: str,
    volumes: tuple[str, ...],
    names: tuple[str, ...],
    engine: str | None,
    as_json: bool,
    directory: str | None,
) -> None:
    r"""Print the runs that a volume has seen, oldest first.

    \b
    Examples:
        ipavolume history /srv/ipa-data
        ipavolume history --volume-name ipa-data
    """
    from ipavolume.commands import named
    from ipavolume.commands.status import read_runs

    one = named.only_one(directory, volumes, names)
    with named.resolved(engine or "", one, command="history") as given:
        place = places.place_of(root, *given)
        runs = read_runs(place)
        if not runs:
            places.refuse_further(place)
    if as_json:
        document.current().set_result({"runs": runs})
        return
    for line in text.history_lines(runs):
        click.echo(line)
