"""``ipavolume rehearse``."""

from __future__ import annotations

import re
import sys
from typing import Final

import click

from ipavolume.cli import document, options, output, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Options
from ipavolume.errors import UsageError

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}


@click.command(cls=HelpedCommand)
@click.option("--image", "reference", required=True, metavar="REF", help="The new image.")
@click.option(
    "--volume",
    "volumes",
    multiple=True,
    metavar="[MOUNT=]DIR",
    help="Where a volume is; of one that its container uses as well that is known.",
)
@options.volume_name
@click.option("--directory", default="", metavar="DIR", help="Make the copies there.")
@click.option("--live", is_flag=True, help="Copy while the volume is in use, without a pause.")
@click.option("--keep", is_flag=True, help="Keep the upgraded copies, and say where they are.")
@click.option(
    "--timeout",
    default="1h",
    show_default=True,
    metavar="TIME",
    help="It has to be ready in that time: 90s, 30m, 2h.",
)
@click.option(
    "--run-option",
    "run_options",
    multiple=True,
    metavar="OPTION",
    help="A further option for its container, as the engine's run has it: "
    "--run-option=--cap-add=SYS_ADMIN. What it says can be seen by who may ask the engine.",
)
@options.judging
@options.as_json
@options.verbose
@click.argument("directory_of_volume", required=False, metavar="[VOLUME]")
def rehearse(
    *,
    options: Options,
    reference: str,
    engine: str | None,
    volumes: tuple[str, ...],
    names: tuple[str, ...],
    directory: str,
    live: bool,
    keep: bool,
    timeout: str,
    run_options: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    directory_of_volume: str | None,
) -> None:
    r"""Upgrade a copy of VOLUME for real, in a container that is cut off from everything.

    The copy is made beside the volume, by reflinks where there are any. The container has name,
    rights, limits and environment of the one that uses the volume, no network that leads anywhere,
    no ports and no devices. It is followed until the application is ready and what upgrade steps
    verify is right; then container, network and copy are removed. The volume is only read.

    A container that runs on the volume is paused for the copy, 10 seconds at most; a start waits.

    Exits with 0 when it went fine, with 13 when it failed, with 75 when that is undecided, because
    what failed wanted the network.

    \b
    Examples:
        ipavolume rehearse --image example/ipa:4.13 /srv/ipa-data
        ipavolume rehearse --image example/ipa:4.13 --volume-name ipa-data --json
    """
    from ipavolume.commands import rehearse as commands_rehearse
    from ipavolume.commands.named import Wanted

    given = (directory_of_volume,) if directory_of_volume is not None else ()
    if not (given or volumes or names):
        raise UsageError("say which volume is to be rehearsed with: VOLUME, or --volume-name NAME")
    report = commands_rehearse.rehearse(
        commands_rehearse.Wish(
            image=reference,
            engine=engine or "",
            volumes=Wanted(directories=given, volumes=volumes, names=names),
            directory=directory,
            live=live,
            keep=keep,
            limit_s=_seconds(timeout),
            run_options=run_options,
            options=options,
        ),
        output.progress,
    )
    if as_json:
        from ipavolume.cli.data import report_data

        document.current().set_result(report_data(report))
    else:
        for line in text.report_lines(report, verbose=verbose):
            click.echo(line)
    sys.exit(report.rehearsed.ending.exit_status)


def _seconds(value: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,6})([smh]?)", value)
    if match is None:
        raise UsageError(f"--timeout {value!r}: write it as 90s, 30m or 2h")
    return int(match[1]) * _UNITS[match[2]]
