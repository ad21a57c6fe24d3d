"""``ipavolume completion``."""

from __future__ import annotations

import click
from click import shell_completion

from ipavolume.cli.group import HelpedCommand

_SHELLS = ("bash", "zsh", "fish")


@click.command(cls=HelpedCommand)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(called: click.Context, *, shell: str) -> None:
    r"""Print what a shell needs to complete commands and options.

    \b
    Examples:
        ipavolume completion bash >/etc/bash_completion.d/ipavolume
        ipavolume completion zsh >/usr/share/zsh/site-functions/_ipavolume
        ipavolume completion fish >~/.config/fish/completions/ipavolume.fish
    """
    kind = shell_completion.get_completion_class(shell)
    if kind is None:
        raise AssertionError(shell)
    # Not by source(), which asks bash for its version: it may be another machine's that is meant.
    made = kind(called.find_root().command, {}, "ipavolume", "_IPAVOLUME_COMPLETE")
    click.echo(made.source_template % made.source_vars())
