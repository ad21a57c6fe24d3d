"""``ipavolume steps``."""

from __future__ import annotations

from dataclasses import replace

import click

from ipavolume.cli import options, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Options


@click.command(cls=HelpedCommand)
@options.located_options
@options.as_json
@click.option("--again", is_flag=True, help="As if everything were run again.")
def steps(*, options: Options, as_json: bool, again: bool) -> None:
    r"""List the upgrade steps of the image, whether they would run on the volume, and why.

    \b
    Example:
        ipavolume steps --root /srv/image --volume /srv/ipa-data
    """
    from ipavolume.commands import listing

    for step in listing.list_steps(replace(options, again=again)):
        if as_json:
            click.echo(text.dump_json(text.step_data(step)))
            continue
        word = {True: "runs", False: "not", None: "may"}[step.runs]
        colour = {"runs": "green", "not": None, "may": "yellow"}[word]
        for number, line in enumerate(text.step_lines(step)):
            head = f"{word:<5}" if number == 0 else " " * 5
            click.echo(f"{click.style(head, fg=colour)}{line}")
