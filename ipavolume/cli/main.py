"""The command line: commands parse, call one function, print."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Final

import click
from click.core import ParameterSource

from ipavolume import fastpath
from ipavolume.cli import document, output, streams
from ipavolume.cli.group import ErrorReportingGroup
from ipavolume.errors import EXIT_BUG, IpaVolumeError

_NO_LIMIT: Final = 1 << 16
"""Help is as wide as the terminal, which click would take 80 columns of."""


_NAMES: Final = (
    *("audit", "check", "completion", "conflicts", "examples", "history", "list", "lock"),
    *("manual", "online", "prepare", "rehearse", "rollback", "running", "scriptlets"),
    *("snapshot", "start", "status", "steps", "upgrade"),
)


class _Commands(Mapping[str, click.Command]):
    """The commands by their names; each is loaded when it is asked for.

    With all of them would come what all of them need.
    """

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)

    def __getitem__(self, name: str) -> click.Command:
        """Return a command."""
        match name:
            case "audit":
                from ipavolume.cli.audit import audit as found
            case "check":
                from ipavolume.cli.check import check as found
            case "completion":
                from ipavolume.cli.completion import completion as found
            case "conflicts":
                from ipavolume.cli.conflicts import conflicts as found
            case "examples":
                from ipavolume.cli.examples import examples as found
            case "history":
                from ipavolume.cli.history import history as found
            case "list":
                from ipavolume.cli.listing import listing as found
            case "lock":
                from ipavolume.cli.lock import lock as found
            case "manual":
                from ipavolume.cli.manual import manual as found
            case "online":
                from ipavolume.cli.online import online as found
            case "prepare":
                from ipavolume.cli.prepare import prepare as found
            case "rehearse":
                from ipavolume.cli.rehearse import rehearse as found
            case "rollback":
                from ipavolume.cli.rollback import rollback as found
            case "running":
                from ipavolume.cli.running import running as found
            case "scriptlets":
                from ipavolume.cli.scriptlets import scriptlets as found
            case "snapshot":
                from ipavolume.cli.snapshot import snapshot as found
            case "start":
                from ipavolume.cli.start import start as found
            case "status":
                from ipavolume.cli.status import status as found
            case "steps":
                from ipavolume.cli.steps import steps as found
            case "upgrade":
                from ipavolume.cli.upgrade import upgrade as found
            case _:
                raise KeyError(name)
        return found


def _version(called: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001
    if wanted and not called.resilient_parsing:
        from ipavolume.commands import version

        for line in version.lines():
            click.echo(line)
        called.exit()


@click.group(
    cls=ErrorReportingGroup,
    commands=_Commands(),
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


def run() -> int:
    """Run the command line; return its exit status."""
    streams.install()
    try:
        return int(main(prog_name="ipavolume", standalone_mode=False) or 0)
    except click.ClickException as err:
        # Of a command line that cannot be understood; that has no command to report it.
        words = sys.argv[1:]
        meant = next((main.commands[word] for word in words if word in _NAMES), None)
        with contextlib.suppress(IpaVolumeError):
            document.of_misuse(err, words, meant).print()
        output.show_misuse(err, meant)
        return err.exit_code
    except click.Abort:
        click.echo("Aborted!", err=True)
        return EXIT_BUG
    except IpaVolumeError as err:
        # The help of the program, before any command is known, cannot be written.
        output.fail(err)
