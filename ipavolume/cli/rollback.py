"""``ipavolume rollback``."""

from __future__ import annotations

from dataclasses import replace

import click

from ipavolume.cli import advice, document, options, output, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Options
from ipavolume.model.images import named


@click.command(cls=HelpedCommand)
@options.located_options
@options.as_json
@options.quiet
@click.option("--dry-run", is_flag=True, help="Print what it would do, change nothing.")
@options.lock_timeout
@options.allowing
@click.argument("run", required=False, metavar="[RUN]")
def rollback(
    *,
    options: Options,
    as_json: bool,
    silent: bool,
    dry_run: bool,
    lock_timeout: float,
    run: str | None,
) -> None:
    r"""Bring the volumes back to what they were before an upgrade.

    Before the last one, or before RUN. What is there now is kept in .ipavolume/undone.

    \b
    Example:
        ipavolume rollback --dry-run
        docker run --rm -v ipa-data:/data IMAGE ipavolume rollback
    """
    from ipavolume.commands import rollback as going
    from ipavolume.steps import api

    if dry_run:
        plan, warnings = going.look(options, run or "", output.progress)
        if as_json:
            from ipavolume.cli.data import plan_data

            told = [advice.fit_here(api.told(warning)) for warning in warnings]
            document.current().set_result({**plan_data(plan), "warnings": told})
            return
        for line in text.rollback_lines(plan):
            click.echo(line)
        for warning in warnings:
            click.echo(f"warning: {text.escape(advice.fit_here(api.told(warning)))}")
        return
    shown = output.shown(as_json=as_json, silent=silent)
    options = replace(options, lock_timeout_s=lock_timeout)
    outcome, mount = going.roll_back(options, run or "", shown)
    if not (as_json or silent):
        was = named(outcome.recorded, outcome.names) or "an image that had recorded no id"
        click.echo(f"the volume at {mount} is what {text.escape(was)} left")
