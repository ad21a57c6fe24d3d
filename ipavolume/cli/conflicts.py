"""``ipavolume conflicts``."""

from __future__ import annotations

import click

from ipavolume.cli import options, output, streams, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Context, Options
from ipavolume.errors import UsageError


@click.command(cls=HelpedCommand)
@options.located_options
@options.as_json
@click.option("--diff", is_flag=True, help="Show the differences.")
@click.option("--keep", default=None, metavar="PATH", help="Settle it: yours stays or comes back.")
@click.option("--take-new", default=None, metavar="PATH", help="Settle it: the package's it is.")
@options.lock_timeout
@options.allowing
def conflicts(
    *,
    options: Options,
    as_json: bool,
    diff: bool,
    keep: str | None,
    take_new: str | None,
    lock_timeout: float,
) -> None:
    r"""List the .rpmnew, .rpmsave, .rpmorig and saved copies that runs left, and settle them.

    \b
    Example:
        ipavolume conflicts --diff
        ipavolume conflicts --take-new /data/etc/krb5.conf
    """
    from ipavolume.commands import conflicts as settle

    if keep and take_new:
        raise UsageError("--keep and --take-new exclude each other")
    chosen = keep or take_new
    if chosen:
        streams.only_tell()
        done = settle.settle_one(
            options,
            chosen,
            take_new=take_new is not None,
            timeout_s=lock_timeout,
            progress=output.progress,
            shown=text.escape,
        )
        click.echo(text.dump_json({"done": done}) if as_json else text.escape(done))
        return
    with Context(options) as context:
        for conflict in settle.conflicts(context.volumes):
            lines = list(settle.difference(context.volumes, conflict)) if diff else []
            if as_json:
                data = text.conflict_data(conflict)
                click.echo(text.dump_json(data | ({"diff": lines} if diff else {})))
                continue
            click.echo(
                f"{conflict.kind:<8} {text.escape(conflict.path)}  {text.escape(conflict.copy)}"
            )
            for line in lines:
                colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
                click.echo(click.style(f"  {text.escape(line)}", fg=colour))
