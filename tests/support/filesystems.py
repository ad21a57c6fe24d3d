"""Fresh file systems for one test, in sparse files on loop devices."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Final

from support.requirements import need_root, need_tool, unavailable

_MKFS: Final = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
"""How each kind is made; tmpfs needs no making."""

_LEAST_MB: Final = {"ext4": 8, "xfs": 300, "btrfs": 128, "tmpfs": 1}
"""What each kind refuses to be smaller than."""

PATIENCE_S: Final = 300.0
"""How long a file system may be busy after its test; then the test left something open."""


class Filesystems:
    """Makes and mounts file systems below a directory and takes them away again."""

    def __init__(self, directory: Path) -> None:
        """Keep images and mount points in *directory*."""
        self._directory = directory
        self._mounted: list[tuple[Path, Path | None]] = []

    def __call__(self, kind: str, size_mb: int = 64, *, options: str = "") -> Path:
        """Mount a fresh file system and return where.

        Args:
            kind: ``ext4``, ``xfs``, ``btrfs`` or ``tmpfs``.
            size_mb: Its size, raised to the least that the kind allows (xfs: 300).
            options: Further mount options, separated by commas.
        """
        need_root()
        size_mb = max(size_mb, _LEAST_MB[kind])
        name = f"{kind}-{len(self._mounted)}"
        mount_point = self._directory / name
        mount_point.mkdir()
        if kind == "tmpfs":
            image = None
            sized = f"size={size_mb}m,mode=0755" + (f",{options}" if options else "")
            command = [need_tool("mount"), "-t", "tmpfs", "-o", sized, "tmpfs", str(mount_point)]
        else:
            image = self._directory / f"{name}.img"
            with image.open("wb") as file:
                file.truncate(size_mb << 20)
            program, *arguments = _MKFS[kind]
            _run_or_unavailable([need_tool(program), *arguments, str(image)])
            looped = "loop" + (f",{options}" if options else "")
            command = [need_tool("mount"), "-t", kind, "-o", looped, str(image), str(mount_point)]
        _run_or_unavailable(command)
        self._mounted.append((mount_point, image))
        return mount_point

    def unmount_all(self) -> None:
        """Unmount the last one first and free the space of the images.

        Raises:
            AssertionError: If one was busy: the test left something running or open.
        """
        busy = []
        while self._mounted:
            mount_point, image = self._mounted.pop()
            result = _unmount(mount_point)
            if result.returncode != 0 and mount_point.is_mount():
                busy.append(result.stderr.strip())
                _run(["umount", "--lazy", str(mount_point)])
            if image is not None:
                image.unlink()
        if busy:
            raise AssertionError("; ".join(busy))


def _unmount(mount_point: Path) -> subprocess.CompletedProcess[str]:
    """Unmount, and wait while somebody else is on the way out.

    A mount namespace that another test makes at this moment begins with a copy of every mount.
    Until it has thrown the copies away, a loop device that this test has unmounted is still
    attached, and the file system that its file lies on is busy.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        result = _run(["umount", str(mount_point)])
        if result.returncode == 0 or not mount_point.is_mount() or time.monotonic() > deadline:
            return result
        time.sleep(0.1)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)


def _run_or_unavailable(command: list[str]) -> None:
    result = _run(command)
    if result.returncode != 0:
        unavailable(f"{command[0]} does not work here: {result.stderr.strip()}")
