"""The benchmark runs, and says what changed against an earlier run of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import PROJECT, clean_environment

# As it is printed; the line at the end is one of a comparison.
EARLIER = """\
what          contestant       median s  min..max s      ratio  CPU s  MiB
populate 20   cp -a + sync -f  0.0324    0.0324..0.0324  1.00   0.005  17
              populate         1.5882    1.5882..1.5882  49.01  7.285  28   <--
populate 999  populate         1.5882    1.5882..1.5882  49.01  0.285  28   <--

populate 20: ratio 1.00 -> 49.01, CPU 1.000 -> 7.285 s
"""


pytestmark = [pytest.mark.root, pytest.mark.rpm, pytest.mark.filesystem, pytest.mark.slow]


def _measure(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = directory / "ipavolume"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m ipavolume "$@"\n')
    command.chmod(0o755)
    words = [sys.executable, str(PROJECT / "scripts/benchmark.py"), "--quick"]
    words += ["--command", str(command), "--interpreter", sys.executable]
    words += ["--directory", str(directory), *options]
    done = subprocess.run(
        words, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def _rows(table: str) -> list[list[str]]:
    return [re.split(" {2,}", line) for line in table.splitlines()]


def _ours(rows: list[list[str]]) -> list[str]:
    return [row[1] for row in rows if row[-1] == "<--"]


def test_the_benchmark_runs_and_compares(tmp_path: Path) -> None:
    (tmp_path / "earlier").write_text(EARLIER)
    done = _measure(tmp_path, "--floor", "--against", str(tmp_path / "earlier"))
    table, _, changed = done.stdout.partition("\n\n")
    rows = _rows(table)
    names = set(_ours(rows))
    assert names >= {"populate", "check", "unchanged", "5 % changed", "start", "snapshot"}
    assert "owners translated" in names
    assert [row[1] for row in rows].count("least") == 3
    assert any(row[0] == "check of 3 volumes 20" for row in rows)
    has_engine = "docker does not answer" not in done.stderr
    assert has_engine == any(row[0] == "populate in a container 20" for row in rows)
    ours = next(row for row in rows if row[1] == "populate")
    assert changed == f"populate 20: ratio 49.01 -> {ours[4]}, CPU 7.285 -> {ours[5]} s\n"
    assert not list(tmp_path.glob("*.img"))


def test_what_every_change_is_held_against_is_measured_alone(tmp_path: Path) -> None:
    done = _measure(tmp_path, "--core")
    assert _ours(_rows(done.stdout)) == ["populate", "unchanged", "5 % changed", "start"]
