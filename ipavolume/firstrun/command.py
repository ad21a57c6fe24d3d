"""Which application a first run installs, and the command line that makes of a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import fsdecode

from ipavolume.config.model import FirstRunConfig
from ipavolume.firstrun.application import Application, Read
from ipavolume.firstrun.freeipa import INSTALLERS, FreeIPA
from ipavolume.firstrun.request import SECRETS, FirstRunCommand, Request, base_name


def application_of(config: FirstRunConfig) -> Application:
    """Return what the configured command installs: FreeIPA, by its name, or anything."""
    return FreeIPA() if base_name(config.command[0]) in INSTALLERS else Application()


def command(
    config: FirstRunConfig,
    request: Request,
    *,
    mount: str,
    names: Sequence[str],
    read: Read,
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
    return application_of(config).command(
        config, request, environment, mount=mount, names=names, read=read
    )
