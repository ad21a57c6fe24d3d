"""An image and its volumes, opened: what every command works on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Final

from ipavolume.errors import UnsafeVolumeError, UsageError
from ipavolume.formats.manifest import is_safe_path
from ipavolume.image.image import Image
from ipavolume.linux import files, mounts
from ipavolume.model.images import VolumeSpec
from ipavolume.model.values import dataclass
from ipavolume.volume import members, ownership, ways
from ipavolume.volume.members import Volume
from ipavolume.volume.volumes import Volumes

EXISTING: Final = "existing"
KEPT_VOLUME: Final = "kept-volume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator asks for.

    Attributes:
        root: Root of the image tree.
        called: What messages call the image, where that is not by its root.
        is_recorded: There is no image but what the volume records of its own.
        volumes: Where each volume is, by mount, "" for the primary one's; the others are below
            the root.
        allow: Codes of refusals that are overridden.
        lock_timeout_s: Seconds to wait for another holder of the lock.
        came_from: ``id:version`` of the release a volume of unknown origin comes from.
        checksum: Hash everything instead of trusting the index.
        expect: What the primary volume is expected to be: "" anything, :data:`EXISTING` one that
            has data, otherwise the one with this uuid.
        consent: Let upgrades happen.
        again: Run everything for the image that the volume already has.
        retry: Forget how often it has failed.
        retry_run: Try at once what failed several times, if this is what the failure calls itself.
        rehearsal: It is done to a copy, to see whether it goes well.
        waits: A start that is not to be tried again yet waits; otherwise it ends.
        rollback: Whether what the image left is gone back to by itself; "": as the image says.
        snapshot: Whether something to go back to is kept before an upgrade; "": as the image says.
    """

    root: str = "/"
    called: str = ""
    is_recorded: bool = False
    volumes: Mapping[str, str] = field(default_factory=dict)
    allow: frozenset[str] = frozenset()
    lock_timeout_s: float = 0.0
    came_from: str = ""
    checksum: bool = False
    expect: str = ""
    consent: bool = True
    again: bool = False
    retry: bool = False
    retry_run: str = ""
    waits: bool = True
    rehearsal: bool = False
    snapshot: str = ""
    rollback: str = ""


_SHARED: Final = "shared-path"
OVERRIDES: Final = {
    "blocked": "finish what a newer image began, then go on with this one",
    "directory-locked": "work on a volume whose root directory somebody keeps locked",
    "first-run-since": "go back to before the application was installed",
    "foreign": "take the volume of another application",
    "fs-group": "populate a volume that Kubernetes gives to a group at every mount",
    "hostname": "start a volume under another host name than its own",
    "incompatible": "take a volume from a release that the image does not accept",
    KEPT_VOLUME: "empty a volume that was kept, where the image has a volatile one",
    "local-lock": "work on NFS that is mounted with local locks",
    "lost-owners": "upgrade a volume whose files have other owners than they were given",
    "left-behind": "leave what is in a listed path that the image keeps elsewhere where it is",
    "lost-secondary": "fill a further volume again that was lost",
    "mounted-over": "leave what is mounted over a path as it is",
    "needs-container": "go back without asking upgrade steps whether what they did can be undone",
    "newer": "go back to older packages",
    "no-lock": "work on a file system that is not known to lock for everybody",
    "not-mounted": "install where nothing is mounted, into the container itself",
    "occupied": "populate a volume that has data of something else",
    "partial": "go on over what an interrupted first run left",
    "reused-id": "leave files of an account that is gone to the one with its number now",
    _SHARED: "work on a volume below a directory that others can change",
    "space": "begin although there may be too little room",
    "stale-lock": "take the lock on NFS from a host that is dead",
    "stateless": "take over a volume that has files but no state of ours",
    "type-change": "move a directory away that has to become something else",
}
"""The refusals that can be overridden, by code."""


class Context:
    """An image and its volumes.

    Attributes:
        image: The image.
        options: What the operator asks for.
        volumes: The volumes that are upgraded.
        volatile: The volumes that are emptied and filled at each start.
        ways: What others could change of the paths to the image and the volumes, if anything.
    """

    def __init__(self, options: Options) -> None:
        """Open the image and its volumes.

        Raises:
            IpaVolumeError: If the image is not prepared, or a volume is not there.
        """
        self.options = options
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self.image = stack.enter_context(
                Image(options.root, called=options.called, is_recorded=options.is_recorded)
            )
            self.image.verify()
            specs = self.image.header.volumes
            primary = next((spec.mount for spec in specs if not spec.volatile), "")
            if not primary:
                raise UsageError("every volume of the image is volatile: nothing to keep")
            places = {mount or primary: place for mount, place in options.volumes.items()}
            if len(places) < len(options.volumes):
                raise UsageError(f"--volume says twice where the volume at {primary} is")
            unknown = set(places) - {spec.mount for spec in specs}
            if unknown:
                raise UsageError(
                    f"the image has no volume {sorted(unknown)[0]!r}; it has "
                    + ", ".join(spec.mount for spec in specs)
                )
            kept: dict[str, Volume] = {}
            self.volatile: dict[str, Volume] = {}
            self.ways: list[UnsafeVolumeError] = []
            if options.root != "/":
                self._check_way(options.root, within=True)
            for spec in specs:
                volume = self._open(spec, places.get(spec.mount), stack)
                (self.volatile if spec.volatile else kept)[spec.mount] = volume
            _check_apart(kept, self.volatile)
            if KEPT_VOLUME not in options.allow:
                _check_outside(kept, self.volatile)
            self.volumes = Volumes(kept, volatile=self.volatile, inside=self.image.is_inside)
            self._stack = stack.pop_all()

    def _open(self, spec: VolumeSpec, given: str | None, stack: contextlib.ExitStack) -> Volume:
        directory = self.image.mount_directory(spec.mount) if given is None else given
        kind, mount_options = mounts.file_system_of(directory)
        volume = members.open_volume(spec.mount, directory, file_system=kind, options=mount_options)
        stack.callback(os.close, volume.fd)
        # Where a volume is nobody's, so may be what is above it (NFS with root_squash): that is
        # what is said then.
        is_nobodys = files.fstat(volume.fd).st_uid == ownership.OVERFLOW_ID
        if (given is not None or self.options.root != "/") and not is_nobodys:
            self._check_way(directory, within=False)
        return volume

    def _check_way(self, path: str, *, within: bool) -> None:
        """Note what others can change of a path that somebody gave."""
        if fault := ways.changeable_by_others(path, within=within):
            self.ways.append(
                UnsafeVolumeError(
                    f"others can change where {path!r} leads to: {fault}",
                    code=_SHARED,
                    hint="Give the directory to root and take the right to write from others, or "
                    f"move what is below it. If nobody can log in as these: --allow {_SHARED}.",
                    path=path,
                )
            )

    def refuse_ways(self) -> None:
        """Refuse to write where others can change what the paths to it lead to.

        Raises:
            UnsafeVolumeError: If they can, and that is not overridden.
        """
        if self.ways and not self.overridden:
            raise self.ways[0]

    @property
    def overridden(self) -> tuple[str, ...]:
        """Codes of what would be refused of the paths, and is not."""
        return (_SHARED,) if self.ways and _SHARED in self.options.allow else ()

    def __enter__(self) -> Context:
        """Return the context."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything; with the volumes the lock goes."""
        self._stack.close()


def _check_apart(kept: Mapping[str, Volume], volatile: Mapping[str, Volume]) -> None:
    """Refuse one directory as two volumes: each would find what the other one has as its own.

    Of one that is *volatile* as well, what is kept would be emptied at each start.

    Raises:
        UnsafeVolumeError: If it is.
    """
    found: dict[tuple[int, int], Volume] = {}
    for mount, volume in (*kept.items(), *volatile.items()):
        st = files.fstat(volume.fd)
        place = st.st_dev, st.st_ino
        first = found.get(place)
        if first is not None:
            raise UnsafeVolumeError(
                f"{first.mount} and {mount} are one and the same volume, {first.directory!r}",
                code="foreign-volume",
                hint=f"Mount a volume of its own at {mount}.",
            )
        if mount in kept:
            found[place] = volume


def _check_outside(kept: Mapping[str, Volume], volatile: Mapping[str, Volume]) -> None:
    """Refuse to empty what is a part of a volume that is kept, or has one as a part of it.

    Raises:
        UnsafeVolumeError: If a volatile volume is that.
    """
    for mount, volume in volatile.items():
        for of, one in kept.items():
            if _is_part_of(volume, one):
                text = f"is a part of the volume at {of}, mounted once more"
            elif _is_part_of(one, volume):
                text = f"has the volume at {of} as a part of it"
            else:
                continue
            raise UnsafeVolumeError(
                f"the image empties what is mounted at {mount} at each start, but that {text}",
                code=KEPT_VOLUME,
                path=volume.directory,
                hint=f"Mount a volume of its own at {mount}. To have it emptied: "
                f"--allow {KEPT_VOLUME}.",
            )


def _is_part_of(volume: Volume, other: Volume) -> bool:
    """Tell whether somebody has mounted a directory of another volume as this one."""
    here, there = mounts.mount_of(volume.fd), mounts.mount_of(other.fd)
    if here is None or there is None or here.device != there.device:
        return False
    places = []
    for directory in (volume.directory, other.directory):
        where, origin = mounts.origin_of(directory)
        path = os.path.realpath(directory)
        if directory == volume.directory and where != path:
            return False
        places.append(f"{origin.rstrip('/')}{path[len(where.rstrip('/')) :]}".rstrip("/"))
    return places[0].startswith(f"{places[1]}/")


def parse_volume_option(value: str) -> tuple[str, str]:
    """Split ``[MOUNT=]DIR``; the mount is "" for the primary volume's.

    Raises:
        UsageError: If the mount is not an absolute path.
    """
    mount, separator, directory = value.partition("=")
    if not separator:
        return "", value
    if not is_safe_path(mount) or not directory:
        raise UsageError(f"--volume {value!r}: write it as DIR or as /MOUNT=DIR")
    return mount, directory


def parse_volume_options(values: Iterable[str]) -> dict[str, str]:
    """Return the directory of each volume, by mount, of ``[MOUNT=]DIR`` each.

    Raises:
        UsageError: If one is malformed, or two are for one mount.
    """
    return volumes_by_mount(map(parse_volume_option, values))


def volumes_by_mount(given: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the directory of each volume, by mount.

    Raises:
        UsageError: If two are for one mount.
    """
    found: dict[str, str] = {}
    for mount, directory in given:
        if mount in found:
            raise UsageError(
                f"the volume at {mount} is given twice"
                if mount
                else f"two directories are given for one volume: {found[mount]!r}, {directory!r}",
                hint="Give a volume of its own mount with that: --volume /MOUNT=DIR.",
            )
        found[mount] = directory
    return found


def host_name() -> str:
    """Return the name of this container, for those who wait for it."""
    return os.uname().nodename
