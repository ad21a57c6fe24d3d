"""How far the first run is, in an operator's words; the table itself is in test_run."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from ipavolume.config.model import FirstRunConfig
from ipavolume.errors import UnsafeVolumeError
from ipavolume.firstrun import looking
from ipavolume.firstrun.record import FirstRunRecord
from ipavolume.firstrun.standing import Judgement, Standing, judge
from ipavolume.volume import members

DONE: Final = "/etc/app/done"
WAITS: Final = "/etc/app/request"
RUINS: Final = "/etc/app/begun"
CSR: Final = "/root/ipa.csr"
APP: Final = FirstRunConfig(
    command=("/opt/setup",), done_when=DONE, waiting_when=WAITS, ruins_when=RUINS
)
BARE: Final = FirstRunConfig(command=("/opt/setup",))
IPA: Final = FirstRunConfig(command=("/usr/sbin/ipa-server-install",))
BEGUN: Final = FirstRunRecord(state="started", started="S", attempts=1)
FAILED: Final = replace(BEGUN, exit_status=1, attempts=3)
FINISHED: Final = FirstRunRecord(state="done", finished="F")
STANDINGS: Final[Mapping[Standing, tuple[FirstRunRecord | None, Collection[str], str]]] = {
    Standing.UNCONFIGURED: (None, (), "the first run was never started"),
    Standing.WAITING: (BEGUN, {WAITS, RUINS}, f"the first run waits for '{WAITS}'"),
    Standing.PARTIAL: (
        BEGUN,
        {RUINS},
        f"the volume is only partly configured: the first run, started S, left '{RUINS}'",
    ),
    Standing.DONE: (FINISHED, {DONE}, "configured since F"),
}


def test_every_standing_has_a_case() -> None:
    assert set(STANDINGS) == set(Standing)


@pytest.mark.parametrize("standing", STANDINGS)
def test_each_standing(standing: Standing) -> None:
    record, there, reason = STANDINGS[standing]
    found = judge(APP, record, lambda path: path in there)
    assert (found.standing, found.reason) == (standing, reason)
    assert (found.error is not None) == (standing is Standing.PARTIAL)


@pytest.mark.parametrize(
    ("config", "record", "there", "standing", "reason"),
    [
        pytest.param(APP, None, {DONE}, "done", f"'{DONE}' is there", id="done before us"),
        pytest.param(
            APP,
            replace(FINISHED, finished=""),
            {DONE},
            "done",
            "configured",
            id="at an unknown time",
        ),
        pytest.param(BARE, FINISHED, (), "done", "configured since F", id="by the record"),
        pytest.param(
            BARE,
            replace(BEGUN, exit_status=0),
            (),
            "done",
            "the command ended with status 0",
            id="by the status",
        ),
        pytest.param(
            APP,
            FAILED,
            (),
            "unconfigured",
            "the first run was started S (attempt 3) and left nothing behind",
            id="failed early",
        ),
        pytest.param(
            APP,
            FirstRunRecord(state="started"),
            (),
            "unconfigured",
            "the first run was started at an unknown time and left nothing behind",
            id="nobody knows when it was started",
        ),
        pytest.param(
            APP, None, {CSR}, "unconfigured", "the first run was never started", id="not FreeIPA's"
        ),
        pytest.param(
            IPA,
            None,
            {CSR},
            "waiting",
            "the first run waits for 'an answer from outside'",
            id="FreeIPA's request",
        ),
    ],
)
def test_why(
    config: FirstRunConfig,
    record: FirstRunRecord | None,
    there: Collection[str],
    standing: str,
    reason: str,
) -> None:
    found = judge(config, record, lambda path: path in there)
    assert found == Judgement(standing=Standing(standing), reason=reason)


def test_what_the_application_says_counts_more_than_how_its_command_ended() -> None:
    found = judge(APP, FAILED, lambda path: path == DONE, says=True)
    assert found == Judgement(standing=Standing.DONE, reason=f"'{DONE}' is there")


def test_a_volume_whose_first_run_was_begun_was_not_in_use_before() -> None:
    found = judge(BARE, BEGUN, lambda _: False, adopted=True)
    assert found.standing is Standing.UNCONFIGURED


@pytest.mark.parametrize(
    ("record", "there", "says", "text", "danger"),
    [
        pytest.param(
            None,
            {RUINS},
            False,
            f"an installation that ipavolume did not start left '{RUINS}', and says of itself "
            "that it is not complete",
            "it runs the command over what is there",
            id="not ours",
        ),
        pytest.param(
            FAILED,
            {RUINS},
            None,
            f"the first run, started S (attempt 3), ended with status 1 and left '{RUINS}'",
            "it runs the command over what is there",
            id="failed",
        ),
        pytest.param(
            replace(BEGUN, exit_status=-9),
            {DONE},
            None,
            f"the first run, started S, was killed by signal 9 and left '{DONE}'",
            "the volume is taken for configured",
            id="killed",
        ),
    ],
)
def test_what_is_left_of_an_attempt(
    record: FirstRunRecord | None,
    there: Collection[str],
    says: bool | None,  # noqa: FBT001 - a column of the table
    text: str,
    danger: str,
) -> None:
    found = judge(APP, record, lambda path: path in there, says=says)
    assert found.reason == f"the volume is only partly configured: {text}"
    assert found.error is not None
    assert (found.error.code, found.error.exit_status) == ("partial-install", 65)
    assert [found.error.path] == list(there)
    assert danger in found.error.hint


def test_what_was_configured_and_is_gone_is_never_configured_again() -> None:
    for finished, when in (("F", " on F"), ("", "")):
        found = judge(APP, replace(FINISHED, finished=finished), lambda _: False)
        assert found.standing is Standing.DONE
        assert found.error is not None
        assert found.error.code == "configuration-lost"
        assert found.reason == (
            f"the volume was configured{when}, but '{DONE}' is not there any more"
        )


def test_what_is_not_configured_is_not_looked_for() -> None:
    found = judge(BARE, None, lambda _: True)
    reason = "the first run was never started"
    assert found == Judgement(standing=Standing.UNCONFIGURED, reason=reason)


def test_what_decides_is_named_by_where_it_is_for_who_reads_that(tmp_path: Path) -> None:
    """On a host there is nothing at ``/data``."""
    place = tmp_path / "of the volume"
    place.mkdir()
    (place / "hostname").touch()
    (place / "hostname").chmod(0o666)
    volume = members.open_volume("/data", str(place))
    try:
        with pytest.raises(UnsafeVolumeError) as caught:
            looking.read_top(volume, "hostname")
    finally:
        os.close(volume.fd)
    assert caught.value.path == f"{place}/hostname"
    assert f"chown root '{place}/hostname' && chmod" in caught.value.hint
