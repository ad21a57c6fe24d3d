"""``ipavolume start``."""

from __future__ import annotations

import click

from ipavolume.cli import options, output
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Options


@click.command(cls=HelpedCommand, context_settings={"ignore_unknown_options": False})
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
    commands_start.start(options, arguments, shown, hold=on_failure == "hold")
