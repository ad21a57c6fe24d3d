"""Images that meet volumes: what most tests of an upgrade begin with."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.command import Result, listed_in, result_of, run_ipavolume
from support.images import GROUPS, USERS, Image, make_image
from support.requirements import need_tool

ACCESS_ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"
CAPABILITY = "security.capability"


@dataclass(kw_only=True)
class Site:
    """Image trees and the volumes that they meet, below one directory.

    Attributes:
        top: The directory.
        volumes: Where each volume is, by mount.
    """

    top: Path
    volumes: dict[str, Path] = field(default_factory=dict)

    def image(
        self,
        name: str,
        rpms: Sequence[Path] = (),
        *,
        lists: Mapping[str, Sequence[str]],
        config: str = "",
        passwd: str = USERS,
        group: str = GROUPS,
        edit: Callable[[Image], None] | None = None,
        image_name: str | None = None,
    ) -> Image:
        """Make the tree *name* with the real rpm and prepare it.

        Args:
            name: Name of the tree and its build id.
            rpms: Packages that are installed in it.
            lists: Paths by the mount they belong to.
            config: Text of its ``ipavolume.toml``; "" for none.
            passwd: Its passwd.
            group: Its group.
            edit: What its Dockerfile does between rpm and ``prepare``.
            image_name: What people call it.
        """
        image = make_image(self.top / name)
        image.write("/etc/passwd", passwd)
        image.write("/etc/group", group)
        if rpms:
            image.install(*rpms)
        for mount, paths in lists.items():
            image.list(*paths, name=mount.rpartition("/")[2])
        if config:
            image.write("/etc/ipavolume.toml", config)
        if edit is not None:
            edit(image)
        image.prepare(build_id=name, image_name=image_name)
        return image

    def volume(self, mount: str = "/data") -> Path:
        """Return the directory of a volume; it is made when first asked for."""
        if mount not in self.volumes:
            directory = self.top / f"volume{mount.replace('/', '-')}"
            directory.mkdir(mode=0o755)
            self.volumes[mount] = directory
        return self.volumes[mount]

    def arguments(self, image: Image) -> list[str]:
        """Return the options that name *image* and the volumes."""
        self.volume()
        words = ["--root", str(image.root)]
        for mount, directory in self.volumes.items():
            words += ["--volume", f"{mount}={directory}"]
        return words

    def run(
        self,
        command: str,
        image: Image,
        *args: str,
        status: int | None = 0,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command of ipavolume with *image* on the volumes."""
        options = self.arguments(image)
        return run_ipavolume(command, *options, *args, status=status, env=env)

    def upgrade(
        self, image: Image, *args: str, env: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Bring the volumes to *image*; return what ``--json`` says of it."""
        outcome = result_of(self.run("upgrade", image, "--json", *args, env=env).stdout)
        assert outcome["recorded"] == image.header().build_id
        assert (self.volume() / "build-id").read_text().strip() == outcome["recorded"]
        return outcome

    def refused(
        self,
        image: Image,
        code: str,
        *args: str,
        status: int = 65,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Let an upgrade be refused; return its message, with ``error: `` in front."""
        said = self.run("upgrade", image, *args, status=status, env=env).stderr
        (line,) = [one for one in said.splitlines() if "error:" in one]
        assert line.endswith(f"[{code}]"), said
        assert "hint:" in said, said
        return line

    def history(self) -> list[dict[str, Any]]:
        """Return the recorded runs, oldest first."""
        return listed_in(run_ipavolume("history", "--json", self.volume()).stdout)


def actions(outcome: Mapping[str, Any], op: str) -> dict[str, dict[str, Any]]:
    """Return the actions of one kind that an upgrade carried out, by path."""
    return {
        action["path"]: action
        for plan in outcome["plans"]
        for action in plan["actions"]
        if action["op"] == op
    }


def owner(path: Path) -> tuple[int, int, int]:
    """Return user, group and permission bits of *path*, of a link itself."""
    st = path.lstat()
    return st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)


def xattr(path: Path, name: str) -> bytes:
    """Return an extended attribute of *path*, of a link itself; b"" when it has none."""
    if name not in os.listxattr(path, follow_symlinks=False):
        return b""
    return os.getxattr(path, name, follow_symlinks=False)


def set_acl(path: Path, *entries: str, default: bool = False) -> None:
    """Add entries to the ACL of *path*, written as setfacl wants them."""
    command = [need_tool("setfacl"), *(["-d"] if default else []), "-m", ",".join(entries)]
    subprocess.run([*command, "--", str(path)], check=True, timeout=60)


def acl(path: Path, *, default: bool = False) -> list[str]:
    """Return the ACL of *path* as getfacl prints it, by numbers, without what masks hide."""
    kind = "-d" if default else "-a"
    command = [need_tool("getfacl"), kind, "-c", "-n", "-p", "-E", "--", str(path)]
    said = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout
    return [line for line in said.splitlines() if line]


def set_capability(path: Path, text: str) -> None:
    """Give *path* file capabilities, written as setcap wants them."""
    subprocess.run([need_tool("setcap"), text, str(path)], check=True, timeout=60)
