"""Running the program in a user namespace whose ids lie where a test wants them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from support.command import Result, clean_environment

_IN_NAMESPACE: Final = """
import ctypes, importlib, os, pkgutil, sys
import ipavolume, packaging.specifiers, packaging.version
# All is loaded first: the interpreter may lie where that root may not look.
for module in pkgutil.walk_packages(ipavolume.__path__, 'ipavolume.'):
    if not module.name.endswith('__main__'):
        importlib.import_module(module.name)
mapping = sys.argv.pop(1)
ready, inside = os.pipe()
mapped, outside = os.pipe()
child = os.fork()
if not child:
    libc = ctypes.CDLL(None)
    if libc.unshare(0x10000000):
        os._exit(126)
    os.write(inside, b'x')
    if os.read(mapped, 1) != b'x':
        os._exit(126)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # As a process that was started by this root is: its /proc/self belongs to it.
    libc.prctl(4, 1, 0, 0, 0)
    sys.exit(ipavolume.cli.main.run())
os.close(inside)
os.read(ready, 1)
for kind in ('uid', 'gid'):
    with open(f'/proc/{child}/{kind}_map', 'w') as stream:
        stream.write(mapping)
os.write(outside, b'x')
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


Rows = Sequence[tuple[int, int, int]]
"""A mapping of ids: first one inside, first one outside, how many."""


def run_remapped(
    *args: str | Path, begin: int, count: int = 65536, status: int | None = 0
) -> Result:
    """Run ``ipavolume ARGS...`` as root of a user namespace, as a remapping engine does.

    Args:
        args: Command and options; what they name has to be open to everybody.
        begin: What id 0 is outside.
        count: How many ids there are.
        status: The exit status that the test expects; ``None`` takes any.
    """
    return run_mapped(*args, rows=[(0, begin, count)], status=status)


def run_mapped(
    *args: str | Path,
    rows: Rows,
    status: int | None = 0,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run ``ipavolume ARGS...`` as root of a user namespace, as a rootless engine does.

    Args:
        args: Command and options; what they name has to be open to everybody.
        rows: Which ids there are.
        status: The exit status that the test expects; ``None`` takes any.
        env: Variables on top of this process's.
    """
    mapping = "".join(f"{' '.join(map(str, row))}\n" for row in rows)
    result = subprocess.run(
        [sys.executable, "-c", _IN_NAMESPACE, mapping, *map(str, args)],
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="surrogateescape",
        env=clean_environment(env),
        cwd="/",
        timeout=60,
    )
    assert status in (None, result.returncode), result.stdout + result.stderr
    return result
