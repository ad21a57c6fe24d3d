"""``--json``: one document for each command, whatever becomes of it, as the manual says.

The manual's topic ``json`` is the schema (:mod:`support.schema`). A command that has ``--json`` and
is not played here fails the test.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import pytest
from support.command import Result, run_ipavolume
from support.images import Image, Packaged, build_rpm
from support.schema import MEANING, faults
from support.upgrades import Site

from ipavolume import errors
from ipavolume.cli import data as plain
from ipavolume.cli import document
from ipavolume.cli.document import OF_VOLUMES, Document, with_bytes
from ipavolume.cli.group import HelpedCommand
from ipavolume.cli.main import main
from ipavolume.commands.audit import Audited
from ipavolume.commands.check import Severity
from ipavolume.commands.probe import Probe
from ipavolume.commands.rehearse import HOW, Copied, Report
from ipavolume.engines.audit import Fault, Finding
from ipavolume.engines.likeness import LeftOut
from ipavolume.errors import IpaVolumeError, StoppedError
from ipavolume.firstrun.record import DONE, STARTED, WAITING
from ipavolume.firstrun.standing import Standing
from ipavolume.formats.plan import ACTIONS
from ipavolume.model.actions import ROLLBACK
from ipavolume.model.tasks import RUN_PHASES, Phase, TaskKind, TaskState
from ipavolume.plan.conduct import Kind
from ipavolume.plan.rehearsed import Ending, Rehearsed
from ipavolume.volume.facts import _PHASES
from ipavolume.volume.history import TAKEN_OVER
from ipavolume.volume.verified import FAILED, PASSED, PENDING


def check(said: str, chapter: str, *, seen: set[str]) -> dict[str, Any]:
    """Hold a document against the manual, and its result against a chapter of it; return it."""
    assert said.endswith("}\n")
    assert said.count("\n") == 1, said
    document = json.loads(said)
    assert isinstance(document, dict)
    kind = "volumes" if document["command"] in OF_VOLUMES else "result"
    assert list(document) == ["format", "command", kind, "errors"]
    found = list(faults(document, "document", "document", seen=seen))
    came = document["volumes"] if kind == "volumes" else [document["result"]]
    for one in came:
        if one is not None:
            found += faults(one, chapter, kind, seen=seen)
    assert found == []
    return document


# -- the commands ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Images and a volume: populated by one, with an edit that image two meets.

    Attributes:
        site: Where they are.
        images: By their version.
    """

    site: Site
    images: Mapping[str, Image]

    def play(
        self, *words: str, image: str, status: int, env: Mapping[str, str] | None = None
    ) -> Result:
        """Run a command with an image on the volume."""
        done = self.site.run(
            words[0], self.images[image], "--json", *words[1:], status=status, env=env
        )
        assert "Traceback" not in done.stderr
        return done


def _give_shell(image: Image) -> None:
    image.write("/bin/sh", "", mode=0o755)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """An image of each version; the third has a scriptlet."""
    site = Site(top=tmp_path_factory.mktemp("scene"))
    images = {}
    for version in ("1", "2", "3"):
        conf = Packaged(path="/etc/app.conf", words="%config(noreplace)", content=version)
        images[version] = site.image(
            f"v{version}",
            [build_rpm(site.top, "app", [conf], version=version, scriptlets="%post\nexit 0\n")],
            lists={"/data": ["/etc/app.conf", "/var/lib/app/"]},
            config='application = ["app"]\n'
            + '[scriptlets]\npackages = ["app"]\n' * (version == "3"),
            edit=_give_shell,
        )
    return Scene(site=site, images=images)


def _with_json() -> set[str]:
    return {
        name
        for name, command in main.commands.items()
        for one in command.params
        if isinstance(one, click.Option) and "--json" in one.opts
    }


ALWAYS: Final = {"IPAVOLUME_SNAPSHOT": "always"}
ODD: Final = os.fsdecode(b"odd\xff")


@pytest.mark.root
@pytest.mark.rpm
def test_every_command_prints_the_document_that_the_manual_has(scene: Scene) -> None:
    """Each that has ``--json``, when it succeeds and when it fails."""
    seen: set[str] = set()
    played: set[str] = set()
    volume = scene.site.volume()

    def play(
        *words: str,
        image: str = "2",
        status: int = 0,
        chapter: str = "",
        env: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        played.add(words[0])
        said = scene.play(*words, image=image, status=status, env=env).stdout
        return check(said, chapter or words[0], seen=seen)

    play("upgrade", image="1")
    (volume / "etc/app.conf").write_text("edited\n")
    checked = play("check", status=100)
    assert checked["volumes"][0]["state"] == "outdated"
    assert checked["errors"] == []
    play("upgrade", "--dry-run", image="3", status=100, chapter="upgrade --dry-run", env=ALWAYS)
    for step in play("steps", image="3")["result"]["steps"]:
        assert MEANING["step"]["source"] == "its file"
        assert step["source"].endswith(f"/{step['name']}.py")
    (scriptlet,) = play("scriptlets", image="3")["result"]["scriptlets"]
    assert f"``{scriptlet['kind']}``" in MEANING["scriptlet"]["kind"]
    upgraded = play("upgrade", env=ALWAYS)
    assert upgraded["result"]["plans"][0]["actions"][0]["verb"] == "rpmnew"
    play("status")
    probe = ("status", "--probe", "startup")
    for image, ends in (("2", 0), ("1", 75)):
        asked = play(*probe, image=image, status=ends, chapter="status --probe")
        (answer,) = asked["volumes"]
        assert (answer["probe"], answer["exit_status"]) == ("startup", ends)
    play("history")
    play("conflicts")
    play("conflicts", "--diff")
    play("snapshot")
    play("rollback", "--dry-run", chapter="rollback --dry-run")
    play("rollback")
    play("upgrade", status=77)
    play("upgrade", "--retry", env=ALWAYS)
    play("conflicts", "--keep", "/data/etc/app.conf", chapter="conflicts --keep")
    made = play("snapshot", "create", chapter="snapshot create")["result"]["snapshot"]
    play("snapshot", "drop", made["run"], chapter="snapshot drop")
    play("snapshot", "drop", status=2, chapter="snapshot drop")
    play("check", image="1", status=77)
    said = scene.play("start", "--", "no-such-command", image="2", status=73).stdout
    check(said, "start", seen=seen)
    played.add("start")

    def run(*words: str, status: int, path: str = "") -> dict[str, Any]:
        played.add(words[0])
        done = run_ipavolume(*words, status=status, env={"PATH": path} if path else None)
        return check(done.stdout, words[0], seen=seen)

    root = str(scene.images["1"].root)
    run("prepare", "--json", "--root", root, status=0)
    run("prepare", "--json", "--root", root, "--list", "/no/such", status=78)
    run("list", "--json", str(volume), str(scene.site.top / "none"), status=74)
    run("status", "--format", "json", str(volume), "/no/such", status=74)
    for words, status, code in (
        (("audit", "--json", "x"), 13, "no-engine"),
        (("rehearse", "--json", "--image", "x", str(volume)), 13, "no-engine"),
        (("list", "--format=json"), 13, "no-command"),
        (("check", "--json", "--no-such"), 2, "usage"),
        (("check", "--root", "/no/such", "--json"), 74, "no-image"),
    ):
        failed = run(*words, status=status, path="/no/such")
        assert [one["code"] for one in failed["errors"]] == [code], words
    nothing = json.loads(run_ipavolume("no-such", "--json", status=2).stdout)
    assert (nothing["command"], nothing["result"]) == (None, None)

    assert played == _with_json()
    assert {"run", "action", "task", "recorded", "finding", "conflict"} <= seen
    assert {"step", "scriptlet", "kept", "snapshot_of", "way_back", "lock"} <= seen


@pytest.mark.parametrize(
    ("words", "variables", "told", "helped"),
    [
        (["start", "--zz"], {}, "No such option '--zz'.", "start "),
        (["start", "--root"], {}, "Option '--root' requires an argument.", "start "),
        (["--zz", "start"], {}, "No such option '--zz'.", ""),
        (["start"], {"IPAVOLUME_LOG_FORMAT": "zz"}, "'zz' is not one of", ""),
        (["start"], {"IPAVOLUME_LOCK_TIMEOUT": "zz"}, "'zz' is not a valid", "start "),
        (["start"], {"IPAVOLUME_ALLOW": "zz"}, "there is no such refusal", None),
    ],
)
def test_a_start_that_makes_no_sense_says_what_became_of_the_volume(
    words: list[str], variables: dict[str, str], told: str, helped: str | None
) -> None:
    said = run_ipavolume(*words, status=2, env=variables).stderr
    assert told in said
    assert "state: the volume is as it was; nothing visible was changed" in said
    if helped is not None:
        assert f"hint: ipavolume {helped}--help has what it knows." in said


def test_a_word_that_is_missing_is_told_with_the_help_of_its_command() -> None:
    said = run_ipavolume("upgrade", "--root", status=2).stderr
    assert "hint: ipavolume upgrade --help has what it knows." in said


@pytest.mark.root
@pytest.mark.rpm
def test_a_probe_answers_by_a_line_and_its_status_and_quietly_by_that_alone(
    scene: Scene, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o755)
    root = ("--root", str(scene.images["1"].root))
    run_ipavolume("upgrade", "-q", *root, "--volume", volume)
    for version, ends, said in (("1", 0, "current (v1)\n"), ("2", 75, "not yet: ")):
        root = ("--root", str(scene.images[version].root))
        words = ("status", "--probe", "startup", *root, volume)
        assert run_ipavolume(*words, status=ends).stdout.startswith(said)
        quiet = run_ipavolume(*words, "-q", status=ends)
        assert (quiet.stdout, quiet.stderr) == ("", "")
    # On a host, where there is no image at all.
    said = run_ipavolume("status", "--probe", "ready", volume, status=78).stderr
    assert "docker exec CONTAINER ipavolume status --probe ready." in said
    assert "ipavolume status VOLUME, and --root" in said
    told = " ".join(run_ipavolume("status", "--help").stdout.split())
    assert "by a line (not with -q) and the exit status" in told


_WORDS: Final = (
    ("action", "op", ACTIONS),
    ("conflict", "kind", ("rpmnew", "rpmsave", "rpmorig", "saved")),
    ("executed", "result", set(TaskState) - {TaskState.STARTED}),
    ("finding", "severity", Severity),
    ("first_run", "state", (STARTED, WAITING, DONE)),
    ("found", "severity", Severity),
    ("plan", "kind", (*Kind, ROLLBACK)),
    ("recorded", "transaction", _PHASES),
    ("rehearse", "copies", HOW),
    ("rehearse", "rehearsal", Ending),
    ("run", "result", ("done", "undone", *TAKEN_OVER.split(), *Standing)),
    ("running", "result", TaskState),
    ("status --probe", "probe", Probe),
    ("step", "phase", Phase),
    ("task", "kind", TaskKind),
    ("task", "phase", RUN_PHASES),
    ("verified", "result", (PENDING, PASSED, FAILED)),
    ("written", "fault", Fault),
)


@pytest.mark.parametrize(("kind", "field", "words"), _WORDS, ids=[".".join(w[:2]) for w in _WORDS])
def test_the_words_that_a_field_can_have_are_in_the_manual(
    kind: str, field: str, words: Iterable[str]
) -> None:
    said = set(re.findall(r"[\w-]+", MEANING[kind][field]))
    assert set(map(str, words)) <= said


def _error_classes() -> list[type[IpaVolumeError]]:
    found, todo = [], [IpaVolumeError]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += one.__subclasses__()
    return [one for one in found if one.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", _error_classes(), ids=lambda kind: str(kind.__name__))
@pytest.mark.parametrize("command", ["check", "upgrade"])
def test_every_kind_of_error_is_in_the_document(kind: type[IpaVolumeError], command: str) -> None:
    more = {"signal": 15} if kind is StoppedError else {"path": ODD, "details": [ODD]}
    err = kind("what failed", hint="do this", state="as it was", **more)
    document = Document(command, is_wanted=True)
    document.add_error(err)
    (told,) = check(document.line() + "\n", command, seen=set())["errors"]
    assert (told["code"], told["exit_status"]) == (err.code, err.exit_status)
    if kind is not StoppedError:
        assert base64.b64decode(told["path_b64"]) == b"odd\xff"
        assert list(map(base64.b64decode, told["details_b64"])) == [b"odd\xff"]


def test_what_engines_are_needed_for_is_as_the_manual_says() -> None:
    audited = Audited(
        name="c",
        image="i",
        build_id="b",
        path_list="/etc/list",
        findings=(Finding(fault=Fault.STRAY, path="/etc/x", paths=1),),
        lines=("/etc/x",),
    )
    report = Report(
        volume="v",
        image={
            "id": "i",
            "name": "n",
            "created": "",
            "application": "",
            "os": {},
            "packages": {},
        },
        rehearsed=Rehearsed(ending=Ending.FINE, message="ready"),
        left_out=(LeftOut(what="ports", why="nobody is to reach it"),),
        copies=Copied(files=1, bytes=1, copied=0, consistent="locked", seconds=1),
        runs=({"run": "0001-x", "kind": "upgrade", "copies": [["a", "b", "saved"]]},),
    )
    seen: set[str] = set()
    assert list(faults(plain.audit_data(audited), "audit", "audit", seen=seen)) == []
    data = json.loads(document.dump_json(plain.report_data(report)))
    assert list(faults(data, "rehearse", "rehearse", seen=seen)) == []


def test_a_name_that_is_no_text_has_its_bytes_beside_it() -> None:
    told = with_bytes({"path": ODD, "list": ["a", ODD], "of": [{"copy": ODD}], "plain": "é"})
    encoded = base64.b64encode(b"odd\xff").decode()
    assert told["path_b64"] == encoded
    assert told["list_b64"] == [base64.b64encode(b"a").decode(), encoded]
    assert told["of"] == [{"copy": ODD, "copy_b64": encoded}]
    assert "plain_b64" not in told
    told = with_bytes({"metadata": {"xattrs": {"user.a": "eA==", ODD: "eA=="}}})
    assert told["metadata"]["xattrs"] == {"user.a": "eA==", ODD: "eA=="}
    assert told["metadata"]["xattrs_b64"] == [base64.b64encode(b"user.a").decode(), encoded]
    assert "of_b64" not in told
    assert r"odd\udcff" in document.dump_json(told)
    # Such a name can only have been made up.
    assert with_bytes({"path": "\ud800\udcff"})["path_b64"]


def test_a_document_is_printed_once_and_where_it_can_be(tmp_path: Path) -> None:
    done = run_ipavolume("list", "--json", "--output", tmp_path / "out", tmp_path)
    assert done.stdout == ""
    assert len(json.loads((tmp_path / "out").read_text())["volumes"]) == 1
    failed = run_ipavolume("list", "--json", "--output", tmp_path, tmp_path, status=73)
    assert [one["code"] for one in json.loads(failed.stdout)["errors"]] == ["cannot-create"]
    for other in (("--json",), ("--probe", "ready")):
        said = run_ipavolume("status", *other, "--format", "metrics", status=2).stderr
        assert "exclude each other" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_only_looks_and_is_ended_by_a_signal_prints_its_document(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    def look(*, as_json: bool) -> None:
        assert as_json
        document.current().add_volume({"volume": "seen before"})
        os.kill(os.getpid(), number)
        raise AssertionError(number)

    option = click.Option(["--json", "as_json"], is_flag=True)
    looking = HelpedCommand("list", callback=look, params=[option])
    with pytest.raises(SystemExit) as ended:
        looking.main(["--json"], standalone_mode=False)
    assert ended.value.code == 128 + number
    said = json.loads(capsys.readouterr().out)
    assert said["volumes"] == [{"volume": "seen before"}]
    (error,) = said["errors"]
    assert (error["code"], error["exit_status"]) == ("stopped", 128 + number)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
