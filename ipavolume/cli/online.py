"""``ipavolume online``, which ipavolume-online.service runs."""

from __future__ import annotations

import os

import click

from ipavolume.cli import options, output
from ipavolume.cli.group import HelpedCommand


@click.command(cls=HelpedCommand, hidden=True)
def online() -> None:
    """Do what is left to the online phase; ipavolume-online.service runs this."""
    from ipavolume.commands import start
    from ipavolume.systemd import console

    # Before the variables are read: the container's environment does not reach a service.
    beginning = start.taken_over()
    console.show_by_engine(beginning.keeper)
    start.online(
        options.decided(allow=(os.environ.get("IPAVOLUME_ALLOW", ""),)),
        beginning,
        output.shown(as_json=False, silent=False),
        hold=os.environ.get("IPAVOLUME_ON_FAILURE") == "hold",
    )
