"""``ipavolume steps``."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ipavolume.cli import document, options, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Options
from ipavolume.errors import ConfigurationError
from ipavolume.model.progress import count_text
from ipavolume.steps.api import describe

if TYPE_CHECKING:
    from ipavolume.commands.listing import ListedStep


@click.command(cls=HelpedCommand)
@options.located_options
@options.as_json
@options.verbose
@click.option("--again", is_flag=True, help="As if everything were run again.")
@click.option(
    "--try",
    "volume",
    metavar="VOLUME",
    help="Ask every step what it would do on this volume as it is now; nothing is changed. Only in "
    "a container of the image.",
)
def steps(
    *, options: Options, as_json: bool, verbose: bool, again: bool, volume: str | None
) -> None:
    r"""List the upgrade steps of the image, whether they would run on the volume, and why.

    \b
    Example:
        ipavolume steps --root /srv/image --volume /srv/ipa-data
        docker run --rm -v ipa-data:/data IMAGE ipavolume steps --try /data
    """
    options = replace(options, again=again)
    if volume is not None:
        _try(options, volume, as_json=as_json, verbose=verbose)
        return
    from ipavolume.commands import listing

    left_out = 0
    listed = listing.list_steps(options)
    if as_json:
        from ipavolume.cli.data import step_data

        data = [step_data(step) for step in listed]
        document.current().set_result({"steps": data})
        return
    for step in listed:
        if step.strange and not verbose:
            left_out += 1
        else:
            _show(step)
    _tell_left_out(left_out)


def _tell_left_out(count: int) -> None:
    if count:
        others = count_text(count, "step is", "steps are")
        click.echo(f"{others} for packages that the image does not have (shown with -v)")


def _show(step: ListedStep) -> None:
    word = {True: "runs", False: "not", None: "may"}[step.runs]
    colour = {"runs": "green", "not": None, "may": "yellow"}[word]
    for number, line in enumerate(text.step_lines(step)):
        head = f"{word:<5}" if number == 0 else " " * 5
        click.echo(f"{click.style(head, fg=colour)}{line}")


def _try(options: Options, volume: str, *, as_json: bool, verbose: bool) -> None:
    from ipavolume.cli.data import tried_data
    from ipavolume.commands import trial

    faulty = False
    left_out = 0
    data = []
    for tried in trial.try_steps(options, volume):
        faulty = faulty or bool(tried.fault)
        if as_json:
            data.append(tried_data(tried))
            continue
        if tried.listed.strange and not (tried.actions or tried.fault or verbose):
            left_out += 1
            continue
        _show(tried.listed)
        for action in tried.actions:
            click.echo(f"       {text.escape(describe(action))}")
        if tried.fault:
            click.echo(f"       {click.style('error:', fg='red')} {text.escape(tried.fault)}")
        elif not tried.actions:
            click.echo("       nothing to do")
    if as_json:
        document.current().set_result({"steps": data})
    _tell_left_out(left_out)
    if faulty:
        sys.exit(ConfigurationError.exit_status)
