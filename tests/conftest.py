"""Fixtures that every test may use; what they are made of is in ``support``."""

from __future__ import annotations

import compileall
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.command import PROJECT, RunIpavolume, run_ipavolume
from support.filesystems import Filesystems
from support.printable import escape_all
from support.requirements import need_root, need_tool

# A shell starts what it puts into the background with these ignored, nohup with the first, and so
# would everything be that is started here.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _default = signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _default)

# A test gives the same answer every time, on a slow machine too.
settings.register_profile("same-every-time", derandomize=True, deadline=None)
settings.load_profile("same-every-time")


def pytest_configure(config: pytest.Config) -> None:
    """Compile the package: a run that loads its source takes three times as long.

    Runs do not write what they compile, so that none does other things than the one before.
    """
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(PROJECT / "ipavolume", quiet=1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a marked test on a machine that cannot run it; in CI, fail it."""
    if item.get_closest_marker("root") or item.get_closest_marker("filesystem"):
        need_root()
    if item.get_closest_marker("rpm"):
        need_tool("rpm")
        need_tool("rpmbuild")
    if item.get_closest_marker("crash"):
        need_tool("strace")


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, object, object]:
    """Let a worker of pytest-xdist survive a failure that shows an undecodable file name."""
    return escape_all((yield))


@pytest.fixture(scope="session")
def ipavolume() -> RunIpavolume:
    """Run ``ipavolume ARGS...``; see :func:`support.command.run_ipavolume`."""
    return run_ipavolume


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[Filesystems]:
    """Mount fresh file systems: ``filesystem("xfs", 400)`` returns the mount point."""
    filesystems = Filesystems(tmp_path)
    yield filesystems
    filesystems.unmount_all()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests recorded: ``record_property("figures", TEXT)``."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in getattr(report, "user_properties", ()):
            if name == "figures":
                terminalreporter.section(report.nodeid.rpartition("::")[2], sep="-")
                terminalreporter.write_line(str(value))
