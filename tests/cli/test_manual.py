"""The manual explains every code and rule; what it and hints name is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from support.command import PROJECT, run_ipavolume
from support.documents import MANUAL, README
from support.schema import MEANING, SCHEMA

from ipavolume import errors, fastpath
from ipavolume.cli import fleet, options, streams
from ipavolume.cli.main import main
from ipavolume.commands import manual
from ipavolume.context import OVERRIDES
from ipavolume.firstrun import request
from ipavolume.linux.trial import PROBE
from ipavolume.model.actions import Rule
from ipavolume.model.files import STATE_DIRECTORY
from ipavolume.plan.verdict import State
from ipavolume.prepare.findings import Code
from ipavolume.volume import layout, lock, strangers

# An example's steps have codes of their own, which its README explains.
SOURCES = sorted(
    path for path in (PROJECT / "ipavolume").rglob("*.py") if "examples" not in path.parts
)
STEPS = sorted((PROJECT / "upgrade_steps").glob("s*.py"))
WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
# Steps have codes of their own; these are given their code by a variable.
VARIABLE = {"shifted-owners", "unsupported", "fs-group"}


def constants(tree: ast.Module) -> dict[str, str]:
    """Return the texts that a module gives names."""
    return {
        node.target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def calls(path: Path) -> Iterator[tuple[dict[str, str], ast.Call]]:
    tree = ast.parse(path.read_text("utf-8"))
    named = constants(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield named, node


def codes_of(path: Path) -> Iterator[str]:
    """Yield each code that a module gives an error, a class of errors or a finding."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            yield from (str(node.value.value) for to in node.targets if ast.unparse(to) == "code")
    for named, call in calls(path):
        for keyword in call.keywords:
            if keyword.arg == "code":
                for node in ast.walk(keyword.value):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        yield node.value
                    elif isinstance(node, ast.Name) and node.id in named:
                        yield named[node.id]


def texts(path: Path) -> Iterator[str]:
    """Yield each text of a module, what is put into it as a word."""
    tree = ast.parse(path.read_text("utf-8"))
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values
            )
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner
        ):
            yield node.value


def all_codes() -> set[str]:
    found: set[str] = set()
    for path in SOURCES:
        found |= {code for code in codes_of(path) if WORD.fullmatch(code)}
    for path in STEPS:
        found |= {f"{path.stem[:5]}:{code}" for code in codes_of(path)}
    return found | VARIABLE


def test_every_code_of_the_program_is_in_the_manual_and_no_other() -> None:
    assert all_codes() == set(manual.codes())


def test_every_code_says_what_the_volume_is_and_what_to_do() -> None:
    for entry in manual.codes().values():
        assert entry.meaning, entry
        assert entry.state, entry
        assert entry.next, entry
        assert ":Next:" not in entry.state + entry.meaning, entry


def test_every_rule_of_the_planner_is_in_the_manual() -> None:
    assert set(manual.rules()) == set(Rule)
    # Whoever plans takes the word from there.
    given = [
        ast.unparse(keyword.value)
        for path in sorted((PROJECT / "ipavolume/plan").glob("*.py"))
        for _, call in calls(path)
        for keyword in call.keywords
        if keyword.arg == "rule"
    ]
    assert "Rule.ROLLBACK" in given
    assert [word for word in given if word.isupper() or word.startswith("'")] == []


def test_every_error_is_of_a_class_that_has_a_status() -> None:
    """Else it ends with 1, as a bug does, and without a traceback."""
    plain = [
        path.name
        for path in (*SOURCES, *STEPS)
        for _, call in calls(path)
        if ast.unparse(call.func) == "IpaVolumeError"
    ]
    assert plain == []


def test_the_table_of_statuses_has_every_one_that_an_error_has() -> None:
    table = MANUAL["status"].partition("\n======  ")[2].partition("\n\n")[0]
    said = {int(word) for word in re.findall(r"^(\d+)  ", table, re.MULTILINE)}
    known = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert known | {streams.UnreadError.exit_status, 0} == said
    assert "128+N" in table


def test_every_state_has_its_row_and_no_other() -> None:
    rows = re.findall(r"^([a-z]+(?: [a-z]+)*)  +\S", MANUAL["states"], re.MULTILINE)
    assert rows == ["state", *State]


def test_every_file_of_the_state_directory_has_its_row_and_no_other() -> None:
    of_a_transaction = {
        *(layout.PROGRESS, layout.PLAN, layout.TASKS, layout.NOTES, layout.HELD, layout.REFILL),
        *(layout.INODE, layout.ROLLBACK, layout.LATECOMERS, layout.WARNINGS),
    }
    known = {
        value
        for name, value in vars(layout).items()
        if name.isupper() and isinstance(value, str) and value not in of_a_transaction
    }
    table = MANUAL["volume"].partition("\n\n")[2].partition("\n\n")[0]
    assert set(re.findall(r"^``\.ipavolume/([^/`]+)/?``", table, re.MULTILINE)) <= known
    assert known <= set(re.findall(r"``(?:\.ipavolume/)?([^/`]+)/?``", table))


def test_every_metric_has_its_row_and_no_other() -> None:
    assert list(SCHEMA["metrics"]) == list(fleet._METRICS)
    for metric, help_ in fleet._METRICS.items():
        meaning = MEANING["metrics"][metric].casefold()
        assert meaning.startswith(help_.removesuffix(".").casefold()), metric


def test_every_variable_is_in_the_manual_and_known_to_who_tells_of_misspelt_ones() -> None:
    name = re.compile(r"\bIPAVOLUME_[A-Z_]+")
    read = {one for path in SOURCES for text in texts(path) for one in name.findall(text)}
    assert read == {f"IPAVOLUME_{one}" for one in options._VARIABLES}
    assert read == {one for text in MANUAL.values() for one in name.findall(text)}


def test_every_variable_of_a_first_run_has_its_row_and_no_other() -> None:
    (column,) = (
        "".join(line[:34] for line in table.splitlines())
        for table in re.findall(r"^(?:.+\n)+", MANUAL["first-run"], re.MULTILINE)
        if "``PASSWORD_FILE``  " in table
    )
    assert sorted(re.findall(r"``([A-Z_]+)``", column)) == sorted(request.VARIABLES)


def test_every_file_system_that_locks_is_named_and_no_other() -> None:
    said = " ".join(MANUAL["lock"].split())
    (names,) = re.findall(r"known to lock a file for everybody are (.+?), and NFS unless", said)
    network = {"ceph", lock.NFS, "nfs4"}
    assert {*names.split(", "), *network} == lock._KNOWN
    assert {name.decode() for name in fastpath._LOCKING} == lock._KNOWN - network


def test_what_makes_no_volume_occupied_is_named() -> None:
    ours = {STATE_DIRECTORY, f"{PROBE}*"}
    assert {name for name in strangers.AT_THE_TOP if f"``{name}``" not in MANUAL["states"]} == ours


def test_what_a_build_finds_is_explained_as_well() -> None:
    assert {entry.name for code in Code for entry in manual.entries(code)} >= set(Code)
    assert "State: No volume is concerned." in run_ipavolume("manual", Code.LIST_GLOB).stdout


def test_what_can_be_overridden_says_so_in_the_manual() -> None:
    said = " ".join(entry.next for entry in manual.codes().values())
    assert set(re.findall(r"--allow ([a-z-]+)", said)) == set(OVERRIDES)


def options_of(command: click.Command) -> set[str]:
    return {word for parameter in command.params for word in parameter.opts}


def test_no_text_names_a_command_or_an_option_that_is_not_there() -> None:
    said = [(path.name, text) for path in SOURCES for text in texts(path)]
    said += [("codes", entry.next) for entry in manual.codes().values()]
    said += [(page, " ".join(text.split())) for page, text in {"README": README, **MANUAL}.items()]
    named = 0
    for where, text in said:
        for code in re.findall(r"--allow ([a-z][a-z-]+)", text):
            assert code in OVERRIDES, (where, text)
        for name, words in re.findall(r"\bipavolume ([a-z]+)((?: --[a-z-]+)+)", text):
            named += 1
            assert name in main.commands, (where, text)
            assert set(words.split()) <= options_of(main.commands[name]), (where, text)
    assert named > 5


@pytest.mark.parametrize("name", ["codes", "rules"])
def test_a_topic_is_listed_and_printed(name: str) -> None:
    listed = run_ipavolume("manual").stdout
    assert name in listed.split()
    assert run_ipavolume("manual", name).stdout == manual.topic(name)


def test_a_code_is_explained_in_the_form_of_every_place() -> None:
    said = run_ipavolume("manual", "stateless", env={"COLUMNS": "200"}).stdout
    assert said.startswith("stateless\n")
    assert "  State: The volume is as it was.\n" in said
    assert "  On a host: --allow stateless\n" in said
    assert "  In a container: -e IPAVOLUME_ALLOW=stateless\n" in said
    assert "  In a pod: IPAVOLUME_ALLOW=stateless in the env of the pod's container\n" in said


def test_words_are_wrapped_at_the_width_and_what_is_typed_is_left_whole() -> None:
    said = run_ipavolume("manual", "damaged-state", env={"COLUMNS": "60"}).stdout
    assert max(map(len, said.splitlines())) <= 60
    wide = run_ipavolume("manual", "damaged-state", env={"COLUMNS": "300"}).stdout
    assert len(wide.splitlines()) < len(said.splitlines())


def test_another_word_is_refused_with_where_to_look() -> None:
    said = run_ipavolume("manual", "no-such-word", status=2).stderr
    assert "ipavolume manual codes" in said
