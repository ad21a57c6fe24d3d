"""What a container is started with that is to be like another one, and cut off from all else.

Decided from what an engine's ``inspect`` says of the other one; nothing here asks an engine. What
leads out of a container, or takes part in the world outside, is not taken over: ports, restart
policy, devices, the host's namespaces, what is writable there, and what of it would give away
sockets of the host.

Sources: ``docker container inspect`` of 20.10 and 28, ``podman container inspect`` of 4.3, and the
options of ``docker run`` and ``podman run``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from ipavolume.model.values import dataclass

NOT_LENT: Final = frozenset({"ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_TIME", "SYS_RAWIO"})
"""Capabilities that reach the host: who rehearses has to name them."""
_OWN: Final = frozenset(
    {
        *("IPAVOLUME_REHEARSAL", "IPAVOLUME_REHEARSAL_TIMEOUT", "IPAVOLUME_ON_FAILURE"),
        *("IPAVOLUME_BACKOFF", "IPAVOLUME_UPGRADE", "IPAVOLUME_RETRY", "IPAVOLUME_LOCK_TIMEOUT"),
        *("NOTIFY_SOCKET", "HOSTNAME", "TERM", "HOME", "container", "container_uuid"),
    }
)
"""Variables that say how a start is to go in its own place, or that engines set."""
_OF_BOTH: Final = {
    "Env": "environment",
    "Entrypoint": "entrypoint",
    "Cmd": "command",
    "User": "user",
    "WorkingDir": "working directory",
}
"""What a container has of its image where it was not given its own, and what people call it."""
_REACHING: Final = ("/run", "/var/run", "/dev", "/proc")
"""Directories of the host with sockets and devices, which are no less for being read-only."""
_CGROUPS: Final = "/sys/fs/cgroup"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Something of the other container that this one does not have.

    Attributes:
        what: What, as people know it.
        why: Why not, or how it is had.
    """

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """What a container is started with.

    Attributes:
        options: Options of ``docker run`` or ``podman run``.
        words: What follows the image.
        environment: Variables, ``NAME=value``, for a file; they may be secret.
        left_out: What it does not have of the other one.
    """

    options: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What the container gets instead of what the other one has.

    Attributes:
        volumes: Directories of the host by where the container has them.
        volatile: Where it has something that is emptied at each start.
        networked: It has a network of its own, otherwise none.
        sockets: Sources of mounts that are sockets or devices.
        relabel: The host has SELinux.
    """

    volumes: Mapping[str, str]
    volatile: Collection[str] = ()
    networked: bool = True
    sockets: Collection[str] = ()
    relabel: bool = False


def likeness(
    engine: str, found: Mapping[str, Any], image: Mapping[str, Any] | None, place: Place
) -> Likeness:
    """Return what makes a container like the one that was inspected.

    Args:
        engine: Name of the engine.
        found: What its ``inspect`` says of the container; empty where there is none.
        image: What it says of the configuration of that container's image: what comes from there
            the new image says itself; ``None``: nobody knows, as it is not there any more.
        place: What it gets instead.
    """
    options: list[str] = []
    left_out: list[LeftOut] = []
    if image is None:
        found, unknown = _without_what_both_say(found)
        left_out += unknown
        image = {}
    for kind, value in _taken(engine, found, image, place):
        if isinstance(value, str):
            options += (kind, value) if value else (kind,)
        else:
            left_out.append(value)
    config = _table(found, "Config")
    entry, before = _texts(config, "Entrypoint"), _texts(image, "Entrypoint")
    if entry == (" ".join(before),):
        # podman of old tells it in one piece.
        entry = before
    words = _texts(config, "Cmd")
    if entry and entry != before:
        options += ("--entrypoint", entry[0])
        words = (*entry[1:], *words)
    elif words == _texts(image, "Cmd"):
        words = ()
    shipped = set(_texts(image, "Env"))
    environment = [
        one
        for one in _texts(config, "Env")
        if one not in shipped and one.partition("=")[0] not in _OWN
    ]
    return Likeness(
        options=tuple(options),
        words=words,
        environment=tuple(environment),
        left_out=tuple(left_out),
    )


def _without_what_both_say(
    found: Mapping[str, Any],
) -> tuple[Mapping[str, Any], tuple[LeftOut, ...]]:
    """Return *found* without what may be its image's, and what that is."""
    config = _table(found, "Config")
    said = [word for key, word in _OF_BOTH.items() if config.get(key)]
    if not said:
        return found, ()
    why = (
        "what of it its image said nobody knows, as that is not there any more: "
        "--run-option=--env=NAME=VALUE, --run-option=--user=..."
    )
    kept = {key: value for key, value in config.items() if key not in _OF_BOTH}
    return {**found, "Config": kept}, (LeftOut(what=f"its {', '.join(said)}", why=why),)


def host_name(found: Mapping[str, Any]) -> str:
    """Return the name that a container calls itself, with its domain, or ""."""
    config = _table(found, "Config")
    name, domain = _text(config, "Hostname"), _text(config, "Domainname")
    return f"{name}.{domain}" if name and domain and "." not in name else name


_Taken = Iterator[tuple[str, str | LeftOut]]


def _taken(engine: str, found: Mapping[str, Any], image: Mapping[str, Any], place: Place) -> _Taken:
    host = _table(found, "HostConfig")
    yield from _identity(engine, found, image, place)
    yield from _rights(engine, found, host, relabel=place.relabel)
    yield from _resources(host)
    yield from _mounts(found, host, place)
    yield from _left_out(found, host)


def _identity(
    engine: str, found: Mapping[str, Any], image: Mapping[str, Any], place: Place
) -> _Taken:
    config, host = _table(found, "Config"), _table(found, "HostConfig")
    name = host_name(found)
    if name:
        yield "--hostname", name
        if not place.networked:
            yield "--add-host", f"{name}:127.0.0.1"
    for key, option in (("User", "--user"), ("WorkingDir", "--workdir")):
        value = _text(config, key)
        if value and value != _text(image, key):
            yield option, value
    if config.get("SystemdMode") is True:
        yield "--systemd", "always"
    if host.get("Init") is True:
        yield "--init", ""
    if place.networked or engine == "docker":
        for key, option in (
            ("Dns", "--dns"),
            ("DnsSearch", "--dns-search"),
            ("DnsOptions", "--dns-option"),
        ):
            for value in _texts(host, key):
                yield option, value
    for value in _texts(host, "ExtraHosts"):
        if value.partition(":")[0] != name:
            yield "--add-host", value


def _rights(
    engine: str, found: Mapping[str, Any], host: Mapping[str, Any], *, relabel: bool
) -> _Taken:
    if host.get("Privileged") is True:
        why = "name what it needs: --run-option=--cap-add=..., --run-option=--security-opt=..."
        yield "", LeftOut(what="privileged", why=why)
    for value in _texts(host, "CapDrop"):
        yield "--cap-drop", value.removeprefix("CAP_")
    for value in _texts(host, "CapAdd"):
        name = value.removeprefix("CAP_").upper()
        if name in NOT_LENT:
            why = f"it reaches the host: --run-option=--cap-add={name}"
            yield "", LeftOut(what=f"capability {name}", why=why)
        else:
            yield "--cap-add", name
    for value in _texts(host, "GroupAdd"):
        yield "--group-add", value
    for value in _texts(host, "SecurityOpt"):
        if value.startswith("seccomp=") and "{" in value:
            why = "the engine tells its text, and wants a file: --run-option=--security-opt=seccomp"
            yield "", LeftOut(what="its seccomp profile", why=f"{why}=FILE")
        else:
            yield "--security-opt", value
    if relabel:
        yield from _level(found, host)
    if host.get("ReadonlyRootfs") is True:
        yield "--read-only", ""
    if engine == "podman":
        maps = _table(host, "IDMappings")
        for key, option in (("UidMap", "--uidmap"), ("GidMap", "--gidmap")):
            for value in _texts(maps, key):
                yield option, value
        yield from _created_with(_texts(_table(found, "Config"), "CreateCommand"))
    elif _text(host, "UsernsMode"):
        yield "--userns", _text(host, "UsernsMode")
    cgroups = _text(host, "CgroupnsMode") or _text(host, "CgroupMode")
    if cgroups in ("host", "private"):
        yield "--cgroupns", cgroups
    for key, value in sorted(_table(host, "Sysctls").items()):
        yield "--sysctl", f"{key}={value}"


def _level(found: Mapping[str, Any], host: Mapping[str, Any]) -> _Taken:
    """Yield by which of SELinux's levels it reads what only the other one may read."""
    level = ":".join(_text(found, "ProcessLabel").split(":")[3:])
    given = _texts(host, "SecurityOpt")
    said = ("level", "disable", "nested")
    if level and not any(
        one.startswith("label") and one[len("label=") :].startswith(said) for one in given
    ):
        yield "--security-opt", f"label=level:{level}"


def _created_with(words: Sequence[str]) -> _Taken:
    """Yield what podman tells of a container in no other way than by its command line."""
    for number, word in enumerate(words):
        if word == "--sysctl" and number + 1 < len(words):
            yield "--sysctl", words[number + 1]
        elif word.startswith("--sysctl="):
            yield "--sysctl", word.partition("=")[2]


def _resources(host: Mapping[str, Any]) -> _Taken:
    for key, option in (
        ("Memory", "--memory"),
        ("MemoryReservation", "--memory-reservation"),
        ("MemorySwap", "--memory-swap"),
        ("ShmSize", "--shm-size"),
        ("PidsLimit", "--pids-limit"),
    ):
        value = host.get(key)
        if isinstance(value, int) and value > 0:
            yield option, str(value)
    for one in host.get("Ulimits") or ():
        if isinstance(one, Mapping):
            name = _text(one, "Name").removeprefix("RLIMIT_").lower()
            yield "--ulimit", f"{name}={one.get('Soft')}:{one.get('Hard')}"


def _mounts(found: Mapping[str, Any], host: Mapping[str, Any], place: Place) -> _Taken:
    taken = set()
    for where, given in sorted(place.volumes.items()):
        yield "--volume", f"{given}:{where}" + ":Z" * place.relabel
        taken.add(where)
    tmpfs = dict(_table(host, "Tmpfs"))
    mounts = [one for one in found.get("Mounts") or () if isinstance(one, Mapping)]
    for one in mounts:
        if _text(one, "Type") == "tmpfs":
            tmpfs.setdefault(_text(one, "Destination"), "")
    for where in place.volatile:
        tmpfs.setdefault(where, "")
    for where, words in sorted(tmpfs.items()):
        if where not in taken:
            yield "--tmpfs", f"{where}:{words}" if words else where
            taken.add(where)
    for one in mounts:
        where, source = _text(one, "Destination"), _text(one, "Source")
        if where in taken:
            continue
        why = ""
        if one.get("RW") is not False:
            why = "it is writable and no volume of the image"
        elif source in place.sockets or _is_reaching(source):
            why = "by it something outside of the container can be reached"
        elif ":" in source + where:
            why = "its path has a colon"
        if why:
            yield "", LeftOut(what=f"{source or _text(one, 'Name')} at {where}", why=why)
        else:
            yield "--volume", f"{source}:{where}:ro"


def _is_reaching(source: str) -> bool:
    """Tell whether a directory of the host has sockets or devices in it, or is above them."""
    if f"{source}/".startswith(f"{_CGROUPS}/"):
        return False
    path = source.rstrip("/") + "/"
    return any(path.startswith(f"{one}/") or f"{one}/".startswith(path) for one in _REACHING)


def _left_out(found: Mapping[str, Any], host: Mapping[str, Any]) -> _Taken:
    for one in host.get("Devices") or ():
        if isinstance(one, Mapping):
            why = "devices are shared with the host: --run-option=--device=..."
            yield "", LeftOut(what=f"device {_text(one, 'PathOnHost')}", why=why)
    for key, what, why in (
        ("PidMode", "processes", "it has its own"),
        ("IpcMode", "memory", "it has its own"),
        ("UTSMode", "name", "it has its own"),
        ("NetworkMode", "network", "its own leads nowhere"),
    ):
        mode = _text(host, key)
        if mode == "host":
            yield "", LeftOut(what=f"the host's {what}", why=why)
        elif mode.startswith("container:"):
            yield "", LeftOut(what=f"another container's {what}", why=why)
    for one in _table(found, "Config").get("Secrets") or ():
        if isinstance(one, Mapping):
            name = _text(one, "Name")
            why = f"the engine does not tell how it has it: --run-option=--secret={name}"
            yield "", LeftOut(what=f"secret {name}", why=why)


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) else ""


def _texts(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key)
    if isinstance(value, str):
        return (value,)
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()
