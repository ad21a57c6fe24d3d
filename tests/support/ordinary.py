"""An ordinary user of this machine, who may talk to docker and who has ipavolume installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.command import PROJECT, Result, clean_environment
from support.requirements import need_root, need_tool, unavailable

SOCKET: Final = "/var/run/docker.sock"
_UID: Final = 54321


@dataclass(frozen=True)
class User:
    """Somebody without an account.

    Attributes:
        home: A directory of theirs, in which the program is installed.
        groups: Further groups.
    """

    home: Path
    groups: Sequence[int] = ()

    def run(self, *args: str | Path, status: int) -> Result:
        """Run ``ipavolume ARGS...``."""
        words = [need_tool("setpriv"), f"--reuid={_UID}", f"--regid={_UID}"]
        groups = ",".join(map(str, self.groups))
        words += [f"--groups={groups}" if groups else "--clear-groups", "--inh-caps=-all"]
        result = subprocess.run(
            [*words, os.path.realpath(sys.executable), "-m", "ipavolume", *map(str, args)],
            capture_output=True,
            check=False,
            text=True,
            timeout=120,
            env=clean_environment({"PYTHONPATH": str(self.home / "lib"), "HOME": str(self.home)}),
            cwd=self.home,
        )
        assert result.returncode == status, (args, result.stdout, result.stderr)
        return result


def docker_group() -> int:
    """Return the group that may talk to docker."""
    group = os.stat(SOCKET).st_gid
    if group == 0:
        unavailable(f"no group but root's may use {SOCKET}")
    return group


def make_user(home: Path, groups: Sequence[int] = ()) -> User:
    """Make a user; *home* and all above it have to be open to everybody."""
    need_root()
    library = home / "lib"
    shutil.copytree(PROJECT / "ipavolume", library / "ipavolume")
    for name in ("click", "packaging"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        shutil.copytree(Path(spec.origin).parent, library / name)
    for path in (home, *home.rglob("*")):
        os.chown(path, _UID, _UID)
        path.chmod(path.stat().st_mode | 0o055 if path.is_dir() else 0o644)
    return User(home=home, groups=groups)
