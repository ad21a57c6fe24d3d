"""What the manual says of steps: every example is a step, and every word of the API is there."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import click
import pytest
from support.command import PROJECT, clean_environment
from support.steps import Scene, loaded, package, put_step

from ipavolume import steps
from ipavolume.cli.main import main
from ipavolume.model.tasks import Phase
from ipavolume.steps import Command, MakeLink, Refuse, Remove, View, Warn, When, Write, describe

MANUAL: Final = (PROJECT / "ipavolume/manual/steps.rst").read_text("utf-8")
ACTIONS: Final = (Write, Remove, MakeLink, Command, Warn, Refuse)
NAME: Final = "s5010_ask_for_tls"


def blocks() -> Iterator[tuple[str, str]]:
    """Yield each literal block, and the line before it."""
    for match in re.finditer(r"^(.*)::\n\n((?:    .*\n|\n)+)", MANUAL, re.MULTILINE):
        text = re.sub(r"^    ", "", match[2], flags=re.MULTILINE)
        yield match[1].strip(), text.strip("\n") + "\n"


BLOCKS: Final = list(blocks())


@dataclass(frozen=True, kw_only=True)
class Example:
    """A step that the manual shows.

    Attributes:
        text: Its source, with the head.
        says: What a dry run prints.
        begins: How that begins, where it is not shown whole.
        verifies: What its second function returns, printed likewise.
    """

    text: str
    says: str = ""
    begins: str = ""
    verifies: str = ""


def examples() -> Iterator[Example]:
    """Yield the steps; all but the first leave out the head."""
    head = ""
    for number, (_, text) in enumerate(BLOCKS):
        if "def plan(" not in text:
            continue
        head = head or text.partition("\n\n\n")[0]
        whole = text if text.startswith('"""') else f"{head}\n\n{text}"
        after = dict(reversed(BLOCKS[number + 1 : number + 3]))
        yield Example(
            text=whole,
            says=after.get("It says", after.get("In a dry run it says", "")),
            begins=after.get("It begins with", ""),
            verifies=after.get("and to verify", "") if "def verify(" in text else "",
        )


EXAMPLES: Final = list(examples())


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """The volume and the image that the manual describes."""
    scene = Scene(
        top=tmp_path,
        packages=(package("my-server", "3.0-1"),),
        recorded=(package("my-server", "2.1-1"),),
    )
    (volume,) = (text for before, text in BLOCKS if before.endswith("On the volume is"))
    (image,) = (text for before, text in BLOCKS if before == "and in the image")
    for line in volume.splitlines():
        path, arrow, content = re.fullmatch(r"/(\S+)( ->)? +(.+)", line).groups()  # type: ignore[union-attr]
        if arrow:
            scene.link(path, content)
        else:
            scene.put(path, f"{content}\n")
    for line in image.splitlines():
        path, content = re.fullmatch(r"/(\S+) +(.+)", line).groups()  # type: ignore[union-attr]
        if path.startswith("etc/"):
            scene.ship(path, f"{content}\n")
        else:
            put = scene.image / path
            put.parent.mkdir(parents=True, exist_ok=True)
            put.write_text(content)
    return scene


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_is_a_step_that_plans_what_is_said(scene: Scene, example: Example) -> None:
    put_step(scene.image, f"{NAME}.py", example.text, own=True)
    step = loaded(scene.image, NAME)
    said = "".join(f"{describe(action)}\n" for action in scene.plan(step))
    if example.begins:
        assert said.startswith(example.begins.strip())
    else:
        assert said == example.says
        assert said
    assert (step.verify is not None) == bool(example.verifies)
    if step.verify is not None:
        with scene.views() as (volume, _):
            said = "".join(f"{describe(command)}\n" for command in step.verify(volume))
        assert said == example.verifies


def test_the_test_of_a_step_runs(tmp_path: Path) -> None:
    (text,) = (text for _, text in BLOCKS if "import runpy" in text)
    (tmp_path / f"{NAME}.py").write_text(EXAMPLES[0].text)
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=clean_environment({"PYTHONPATH": str(PROJECT)}),
    )
    assert (done.returncode, done.stdout) == (0, EXAMPLES[0].says), done.stderr


def used() -> Iterator[tuple[str, str]]:
    """Yield what the examples use: a view's members, and actions with their fields."""
    for example in EXAMPLES:
        for node in ast.walk(ast.parse(example.text)):
            match node:
                case ast.Attribute(value=ast.Name(id="volume" | "template"), attr=name):
                    yield "View", name
                case ast.Call(func=ast.Name(id=name), keywords=keywords):
                    for keyword in keywords:
                        yield name, keyword.arg or ""
                case _:
                    pass


def members() -> dict[str, object]:
    """Return what a view offers."""
    return {name: value for name, value in vars(View).items() if not name.startswith("_")}


def test_every_member_of_a_view_and_every_field_of_an_action_is_in_an_example() -> None:
    wanted = {("View", name) for name in members()}
    wanted |= {(action.__name__, one.name) for action in ACTIONS for one in fields(action)}
    assert wanted - set(used()) == set()


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def explained(section: str) -> dict[str, str]:
    """Return the definitions of a section, each in one line."""
    text = re.split(r"^(.+)\n[-~]{3,}\n", MANUAL, flags=re.MULTILINE)
    body = text[text.index(section) + 1]
    found = re.findall(r"^``(.+)``\n((?:  .+\n)+)", body, re.MULTILINE)
    return {"": one_line(body.split("\n\n``")[0]), **{name: one_line(what) for name, what in found}}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_is_explained_in_the_words_of_its_docstring(action: type) -> None:
    meaning, _, attributes = (inspect.getdoc(action) or "").partition("\n\nAttributes:\n")
    written = explained(action.__name__)
    assert written.pop("").startswith(one_line(meaning))
    documented = dict(re.findall(r"^ {4}(\w+): ((?:.|\n {5,})+)", attributes, re.MULTILINE))
    assert list(written) == list(documented) == [one.name for one in fields(action)]
    for name, text in documented.items():
        assert written[name].startswith(one_line(text)), name


def test_a_view_is_explained_in_the_words_of_its_docstrings() -> None:
    written = explained("What it sees")
    del written[""]
    documented = {}
    for name, member in members().items():
        if callable(member):
            parameters = [one for one in inspect.signature(member).parameters if one != "self"]
            name = f"{name}({', '.join(parameters)})"
        documented[name] = one_line(inspect.getdoc(member)).partition(". ")[0].rstrip(".")
    assert list(written) == list(documented)
    for name, text in documented.items():
        assert written[name].startswith(text), name


def test_every_name_that_a_step_can_import_is_there() -> None:
    missing = [name for name in steps.__all__ if not re.search(rf"\b{name}\b", MANUAL)]
    assert missing == []
    for word in (*When, *Phase):
        assert f'``"{word}"``' in MANUAL


def test_the_commands_are_those_that_there_are() -> None:
    found = re.findall(r"ipavolume ([a-z]+)((?: --[a-z-]+)*)", MANUAL)
    named = [(name, words.split()) for name, words in found if name in main.commands]
    assert {name for name, _ in named} >= {"prepare", "steps", "status", "upgrade"}
    for name, words in named:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, name
