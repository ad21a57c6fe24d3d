"""``ipavolume check``."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace

import click

from ipavolume.cli import document, options, output
from ipavolume.cli.advice import About
from ipavolume.cli.group import HelpedCommand
from ipavolume.context import Options
from ipavolume.errors import UsageError
from ipavolume.linux import signals


@click.command(cls=HelpedCommand)
@options.root
@click.option(
    "--image",
    "reference",
    default="",
    metavar="REF",
    help="Check with an image that docker or podman has; nothing of it is run.",
)
@click.option(
    "--volume",
    "volumes",
    multiple=True,
    metavar="[MOUNT=]DIR",
    help="Where a volume is, when not at its mount below the root.",
)
@options.volume_name
@options.judging
@options.as_json
@options.diff
@options.verbose
@click.argument("directories", nargs=-1, metavar="[VOLUME]...")
def check(
    *,
    options: Options,
    root: str,
    volumes: tuple[str, ...],
    as_json: bool,
    diff: bool,
    verbose: bool,
    reference: str,
    engine: str | None,
    names: tuple[str, ...],
    directories: tuple[str, ...],
) -> None:
    r"""Say what VOLUME is, whether it is healthy, and what the image would do to it.

    Changes nothing and runs nothing. Exits with 0 when it is current, with 100 when an
    upgrade is needed, otherwise with the status that a start would end with; a start on a
    current volume does not look for altered records and lost owners, though, which are 65 here.

    Several volumes are checked one by one, and one that cannot be checked does not stop the
    others. The worst status counts; from the best: 0, 100, 75,
    77, 73, 74, 65, any other.

    State, plan of the files and findings are those that the image's own check has, from
    inside; only there upgrade steps are asked what they would do, and may refuse.

    \b
    Examples:
        ipavolume check --image example/ipa:4.12 /srv/ipa-data
        ipavolume check --image example/ipa:4.12 --volume-name ipa-data --json
        ipavolume check --root /srv/image /srv/ipa-data

    \b
    From the image itself:
        docker run --rm -v ipa-data:/data:ro IMAGE ipavolume check
    """
    from ipavolume.commands import check as commands_check
    from ipavolume.commands import check_image, named

    if reference and root != "/":
        raise UsageError("--image and --root exclude each other")
    checks = named.wanted(directories, volumes, names)
    if reference and not any(one.mounts for one in checks):
        raise UsageError("say which volume the image is to be checked with: VOLUME")
    statuses = []
    with contextlib.ExitStack() as stack:
        chosen = engine or ""
        looker = check_image.Looker(root=root, engine=chosen, compares=diff)
        if reference:
            looker = stack.enter_context(
                check_image.looking_with(chosen, reference, checks, compares=diff)
            )
        looker = replace(looker, say=output.progress)
        for one in checks:
            found = looker.look(one, options)
            about = About(
                directories=one.directories,
                volumes=one.volumes,
                names=one.names,
                root=looker.root,
            )
            if as_json:
                document.current().add_volume(output.inspection_data(found, about=about))
            else:
                output.print_inspection(found, full=verbose, verbose=verbose, about=about)
            statuses.append(found.exit_status)
            signals.check()
    sys.exit(commands_check.worst(statuses))
