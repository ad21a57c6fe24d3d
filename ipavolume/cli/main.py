"""The command line: commands parse, call one function, print."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

import click
from click.core import ParameterSource

from ipavolume import fastpath
from ipavolume.cli import document, output, streams
from ipavolume.cli.audit import audit
from ipavolume.cli.check import check
from ipavolume.cli.completion import completion
from ipavolume.cli.conflicts import conflicts
from ipavolume.cli.examples import examples
from ipavolume.cli.group import ErrorReportingGroup
from ipavolume.cli.history import history
from ipavolume.cli.listing import listing
from ipavolume.cli.lock import lock
from ipavolume.cli.manual import manual
from ipavolume.cli.online import online
from ipavolume.cli.prepare import prepare
from ipavolume.cli.rehearse import rehearse
from ipavolume.cli.rollback import rollback
from ipavolume.cli.running import running
from ipavolume.cli.scriptlets import scriptlets
from ipavolume.cli.snapshot import snapshot
from ipavolume.cli.start import start
from ipavolume.cli.status import status
from ipavolume.cli.steps import steps
from ipavolume.cli.upgrade import upgrade
from ipavolume.errors import EXIT_BUG, IpaVolumeError

_NO_LIMIT: Final = 1 << 16
"""Help is as wide as the terminal, which click would take 80 columns of."""


def _version(called: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001
    if wanted and not called.resilient_parsing:
        from ipavolume.commands import version

        for line in version.lines():
            click.echo(line)
        called.exit()


@click.group(
    cls=ErrorReportingGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _NO_LIMIT},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Say versions, of formats and engines too, and exit.",
)
@click.option(
    "--log-format",
    type=click.Choice(("text", "json")),
    envvar=fastpath.LOG_FORMAT,
    show_envvar=True,
    default="text",
    show_default=True,
    help="How progress and errors are written: lines for people, or an object a line.",
)
@click.pass_context
def main(called: click.Context, *, log_format: str) -> None:
    r"""Keep the state of a containerised application in one volume, across image upgrades.

    \b
    ipavolume prepare                    when the image is built
    ipavolume audit CONTAINER            when it has run: what its path list lacks
    ipavolume check --image REF VOLUME   on the host, before a container starts
    ipavolume start -- CMD...            when it starts
    """
    if called.get_parameter_source("log_format") is ParameterSource.COMMANDLINE:
        # So that it reaches the online phase, too, which is another process.
        os.environ[fastpath.LOG_FORMAT] = log_format
    if os.environ.get("NO_COLOR") or log_format == "json":
        called.color = False


for _command in (
    *(audit, check, completion, conflicts, examples, history, listing, lock, manual),
    *(online, prepare, rehearse, rollback, running, scriptlets, snapshot, start),
    *(status, steps, upgrade),
):
    main.add_command(_command)


def run() -> int:
    """Run the command line; return its exit status."""
    streams.install()
    try:
        return int(main(prog_name="ipavolume", standalone_mode=False) or 0)
    except click.ClickException as err:
        # Of a command line that cannot be understood; that has no command to report it.
        with contextlib.suppress(IpaVolumeError):
            document.of_misuse(err, sys.argv[1:]).print()
        output.show_misuse(err)
        return err.exit_code
    except click.Abort:
        click.echo("Aborted!", err=True)
        return EXIT_BUG
    except IpaVolumeError as err:
        # The help of the program, before any command is known, cannot be written.
        output.fail(err)
