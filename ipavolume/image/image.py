"""An image as it is found at a start or on a host: its id, manifest, templates, configuration.

Every link is resolved below the image's root, and nothing of the image is executed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Final, Self

from ipavolume.config.model import MAX_CONFIGURATION_BYTES, Config
from ipavolume.config.reading import parse_config
from ipavolume.errors import ConfigurationError, ManifestError
from ipavolume.formats import manifest
from ipavolume.image.tree import ImageTree
from ipavolume.linux import copying, files
from ipavolume.model.images import PREPARED_LAST, ImageHeader
from ipavolume.model.paths import BUILD_ID_PATH, CONFIG_PATH, MANIFEST_PATH

_MAX_ID_BYTES: Final = 1024


class Image:
    """An image tree below a root directory.

    Attributes:
        root: The directory.
        config: Its configuration.
        header: Header of its manifest.
        build_id: Its id.
        is_recorded: It is no more than what a volume records of its own.
    """

    def __init__(self, root: str, *, called: str = "", is_recorded: bool = False) -> None:
        """Open the image below *root*.

        Args:
            root: The directory.
            called: What messages call the image, where that is not by its directory.
            is_recorded: It is no more than what a volume records of its own.

        Raises:
            ConfigurationError: If configuration or manifest is missing or wrong.
        """
        self.root = root
        self.is_recorded = is_recorded
        self._where = f"below {root!r}"
        self._whose = f"below {root!r}"
        if called:
            self._where, self._whose = repr(called), f"of the image {called!r}"
        self._tree = ImageTree(root, {})
        self._templates: dict[str, int] = {}
        try:
            self.config: Config = parse_config(
                self._tree.read_file(CONFIG_PATH, limit_bytes=MAX_CONFIGURATION_BYTES)
            )
            with self._open_manifest() as stream, self._named():
                self.header: ImageHeader = manifest.read_header(stream)
            self.build_id = self._read_build_id()
            self._check()
        except BaseException:
            self.close()
            raise

    @property
    def tree(self) -> ImageTree:
        """The tree, with every link resolved below its root."""
        return self._tree

    @property
    def is_inside(self) -> bool:
        """The image is the system that runs here, so that its programs may be executed."""
        return self.root == "/"

    def __enter__(self) -> Self:
        """Return the image."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every descriptor."""
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        for fd in self._templates.values():
            os.close(fd)
        self._templates.clear()
        self._tree.__exit__()

    def _check(self) -> None:
        if not self.header.volumes:
            raise _no_manifest(self._where)
        if self.build_id != self.header.build_id:
            raise ManifestError(
                f"the image says it is {self.build_id!r}, its manifest was made for "
                f"{self.header.build_id!r}",
                hint=PREPARED_LAST,
            )

    def _read_build_id(self) -> str:
        template = self.header.volumes[0].template if self.header.volumes else ""
        for path in (BUILD_ID_PATH, f"{template}/build-id"):
            data = self._tree.read_file(path, limit_bytes=_MAX_ID_BYTES)
            if data is not None:
                return data.decode("utf-8", "replace").strip()
        raise ManifestError(
            f"the image has no {BUILD_ID_PATH}",
            hint="Run ipavolume prepare when the image is built.",
        )

    def _open_manifest(self) -> BinaryIO:
        location = self._tree.resolve(MANIFEST_PATH)
        try:
            parent = self._tree.open_directory(location.rpartition("/")[0])
        except FileNotFoundError as err:
            raise _no_manifest(self._where) from err
        try:
            fd = files.open_regular(parent, location.rpartition("/")[2])
        finally:
            os.close(parent)
        if fd is None:
            raise _no_manifest(self._where)
        return files.reader(fd, buffer_bytes=1 << 18)

    def lines(self) -> Iterator[bytes]:
        """Yield the record lines of the manifest."""
        return itertools.chain.from_iterable(self._chunks())

    def _chunks(self) -> Iterator[list[bytes]]:
        with self._open_manifest() as stream:
            manifest.read_header(stream)
            yield from manifest.read_chunks(stream)

    def verify(self) -> None:
        """Check the manifest against count, digest and volumes in its header.

        Raises:
            ManifestError: If it is cut short, was altered or has paths on no volume.
        """
        with self._open_manifest() as stream, self._named():
            manifest.verify(stream, manifest.read_header(stream), places=True)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except ManifestError as err:
            raise ManifestError(
                f"{MANIFEST_PATH!r} {self._whose}: {err}",
                hint=err.hint or "Run ipavolume prepare in the image again.",
            ) from err

    def templates(self) -> Mapping[str, int]:
        """Return a descriptor of the template by mount; they stay the image's.

        Raises:
            ConfigurationError: If a template is missing.
        """
        for volume in self.header.volumes:
            if volume.mount not in self._templates:
                try:
                    self._templates[volume.mount] = self._tree.open_directory(
                        self._tree.resolve(volume.template)
                    )
                except OSError as err:
                    if err.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        raise
                    raise ConfigurationError(
                        f"cannot open the template {volume.template!r}: {err.strerror}",
                        hint=PREPARED_LAST,
                    ) from err
        return self._templates

    def copy_manifest(self, directory: int, name: str) -> None:
        """Copy the manifest to *name* in *directory*, mode 0644."""
        with self._open_manifest() as stream:
            out = files.create_file(directory, name, mode=0o644)
            try:
                copying.copy_content(stream.fileno(), out, files.fstat(stream.fileno()))
            finally:
                os.close(out)

    def mount_directory(self, mount: str) -> str:
        """Return where *mount* is when the image's root is where it is."""
        if self.root == "/":
            return mount
        return self.root.rstrip("/") + self._tree.resolve(mount)


def _no_manifest(where: str) -> ManifestError:
    return ManifestError(
        f"the image {where} has no manifest at {MANIFEST_PATH}",
        hint="Run ipavolume prepare when the image is built; for a tree elsewhere give --root, to "
        "check with an image of docker or podman --image. On a host status, history and conflicts "
        "need none, only the volume's directory, nor do rollback, and snapshot to list and to "
        "drop, with --volume DIR; to make a snapshot by hand (create) takes a container of the "
        "image.",
    )
