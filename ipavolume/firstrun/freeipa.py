"""What is FreeIPA's: its installers, its host name, what it says of itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ipavolume.config.model import FirstRunConfig
from ipavolume.errors import CommandFailedError, RefusedError, UnsafeVolumeError, UsageError
from ipavolume.firstrun import looking
from ipavolume.firstrun.application import Application, Read
from ipavolume.firstrun.looking import read_top
from ipavolume.firstrun.record import MAX_NAME_CHARACTERS
from ipavolume.firstrun.request import (
    HOLD,
    REPLICA,
    SECRETS,
    SERVER,
    SHORT_SECRETS,
    FirstRunCommand,
    Request,
    base_name,
    is_given,
    options_in,
    secrets_of,
    split_words,
    value_of,
)
from ipavolume.formats import checks
from ipavolume.image.image import Image
from ipavolume.linux import files
from ipavolume.model.progress import Progress
from ipavolume.volume import failures
from ipavolume.volume.members import Volume
from ipavolume.volume.volumes import Volumes

HOSTNAME: Final = "hostname"
HOSTS: Final = "/etc/hosts"
REQUEST_TO_SIGN: Final = "/root/ipa.csr"
INSTALLATION: Final = "/var/lib/ipa/sysrestore/sysrestore.state"
STARTED: Final = "/run/ipa/services.list"
_MAX_STARTED_BYTES: Final = 64 << 10
_UNITS: Final = {
    "krb5kdc": "krb5kdc.service",
    "kadmin": "kadmin.service",
    "named": "named.service",
    "httpd": "httpd.service",
    "ipa-custodia": "ipa-custodia.service",
    "pki-tomcatd": "pki-tomcatd@*.service",
    "smb": "smb.service",
    "winbind": "winbind.service",
    "ods-enforcerd": "ods-enforcerd.service",
    "ipa-dnskeysyncd": "ipa-dnskeysyncd.service",
}
_UNITS_OF_DEBIAN: Final = {
    "krb5kdc": "krb5-kdc.service",
    "kadmin": "krb5-admin-server.service",
    "httpd": "apache2.service",
    "smb": "smbd.service",
    "ods-enforcerd": "opendnssec-enforcer.service",
}
_UNIT: Final = "ipa.service"
_UNIT_DIRECTORY: Final = "/usr/lib/systemd/system"
_UNIT_FILE: Final = f"{_UNIT_DIRECTORY}/{_UNIT}"
_SYSTEMCTL_TIMEOUT_S: Final = 120


def check_host(
    stored: str, asked: Request, *, own: str, allow: frozenset[str] = frozenset()
) -> None:
    """Make sure that a configured volume is started under its own name.

    Args:
        stored: The name that the volume has, or "" when it is not known.
        asked: What the container was started with.
        own: The container's name.
        allow: Codes of refusals that are overridden.

    Raises:
        RefusedError: If the names differ.
    """
    given = asked.environment.get("IPA_SERVER_HOSTNAME", "")
    if not stored or "hostname" in allow or plain(stored) in (plain(own), plain(given)):
        return
    also = f" (IPA_SERVER_HOSTNAME={given})" if given else ""
    raise RefusedError(
        f"the volume is that of the server {stored!r}, but this container is {own!r}{also}",
        code="hostname",
        hint=f"Start the container with -h {stored}, or mount the right volume. Where its name "
        f"cannot be set, but leads to the server: IPA_SERVER_HOSTNAME={stored}. To go on under "
        "the other name: --allow hostname.",
    )


def plain(name: str) -> str:
    """Return a host name in the form in which names are compared."""
    return name.rstrip(".").lower()


def new_host(command: FirstRunCommand, *, own: str) -> str:
    """Return the name of the server that the first run is to make.

    Nothing is resolved: before the volume is populated nothing could be.

    Raises:
        UsageError: If it is no name at all.
        RefusedError: If it is not fully qualified.
    """
    name = command.host or own
    if not _can_be_recorded(name):
        raise UsageError(
            f"{name[:80]!r} is no name of a host",
            hint="Give IPA_SERVER_HOSTNAME or --hostname as NAME.DOMAIN.",
        )
    if "." in name.strip("."):
        return name.rstrip(".")
    asked = "IPA_SERVER_HOSTNAME or --hostname" if command.host else "the container"
    raise RefusedError(
        f"the name {name!r} of {asked} is not fully qualified: a server needs one with a domain",
        code="unqualified-hostname",
        hint="Start the container with -h NAME.DOMAIN, or set IPA_SERVER_HOSTNAME=NAME.DOMAIN.",
    )


def hosts_with(text: str, *, own: str, server: str) -> str:
    """Return the text of ``/etc/hosts`` in which the container's addresses are the server's.

    The first name of a line is what a name in it is resolved to, so the server's comes first
    wherever the container's own is.
    """
    lines = []
    for line in text.splitlines(keepends=True):
        entry, mark, comment = line.partition("#")
        words = entry.split()
        if own in words[1:] and words[1] != server:
            names = [server, *(word for word in words[1:] if word != server)]
            ending = f" {mark}{comment}" if mark else "\n"
            line = f"{words[0]}\t{' '.join(names)}{ending}"
        lines.append(line)
    return "".join(lines)


def what_freeipa_says(data: bytes | None) -> bool | None:
    """Return whether FreeIPA's installation is complete by its own record, where it has one.

    Source: ``is_ipa_configured`` in FreeIPA's ``ipaserver/install/installutils.py``, later
    ``ipalib/facts.py``; ``ipactl`` starts nothing where it says no.
    """
    section = ""
    for line in (data or b"").decode("utf-8", "replace").splitlines():
        if line.startswith("["):
            section = line.strip()
        key, _, value = line.partition("=")
        if section == "[installation]" and key.strip() == "complete":
            return value.strip() == "True"
    return None


def _can_be_recorded(name: str) -> bool:
    """Tell whether *name* would be read again where it is recorded as a host's."""
    return len(name) <= MAX_NAME_CHARACTERS and name.isprintable() and " " not in name


def stored_host(volume: Volume) -> str:
    """Return the name that the FreeIPA images keep on the volume, or "".

    Raises:
        UnsafeVolumeError: If the file does not hold one name.
    """
    text = (read_top(volume, HOSTNAME) or b"").decode("utf-8", "replace").strip()
    if not _can_be_recorded(text):
        path = f"{volume.directory.rstrip('/')}/{HOSTNAME}"
        raise UnsafeVolumeError(
            f"{path!r} does not hold one host name",
            path=path,
            hint="Write the server's name into it, alone on one line.",
        )
    return text


INSTALLERS: Final = (SERVER, REPLICA)
_ANSWER: Final = "--external-cert-file"


def freeipa_command(
    config: FirstRunConfig,
    request: Request,
    environment: Mapping[str, str],
    mount: str,
    names: Sequence[str],
    read: Callable[[str], bytes | None],
) -> FirstRunCommand:
    """Return the command line of one of FreeIPA's installers."""
    program, arguments = _choose(config, request.arguments, names)
    given = [*options_in(f"{program}-options", mount, read), *arguments]
    words = [_sibling(config.command[0], program), *config.command[1:]]
    if program == REPLICA:
        words += _replica_file(mount, names)
    words += given
    password = environment.get("PASSWORD", "")
    if password and program == SERVER:
        words.append(f"--admin-password={password}")
        if not is_given(given, "--ds-password", "-p"):
            words.append(f"--ds-password={password}")
    elif password:
        named = is_given(given, "--principal", "-P")
        words.append(f"--{'admin-' if named else ''}password={password}")
    words += split_words(
        environment.get("IPA_SERVER_INSTALL_OPTS", ""), where="IPA_SERVER_INSTALL_OPTS"
    )
    if environment.get("DEBUG"):
        words.append("--debug")
    return FirstRunCommand(
        words=tuple(words),
        secrets=secrets_of(words, environment, SHORT_SECRETS[program]),
        answers=any(_is_answer(word) for word in words),
        host=value_of(words, "--hostname") or environment.get("IPA_SERVER_HOSTNAME", ""),
    )


def _choose(
    config: FirstRunConfig, arguments: Sequence[str], names: Sequence[str]
) -> tuple[str, Sequence[str]]:
    """Return which of the installers it is, and the arguments that are left."""
    first = arguments[0] if arguments else ""
    if first in INSTALLERS:
        return first, arguments[1:]
    if first and not first.startswith("-"):
        raise UsageError(
            f"{first!r} is no command of this container",
            hint=f"The container's arguments are options of {SERVER}; {SERVER} or {REPLICA} in "
            f"front of them chooses one, and {HOLD} in front of that stays when it fails.",
        )
    chosen = REPLICA if f"{REPLICA}-options" in names else base_name(config.command[0])
    return chosen, arguments


def _sibling(path: str, name: str) -> str:
    return path[: len(path) - len(base_name(path))] + name


def _replica_file(mount: str, names: Sequence[str]) -> list[str]:
    """Return the file with a replica's information, which older releases want."""
    if f"{SERVER}-options" in names:
        raise UsageError(
            f"{mount} holds {SERVER}-options, but {REPLICA} is to run",
            hint="Remove the file that is not meant.",
        )
    found = sorted(name for name in names if name.endswith(".gpg"))
    if len(found) > 1:
        raise UsageError(
            f"{mount} holds more than one replica file: {', '.join(map(repr, found))}",
            hint="Leave the one that is for this server.",
        )
    return [f"{mount}/{name}" for name in found]


def _is_answer(word: str) -> bool:
    """Tell whether *word* is the option for the signed certificate; it may be shortened."""
    name = word.partition("=")[0].replace("_", "-")
    return len(name) > len("--external-c") and _ANSWER.startswith(name)


def go_by(server: str, *, own: str) -> None:
    """Let the container's name lead to the server's, where the two differ.

    Source: ``init-data`` of the freeipa-container project does it for a container whose name
    cannot be set.

    Raises:
        RefusedError: If it cannot be done.
    """
    if not server or plain(server) == plain(own):
        return
    try:
        with open(HOSTS, encoding="utf-8", errors="surrogateescape") as stream:
            before = stream.read(looking.MAX_FILE_BYTES)
        after = hosts_with(before, own=own, server=server)
        if after != before:
            files.overwrite_file(HOSTS, os.fsencode(after))
    except OSError as err:
        raise RefusedError(
            f"this container is {own!r} and cannot go by the name of the server, {server!r}: "
            f"cannot change {HOSTS}: {err.strerror}",
            code="hostname",
            hint=f"Start the container with -h {server}. Where that is cared for otherwise: "
            "--allow hostname.",
        ) from err


def keep_request(image: Image, volumes: Volumes, config: FirstRunConfig) -> None:
    """Put the request that the CA has to sign where the FreeIPA images have it."""
    directory, _, name = config.waiting_when.rpartition("/")
    volume = volumes.primary
    if directory != volume.mount:
        return
    with volumes.tree() as tree:
        there = looking.There(tree, image.header.volumes, inside=image.is_inside, configured=False)
        data = there.read(REQUEST_TO_SIGN)
        if data is None or there(config.waiting_when):
            return
    with failures.attempt("write", config.waiting_when):
        files.write_file(volume.fd, name, data)


def units_in(data: bytes, *, has_unit: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the units of the services that ``ipactl`` says it has started, or globs of them.

    Source: ``start`` of ``PlatformService`` in FreeIPA's ``ipaplatform/base/services.py``, which
    adds names to the list, ``SERVICES`` in ``ipaserver/masters.py``, and ``ipa_status`` in
    ``ipaserver/install/ipactl.py``, to which those that a socket starts need not run. The names are
    the same everywhere; those of the units on Debian are in ``ipaplatform/debian/services.py``.

    Args:
        data: What it has written.
        has_unit: Tells whether a package has brought a unit.
    """
    try:
        names = checks.decode_value(data)
    except checks.MalformedError:
        return ()
    listed = names if isinstance(names, list) else []
    other = {
        name: unit
        for name, unit in _UNITS_OF_DEBIAN.items()
        if has_unit(unit) and not has_unit(_UNITS[name])
    }
    return tuple(other.get(name, unit) for name, unit in _UNITS.items() if name in listed)


def _has_unit(name: str) -> bool:
    return os.path.lexists(f"{_UNIT_DIRECTORY}/{name}")


class FreeIPA(Application):
    """A FreeIPA server: what the existing images know of their containers holds here."""

    is_named = True
    waits_for = (REQUEST_TO_SIGN,)

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
        """See the base."""
        return freeipa_command(config, request, environment, mount, names, read)

    def environment(self, asked: Request) -> dict[str, str]:
        """Return the environment of the command.

        What the installer gets as arguments is not in it: an environment is inherited by all
        that a process starts.
        """
        del asked
        left_out = (*SECRETS, *(f"{name}_FILE" for name in SECRETS))
        return {name: text for name, text in os.environ.items() if name not in left_out}

    def says(self, read: Read) -> bool | None:
        """See the base."""
        return what_freeipa_says(read(INSTALLATION))

    def stored_host(self, volume: Volume) -> str:
        """See the base."""
        return stored_host(volume)

    def new_host(self, command: FirstRunCommand, *, own: str) -> str:
        """See the base."""
        return new_host(command, own=own)

    def note_host(self, volume: Volume, host: str) -> None:
        """See the base."""
        with failures.attempt("write", f"{volume.mount}/{HOSTNAME}"):
            files.write_file(volume.fd, HOSTNAME, os.fsencode(host) + b"\n")

    def check_host(self, stored: str, asked: Request, *, own: str, allow: frozenset[str]) -> None:
        """See the base."""
        check_host(stored, asked, own=own, allow=allow)

    def go_by(self, host: str, *, own: str) -> None:
        """See the base."""
        go_by(host, own=own)

    def started(self) -> tuple[str, ...]:
        """See the base."""
        try:
            with open(STARTED, "rb") as stream:
                return units_in(stream.read(_MAX_STARTED_BYTES), has_unit=_has_unit)
        except OSError:
            return ()

    def keep_request(self, image: Image, volumes: Volumes, config: FirstRunConfig) -> None:
        """See the base."""
        keep_request(image, volumes, config)

    def finish(self, image: Image, volumes: Volumes, say: Progress) -> None:
        """Have systemd start the server, which the installer sees to after all else.

        Killed before, it left an installation that is complete and that no boot starts.

        Source: ``install`` in FreeIPA's ``ipaserver/install/server/install.py``, from
        "Everything installed properly, activate ipa service".
        """
        with volumes.tree() as tree:
            mounts = image.header.volumes
            there = looking.There(tree, mounts, inside=image.is_inside, configured=False)
            if not self.says(there.read) or not os.path.lexists(_UNIT_FILE):
                return
        # Later: a run that installs nothing does not load what starts programs.
        from ipavolume.linux.command import run_command

        ended = run_command(
            ("systemctl", "enable", _UNIT), timeout_s=_SYSTEMCTL_TIMEOUT_S, output=say
        )
        if ended.status != 0 or ended.timed_out:
            raise CommandFailedError(
                f"the installation is complete, but {_UNIT} could not be enabled, as the installer "
                "does at its end",
                hint="Remove what systemctl complains of, then start again.",
                state="the server is installed, and would not be started",
                details=ended.lines,
            )

    def waits(self, config: FirstRunConfig, command: FirstRunCommand) -> RefusedError:
        """See the base."""
        return RefusedError(
            f"the first run waits for a certificate: an external CA has to sign "
            f"{config.waiting_when or REQUEST_TO_SIGN!r}",
            code="waiting",
            path=config.waiting_when,
            hint="Put the signed certificate and those of its CAs on the volume, then start the "
            f"container with the arguments of the first time and --external-cert-file=FILE for "
            f"each, for example: {command.name} --external-cert-file=/data/ipa.crt "
            "--external-cert-file=/data/ca.crt",
        )
