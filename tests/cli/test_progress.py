"""Long work shows that it lives: a bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import pytest
from support.plans import install
from support.values import record

from ipavolume.apply.run import Finish
from ipavolume.cli.output import Teller
from ipavolume.cli.text import preview_lines, summary_lines
from ipavolume.commands.upgrade import Outcome
from ipavolume.model.actions import (
    DELETED_HERE,
    CreateTree,
    Keep,
    Plan,
    Rule,
    Verb,
    describe,
    past,
)
from ipavolume.model.progress import Meter, Printed, Tick, count_text, size_text
from ipavolume.model.snapshots import Method
from ipavolume.model.tasks import Task, TaskKind
from ipavolume.plan.snapshot import WayBack
from ipavolume.plan.tasks import Preview
from ipavolume.plan.verdict import State
from ipavolume.steps import api

MIB = 1 << 20


def told(lines: list[tuple[float, str]], *, terminal: bool) -> list[str]:
    """Return what is written of lines, each said at a time in seconds."""
    written: list[str] = []
    now = 0.0

    def seconds() -> float:
        return now

    teller = Teller(
        written.append,
        terminal=terminal,
        seconds=seconds,
        now=lambda: f"T{now:g}",
        columns=lambda: 60,
    )
    for now, line in lines:  # noqa: B007 - the clock reads it
        teller.tell(line)
    teller.clear()
    return written


def tick(text: str, share: float = -1) -> Tick:
    made = Tick(text)
    made.share = share
    return made


def test_what_a_command_prints_is_shown_as_it_printed_it() -> None:
    said: list[tuple[float, str]] = [(0, Printed("| s/\\s*$// \x1b[31m")), (0, "/a\\b")]
    assert told(said, terminal=False) == [
        "ipavolume: T0 | s/\\s*$// \\x1b[31m\n",
        # A path is to be told from every other.
        "ipavolume: T0 /a\\\\b\n",
    ]


def test_a_scriptlet_is_shown_as_it_runs() -> None:
    line = r"sed -i '\;^includedir;d' /data/etc/krb5.conf"
    task = Task(
        kind=TaskKind.SCRIPTLET,
        name="ipa-client-post",
        digest="",
        phase="online",
        summary="%post of ipa-client",
        reason="ipa-client: 1 -> 2",
    )
    preview = Preview(changed=(f"+{line}",), text=(line,))
    shown = preview_lines(task, preview, verbose=True)
    assert shown[1:] == [f"           +{line}", f"           | {line}"]


def test_a_log_gets_a_line_every_ten_seconds_in_which_nothing_else_was_said() -> None:
    said = [(0, "begin"), *((second, tick(f"at {second}")) for second in range(1, 24)), (24, "end")]
    assert told([(float(at), line) for at, line in said], terminal=False) == [
        "ipavolume: T0 begin\n",
        "ipavolume: T10 at 10\n",
        "ipavolume: T20 at 20\n",
        "ipavolume: T24 end\n",
    ]


def test_a_terminal_gets_a_bar_that_makes_room_for_what_follows() -> None:
    said = [(0.0, "begin"), (1.0, tick("copying", 0.5)), (1.1, tick("too soon", 0.6)), (2.0, "end")]
    assert told(said, terminal=True) == [
        "ipavolume: begin\n",
        "\ripavolume: [##########..........]  50% copying\x1b[K",
        "\r\x1b[K",
        "ipavolume: end\n",
    ]


def test_a_bar_is_no_wider_than_the_terminal() -> None:
    (shown, _) = told([(1.0, tick("x" * 200, 1.0))], terminal=True)
    assert len(shown.removeprefix("\r").removesuffix("\x1b[K")) == 59


def test_a_bar_shows_nothing_that_a_terminal_would_obey() -> None:
    (shown, _) = told([(1.0, tick("copying \x1b]0;x\x07"))], terminal=True)
    assert "\x07" not in shown
    assert shown.count("\x1b") == 1


@pytest.mark.parametrize(
    ("total", "total_bytes", "last", "share"),
    [
        (1000, 0, "copying: 768 of 1000", 0.768),
        (0, 0, "copying: 768", -1),
        (1000, 3000, "copying: 768 of 1000, 1.5 KiB of 2.9 KiB", 0.512),
    ],
)
def test_a_meter_says_count_and_bytes_and_how_much_that_is(
    total: int, total_bytes: int, last: str, share: float
) -> None:
    said: list[str] = []
    meter = Meter(said.append, "copying", total=total, total_bytes=total_bytes)
    for count in range(1000):
        meter.reached(count, 2 * count if total_bytes else 0)
    assert len(said) == 3
    final = said[-1]
    assert isinstance(final, Tick)
    assert final == last
    assert final.share == share


def test_few_but_large_files_are_told_as_well() -> None:
    said: list[str] = []
    meter = Meter(said.append, "copying")
    for _ in range(4):
        meter.add(10 * MIB)
    assert said == ["copying: 2, 20.0 MiB", "copying: 4, 40.0 MiB"]
    meter.amid(20 * MIB)
    meter.amid(40 * MIB)
    meter.add(50 * MIB)
    assert said[2:] == [
        "copying: 4, 60.0 MiB",
        "copying: 4, 80.0 MiB",
    ]


def test_what_is_counted_is_what_was_given() -> None:
    said: list[str] = []
    assert list(Meter(said.append, "x", total=600).counted(range(600))) == list(range(600))
    assert said == ["x: 256 of 600", "x: 512 of 600"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes_are_put_as_people_read_them(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 entries left"), (1, "1 entry left"), (2, "2 entries left")],
)
def test_one_is_called_otherwise_than_many(count: int, text: str) -> None:
    assert f"{count_text(count, 'entry', 'entries')} left" == text


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (WayBack(method=Method.COPY, files=1, bytes=1).line, "way back: a copy of 1 file, 1 byte"),
        (past(Verb.RMDIR, 1), "directory removed if empty"),
        (past(Verb.KEEP, 1), "kept as it is"),
        (past(Verb.LEFT, 1), "left: no package owns it, and the image has another or none"),
        (describe(CreateTree(path="/d", entries=2, bytes=1)), "/d/ and 1 below it, 1 byte"),
        (api.describe(api.Write(path="/x", content=b"x", reason="y")), "write /x, 1 byte (y)"),
    ],
)
def test_no_message_speaks_of_one_as_of_many(said: str, text: str) -> None:
    assert said == text


def test_where_an_acl_was_dropped_nothing_was_left_alone() -> None:
    plan = Plan(
        run="0002-b",
        kind="upgrade",
        from_build="a",
        to_build="b",
        fingerprint="",
        actions=(
            Keep(path="/data/acl", rule=Rule.ACL_DROPPED, reason="dropped"),
            Keep(path="/data/mounted", rule=Rule.MOUNTED_OVER, reason="mounted over"),
        ),
    )
    end = Finish(plan=plan)
    assert summary_lines(Outcome(state=State.OUTDATED, reason="", recorded="b", ends=(end,))) == [
        "upgrade a -> b",
        "       1 ACL dropped that had been set here",
        "       1 kept as it is",
        "  ACLs dropped:",
        "    /data/acl (dropped)",
        "  left alone:",
        "    /data/mounted (mounted over)",
    ]


def test_what_comes_back_although_somebody_deleted_it_is_named() -> None:
    """A site that was switched off, which the summary counted among what is new."""
    plan = Plan(
        run="0002-b",
        kind="upgrade",
        from_build="a",
        to_build="b",
        fingerprint="",
        actions=(
            install(record("/data/etc/app/sites/default"), DELETED_HERE),
            install(record("/data/etc/app/new.conf"), "missing on the volume"),
            CreateTree(path="/data/etc/app/d", entries=2, bytes=1, reason=DELETED_HERE),
            CreateTree(path="/data/etc/app/e", entries=2, bytes=1),
        ),
    )
    end = Finish(plan=plan)
    said = summary_lines(Outcome(state=State.OUTDATED, reason="", recorded="b", ends=(end,)))
    assert said[2:] == [
        "  put back:",
        "    /data/etc/app/sites/default (deleted here; the image has it)",
        "    /data/etc/app/d/ and 1 below it, 1 byte (deleted here; the image has it)",
    ]
