"""An image and its volumes, opened, locked and looked at: what every command starts with."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from ipavolume.errors import (
    IpaVolumeError,
    LockedError,
    ManifestError,
    UnsafeVolumeError,
    UsageError,
)
from ipavolume.formats.manifest import (
    MAX_PATH_CHARACTERS,
    check_place,
    is_safe_path,
    parse_record,
    path_of,
)
from ipavolume.image.image import Image
from ipavolume.linux import signals as interruption
from ipavolume.model.files import FileType, ImageHeader, VolumeSpec
from ipavolume.plan.verdict import Question, Verdict, judge
from ipavolume.volume import adopt
from ipavolume.volume import facts as state
from ipavolume.volume import lock as holding
from ipavolume.volume import tree as scan
from ipavolume.volume.facts import Facts, Volume
from ipavolume.volume.tree import Tree

_LOCK_POLL_S: Final = 0.1
_MAX_SIZE_DIGITS: Final = 19

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator asks for.

    Attributes:
        root: Root of the image tree.
        called: What messages call the image, where that is not by its root.
        volumes: Where each volume is, by mount; the others are below the root.
        allow: Codes of refusals that are overridden.
        lock_timeout_s: Seconds to wait for another holder of the lock.
        came_from: ``id:version`` of the release a volume of unknown origin comes from.
        checksum: Hash everything instead of trusting the index.
        expect_existing: Refuse to populate.
        consent: Let upgrades happen.
        again: Run everything for the image that the volume already has.
        retry: Try once more what failed in the same way several times.
    """

    root: str = "/"
    called: str = ""
    volumes: Mapping[str, str] = field(default_factory=dict)
    allow: frozenset[str] = frozenset()
    lock_timeout_s: float = 0.0
    came_from: str = ""
    checksum: bool = False
    expect_existing: bool = False
    consent: bool = True
    again: bool = False
    retry: bool = False


OVERRIDES: Final = {
    "blocked": "finish what a newer image began, then go on with this one",
    "hostname": "start a volume under another host name than its own",
    "incompatible": "take a volume from a release that the image does not accept",
    "lost-secondary": "fill a further volume again that was lost",
    "mounted-over": "leave what is mounted over a path as it is",
    "newer": "go back to older packages",
    "partial": "go on over what an interrupted first run left",
    "reused-id": "leave files of an account that is gone to the one with its number now",
    "space": "begin although there may be too little room",
    "stateless": "take over a volume that has files but no state of ours",
    "type-change": "move a directory away that has to become something else",
}
"""The refusals that can be overridden, by code."""


class Session:
    """An image and its volumes.

    Attributes:
        image: The image.
        options: What the operator asks for.
        volumes: The volumes that are upgraded, by mount, the primary one first.
        volatile: The volumes that are emptied and filled at each start.
        joined: It is another process of this container that holds the volumes.
    """

    def __init__(self, options: Options) -> None:
        """Open the image and its volumes.

        Raises:
            IpaVolumeError: If the image is not prepared, or a volume is not there.
        """
        self.options = options
        self.joined = False
        self._work: int | None = None
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self.image = stack.enter_context(Image(options.root, called=options.called))
            self.image.verify()
            specs = self.image.header.volumes
            unknown = set(options.volumes) - {spec.mount for spec in specs}
            if unknown:
                raise UsageError(
                    f"the image has no volume {sorted(unknown)[0]!r}; it has "
                    + ", ".join(spec.mount for spec in specs)
                )
            self.volumes: dict[str, Volume] = {}
            self.volatile: dict[str, Volume] = {}
            self._top_level: dict[str, list[int]] = {}
            for spec in specs:
                self._open(spec, stack)
            if not self.volumes:
                raise UsageError("every volume of the image is volatile: nothing to keep")
            self._stack = stack.pop_all()

    def _open(self, spec: VolumeSpec, stack: contextlib.ExitStack) -> None:
        directory = self.options.volumes.get(spec.mount)
        if directory is None:
            directory = self.image.mount_directory(spec.mount)
        kind, mount_options = scan.file_system_of(directory)
        volume = state.open_volume(spec.mount, directory, file_system=kind, options=mount_options)
        stack.callback(os.close, volume.fd)
        (self.volatile if spec.volatile else self.volumes)[spec.mount] = volume

    def __enter__(self) -> Session:
        """Return the session."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything; with the volumes the lock goes."""
        self._stack.close()
        # After the volumes: see holding.
        self.pause()

    @property
    def is_inside(self) -> bool:
        """The image is the system that runs here, so that its programs may be executed."""
        return self.options.root == "/"

    @property
    def primary(self) -> Volume:
        """The primary volume."""
        return next(iter(self.volumes.values()))

    # -- the lock ------------------------------------------------------------------------

    def lock(self, progress: Progress) -> None:
        """Take the lock of every volume, or work under the one that this container holds.

        Nothing is created; see :mod:`ipavolume.holding`.

        Raises:
            LockedError: If another one holds it longer than the operator waits.
            UnsafeVolumeError: If the file system cannot lock across hosts.
        """
        for volume in self.volumes.values():
            if volume.file_system.startswith("nfs") and any(
                word in volume.options for word in ("local_lock=all", "local_lock=flock", "nolock")
            ):
                raise UnsafeVolumeError(
                    f"{volume.directory!r} is on NFS with local locks: another host could work "
                    "on it at the same time",
                    code="local-lock",
                    hint="Mount it without nolock and local_lock.",
                )
        self._lock(progress)

    def _lock(self, progress: Progress) -> None:
        deadline = time.monotonic() + self.options.lock_timeout_s
        waiting = False
        while (busy := self._try_lock()) is not None:
            what, holder = busy
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"{what} is in use{holder}",
                    hint="Stop that container or command first, or wait for it with "
                    "--lock-timeout SECONDS.",
                    state="the volume was not touched",
                )
            if not waiting:
                progress(f"waiting for {what}, in use{holder}")
                waiting = True
            time.sleep(_LOCK_POLL_S)
            interruption.check()

    def _try_lock(self) -> tuple[str, str] | None:
        """Take the locks; return what is in use, and by whom, or ``None`` when all are taken."""
        if not self.go_on():
            return f"the volume {self.primary.directory!r}", " by another command of this container"
        self.joined = False
        for volume in self.volumes.values():
            if holding.try_lock(volume):
                continue
            if not (self.is_inside and holding.is_held_here(volume)):
                self.pause()
                return f"the volume {volume.directory!r}", self._holder(volume)
            self.joined = True
        return None

    def pause(self) -> None:
        """Let others in this container work on the volumes; it still holds them."""
        if self._work is not None:
            os.close(self._work)
            self._work = None

    def go_on(self) -> bool:
        """Be the one in this container that works on the volumes; tell whether nobody else is."""
        if self.is_inside and self._work is None:
            above = max(volume.fd for volume in self.volumes.values())
            self._work = holding.try_work_lock(above)
            return self._work is not None
        return True

    def is_locked(self) -> bool:
        """Tell whether another container or command works on the volumes; nothing is kept."""
        for volume in self.volumes.values():
            try:
                fcntl.flock(volume.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if not (self.is_inside and holding.is_held_here(volume)):
                    return True
            except OSError:
                continue
            else:
                fcntl.flock(volume.fd, fcntl.LOCK_UN)
        free = self.go_on()
        self.pause()
        return not free

    def _holder(self, volume: Volume) -> str:
        """Say what is known of who holds the lock."""
        texts = [_process(pid) for pid in holding.holders(volume.fd)]
        with contextlib.suppress(IpaVolumeError):
            open_ = state.read_facts(volume).transaction
            if open_ is not None:
                texts.append(f"run {open_.run} of container {open_.holder}, since {open_.started}")
        known = [text for text in texts if text]
        return f" ({'; '.join(known)})" if known else " by another container"

    # -- looking -------------------------------------------------------------------------

    def facts(self) -> dict[str, Facts]:
        """Return what each volume says of itself.

        Raises:
            UnsafeVolumeError: If one cannot be trusted.
        """
        return {mount: state.read_facts(volume) for mount, volume in self.volumes.items()}

    def tree(self) -> Tree:
        """Return a fresh view of the volumes."""
        return Tree({mount: volume.fd for mount, volume in self.volumes.items()})

    def judge(self, facts: Mapping[str, Facts]) -> Verdict:
        """Name the state the volumes are in."""
        primary = facts[self.primary.mount]
        legacy = None
        occupied = dict.fromkeys(self.volumes, "")
        if primary.baseline is None and primary.transaction is None:
            for mount in self.volumes:
                occupied[mount] = self._occupied(mount)
            if primary.legacy or primary.build_id is not None or any(occupied.values()):
                legacy = self.learn()
        return judge(
            Question(
                mounts=tuple(self.volumes),
                facts=facts,
                image=self.image.header,
                accept=self.image.config.accept_from,
                guard=self.image.config.accept_guard or ("*",),
                allow=self.options.allow,
                occupied=occupied,
                legacy=legacy,
                expect_existing=self.options.expect_existing,
                consent=self.options.consent,
            )
        )

    def learn(self) -> ImageHeader:
        """Return what can be learned of the last image of a volume without our state."""
        return adopt.learn(self.primary, operator_says=self.options.came_from)

    def _occupied(self, mount: str) -> str:
        """Return a path of the template that is on the volume, or ""."""
        with self.tree() as tree:
            if not any(tree.state(path) for path, _, _ in self.top_level(mount)):
                return ""
            for line in self.image.lines():
                record = parse_record(line)
                if not record.path.startswith(mount + "/"):
                    continue
                found = tree.state(record.path)
                if found is not None and (
                    found.type is not FileType.DIRECTORY or record.type is not FileType.DIRECTORY
                ):
                    return record.path
        return ""

    def top_level(self, mount: str) -> Iterator[tuple[str, int, int]]:
        """Yield what the template has right below *mount*: path, number of records and bytes.

        The number is negative for what is not a directory.
        """
        if not self._top_level:
            self._count_top_level()
        for path, (entries, size) in self._top_level.items():
            if entries and path.startswith(mount + "/"):
                yield path, entries, size

    def _count_top_level(self) -> None:
        prefixes = tuple(volume + "/" for volume in (*self.volumes, *self.volatile))
        groups = self._top_level
        previous = b""
        for line in self.image.lines():
            path = path_of(line)
            if (key := os.fsencode(path)) <= previous or len(path) > MAX_PATH_CHARACTERS:
                raise ManifestError(
                    f"the manifest is not sorted, or has too long a path, at {path[:200]!r}"
                )
            previous = key
            prefix = next((one for one in prefixes if path.startswith(one)), "")
            if not prefix:
                continue
            end = path.find("/", len(prefix))
            top = path if end < 0 else path[:end]
            if top not in groups:
                check_place(top, prefix[:-1])
            group = groups.setdefault(top, [0, 0])
            if b'"present":false' in line:
                continue
            group[0] += 1 if end >= 0 or b'"type":"directory"' in line else -1
            start = line.find(b'"size":')
            if start >= 0:
                digits = line[start + 7 : line.find(b",", start)]
                sound = digits.isdigit() and len(digits) < _MAX_SIZE_DIGITS
                group[1] += int(digits) if sound else parse_record(line).size

    def mounted_below(self) -> tuple[str, ...]:
        """Return the mount points below the volumes that are no volumes of the image."""
        declared = {os.path.realpath(volume.directory) for volume in self.volumes.values()}
        declared |= {os.path.realpath(volume.directory) for volume in self.volatile.values()}
        result = []
        for mount, volume in self.volumes.items():
            base = os.path.realpath(volume.directory)
            for below in scan.mount_points_below(volume.directory):
                if f"{base.rstrip('/')}/{below}" not in declared:
                    result.append(f"{mount}/{below}")
        return tuple(result)


def _process(pid: int) -> str:
    if pid <= 0:
        return ""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as stream:
        words = stream.read(200).split(b"\0")
        command = b" ".join(words[:4]).decode("utf-8", "backslashreplace")
        return f"process {pid}: {command.strip()}"
    return f"process {pid}"


def parse_volume_option(value: str, mounts: tuple[str, ...]) -> tuple[str, str]:
    """Split ``[MOUNT=]DIR``.

    Raises:
        UsageError: If the mount is not an absolute path.
    """
    mount, separator, directory = value.partition("=")
    if not separator:
        return (mounts[0] if mounts else ""), value
    if not is_safe_path(mount) or not directory:
        raise UsageError(f"--volume {value!r}: write it as DIR or as /MOUNT=DIR")
    return mount, directory


def refuse(verdict: Verdict) -> None:
    """Raise what a start raises for *verdict*, if it refuses.

    Raises:
        IpaVolumeError: The verdict's error.
    """
    if verdict.error is not None:
        raise verdict.error


def host_name() -> str:
    """Return the name of this container, for those who wait for it."""
    return os.uname().nodename
