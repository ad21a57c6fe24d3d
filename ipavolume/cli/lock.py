"""``ipavolume lock``, which ipavolume-lock.service runs."""

from __future__ import annotations

import click

from ipavolume.cli import output
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Context, Options


@click.command(cls=HelpedCommand, hidden=True)
def lock() -> None:
    """Hold the volumes for this container; ipavolume-lock.service runs this."""
    from ipavolume.systemd import lockservice

    with Context(Options()) as context:
        lockservice.keep_lock(context.volumes.values(), output.progress)
