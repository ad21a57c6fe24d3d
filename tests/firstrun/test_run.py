"""The first run: run once, never over ruins, never again, and judged by what it leaves."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from support import inside
from support.command import run_ipavolume
from support.firstrun import CONFIG, NAME, FirstRun, build_package, make
from support.images import picture
from support.requirements import need_root, need_tool

from ipavolume.config.model import FirstRunConfig
from ipavolume.errors import RefusedError
from ipavolume.firstrun import freeipa
from ipavolume.firstrun.record import FirstRunRecord, dump_record, parse_record
from ipavolume.firstrun.request import make_request
from ipavolume.firstrun.standing import Standing, judge

CA = "/etc/ipa/ca.crt"
CSR = "/data/ipa.csr"
RECORD = ".ipavolume/first-run.json"
RUINS = "/var/lib/ipa/sysrestore/sysrestore.index"
FREEIPA = FirstRunConfig(
    command=("/usr/sbin/ipa-server-install",),
    done_when=CA,
    waiting_when=CSR,
    ruins_when=RUINS,
)
BARE = FirstRunConfig(command=("/opt/setup",))


def record(state: str, status: int | None = None) -> FirstRunRecord:
    """Return a record of a first attempt."""
    return FirstRunRecord(state=state, started="2026-11-22T02:00:00Z", exit_status=status)


STARTED, WAITING, DONE = (record(word) for word in ("started", "waiting", "done"))
FAILED = record("started", 1)


@pytest.mark.parametrize(
    ("found", "there", "says", "standing", "code"),
    [
        pytest.param(None, {}, None, "unconfigured", "", id="nothing"),
        pytest.param(None, {CA}, None, "done", "", id="adopted, configured"),
        pytest.param(None, {CA, RUINS, CSR}, True, "done", "", id="adopted, by an external CA"),
        pytest.param(None, {CA, RUINS}, False, "partial", "partial-install", id="adopted, died"),
        pytest.param(None, {RUINS}, None, "partial", "partial-install", id="adopted, ruins"),
        pytest.param(None, {CSR, RUINS}, False, "waiting", "", id="adopted, waiting"),
        pytest.param(STARTED, {}, None, "unconfigured", "", id="killed at once"),
        pytest.param(STARTED, {RUINS}, False, "partial", "partial-install", id="killed"),
        pytest.param(STARTED, {CA, RUINS}, False, "partial", "partial-install", id="killed late"),
        pytest.param(STARTED, {CA, RUINS}, True, "done", "", id="killed after the end"),
        pytest.param(STARTED, {CA}, None, "done", "", id="the file is the end"),
        pytest.param(STARTED, {CSR, RUINS}, False, "waiting", "", id="killed after the request"),
        pytest.param(
            STARTED, {"/root/ipa.csr", RUINS}, False, "waiting", "", id="killed before its copy"
        ),
        pytest.param(
            STARTED, {CSR, CA, RUINS}, False, "partial", "partial-install", id="second stage died"
        ),
        pytest.param(FAILED, {}, None, "unconfigured", "", id="rejected option"),
        pytest.param(FAILED, {RUINS}, None, "partial", "partial-install", id="failed"),
        pytest.param(FAILED, {CA}, None, "partial", "partial-install", id="failed late"),
        pytest.param(FAILED, {CSR, RUINS}, False, "waiting", "", id="second stage rejected"),
        pytest.param(WAITING, {CSR}, None, "waiting", "", id="waiting"),
        pytest.param(WAITING, {}, None, "waiting", "", id="waiting, request taken away"),
        pytest.param(WAITING, {CSR, CA}, True, "done", "", id="waiting, then configured"),
        pytest.param(DONE, {CA}, None, "done", "", id="done"),
        pytest.param(DONE, {CA, RUINS, CSR}, False, "done", "", id="done stays done"),
        pytest.param(DONE, {}, None, "done", "configuration-lost", id="done and lost"),
        pytest.param(DONE, {CSR, RUINS}, None, "done", "configuration-lost", id="never demoted"),
    ],
)
def test_how_far_it_is(
    found: FirstRunRecord | None,
    there: Collection[str],
    says: bool | None,  # noqa: FBT001 - a column of the table
    standing: str,
    code: str,
) -> None:
    judgement = judge(FREEIPA, found, lambda path: path in there, says=says)
    assert judgement.standing == standing
    assert judgement.reason
    assert (judgement.error.code if judgement.error else "") == code
    if judgement.error:
        assert judgement.error.exit_status == 65
        assert judgement.error.hint


@pytest.mark.parametrize(
    ("found", "adopted", "standing"),
    [
        (None, False, Standing.UNCONFIGURED),
        (None, True, Standing.DONE),
        (STARTED, False, Standing.UNCONFIGURED),
        (FAILED, False, Standing.UNCONFIGURED),
        (record("started", 0), False, Standing.DONE),
        (DONE, False, Standing.DONE),
    ],
)
def test_without_anything_to_go_by_the_record_alone_decides(
    found: FirstRunRecord | None,
    adopted: bool,  # noqa: FBT001 - a column of the table
    standing: Standing,
) -> None:
    assert judge(BARE, found, lambda _: False, adopted=adopted).standing is standing


@pytest.mark.parametrize(
    ("stored", "own", "given", "refused"),
    [
        ("ipa.example.test", "ipa.example.test", "", False),
        ("ipa.example.test", "IPA.example.test.", "", False),
        ("", "anything", "", False),
        ("ipa.example.test", "ipa", "", True),
        ("ipa.example.test", "ipa2.example.test", "", True),
        ("ipa.example.test", "0f3c", "ipa.example.test", False),
        ("ipa.example.test", "0f3c", "ipa2.example.test", True),
    ],
)
def test_a_volume_belongs_to_a_name(
    stored: str,
    own: str,
    given: str,
    refused: bool,  # noqa: FBT001 - a column of the table
) -> None:
    asked = make_request((), {"IPA_SERVER_HOSTNAME": given})
    if not refused:
        freeipa.check_host(stored, asked, own=own)
        return
    with pytest.raises(RefusedError) as caught:
        freeipa.check_host(stored, asked, own=own)
    assert stored in str(caught.value)
    assert own in str(caught.value)
    assert f"-h {stored}" in caught.value.hint
    assert (caught.value.code, caught.value.exit_status) == ("hostname", 77)
    freeipa.check_host(stored, asked, own=own, allow=frozenset({"hostname"}))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("10.0.0.2\t0f3c\n", f"10.0.0.2\t{NAME} 0f3c\n"),
        ("127.0.0.1 localhost\n10.0.0.2 0f3c", f"127.0.0.1 localhost\n10.0.0.2\t{NAME} 0f3c\n"),
        ("10.0.0.2 a 0f3c # mine\n", f"10.0.0.2\t{NAME} a 0f3c # mine\n"),
        (f"10.0.0.2 0f3c {NAME}\n", f"10.0.0.2\t{NAME} 0f3c\n"),
        (f"10.0.0.2 {NAME} 0f3c\n", f"10.0.0.2 {NAME} 0f3c\n"),
        ("10.0.0.2 0f3cd\n# 10.0.0.2 0f3c\n\n", "10.0.0.2 0f3cd\n# 10.0.0.2 0f3c\n\n"),
        ("0f3c\n", "0f3c\n"),
    ],
)
def test_the_name_of_the_container_leads_to_the_server(before: str, after: str) -> None:
    assert freeipa.hosts_with(before, own="0f3c", server=NAME) == after
    assert freeipa.hosts_with(after, own="0f3c", server=NAME) == after


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"state": "finished"},
        {"state": 1},
        {"state": "done", "host": ["a"]},
        {"state": "done", "host": "a\nb"},
        {"state": "done", "host": "a" * 300},
        {"state": "done", "attempts": -1},
        {"state": "done", "attempts": 1.5},
        {"state": "done", "attempts": True},
        {"state": "done", "exit_status": "0"},
        {"state": "done", "started": None},
    ],
)
def test_a_record_that_makes_no_sense_is_not_taken(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_record(value)


def test_what_is_written_is_read_and_what_a_later_version_adds_is_passed_over() -> None:
    wrote = FirstRunRecord(state="done", host="h", image="i", started="s", attempts=2)
    data = dump_record(wrote)
    assert data.startswith(b'{"state":"done","host":"h",')
    assert parse_record(json.loads(data) | {"more": 1}) == wrote


# -- in a container ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a configuration of FreeIPA's."""
    need_root()
    need_tool("rpmbuild")
    return build_package(tmp_path_factory.mktemp("first-run-package"))


@pytest.fixture(scope="session")
def populated(package: Path, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """A volume that was just populated, to be copied."""
    return make(package, tmp_path_factory.mktemp("first-run"))


@pytest.fixture
def fresh(populated: FirstRun, tmp_path: Path) -> FirstRun:
    """A volume that was just populated."""
    return copied(populated, tmp_path)


def copied(populated: FirstRun, top: Path) -> FirstRun:
    """Return the same container with a volume of its own."""
    volume = top / "volume"
    subprocess.run(["cp", "-a", str(populated.volume), str(volume)], check=True, timeout=60)
    return FirstRun(image=populated.image, volume=volume)


def holds(volume: Path, text: str) -> list[str]:
    """Return the files below *volume* in which *text* is found."""
    return [
        str(path)
        for path in volume.rglob("*")
        if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes()
    ]


@pytest.mark.root
def test_it_runs_once_and_is_recorded(fresh: FirstRun) -> None:
    said = fresh.run("-U").stdout
    assert "say: first run: ipa-server-install begins, attempt 1" in said
    assert "output: installing with -U" in said
    assert "standing: done" in said
    found = fresh.record()
    assert (found["state"], found["host"], found["exit_status"]) == ("done", NAME, 0)
    assert found["image"] == "one"
    assert found["started"] <= found["finished"]
    st = (fresh.volume / ".ipavolume/first-run.json").lstat()
    assert (st.st_uid, st.st_mode & 0o7777) == (0, 0o644)
    assert (fresh.volume / "hostname").read_text() == f"{NAME}\n"
    before = picture(fresh.volume)
    # The arguments of the first time are there at every start.
    assert "output:" not in fresh.run("-U", "--bad").stdout
    assert "standing: done" in fresh.run("no-installer").stdout
    assert "due: False" in fresh.ask("-U").stdout
    assert picture(fresh.volume) == before
    assert fresh.runs() == 1


@pytest.mark.root
def test_a_rejected_option_leaves_the_volume_unconfigured(fresh: FirstRun) -> None:
    said = fresh.run("--bad", status=13).stdout
    assert "error: the first run failed: ipa-server-install ended with status 2" in said
    assert "[first-run-failed]" in said
    assert "detail: no such option: --bad" in said
    assert "state: the volume is unconfigured: the command left nothing that is in the way" in said
    assert fresh.record()["exit_status"] == 2
    assert "due: True" in fresh.ask("-U").stdout
    fresh.run("-U")
    assert (fresh.record()["state"], fresh.record()["attempts"]) == ("done", 2)


@pytest.mark.root
def test_an_install_that_left_ruins_is_not_run_over_them(fresh: FirstRun) -> None:
    said = fresh.run("--die=fail-ruins", status=13).stdout
    assert f"state: the volume is only partly configured: {RUINS!r} is there" in said
    assert "detail: failed at ruins" in said
    before = picture(fresh.volume)
    for _ in range(2):
        said = fresh.run("-U", status=65).stdout
        assert "[partial-install]" in said
        assert "ended with status 1" in said
        assert fresh.record()["started"] in said
        assert "wipe it" in said
        assert "--allow partial" in said
        assert picture(fresh.volume) == before
    assert fresh.runs() == 1
    assert "standing: done" in fresh.run("-U", allow=["partial"]).stdout
    assert fresh.runs() == 2


@pytest.mark.root
def test_a_failure_behind_the_certificate_is_not_taken_for_the_end(fresh: FirstRun) -> None:
    fresh.run("--die=fail-certificate", status=13)
    said = fresh.run("-U", status=65).stdout
    assert f"left {CA!r}, and says of itself that it is not complete" in said
    assert "the volume is taken for configured" in said
    said = fresh.run("-U", allow=["partial"]).stdout
    assert "say: taken for configured, as 'partial' is allowed" in said
    assert fresh.runs() == 1
    assert fresh.record()["state"] == "done"
    (entry,) = fresh.history()
    assert (entry["result"], entry["overrides"]) == ("done", ["partial"])


@pytest.mark.root
@pytest.mark.parametrize(
    ("point", "status", "state", "runs"),
    [
        ("start", 0, "done", 2),
        ("ruins", 65, "started", 1),
        ("certificate", 65, "started", 1),
        ("end", 0, "done", 1),
    ],
)
def test_killed_in_the_middle_it_is_judged_by_what_is_there(
    fresh: FirstRun, point: str, status: int, state: str, runs: int
) -> None:
    fresh.run("-U", f"--die={point}", status=137)
    assert fresh.record()["state"] == "started"
    assert fresh.record()["exit_status"] is None
    fresh.run("-U", status=status)
    assert (fresh.record()["state"], fresh.runs()) == (state, runs)


@pytest.mark.root
@pytest.mark.parametrize(
    ("words", "result"), [(["--die=end"], "done"), (["--external-ca", "--die=csr"], "waiting")]
)
def test_what_a_later_start_takes_as_its_end_is_in_the_history(
    fresh: FirstRun, words: list[str], result: str
) -> None:
    """It came to its end and was killed before that was recorded (F73)."""
    fresh.run("-U", *words, status=137)
    for _ in range(2):
        fresh.run("-U", status=77 if result == "waiting" else 0)
        (entry,) = fresh.history()
        assert (entry["result"], entry["overrides"]) == (result, [])
        assert entry["started"] == fresh.record()["started"]
        assert entry["finished"] == fresh.record()["finished"]
        assert (entry["to"], entry["holder"]) == ("one", NAME)


@pytest.mark.root
def test_the_override_that_was_needed_is_recorded_and_no_other(fresh: FirstRun) -> None:
    fresh.run("-U", "--external-ca", allow=["partial", "hostname"])
    fresh.name = "other.example.test"
    fresh.run("--external-cert-file=/data/ipa.crt", allow=["partial", "hostname"])
    assert [run["overrides"] for run in fresh.history()] == [[], ["hostname"]]


@pytest.mark.root
@pytest.mark.crash
@pytest.mark.parametrize("call", ["renameat", "fsync"])
def test_killed_before_any_of_our_own_calls_it_runs_exactly_once(
    populated: FirstRun, tmp_path: Path, call: str
) -> None:
    strace = need_tool("strace")
    for number in range(1, 50):
        top = tmp_path / str(number)
        top.mkdir()
        one = copied(populated, top)
        inject = f"inject={call}:signal=KILL:when={number}"
        prefix = [strace, "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
        survived = one.run("-U", prefix=prefix, status=None).returncode == 0
        if one.runs():
            # Nothing was run of which nothing is known.
            assert one.record()["state"] in ("started", "done")
        one.run("-U")
        assert (one.record()["state"], one.runs()) == ("done", 1)
        assert [run["result"] for run in one.history()] == ["done"]
        if survived:
            # There were that many calls, and each was the last one once.
            assert number > 4
            return
    raise AssertionError("it never came to its end")


@pytest.mark.root
def test_the_two_stages_of_an_external_ca(fresh: FirstRun) -> None:
    said = fresh.run("-U", "--external-ca").stdout
    assert "standing: waiting" in said
    assert "--external-cert-file=/data/ipa.crt" in said
    assert (fresh.volume / "ipa.csr").read_text() == "request\n"
    assert fresh.record()["state"] == "waiting"
    before = picture(fresh.volume)
    for arguments in ((), ("-U", "--external-ca")):
        said = fresh.run(*arguments, status=77).stdout
        assert "[waiting]" in said
        assert f"has to sign {CSR!r}" in said
        assert "--external-cert-file=FILE" in said
        assert picture(fresh.volume) == before
    said = fresh.run("--external-cert-file=/data/missing", status=13).stdout
    assert "state: the first run still waits for an answer" in said
    assert fresh.record()["state"] == "waiting"
    said = fresh.run("-U", "--external-cert-file=/data/ipa.crt").stdout
    assert "standing: done" in said
    assert (fresh.record()["state"], fresh.record()["attempts"]) == ("done", 3)


@pytest.mark.root
def test_no_upgrade_comes_between_the_two_stages(fresh: FirstRun, tmp_path: Path) -> None:
    """Whoever asks before is told so."""
    fresh.run("-U", "--external-ca")
    before = picture(fresh.volume)
    package = build_package(tmp_path, version="2")
    newer = make(package, tmp_path / "newer", build_id="two").image.root
    where = ("--root", newer, "--volume", fresh.volume)
    for words in (("check",), ("upgrade", "--dry-run"), ("upgrade",)):
        done = run_ipavolume(*words, *where, status=77)
        assert "[waiting]" in done.stdout + done.stderr
        assert "Finish the first run with the image that began it" in done.stdout + done.stderr
    assert picture(fresh.volume) == before


@pytest.mark.root
def test_killed_when_the_request_is_there_it_waits(fresh: FirstRun) -> None:
    fresh.run("--external-ca", "--die=csr", status=137)
    assert not (fresh.volume / "ipa.csr").exists()
    fresh.run(status=77)
    assert (fresh.volume / "ipa.csr").read_text() == "request\n"
    assert fresh.record()["state"] == "waiting"


@pytest.mark.root
def test_a_second_stage_that_died_behind_the_certificate_is_not_repeated(fresh: FirstRun) -> None:
    fresh.run("--external-ca")
    answer = "--external-cert-file=/data/ipa.crt"
    fresh.run(answer, "--die=certificate", status=137)
    assert "[partial-install]" in fresh.run(answer, status=65).stdout
    assert fresh.runs() == 2


@pytest.mark.root
def test_a_volume_that_was_configured_before_ipavolume_came_is_taken_as_it_is(
    fresh: FirstRun,
) -> None:
    (fresh.volume / "etc/ipa/ca.crt").write_text("certificate\n")
    (fresh.volume / "hostname").write_text(f"{NAME}\n")
    said = fresh.run("-U").stdout
    assert "say: the first run is done" in said
    assert fresh.runs() == 0
    assert (fresh.record()["state"], fresh.record()["host"]) == ("done", NAME)


@pytest.mark.root
def test_lost_configuration_is_unsafe_and_not_unconfigured(fresh: FirstRun) -> None:
    fresh.run("-U")
    (fresh.volume / "etc/ipa/ca.crt").unlink()
    said = fresh.run("-U", status=65).stdout
    assert "[configuration-lost]" in said
    assert f"{CA!r} is not there any more" in said
    assert fresh.runs() == 1


@pytest.mark.root
def test_another_host_name_is_refused_and_can_be_overridden(fresh: FirstRun) -> None:
    fresh.run("-U")
    before = picture(fresh.volume)
    fresh.name = "other.example.test"
    said = fresh.run("-U", status=77).stdout
    assert NAME in said
    assert "other.example.test" in said
    assert f"-h {NAME}" in said
    fresh.name = "0f3c"
    fresh.run(status=77)
    fresh.run(env={"IPA_SERVER_HOSTNAME": NAME})
    fresh.run(allow=["hostname"])
    assert picture(fresh.volume) == before


@pytest.mark.root
@pytest.mark.parametrize("name", ["a" * 250 + ".example.test", "ipa .example.test", "ipa\t.test"])
def test_a_name_that_could_not_be_read_again_is_refused_before_it_is_recorded(
    fresh: FirstRun, name: str
) -> None:
    before = picture(fresh.volume)
    for arguments, env in (
        (["-U", f"--hostname={name}"], {}),
        (["-U"], {"IPA_SERVER_HOSTNAME": name}),
    ):
        said = fresh.run(*arguments, env=env, status=2).stdout
        assert "is no name of a host" in said
        assert picture(fresh.volume) == before


@pytest.mark.root
def test_a_name_without_a_domain_is_refused_before_anything_is_done(fresh: FirstRun) -> None:
    fresh.name = "0f3c"
    before = picture(fresh.volume)
    said = fresh.run("-U", status=77).stdout
    assert "[unqualified-hostname]" in said
    assert "-h NAME.DOMAIN" in said
    assert picture(fresh.volume) == before
    said = fresh.run("-U", env={"IPA_SERVER_HOSTNAME": NAME}).stdout
    assert f"output: hosts: 10.0.0.2\t{NAME} 0f3c" in said
    assert (fresh.volume / "hostname").read_text() == f"{NAME}\n"
    assert fresh.record()["host"] == NAME


@pytest.mark.root
def test_a_container_that_cannot_go_by_the_name_is_refused(fresh: FirstRun) -> None:
    """``--read-only``: the file cannot be changed."""
    fresh.name = "0f3c"
    before = picture(fresh.volume)
    read_only = ["sh", "-c", 'mount --bind -o ro /etc/hosts /etc/hosts; "$@"; exit $?', "sh"]
    given = {"IPA_SERVER_HOSTNAME": NAME}
    said = fresh.run("-U", status=77, env=given, prefix=read_only).stdout
    assert "cannot change /etc/hosts: Read-only file system" in said
    assert f"-h {NAME}" in said
    assert picture(fresh.volume) == before
    said = fresh.run("-U", env=given, prefix=read_only, allow=["hostname"]).stdout
    assert "output: hosts: 10.0.0.2 0f3c" in said


@pytest.mark.root
def test_the_name_of_an_attempt_that_left_nothing_does_not_bind(fresh: FirstRun) -> None:
    fresh.name = "wrong.example.test"
    fresh.run("--bad", status=13)
    fresh.name = NAME
    fresh.run("-U")
    assert (fresh.volume / "hostname").read_text() == f"{NAME}\n"
    assert fresh.record()["host"] == NAME


@pytest.mark.root
@pytest.mark.parametrize("arguments", [("-U",), ("--bad",), ("--die=fail-ruins",)])
def test_secrets_are_neither_shown_nor_written(fresh: FirstRun, arguments: tuple[str, ...]) -> None:
    secrets = ("Pa55 word", "0pt'pin", "argu-ment")
    done = fresh.run(
        *arguments,
        "--http-pin",
        secrets[2],
        env={"PASSWORD": secrets[0], "IPA_SERVER_INSTALL_OPTS": '--dirsrv-pin="0pt\'pin"'},
        status=0 if arguments == ("-U",) else 13,
    )
    assert "***" in done.stdout
    assert "output: PASSWORD is unset" in done.stdout
    for secret in secrets:
        assert secret not in done.stdout + done.stderr
        assert holds(fresh.volume, secret) == []


@pytest.mark.root
def test_a_secret_in_a_file_is_read_and_not_kept(fresh: FirstRun) -> None:
    secret = fresh.volume / "secret"
    secret.write_text("Pa55word\n")
    said = fresh.run(env={"PASSWORD_FILE": "/data/secret"}).stdout
    assert "output: installing with --admin-password=*** --ds-password=***" in said
    assert holds(fresh.volume, "Pa55word") == [str(secret)]
    other = fresh.run(env={"PASSWORD_FILE": "/data/none", "PASSWORD": "x"}, status=2).stdout
    assert "both PASSWORD and PASSWORD_FILE are set" in other


@pytest.mark.root
def test_a_container_whose_first_run_waits_ends_well_and_starts_nothing(
    package: Path, tmp_path: Path
) -> None:
    execute = '[start]\nexec = ["/bin/echo", "served"]\n'
    site = make(package, tmp_path, config=CONFIG + execute)
    argv = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', NAME, *inside.IPAVOLUME]
    for words, status, code in ((("--external-ca",), 0, ""), (("-U",), 77, "[waiting]")):
        done = inside.run(site.image.root, site.volume, [*argv, "start", "--", *words])
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert code in done.stderr
    assert site.record()["state"] == "waiting"


@pytest.mark.root
@pytest.mark.parametrize("ruins", [True, False])
def test_a_stop_amid_the_first_run_says_what_the_next_start_makes_of_it(
    package: Path, tmp_path: Path, *, ruins: bool
) -> None:
    """It said that the next start goes on from here, and that one refused."""
    command = f"{f'echo x >{RUINS}; ' * ruins}echo begun >/data/begun; sleep infinity"
    config = f"""
[first-run]
command = ["/bin/sh", "-c", {json.dumps(command)}]
done-when = "/etc/ipa/done"
ruins-when = "{RUINS}"
"""
    site = make(package, tmp_path, config=config)
    (site.volume / "var/lib/ipa/sysrestore").mkdir(parents=True)
    begun = site.volume / "begun"
    os.mkfifo(begun)
    words = [*inside.IPAVOLUME, "start", "--", "true"]
    with inside.started(site.image.root, site.volume, words) as container:
        assert begun.read_text() == "begun\n"
        container.send(signal.SIGTERM)
        _, said = container.process.communicate(timeout=60)
    assert "[stopped]" in said
    assert (f"only partly configured: {RUINS!r} is there" in said) == ruins, said
    assert ("The next start refuses to run over what is there" in said) == ruins
    assert ("The next start goes on from here" in said) != ruins
    status = 65 if ruins else 100
    looked = run_ipavolume("check", "--root", site.image.root, site.volume, status=status).stdout
    assert ("partial" if ruins else "unconfigured") in looked
    (line,) = _first_run_lines(site)
    assert line.endswith("; not done: attempt 1 was interrupted")


@pytest.mark.root
def test_what_is_said_of_a_volume_whose_first_run_failed(fresh: FirstRun) -> None:
    """``upgrade --retry``, which a hint names, has it tried by the next start; it does not try."""
    where = ("--root", fresh.image.root, "--volume", fresh.volume)
    fresh.run("--bad", status=13)
    said = run_ipavolume("upgrade", "--retry", *where).stdout
    assert said.endswith(" is current (one); the first run is left to a start\n")
    assert fresh.runs() == 1
    record = fresh.record()
    (line,) = _first_run_lines(fresh)
    assert record["started"] in line
    assert line.endswith(f"; not done: attempt 1 ended with status 2, {record['finished']}")
    fresh.run("-U")
    assert run_ipavolume("upgrade", *where).stdout.endswith(" is current (one)\n")
    (line,) = _first_run_lines(fresh)
    assert line == f"first run done as {NAME}, {fresh.record()['finished']}"


def _first_run_lines(one: FirstRun) -> list[str]:
    said = run_ipavolume("status", one.volume).stdout.splitlines()
    return [line for line in said if line.startswith("first run ")]


@pytest.mark.root
def test_who_asks_an_installed_server_has_no_use_for_its_first_password(
    package: Path, tmp_path: Path
) -> None:
    probe = shlex.join([*inside.IPAVOLUME, "status", "--probe", "ready"])
    execute = json.dumps(["/bin/sh", "-c", probe])
    ready = f"[start]\nexec = {execute}\n[ready]\nunits = []\nports = []\n"
    site = make(package, tmp_path, config=CONFIG + ready)
    site.run("-U")
    argv = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', NAME, *inside.IPAVOLUME]
    both = {"PASSWORD_FILE": "/data/none", "PASSWORD": "x"}
    done = inside.run(site.image.root, site.volume, [*argv, "start", "--", "-U"], env=both)
    assert (done.returncode, done.stdout) == (0, "current (one)\n"), done.stderr
    assert "both PASSWORD" not in done.stderr


@pytest.mark.root
@pytest.mark.parametrize("kind", ["missing", "fifo", "directory"])
def test_a_secret_that_cannot_be_read_stops_before_anything_is_done(
    fresh: FirstRun, kind: str
) -> None:
    path = fresh.volume / "secret"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    before = picture(fresh.volume)
    said = fresh.run(env={"PASSWORD_FILE": "/data/secret"}, status=2).stdout
    assert "'/data/secret'" in said
    assert picture(fresh.volume) == before


@pytest.mark.root
def test_a_replica_is_installed_when_its_options_are_there(fresh: FirstRun) -> None:
    (fresh.volume / "ipa-replica-install-options").write_text("-U\n--server 'a b'\n")
    said = fresh.run("--no-ntp").stdout
    assert "output: installing with -U --server a b --no-ntp" in said
    assert "output: as ipa-replica-install" in said
    assert (fresh.volume / "ipa-replica-install-options").exists()


# -- hostile volumes ---------------------------------------------------------------------


def _as_link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/etc/passwd")


def _as_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _too_large(path: Path) -> None:
    path.write_text(" " * (2 << 20))


def _of_a_service(path: Path) -> None:
    path.write_text('{"state":"done","host":""}\n')
    os.chown(path, 250, 251)


def _writable(path: Path) -> None:
    path.write_text('{"state":"done","host":""}\n')
    path.chmod(0o666)


def _cut_short(path: Path) -> None:
    path.write_text('{"state":"done","ho')


def _deep(path: Path) -> None:
    path.write_text("[" * 60_000)


@pytest.mark.root
@pytest.mark.parametrize(
    ("path", "spoil"),
    [
        *(
            (path, spoil)
            for path in (RECORD, "ipa-server-install-options", "hostname")
            for spoil in (_as_link, _as_fifo, _too_large, _of_a_service, _writable)
        ),
        (RECORD, _cut_short),
        (RECORD, _deep),
    ],
)
def test_what_somebody_else_put_there_is_not_followed_and_not_taken(
    fresh: FirstRun, path: str, spoil: Callable[[Path], None]
) -> None:
    spoil(fresh.volume / path)
    before = picture(fresh.volume)
    said = fresh.run("-U", status=65).stdout
    assert path in said
    assert picture(fresh.volume) == before
    assert fresh.runs() == 0


@pytest.mark.root
@pytest.mark.parametrize("spoil", [_as_link, _as_fifo])
@pytest.mark.parametrize(
    "path", ["etc/ipa/ca.crt", "ipa.csr", "var/lib/ipa/sysrestore/sysrestore.index"]
)
def test_a_planted_sign_says_nothing(
    fresh: FirstRun, path: str, spoil: Callable[[Path], None]
) -> None:
    (fresh.volume / path).parent.mkdir(parents=True, exist_ok=True)
    spoil(fresh.volume / path)
    said = fresh.run("-U", status=65).stdout
    assert "[unsafe-path]" in said
    assert path in said
    assert fresh.runs() == 0


@pytest.mark.root
def test_a_directory_that_root_moved_is_looked_into_and_another_one_not(fresh: FirstRun) -> None:
    fresh.run("-U")
    moved = fresh.volume / "moved"
    (fresh.volume / "etc/ipa").rename(moved)
    (fresh.volume / "etc/ipa").symlink_to("/data/moved")
    assert "due: False" in fresh.ask().stdout
    os.lchown(fresh.volume / "etc/ipa", 250, 251)
    assert "[unsafe-path]" in fresh.ask(status=65).stdout


# -- other commands ----------------------------------------------------------------------


@pytest.mark.root
def test_another_command_needs_no_name_and_keeps_its_environment(
    package: Path, tmp_path: Path
) -> None:
    config = CONFIG.replace('profile = "freeipa"\n', "") + (
        '[first-run]\ncommand = ["/usr/sbin/app-setup"]\ndone-when = "/etc/ipa/ca.crt"\n'
    )
    other = make(package, tmp_path, config=config.replace("[scriptlets]\npackages = []\n", ""))
    other.name = "0f3c"
    said = other.run("site", env={"PASSWORD": "Pa55word"}).stdout
    assert "output: installing with site" in said
    assert "output: PASSWORD is ***" in said
    assert not (other.volume / "hostname").exists()
    other.name = "77aa"
    assert "due: False" in other.ask().stdout


@pytest.mark.root
def test_a_command_that_takes_too_long_is_ended(package: Path, tmp_path: Path) -> None:
    config = CONFIG + '[first-run]\ncommand = ["/usr/bin/tail", "-f", "/dev/null"]\n'
    slow = make(package, tmp_path, config=config + "timeout_s = 1\n")
    said = slow.run(status=13).stdout
    assert "tail did not end within 1 s and was ended" in said
    assert slow.record()["finished"]


@pytest.mark.root
def test_a_volume_that_was_adopted_is_not_installed_over(package: Path, tmp_path: Path) -> None:
    config = '[first-run]\ncommand = ["/usr/sbin/app-setup"]\n'
    other = make(package, tmp_path, config=config)
    assert "due: True" in other.ask().stdout
    history = other.volume / ".ipavolume/history.jsonl"
    history.write_text(history.read_text().replace('"kind":"populate"', '"kind":"adopt"'))
    said = other.run().stdout
    assert "say: the first run is done: in use before ipavolume came to it" in said
    assert other.runs() == 0


@pytest.mark.root
def test_a_sign_that_no_volume_would_keep_is_warned_of_when_the_image_is_built(
    package: Path, tmp_path: Path
) -> None:
    config = '[first-run]\ncommand = ["/usr/sbin/app-setup"]\ndone-when = "/srv/done"\n'
    config += 'ruins-when = "/data/ruins"\nwaiting-when = "/etc/ipa/waiting"\n'
    warnings = make(package, tmp_path, config=config).image.warnings
    (warning,) = (text for text in warnings if text.startswith("[first-run]"))
    assert warning == "[first-run] done-when: '/srv/done' is on no volume, so it will not be seen"


@pytest.mark.root
def test_a_command_that_is_not_there_leaves_the_volume_unconfigured(
    package: Path, tmp_path: Path
) -> None:
    config = '[first-run]\ncommand = ["/usr/sbin/none"]\ndone-when = "/etc/ipa/ca.crt"\n'
    missing = make(package, tmp_path, config=config)
    said = missing.run(status=13).stdout
    assert "/usr/sbin/none" in said
    assert "state: the volume is unconfigured" in said
    assert "due: True" in missing.ask().stdout


@pytest.mark.root
def test_success_without_its_sign_is_a_failure(package: Path, tmp_path: Path) -> None:
    config = '[first-run]\ncommand = ["/usr/bin/true"]\ndone-when = "/etc/ipa/ca.crt"\n'
    said = make(package, tmp_path, config=config).run(status=13).stdout
    assert f"true ended with status 0, but did not leave {CA!r}" in said
    # Without ruins-when nobody can know whether anything is in the way.
    assert "state: the volume is unconfigured; whether what the command left is in its way" in said
    assert "If that is what an attempt before left, begin with an empty volume." in said
