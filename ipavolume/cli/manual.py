"""``ipavolume manual``."""

from __future__ import annotations

import textwrap

import click

from ipavolume.cli import advice, streams
from ipavolume.cli.group import HelpedCommand


@click.command(cls=HelpedCommand)
@click.argument("topic", required=False, metavar="[TOPIC|CODE]")
def manual(*, topic: str | None) -> None:
    r"""Print a topic of the manual, or what a code of an error or a finding means.

    Without an argument, list the topics.

    \b
    Examples:
        ipavolume manual codes
        ipavolume manual stateless
    """
    from ipavolume.commands import manual as book

    if topic is None:
        for name, title in book.topics().items():
            click.echo(f"{name:<12} {title}")
        return
    found = book.entries(topic)
    if not found:
        click.echo(book.topic(topic), nl=False)
    for entry in found:
        click.echo(entry.name)
        for label, text in (("", entry.meaning), ("State: ", entry.state), ("Next: ", entry.next)):
            if text:
                click.echo(_paragraph(label + text))
        for place, line in advice.forms(entry.next):
            click.echo(_paragraph(f"{place.capitalize()}: {line}"))


def _paragraph(text: str) -> str:
    # What is to be typed is not taken apart.
    return textwrap.fill(
        text.replace("``", ""),
        width=streams.width(),
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
        break_long_words=False,
    )
