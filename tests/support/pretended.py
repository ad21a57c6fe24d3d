"""A command that is called docker or podman and serves a directory: for what no real engine does.

It answers as docker 20.10 does, writes down how it was called, and gives the archives that a
test made in the place of those of the directory: damaged, hostile, without end.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

_SCRIPT: Final = """#!{python} -ISB
import json, os, shutil, sys, tarfile
here = {here!r}
me = os.path.basename(sys.argv[0])
words = sys.argv[1:]
with open(here + "/calls", "a") as log:
    log.write(json.dumps([me, *words]) + "\\n")
failure = f"{{here}}/{{me}}-says"
if os.path.exists(failure):
    sys.exit(open(failure).read())
if words[0] == "image":
    if not os.path.isdir(f"{{here}}/{{me}}-tree"):
        sys.exit(f"Error: No such image: {{words[-1]}}")
    print("sha256:0123456789abcdef")
elif words[0] == "create" and os.path.exists(here + "/create-waits"):
    open(here + "/create-waits").read()
    with open(here + "/calls", "a") as log:
        log.write(json.dumps([me, "created"]) + "\\n")
elif words[0] == "rm" and not os.path.exists(here + "/pruned"):
    print(words[-1])
elif words[0] == "cp" and os.path.exists(here + "/pruned"):
    sys.exit(open(here + "/pruned").read().replace("CONTAINER", words[1].partition(":")[0]))
elif words[0] == "cp":
    path = words[1].partition(":")[2]
    instead = here + "/archives/" + path.replace("/", "%")
    if os.path.lexists(instead):
        with open(instead, "rb") as stream:
            shutil.copyfileobj(stream, sys.stdout.buffer)
        sys.exit(os.path.exists(instead + ".fails") and "Error: connection reset by peer")
    place = f"{{here}}/{{me}}-tree{{path}}"
    if not os.path.lexists(place):
        sys.exit(f"Error: Could not find the file {{path}} in container {{words[1]}}")
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        archive.add(place, arcname=os.path.basename(place))
"""


@dataclass(frozen=True)
class Pretended:
    """Pretended engines.

    Attributes:
        directory: Where their commands are.
    """

    directory: Path

    def path(self) -> str:
        """Return a PATH on which these are the only engines."""
        return str(self.directory / "bin")

    def install(self, name: str = "docker", tree: Path | None = None) -> None:
        """Make the command *name*; its one image has the files of *tree*."""
        command = self.directory / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(_SCRIPT.format(python=sys.executable, here=str(self.directory)))
        command.chmod(0o755)
        (self.directory / "archives").mkdir(exist_ok=True)
        if tree is not None:
            (self.directory / f"{name}-tree").symlink_to(tree)

    def fail(self, text: str, name: str = "docker") -> None:
        """Let the command fail with *text* whatever it is asked."""
        (self.directory / f"{name}-says").write_text(text)

    def prune(self, text: str) -> None:
        """Let somebody remove each container once it is made; ``cp`` says *text* of it then."""
        (self.directory / "pruned").write_text(text)

    def let_create_wait(self) -> Path:
        """Let ``create`` wait until the pipe that is returned was opened and closed."""
        pipe = self.directory / "create-waits"
        os.mkfifo(pipe)
        return pipe

    def instead(self, path: str) -> Path:
        """Return the file to make for an archive that is given for *path*."""
        return self.directory / "archives" / path.replace("/", "%")

    def calls(self) -> list[list[str]]:
        """Return how the commands were called, in order."""
        log = self.directory / "calls"
        if not log.exists():
            return []
        return [json.loads(line) for line in log.read_text().splitlines()]


def archive(*members: tuple[str, bytes | str], edit: Callable[[tarfile.TarInfo], None]) -> bytes:
    """Return an archive.

    Args:
        members: Names, with the content of a file, or the target of a link in a string; ""
            makes a directory.
        edit: Changes a member before it is added.
    """
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            stream = None
            if isinstance(content, bytes):
                info.size = len(content)
                stream = BytesIO(content)
            elif content:
                info.type = tarfile.SYMTYPE
                info.linkname = content
            else:
                info.type = tarfile.DIRTYPE
            edit(info)
            tar.addfile(info, stream)
    return buffer.getvalue()


def listing(directory: Path) -> list[str]:
    """Return the names in a directory, sorted."""
    return sorted(os.listdir(directory))
