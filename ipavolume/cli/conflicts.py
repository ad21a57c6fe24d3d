"""``ipavolume conflicts``."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

import click

from ipavolume.cli import document, options, output, streams, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Context, Options, parse_volume_option, volumes_by_mount
from ipavolume.errors import UsageError


@click.command(cls=HelpedCommand)
@options.located_options
@options.volume_name
@options.as_json
@click.option("--diff", is_flag=True, help="Show the differences.")
@click.option("--keep", default=None, metavar="PATH", help="Settle it: yours stays or comes back.")
@click.option("--take-new", default=None, metavar="PATH", help="Settle it: the package's it is.")
@options.lock_timeout
@options.allowing
@click.argument("directory", required=False, metavar="[VOLUME]")
def conflicts(
    *,
    options: Options,
    as_json: bool,
    diff: bool,
    keep: str | None,
    take_new: str | None,
    lock_timeout: float,
    names: tuple[str, ...],
    engine: str | None,
    directory: str | None,
) -> None:
    r"""List the .rpmnew, .rpmsave, .rpmorig and saved copies that runs left, and settle them.

    With VOLUME, a directory, or --volume-name those of that primary volume are listed, and no image
    is needed.

    \b
    Examples:
        ipavolume conflicts --diff
        ipavolume conflicts --take-new /data/etc/krb5.conf
        ipavolume conflicts /srv/ipa-data
        ipavolume conflicts --volume-name ipa-data
    """
    from ipavolume.commands import named

    if keep and take_new:
        raise UsageError("--keep and --take-new exclude each other")
    chosen = keep or take_new
    one = named.only_one(directory, (), names)
    if "" in one.mounts and (chosen or options.volumes):
        raise UsageError(
            "with VOLUME the copies are listed, and nothing else",
            hint="In a container of the image: ipavolume conflicts --keep PATH",
        )
    with named.resolved(engine or "", one, command="conflicts") as (volumes, place):
        given = (*options.volumes.items(), *map(parse_volume_option, volumes))
        options = replace(options, volumes=volumes_by_mount(given))
        if chosen:
            _settle(options, chosen, take_new=not keep, timeout_s=lock_timeout, as_json=as_json)
        else:
            _list(options, place, diff=diff, as_json=as_json)


def _settle(
    options: Options, chosen: str, *, take_new: bool, timeout_s: float, as_json: bool
) -> None:
    from ipavolume.commands import conflicts as settle

    streams.only_tell()
    done = settle.settle_one(
        options,
        chosen,
        take_new=take_new,
        timeout_s=timeout_s,
        progress=output.progress,
        shown=text.escape,
    )
    if as_json:
        document.current().set_result({"done": done})
    else:
        click.echo(text.escape(done))


def _list(options: Options, directory: str | None, *, diff: bool, as_json: bool) -> None:
    from ipavolume.cli.data import conflict_data
    from ipavolume.commands import conflicts as settle
    from ipavolume.commands import places

    if directory is not None and os.path.isfile(directory):
        raise UsageError(
            f"VOLUME is a directory, and {directory!r} is a file; all copies are listed, with "
            "--diff all that is different in them",
            hint="To settle one: ipavolume conflicts --keep PATH, or --take-new PATH",
        )
    listed = []
    with contextlib.ExitStack() as stack:
        if directory is None:
            volumes = stack.enter_context(Context(options)).volumes
        else:
            volumes = stack.enter_context(places.alone(directory))
        found = settle.conflicts(volumes)
        if not found and directory is not None:
            places.refuse_further(directory)
        for conflict in found:
            lines = list(settle.difference(volumes, conflict)) if diff else []
            if as_json:
                data = conflict_data(conflict)
                listed.append(data | ({"diff": lines} if diff else {}))
                continue
            click.echo(
                f"{conflict.kind:<8} {text.escape(conflict.path)}  {text.escape(conflict.copy)}"
            )
            output.print_difference(lines, indented="  ")
    if as_json:
        document.current().set_result({"conflicts": listed})
