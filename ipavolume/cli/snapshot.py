"""``ipavolume snapshot``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ipavolume.cli import document, options, output, streams, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Options
from ipavolume.errors import UsageError
from ipavolume.model.progress import count_text, size_text

if TYPE_CHECKING:
    from ipavolume.commands.snapshot import Kept
    from ipavolume.model.snapshots import Snapshot


@click.command(cls=HelpedCommand)
@options.located_options
@options.as_json
@click.option("--undone", is_flag=True, help="With drop: what a rollback has put aside.")
@click.option("--all", "everything", is_flag=True, help="With drop: of every run.")
@options.lock_timeout
@options.allowing
@click.argument("action", type=click.Choice(("list", "create", "drop")), default="list")
@click.argument("run", required=False, default="")
def snapshot(
    *,
    options: Options,
    as_json: bool,
    undone: bool,
    everything: bool,
    lock_timeout: float,
    action: str,
    run: str,
) -> None:
    r"""List what there is to go back to, make a snapshot by hand, or remove one.

    \b
    Example:
        ipavolume snapshot
        ipavolume snapshot create
        ipavolume snapshot drop 0003-8c1f2a9b
    """
    from ipavolume.commands import snapshot as commands

    options = replace(options, lock_timeout_s=lock_timeout)
    if action != "drop" and (run or undone or everything):
        raise UsageError(f"ipavolume snapshot {action} has no RUN, --undone or --all")
    if action == "list":
        found = commands.list_kept(options)
        if as_json:
            from ipavolume.cli.data import kept_data

            data = [kept_data(kept) for kept in found]
            document.current().set_result({"runs": data})
            return
        for kept in found:
            _show(kept)
        return
    streams.only_tell()
    if action == "create":
        made = commands.create(options, output.progress)
        if as_json:
            from ipavolume.cli.data import snapshot_data

            document.current().set_result({"snapshot": snapshot_data(made)})
        else:
            click.echo(_line(made, made.build_id or made.from_build))
        return
    if bool(run) == everything:
        raise UsageError("say which one is to be removed: RUN, or --all")
    dropped = commands.drop(options, run, output.progress, undone=undone, everything=everything)
    if as_json:
        document.current().set_result({"dropped": dropped})
        return
    for one in dropped:
        click.echo(f"{text.escape(one)} is removed")


def _show(kept: Kept) -> None:
    if kept.snapshot is not None:
        click.echo(_line(kept.snapshot, kept.image))
        for path, why in kept.snapshot.lacks:
            click.echo(f"  not in it: {text.escape(path)} ({text.escape(why)})")
    elif kept.fault:
        label = click.style("damaged", fg="red")
        click.echo(f"{text.escape(kept.run)}  {label}: {text.escape(kept.fault)}")
    if kept.undone:
        click.echo(f"{text.escape(kept.run)}  undone: what a rollback has put aside")


def _line(one: Snapshot, image: str) -> str:
    what = "by hand" if one.by_hand else "before the run"
    size = f"{one.method}, {count_text(one.files, 'file')}, {size_text(one.bytes)}"
    of = text.escape(image) or "no recorded id"
    return f"{text.escape(one.run)}  {one.made}  {what}, of {of}: {size}"
