"""Programs for image trees that hold nothing to run: this machine's, with their libraries."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from support.requirements import need_tool


def add_programs(root: Path, *names: str) -> None:
    """Copy programs and what they are linked with into the tree below *root*.

    Args:
        root: The tree.
        names: The programs, found by this machine's PATH.
    """
    for name in names:
        program = Path(need_tool(name)).resolve()
        linked = subprocess.run(
            [need_tool("ldd"), str(program)], check=True, capture_output=True, text=True, timeout=60
        ).stdout
        for file in (str(program), *re.findall(r"(/\S+) \(0x", linked)):
            copy = root / file.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        link = root / "bin" / name
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(program)
