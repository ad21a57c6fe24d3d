"""The group of commands: errors are caught once, here, and examples are shown as written."""

from __future__ import annotations

import contextlib
import signal

import click

from ipavolume.cli import document
from ipavolume.cli.output import fail
from ipavolume.errors import IpaVolumeError, UsageError, told_as, unforeseen
from ipavolume.linux import signals


class HelpedCommand(click.Command):
    r"""Shows examples as they are written: what follows a ``\b`` in a raw docstring.

    Attributes:
        state: What is said of the volume where the command line, or a variable, makes no sense.
    """

    state = ""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help text; click wants the character itself as the mark."""
        self.help = (self.help or "").replace("\\b\n", "\b\n")
        super().format_help_text(ctx, formatter)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; none needs a ``try`` of its own."""
        said = document.begin(ctx)
        try:
            with said.printed(), told_as(unforeseen), signals.ended_by(*_ending(said)):
                return super().invoke(ctx)
        except IpaVolumeError as err:
            if isinstance(err, UsageError):
                err.state = err.state or self.state
            # While the command's own options are known: the hint depends on them.
            said.add_error(err)
            with contextlib.suppress(IpaVolumeError):
                said.print()
            fail(err)


def _ending(said: document.Document) -> tuple[signal.Signals, ...]:
    """Return the signals by which a command does not just end: there is a document to print."""
    return (signal.SIGTERM,) if said.is_wanted else ()


class ErrorReportingGroup(HelpedCommand, click.Group):
    """Reports a deliberate error as lines on standard error and by its exit status.

    So does what a command is made from before it is run: its options.
    """

    command_class = HelpedCommand
