"""``ipavolume audit``."""

from __future__ import annotations

import sys

import click

from ipavolume.cli import document, options, output, text
from ipavolume.cli.group import HelpedCommand
from ipavolume.errors import EXIT_CONFIGURATION


@click.command(cls=HelpedCommand)
@options.engine
@options.as_json
@click.argument("container")
def audit(*, engine: str | None, as_json: bool, container: str) -> None:
    r"""Say what CONTAINER wrote outside its volumes, and which list lines would keep it.

    Also says which paths of the list are not the links onto the volume any more. The
    container may be running or stopped; nothing is run in it, and nothing is changed.

    Exits with 0 when all that it wrote is on a volume, on a tmpfs, or below /run and /tmp;
    with 78 when the image's path list, or what is mounted, has to be corrected.

    \b
    Example:
        ipavolume audit ipa
    """
    from ipavolume.commands.audit import audit_container

    found = audit_container(engine or "", container, output.progress)
    if as_json:
        from ipavolume.cli.data import audit_data

        document.current().set_result(audit_data(found))
    else:
        click.echo(f"{text.escape(found.name)}: {text.audit_heading(found)}")
        for finding in found.findings:
            label = click.style(f"{finding.fault}:", fg="red" if finding.is_wrong else "blue")
            for number, line in enumerate(text.audit_lines(finding)):
                click.echo(f"  {label} {line}" if number == 0 else f"    {line}")
        for line in text.audit_advice(found):
            click.echo(line)
    sys.exit(0 if found.is_clean else EXIT_CONFIGURATION)
