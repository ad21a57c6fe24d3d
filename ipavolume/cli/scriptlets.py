"""``ipavolume scriptlets``."""

from __future__ import annotations

import click

from ipavolume.cli import document, options, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Options


@click.command(cls=HelpedCommand)
@options.located_options
@options.as_json
def scriptlets(*, options: Options, as_json: bool) -> None:
    r"""List every scriptlet of the image's packages: run at an upgrade or not, and why.

    \b
    Example:
        ipavolume scriptlets --root /srv/image --volume /srv/ipa-data
    """
    from ipavolume.commands import listing

    listed = listing.list_scriptlets(options)
    if as_json:
        from ipavolume.cli.data import scriptlet_data

        data = [scriptlet_data(found) for found in listed]
        document.current().set_result({"scriptlets": data})
        return
    for found in listed:
        word = "runs" if found.runs else "not"
        head = click.style(f"{word:<5}", fg="green" if found.runs else None)
        click.echo(head + text.scriptlet_line(found))
