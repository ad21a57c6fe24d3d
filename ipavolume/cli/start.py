"""``ipavolume start``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ipavolume.cli import options, output
from ipavolume.cli.group import HelpedCommand
from ipavolume.cli.options import misspelt
from ipavolume.context import Options
from ipavolume.volume.failures import STATE_UNTOUCHED

if TYPE_CHECKING:
    from ipavolume.commands.work import Work


class _InRehearsal(HelpedCommand):
    """In a rehearsal its environment is read first, of which its options may come."""

    # It ends a container, whose log has to say that.
    state = STATE_UNTOUCHED

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: object,
    ) -> click.Context:
        """Take over the environment that a rehearsal's container was given."""
        if os.environ.get("IPAVOLUME_REHEARSAL"):
            from ipavolume.commands import rehearsing

            rehearsing.take_environment()
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_InRehearsal, context_settings={"ignore_unknown_options": False})
@options.deciding
@options.as_json
@options.quiet
@options.on_failure
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def start(
    *, options: Options, as_json: bool, silent: bool, on_failure: str, arguments: tuple[str, ...]
) -> None:
    r"""Bring the volume to this image, then execute the container's command.

    \b
    Example, in a Dockerfile:
        ENTRYPOINT ["ipavolume", "start", "--"]
        CMD ["/usr/sbin/named", "-f"]
    """
    from ipavolume.commands import start as commands_start

    shown = output.shown(as_json=as_json, silent=silent, one_stream=True)
    for line in misspelt():
        shown.say(line)
    if options.rehearsal:
        from ipavolume.commands import rehearsing

        rehearsing.start_rehearsal(options, arguments, shown, output.rehearsed)
        return

    def stay(work: Work, beginning: commands_start.Beginning) -> None:
        config = work.context.image.config
        if config.start_supervise or config.verify is not None:
            from ipavolume.commands import verifying

            verifying.stay(work, beginning, shown)

    commands_start.start(options, arguments, shown, hold=on_failure == "hold", stay=stay)
