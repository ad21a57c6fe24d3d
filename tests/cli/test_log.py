"""``--log-format json``: an object a line on standard error, whatever is said there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command import run_ipavolume
from support.images import Packaged, build_rpm
from support.schema import faults
from support.taskworlds import World, step

from ipavolume import fastpath
from ipavolume.cli import output
from ipavolume.cli.output import Teller
from ipavolume.model.progress import Printed, Tick

JSON = {"IPAVOLUME_LOG_FORMAT": "json"}
PRINTS = """
yield Command(words=("sh", "-c", "printf 'a\\\\tb\\\\033[31m\\\\377\\\\n'"), reason="to be seen")
yield Warn(code="odd", text="something is odd", hint="look")
"""
FAILS = """
yield Command(words=("sh", "-c", "echo the cause; exit 3"), reason="to be seen")
"""


def objects(said: str) -> list[dict[str, Any]]:
    """Return the objects of a log, every line of which is one."""
    found = [json.loads(line) for line in said.splitlines()]
    for one in found:
        assert list(one)[:3] == ["time", "level", "text"], one
        assert list(faults(one, "log", "log", seen=set())) == []
        assert one["level"] in ("info", "warning", "error")
    assert "\x1b" not in said
    return found


@pytest.mark.root
@pytest.mark.rpm
def test_a_start_its_commands_and_its_failure_are_objects(tmp_path: Path) -> None:
    files = [Packaged(path="/etc/svc/svc.conf", words="%config", content="1")]
    rpms = {v: build_rpm(tmp_path, "svc", files, version=v) for v in ("1", "2")}
    world = World(tmp_path, rpms)
    world.run(world.image("1", {}), "upgrade", "-q")
    good = world.image("2", {"s5000_prints": step(PRINTS)})
    bad = world.image("2a", {"s5000_fails": step(FAILS)})

    log = objects(world.run(bad, "start", "--", "true", status=13, env=JSON).stderr)
    (err,) = (one for one in log if one["level"] == "error")
    assert log[-1] == err
    assert (err["code"], err["lines"]) == ("command-failed", ["the cause"])
    assert "[command-failed]" not in err["text"]
    assert "s5000_fails" in err["state"]
    assert "ipavolume manual command-failed" in err["hint"]

    done = world.run(good, "start", "--json", "--", "true", env=JSON)
    log = objects(done.stderr)
    (printed,) = (one for one in log if "output" in one)
    assert printed["output"] == "a\tb\x1b[31m\udcff"
    assert printed["task"] == "step s5000_prints"
    assert "something is odd. look" in [one["text"] for one in log if one["level"] == "warning"]
    assert "step s5000_prints" in [one["key"] for one in json.loads(done.stdout)["result"]["tasks"]]
    # Now by the short way.
    (only,) = objects(world.run(good, "start", "--", "echo", "served", env=JSON).stderr)
    assert "handing over to echo" in only["text"]
    _, err = objects(world.run(good, "start", "--", "/no/such", status=73, env=JSON).stderr)
    assert err["code"] == "cannot-execute"
    assert set(err) == {"time", "level", "text", "code", "state", "hint"}


def test_what_cannot_be_understood_is_an_object_too(tmp_path: Path) -> None:
    done = run_ipavolume("--log-format", "json", "check", "--no-such", status=2)
    (err,) = objects(done.stderr)
    assert (err["code"], done.stdout) == ("usage", "")
    done = run_ipavolume("--log-format=json", "status", tmp_path / "none", status=74)
    (err,) = objects(done.stderr)
    assert err["code"] == "no-volume"
    done = run_ipavolume("check", status=2, env={"IPAVOLUME_LOG_FORMAT": "xml"})
    assert "--log-format" in done.stderr


@given(st.text(min_size=1), st.binary())
def test_the_short_way_of_a_start_writes_json_without_the_module(text: str, data: bytes) -> None:
    said = text.encode("utf-8", "surrogatepass") + data
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fastpath.LOG_FORMAT, "json")
        line = fastpath._logged(said, b"code", state=b"state", hint=said)
    found = json.loads(line)
    assert found["text"] == said.decode("utf-8", "surrogateescape")
    assert found["level"] == "error"
    assert found.get("hint", "") == found["text"]
    assert line.count(b"\n") == 1
    assert line.isascii()


def test_progress_is_an_object_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(fastpath.LOG_FORMAT, "json")
    now = 0.0
    teller = Teller(print, terminal=False, seconds=lambda: now, log=output._log_line)
    tick = Tick("copying")
    tick.share = 0.5
    teller.tell("begin")
    for now in (1.0, 11.0, 12.0):  # noqa: B007 - the clock reads it
        teller.tell(tick)
    line = Printed("| x")
    line.line, line.task = "x", "step s1"
    teller.tell(line)
    captured = capsys.readouterr()
    assert captured.out == ""
    found = objects(captured.err)
    assert [one["text"] for one in found] == ["begin", "copying", "| x"]
    assert found[1]["progress"] == {"share": 0.5}
    assert (found[2]["output"], found[2]["task"]) == ("x", "step s1")
