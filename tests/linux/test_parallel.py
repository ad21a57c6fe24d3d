"""A second process of our own: what it failed of, and that it ends with the first."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipavolume.errors import (
    IpaVolumeError,
    ManifestError,
    StoppedError,
    UnsafeVolumeError,
    VolumeIOError,
)
from ipavolume.linux import parallel, signals


@pytest.fixture
def handled() -> Iterator[None]:
    """Signals that ask for an end are noted, as in a run."""
    signals.install()
    yield
    signals.restore()
    signals._stop.clear()


@pytest.mark.parametrize(
    "error",
    [
        UnsafeVolumeError("a link", code="unsafe-path", hint="Replace it."),
        ManifestError("cut short", hint="Prepare it."),
        VolumeIOError("no space", hint="Make room."),
    ],
    ids=lambda error: error.code,
)
def test_an_error_of_the_second_process_is_that_of_the_first(error: IpaVolumeError) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught, parallel.beside(fail):
        pass
    told = caught.value
    assert (str(told), told.code, told.hint) == (str(error), error.code, error.hint)


def test_where_the_first_fails_nobody_waits_for_the_second() -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text().split()
    with pytest.raises(ZeroDivisionError), parallel.beside(signal.pause):
        raise ZeroDivisionError
    assert children.read_text().split() == before


@pytest.mark.usefixtures("handled")
def test_where_both_are_asked_to_end_that_is_no_failure() -> None:
    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signals.check()

    with pytest.raises(StoppedError), parallel.beside(stop):
        os.kill(os.getpid(), signal.SIGTERM)
