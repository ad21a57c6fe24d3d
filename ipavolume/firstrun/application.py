"""What is done for the application that a first run installs: here for any, elsewhere for one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from ipavolume.config.model import FirstRunConfig
from ipavolume.errors import RefusedError
from ipavolume.firstrun.request import (
    FirstRunCommand,
    Request,
    base_name,
    options_in,
    secrets_of,
)
from ipavolume.image.image import Image
from ipavolume.model.progress import Progress
from ipavolume.volume.members import Volume
from ipavolume.volume.volumes import Volumes

Read = Callable[[str], bytes | None]
"""Returns the content of a file, or ``None`` when there is none."""


class Application:
    """Any application: its command gets what the operator gave, and nothing is known of it.

    Attributes:
        is_named: A volume of it belongs to one host name.
        waits_for: Paths of the application that mean that it waits for an answer.
    """

    is_named = False
    waits_for: tuple[str, ...] = ()

    def command(
        self,
        config: FirstRunConfig,
        request: Request,
        environment: Mapping[str, str],
        *,
        mount: str,
        names: Sequence[str],
        read: Read,
    ) -> FirstRunCommand:
        """Return the command line of the first run.

        Args:
            config: What is configured.
            request: What the container was started with.
            environment: Its variables, with secrets that were in files.
            mount: The primary volume's mount.
            names: What is right below it.
            read: Reads one of them.

        Raises:
            UsageError: If the request makes no sense; nothing of a secret is shown.
        """
        del names
        program = base_name(config.command[0])
        arguments = request.arguments[request.arguments[:1] == (program,) :]
        words = (*config.command, *options_in(f"{program}-options", mount, read), *arguments)
        return FirstRunCommand(
            words=words,
            secrets=secrets_of(words, environment, ()),
            answers=bool(arguments),
            host=environment.get("IPA_SERVER_HOSTNAME", ""),
        )

    def environment(self, asked: Request) -> dict[str, str]:
        """Return the environment of the command."""
        return {**os.environ, **asked.environment}

    def says(self, read: Read) -> bool | None:
        """Return whether it says of itself that it is installed; ``None`` where it says nothing.

        Args:
            read: Reads a path of the application.
        """
        del read
        return None

    def stored_host(self, volume: Volume) -> str:
        """Return the host name that *volume* is of, where that is written outside of our record."""
        del volume
        return ""

    def new_host(self, command: FirstRunCommand, *, own: str) -> str:
        """Return the host name that the first run is to make a server of.

        Raises:
            RefusedError: If it is none for a server.
        """
        del command
        return own

    def note_host(self, volume: Volume, host: str) -> None:
        """Write down on *volume* which host it is of."""

    def check_host(self, stored: str, asked: Request, *, own: str, allow: frozenset[str]) -> None:
        """Make sure that a configured volume is started under its own name.

        Raises:
            RefusedError: If it is not.
        """

    def go_by(self, host: str, *, own: str) -> None:
        """Let the container's name lead to the server's, where the two differ.

        Raises:
            RefusedError: If it cannot be done.
        """

    def started(self) -> tuple[str, ...]:
        """Return the systemd units that, as it says itself, it has started in this container."""
        return ()

    def keep_request(self, image: Image, volumes: Volumes, config: FirstRunConfig) -> None:
        """Put what somebody outside has to answer where that is looked for."""

    def finish(self, image: Image, volumes: Volumes, say: Progress) -> None:
        """Do what the command does last, where it was ended after its work was done.

        Args:
            image: The image, in its container.
            volumes: The volumes.
            say: Told of what is done.

        Raises:
            CommandFailedError: If it fails; the next start tries it again.
        """

    def waits(self, config: FirstRunConfig, command: FirstRunCommand) -> RefusedError:
        """Return what a start without the answer that is waited for is refused with."""
        return RefusedError(
            f"the first run waits for an answer to {config.waiting_when!r}",
            code="waiting",
            path=config.waiting_when,
            hint=f"Start the container with the arguments that give {command.name} the answer.",
        )
