"""``ipavolume online``, which ipavolume-online.service runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ipavolume.cli import options, output
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Options

if TYPE_CHECKING:
    from ipavolume.commands.start import Beginning


class _AfterTakingOver(HelpedCommand):
    """Its options are read from the container's environment, which does not reach a service."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **_: object,
    ) -> click.Context:
        """Take over what the start left, its environment before all."""
        from ipavolume.commands import start

        return super().make_context(info_name, args, parent, obj=start.taken_over())


@click.command(cls=_AfterTakingOver, hidden=True)
@options.deciding_without_places
@options.on_failure
@click.pass_obj
def online(beginning: Beginning, *, options: Options, on_failure: str) -> None:
    """Do what is left to the online phase; ipavolume-online.service runs this."""
    from ipavolume.commands import start
    from ipavolume.systemd import console

    console.show_by_engine(beginning.keeper)
    shown = output.shown(as_json=False, silent=False, one_stream=True)
    if options.rehearsal:
        from ipavolume.commands import rehearsing

        rehearsing.go_online(options, beginning, shown, output.rehearsed)
        return
    start.online(options, beginning, shown, hold=on_failure == "hold")
