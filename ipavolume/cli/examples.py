"""``ipavolume examples``."""

from __future__ import annotations

import click

from ipavolume.cli.group import HelpedCommand
from ipavolume.errors import UsageError


@click.command(cls=HelpedCommand)
@click.argument("name", required=False)
@click.option("--to", metavar="DIR", help="Directory to copy the example to; not there, or empty.")
def examples(*, name: str | None, to: str | None) -> None:
    r"""Copy an example, an image to build from, to a directory.

    Without an argument, list the examples.

    \b
    Example:
        ipavolume examples postgresql --to my-postgresql
    """
    from ipavolume.commands import examples as shipped

    if name is None:
        for known, title in shipped.titles().items():
            click.echo(f"{known:<12} {title}")
        return
    if to is None:
        raise UsageError(
            "where to is not said", hint=f"ipavolume examples {name} --to DIR copies it to DIR."
        )
    for path in shipped.copy(name, to):
        click.echo(f"{to.rstrip('/')}/{path}")
