"""What systemctl prints, also where it prints something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipavolume.systemd import units

CANNOT = (
    "Failed to connect to system scope bus via local transport: Operation not permitted "
    "(consider using --machine=<user>@.host --user to connect to bus of other user)"
)
NOISE = "Bus n/a: changing state UNSET -> OPENING\nsd-bus: starting bus\n"


def _systemctl(top: Path, monkeypatch: pytest.MonkeyPatch, text: str, *, status: int = 0) -> None:
    program = top / "systemctl"
    (top / "text").write_text(text)
    program.write_text(f"#!/bin/sh\n/bin/cat {top}/text\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(top))


def test_units_are_read_between_the_lines_of_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SYSTEMD_LOG_LEVEL=debug in the environment systemctl says much more."""
    shown = f"{NOISE}Names=a.service alias.service\nActiveState=active\n\n{NOISE}"
    shown += "Names=b.service\nActiveState=failed\n"
    _systemctl(tmp_path, monkeypatch, shown)
    assert [(unit.names, unit.state) for unit in units.units(["*"])] == [
        (("a.service", "alias.service"), "active"),
        (("b.service",), "failed"),
    ]
    _systemctl(tmp_path, monkeypatch, f"{NOISE}● a.service loaded failed failed A\n{NOISE}")
    assert units.failed_services() == ("a.service",)


def test_a_message_is_no_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _systemctl(tmp_path, monkeypatch, f"{CANNOT}\n", status=1)
    assert units.units(["a.service"]) == []
    assert units.failed_services() == ()
    assert units.failed_since(0) == []
    assert units.state_of_default_target() == "unknown"


def test_the_state_of_the_default_target_is_one_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _systemctl(tmp_path, monkeypatch, f"{NOISE}inactive\n{NOISE}", status=3)
    assert units.state_of_default_target() == "inactive"
