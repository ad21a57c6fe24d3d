"""The command line of the first run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import fsdecode

from ipavolume.config.model import FirstRunConfig
from ipavolume.firstrun.freeipa import freeipa_command, is_freeipa
from ipavolume.firstrun.request import (
    SECRETS,
    FirstRunCommand,
    Request,
    base_name,
    options_in,
    secrets_of,
)


def command(
    config: FirstRunConfig,
    request: Request,
    *,
    mount: str,
    names: Sequence[str],
    read: Callable[[str], bytes | None],
    secret: Callable[[str], bytes],
) -> FirstRunCommand:
    """Return the command line of the first run.

    Args:
        config: What is configured.
        request: What the container was started with.
        mount: The primary volume's mount.
        names: What is right below it.
        read: Returns the content of one of them, or ``None`` when there is none.
        secret: Returns the content of a file that a variable names.

    Raises:
        UsageError: If the request makes no sense; nothing of a secret is shown.
    """
    environment = dict(request.environment)
    for name in SECRETS:
        path = environment.pop(f"{name}_FILE", "")
        if path:
            # A file ends with a newline that is no part of a password.
            environment[name] = fsdecode(secret(path)).rstrip("\r\n")
    if is_freeipa(config):
        return freeipa_command(config, request, environment, mount, names, read)
    program = base_name(config.command[0])
    arguments = request.arguments[request.arguments[:1] == (program,) :]
    words = (*config.command, *options_in(f"{program}-options", mount, read), *arguments)
    return FirstRunCommand(
        words=words,
        secrets=secrets_of(words, environment, ()),
        answers=bool(arguments),
        host=environment.get("IPA_SERVER_HOSTNAME", ""),
    )
