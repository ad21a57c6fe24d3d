"""``ipavolume list``."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from ipavolume.cli import document, options
from ipavolume.cli import fleet as shown
from ipavolume.cli.group import HelpedCommand
from ipavolume.errors import UsageError


@click.command(name="list", cls=HelpedCommand)
@options.engine
@click.option(
    "--image",
    "reference",
    default="",
    metavar="REF",
    help="Judge every volume by this image; otherwise by the one of a container that uses it, "
    "of a quadlet that names it, or the one that its label ipavolume.image names.",
)
@click.option("--all", "all_", is_flag=True, help="Also volumes that nothing says to be ours.")
@click.option("--bytes", "count_bytes", is_flag=True, help="Count what each takes on the disk.")
@options.form("metrics: for Prometheus; no image is read for them, so that they tell no state.")
@click.option("--output", default="", metavar="FILE", help="Write to FILE, by a rename.")
@click.argument("directories", nargs=-1, metavar="[VOLUME]...")
def listing(
    *,
    engine: str | None,
    reference: str,
    all_: bool,
    count_bytes: bool,
    form: str,
    output: str,
    directories: tuple[str, ...],
) -> None:
    r"""List volumes: of docker and podman, or the directories that are given.

    Of each its application, its state, the recorded image, the last run, whether that was verified,
    the copies that wait (ipavolume conflicts) and its snapshots. Changes nothing. Exits with 0
    where all could be looked at, with 74 where one could not, and with 13 where an engine does not
    answer.

    \b
    Examples:
        ipavolume list
        ipavolume list --image example/ipa:4.12 /srv/ipa-*
        ipavolume list --format metrics --output /var/lib/node_exporter/ipavolume.prom
    """
    from dataclasses import replace

    from ipavolume.commands import fleet

    if reference and form == "metrics":
        raise UsageError("--format metrics reads no image; leave --image out")
    places = fleet.places(engine or "", directories, image=reference)
    if form == "metrics":
        places = [replace(place, image="") for place in places]
    with fleet.Fleet(count_bytes=count_bytes, all_=all_) as looking:
        rows = looking.rows(places)
    said = document.current()
    for row in rows:
        said.add_volume(shown.data(row))
    lines: Iterable[str] = [said.line()]
    if form != "json":
        lines = shown.metrics(rows) if form == "metrics" else shown.table(rows)
    if output:
        fleet.write(output, "".join(f"{line}\n" for line in lines))
        said.is_wanted = False
    elif form != "json":
        for line in lines:
            click.echo(line)
    sys.exit(fleet.status_of(rows))
