"""``ipavolume upgrade``."""

from __future__ import annotations

from dataclasses import replace

import click

from ipavolume.cli import document, options, output
from ipavolume.cli.group import HelpedCommand
from ipavolume.cli.options import misspelt
from ipavolume.context import Options
from ipavolume.errors import UsageError
from ipavolume.model.tasks import RUN_PHASES, Phase, tasks_text


@click.command(cls=HelpedCommand)
@options.deciding
@options.as_json
@options.diff
@options.verbose
@options.quiet
@click.option("--dry-run", is_flag=True, help="Print the plan, change nothing.")
@click.option(
    "--phase",
    type=click.Choice([phase.value for phase in RUN_PHASES]),
    default=None,
    help="Only this phase: files and what runs before init, or what runs under it.",
)
@click.option("--retry", is_flag=True, help="Try again now, and forget how often it failed.")
@click.option("--again", is_flag=True, help="Run every step for the same image again.")
@click.pass_context
def upgrade(
    called: click.Context,
    *,
    options: Options,
    as_json: bool,
    diff: bool,
    verbose: bool,
    silent: bool,
    dry_run: bool,
    phase: str | None,
    retry: bool,
    again: bool,
) -> None:
    r"""Bring the volume to this image, an empty one included, or print the plan.

    \b
    Example:
        ipavolume upgrade --dry-run --root /srv/image --volume /srv/ipa-data
    """
    if diff and not dry_run:
        raise UsageError("--diff is for --dry-run")
    options = replace(options, retry=retry, again=again)
    for line in () if silent else misspelt():
        output.progress(line)
    if dry_run:
        from ipavolume.commands import check

        found = check.inspect(options, output.progress, compares=diff)
        if as_json:
            document.current().set_result(output.inspection_data(found))
        else:
            output.print_inspection(found, full=True, verbose=verbose)
        called.exit(found.exit_status)
    from ipavolume.commands import by_hand

    phases = RUN_PHASES if phase is None else (Phase(phase),)
    shown = output.shown(as_json=as_json, silent=silent)
    outcome, mount = by_hand.upgrade(options, shown, phases=phases)
    if as_json or silent:
        return
    if outcome.waiting:
        click.echo(
            f"the files of {outcome.plans[-1].to_build} are in place at {mount}; "
            f"{tasks_text(outcome.waiting)} left to the online phase"
        )
    else:
        left = "; the first run is left to a start" * outcome.first_run_left
        click.echo(f"the volume at {mount} is current ({outcome.recorded}){left}")
