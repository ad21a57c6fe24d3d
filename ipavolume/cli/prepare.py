"""``ipavolume prepare``."""

from __future__ import annotations

import click

from ipavolume.cli import document, options, streams, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.cli.output import progress, show_findings
from ipavolume.linux import umask
from ipavolume.model.progress import count_text, say_nothing


@click.command(cls=HelpedCommand)
@options.root
@options.as_json
@options.quiet
@options.verbose
@click.option("--list", "lists", multiple=True, metavar="FILE", help="Path list of the volume.")
@click.option("--mount", default=None, metavar="DIR", help="Mount of the volume.  [default: /data]")
@click.option("--template", default=None, metavar="DIR", help="Template of the volume.")
@click.option("--rpm", "rpms", multiple=True, metavar="FILE", help="Read packages from files.")
@click.option("--no-packages", is_flag=True, help="The image may have no package at all.")
@click.option("--build-id", default=None, metavar="ID", help="Id of the build.")
@click.option("--strict", is_flag=True, help="What was probably not meant is an error.")
@click.option(
    "--accept",
    "accepted",
    multiple=True,
    metavar="CODE",
    help="With --strict: findings with this code are none.",
)
@click.option("--image-name", default=None, metavar="REF", help="What people call the image.")
def prepare(
    *,
    root: str,
    as_json: bool,
    silent: bool,
    verbose: bool,
    lists: tuple[str, ...],
    mount: str | None,
    template: str | None,
    rpms: tuple[str, ...],
    no_packages: bool,
    build_id: str | None,
    image_name: str | None,
    strict: bool,
    accepted: tuple[str, ...],
) -> None:
    r"""Prepare an image: move the listed paths to the template and write the manifest.

    May be run again, also in a derived image.

    \b
    Example, in a Dockerfile:
        RUN ipavolume prepare --image-name registry.example/ipa:4.12
    """
    # Not in the way of a start: reading packages takes as many modules as all the rest.
    from ipavolume.cli.data import prepared_data, unfit_data
    from ipavolume.prepare import run
    from ipavolume.prepare.findings import UnfitImageError

    streams.only_tell()
    umask.clear_umask()
    try:
        result = run.prepare(
            root,
            lists=lists,
            mount=mount,
            template=template,
            rpms=rpms,
            no_packages=no_packages,
            build_id=build_id,
            image_name=image_name,
            progress=say_nothing if silent else progress,
            strict=strict,
            accepted=accepted,
        )
    except UnfitImageError as err:
        show_findings(err.findings, refused=err.refused)
        if as_json:
            document.current().set_result(unfit_data(err.findings))
        raise
    show_findings(result.findings)
    if result.unowned and not silent:
        progress(text.unowned_line(result, verbose=verbose))
    if as_json:
        document.current().set_result(prepared_data(result))
    elif not silent:
        done = "prepared" if result.changed else "nothing to do for"
        click.echo(
            f"{done} image {result.build_id}: {count_text(result.entries, 'entry', 'entries')}, "
            f"{count_text(result.records, 'path')}, {count_text(result.packages, 'package')}"
        )
