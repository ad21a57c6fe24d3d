"""``ipavolume running``, which ipavolume-running.service runs."""

from __future__ import annotations

import click

from ipavolume.cli import options, output
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Context, Options


@click.command(cls=HelpedCommand, hidden=True)
def running() -> None:
    """Do what comes once the application is ready; ipavolume-running.service runs this."""
    from ipavolume.commands import running as commands_running
    from ipavolume.firstrun.request import redactor
    from ipavolume.systemd import console, environment

    environment.take_over()
    console.show_by_engine(console.find_keeper())
    shown = output.shown(as_json=False, silent=False, one_stream=True)
    # What decides on an upgrade is no matter of it, as of a start on a current volume.
    with Context(Options(rehearsal=options.is_rehearsal())) as context:
        commands_running.run_when_ready(context, shown, redactor())
