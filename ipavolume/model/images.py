"""What an image declares: volumes, accounts, the header of its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Final

from ipavolume.model.packages import Package
from ipavolume.model.values import dataclass

PREPARED_LAST: Final = (
    "Build the image again, with RUN ipavolume prepare as the last change in its Dockerfile: that "
    "of an image derived from a prepared one needs it, too."
)
"""What to do about an image that was changed after it was prepared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopLevel:
    """What a template has right below a mount, and how much is in it.

    Attributes:
        path: Its path below the mount, as the container sees it.
        is_directory: It is a directory.
        entries: Number of records that have content in the template, its own included.
        bytes: Sum of their sizes; of several names of one file the first counts.
    """

    path: str
    is_directory: bool
    entries: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSpec:
    """A volume as an image declares it.

    Attributes:
        mount: Where the container sees it.
        template: Where the image keeps its pristine content.
        volatile: Emptied and filled at each start, never upgraded.
        entries: The normalised entries of its path lists, without trailing slashes.
        profile: Those of the entries that the profile's own list has.
        top: What the template has right below the mount, sorted; ``None`` in a manifest that
            does not say, as those of before 0.1 do not.
    """

    mount: str
    template: str
    volatile: bool = False
    entries: tuple[str, ...] = ()
    profile: tuple[str, ...] = ()
    top: tuple[TopLevel, ...] | None = None

    def above_entries(self) -> Iterator[str]:
        """Yield the directories between the mount and what is listed."""
        for entry in self.entries:
            for end in range(1, len(entry)):
                if entry[end] == "/":
                    yield self.mount + entry[:end]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """Names and numbers of the accounts of an image, from its own files.

    Attributes:
        users: Number by user name.
        groups: Number by group name.
    """

    users: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """The first record of a manifest: which image this is.

    Attributes:
        build_id: Id of the image build.
        image_name: What people call the image, or "".
        created: Time of the build, ISO 8601 in UTC.
        os_id: ``ID`` of os-release.
        os_version: ``VERSION_ID`` of os-release.
        fingerprint: SHA-256 of what matters to a volume; equal for a rebuild without change.
        packages: Installed packages, sorted by name.
        accounts: The image's passwd and group.
        volumes: Its volumes; the first is the primary one.
        links: Symbolic links of the image that lead into a mount: path and target.
        units: Units that systemd of the image finds, such as ``system/sshd.service``, where its
            lists cover links to units; otherwise none.
        records: Number of path records that follow.
        records_digest: BLAKE2b-256 of the bytes of the record lines.
        application: The application whose state is kept, by the word it is recorded with, or "".
        owning: Names of the packages that own something of the records besides directories above
            listed paths, sorted, and whether any of that is no directory; ``None`` in a manifest
            that does not say.
    """

    build_id: str
    image_name: str = ""
    created: str = ""
    os_id: str = ""
    os_version: str = ""
    fingerprint: str = ""
    packages: tuple[Package, ...] = ()
    accounts: Accounts = Accounts()
    volumes: tuple[VolumeSpec, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    units: tuple[str, ...] = ()
    records: int = 0
    records_digest: str = ""
    application: str = ""
    owning: tuple[tuple[str, bool], ...] | None = None

    @property
    def kept_mounts(self) -> frozenset[str]:
        """Where the volumes are whose content stays; a volatile one has no state of ours."""
        return frozenset(volume.mount for volume in self.volumes if not volume.volatile)


def named(build_id: str, names: Mapping[str, str]) -> str:
    """Return how people know an image: by its id, and its name where *names* has it."""
    name = names.get(build_id, "")
    return f"{name} ({build_id})" if name else build_id


def name_of(header: ImageHeader) -> str:
    """Return how people know an image: by its name, where it has one, and its id."""
    return named(header.build_id, {header.build_id: header.image_name})
