"""The architecture holds, and what checks it catches who breaks it."""

from __future__ import annotations

import ast
import importlib.util
import re

import pytest
from support.architecture import (
    CONFINED,
    DECIDING,
    LAYERS,
    MAY_CHANGE_FILES,
    MAY_START_PROCESSES,
    PACKAGE,
    STAND_ALONE,
    UNLAYERED,
    find_violations,
    read_sources,
)
from support.command import PROJECT


def test_the_package_keeps_to_the_architecture() -> None:
    sources = read_sources(PROJECT / PACKAGE)
    assert "errors" in sources
    assert find_violations(sources) == []


def test_the_rules_name_what_is_there() -> None:
    rooms = {module.partition(".")[0] for module in read_sources(PROJECT / PACKAGE)}
    assert rooms == {*LAYERS, *STAND_ALONE, *UNLAYERED}
    assert len(LAYERS) == len(set(LAYERS))
    named = frozenset().union(*CONFINED.values(), DECIDING, MAY_CHANGE_FILES, MAY_START_PROCESSES)
    assert named <= rooms


def test_the_map_has_every_room_in_its_order_with_its_sentence() -> None:
    text = (PROJECT / PACKAGE / "README.rst").read_text("utf-8")
    table = re.split(r"^={16}  =+$", text, flags=re.MULTILINE)[1]
    joined = re.sub(r"\n {2,}", " ", table)
    rows = dict(re.findall(r"^``(\w+)`` +(.+)$", joined, flags=re.MULTILINE))
    assert list(rows) == ["__main__", "fastpath", *LAYERS]
    sources = read_sources(PROJECT / PACKAGE)
    for room, sentence in rows.items():
        module = f"{room}.__init__" if f"{room}.__init__" in sources else room
        doc = ast.get_docstring(ast.parse(sources[module])) or ""
        assert sentence == doc.split("\n\n")[0].replace("\n", " "), room


def test_what_docstrings_refer_to_is_there() -> None:
    wrong = []
    for module, text in read_sources(PROJECT / PACKAGE).items():
        for role, name in re.findall(r":(mod|class|func|data):`(ipavolume[\w.]*)`", text):
            place, attribute = (name, "") if role == "mod" else name.rsplit(".", 1)
            found = importlib.import_module(place) if importlib.util.find_spec(place) else None
            if found is None or (attribute and not hasattr(found, attribute)):
                wrong.append((module, name))
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        pytest.param("plan.planner", "from ipavolume.plan import fate", id="downwards"),
        pytest.param(
            "formats.manifest", "from ipavolume.model.files import Record", id="two layers down"
        ),
        pytest.param(
            "formats.plan", "from ipavolume.formats import manifest", id="own folder, no cycle"
        ),
        pytest.param(
            "prepare.run", "from ipavolume import __version__", id="the package's own name"
        ),
        pytest.param("apply.run", "import ipavolume.fastpath", id="anybody knows the fast path"),
        pytest.param(
            "__main__", "import click\nfrom ipavolume.cli import main", id="main, anything"
        ),
        pytest.param("cli.main", "import click", id="click in cli"),
        pytest.param("plan.fate", "from os import fsencode, fsdecode", id="names of files"),
        pytest.param("fastpath", "import os, sys, errno", id="fast path, built in"),
        pytest.param("linux.files", "import os\nos.rename('a', 'b')", id="linux renames"),
        pytest.param("linux.copying", "open('a', 'wb')", id="linux writes"),
        pytest.param("linux.parallel", "import os\nos.fork()", id="linux forks"),
        pytest.param("linux.command", "import subprocess", id="linux runs programs"),
        pytest.param(
            "volume.tree", "import os\nos.open('a', os.O_RDONLY)", id="opened for reading"
        ),
        pytest.param("volume.tree", "open('a')\nopen('a', 'rb')", id="read"),
        pytest.param(
            "volume.tree", "from pathlib import Path\nPath().open('rb')", id="read by pathlib"
        ),
        pytest.param("prepare.run", "def f(v): v.rename('a')", id="a method of ours"),
        pytest.param(
            "prepare.run", "from ipavolume.linux import files\nfiles.mkdir(1)", id="through linux"
        ),
        pytest.param("volume.tree", "def f(tree): tree.open('data')", id="an open of ours"),
        pytest.param("cli.main", "import os\nos.execv('a', ['a'])", id="handing over to a command"),
        pytest.param("cli.text", "x = 'a'.replace('a', 'b')", id="replace of a string"),
        pytest.param("cli.text", "def f(os): os.rename('a')", id="another thing called os"),
        pytest.param(
            "volume.facts",
            "from dataclasses import dataclass\n@dataclass(slots=True)\nclass A: x: int",
            id="what is no value",
        ),
    ],
)
def test_what_the_rules_allow(module: str, text: str) -> None:
    assert find_violations({module: text}) == []


@pytest.mark.parametrize(
    ("module", "text", "message"),
    [
        pytest.param("plan.fate", "import ipavolume.apply.run", "above", id="upwards"),
        pytest.param("plan.fate", "from ipavolume.apply import run", "above", id="upwards by from"),
        pytest.param(
            "plan.fate", "from ipavolume.apply.run import x", "above", id="upwards for a name"
        ),
        pytest.param("plan.fate", "from .. import apply", "above", id="upwards, relative"),
        pytest.param(
            "plan.fate", "from ..apply.run import x", "above", id="upwards, relative name"
        ),
        pytest.param(
            "plan.fate", "def f():\n import ipavolume.cli.main", "above", id="upwards, late"
        ),
        pytest.param(
            "plan.fate",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n from ipavolume.cli import main",
            "above",
            id="upwards, for types only",
        ),
        pytest.param("cli.main", "import ipavolume.__main__", "nobody imports", id="main imported"),
        pytest.param("novelty", "", "has no layer", id="unknown module"),
        pytest.param("novelty.fate", "", "has no layer", id="unknown folder"),
        pytest.param("utils", "", "named after what it knows", id="utils"),
        pytest.param("linux.helpers", "", "named after what it knows", id="helpers below"),
        pytest.param("apply.run", "import click", "is for cli", id="click"),
        pytest.param(
            "volume.facts", "from packaging.version import V", "for config", id="packaging"
        ),
        pytest.param("volume.index", "import rpmfile.headers", "for rpm", id="rpmfile"),
        pytest.param("prepare.run", "import subprocess", "for linux", id="subprocess"),
        pytest.param("volume.tree", "import asyncio", "for no module", id="asyncio"),
        pytest.param("volume.facts", "import shutil", "for linux", id="shutil"),
        pytest.param("volume.facts", "import ctypes", "for linux", id="ctypes"),
        pytest.param("volume.facts", "import os\nos.fork()", "for linux", id="fork"),
        pytest.param("volume.facts", "from os import fork", "for linux", id="fork by from"),
        pytest.param("volume.facts", "import os as o\no.system('a')", "for linux", id="renamed os"),
        pytest.param("volume.facts", "import os\nos.rename('a', 'b')", "for linux", id="rename"),
        pytest.param("volume.facts", "import posix\nposix.unlink('a')", "for linux", id="posix"),
        pytest.param("volume.facts", "from os import chown as c", "for linux", id="chown, renamed"),
        pytest.param(
            "volume.facts", "import os\nf = os.mkdir", "for linux", id="passed on, not called"
        ),
        pytest.param(
            "volume.facts", "import os\nos.open('a', os.O_WRONLY)", "for linux", id="O_WRONLY"
        ),
        pytest.param("volume.facts", "open('a', 'w')", "for writing", id="open for writing"),
        pytest.param("volume.facts", "open('a', mode='r+b')", "for writing", id="open for update"),
        pytest.param(
            "volume.facts", "def f(m): open('a', m)", "for writing", id="open, who knows how"
        ),
        pytest.param("volume.facts", "import io\nio.open('a', 'x')", "for writing", id="io.open"),
        pytest.param("volume.facts", "def f(p): p.open('ab')", "for writing", id="method open"),
        pytest.param("volume.facts", "def f(p): p.write_text('a')", "for linux", id="write_text"),
        pytest.param(
            "volume.facts",
            "from pathlib import Path\nPath('a').unlink()",
            "for linux",
            id="Path.unlink",
        ),
        pytest.param("plan.planner", "import os", "does not act", id="os where it is decided"),
        pytest.param("plan.planner", "from os import stat", "does not act", id="stat, likewise"),
        pytest.param("model.files", "import pathlib", "does not act", id="pathlib, likewise"),
        pytest.param("model.tasks", "import subprocess", "does not act", id="subprocess, likewise"),
        pytest.param("fastpath", "import re", "fast path", id="heavy import"),
        pytest.param("fastpath", "def f():\n import json", "fast path", id="heavy import, late"),
        pytest.param("fastpath", "from ipavolume import errors", "fast path", id="own import"),
        pytest.param("__init__", "from ipavolume.cli.main import main", "fast path", id="init"),
        pytest.param("cli.main", "__import__('re')", "computed name", id="computed import"),
        pytest.param(
            "volume.facts",
            "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass A: x: int",
            "model.values",
            id="a value",
        ),
        pytest.param(
            "volume.facts",
            "import dataclasses as d\n@d.dataclass(frozen=True)\nclass A: x: int",
            "model.values",
            id="a value, renamed",
        ),
        pytest.param(
            "cli.main",
            "import importlib\nimportlib.import_module('re')",
            "computed name",
            id="importlib",
        ),
    ],
)
def test_what_breaks_a_rule_is_found(module: str, text: str, message: str) -> None:
    found = find_violations({module: text})
    assert any(violation.startswith(f"{module}:") and message in violation for violation in found)


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(
            {
                "volume.tree": "import ipavolume.volume.facts",
                "volume.facts": "import ipavolume.volume.tree",
            },
            id="two modules",
        ),
        pytest.param(
            {
                "volume.tree": "import ipavolume.volume.facts",
                "volume.facts": "def f():\n from ipavolume.volume import members",
                "volume.members": "from ipavolume.volume.tree import x",
            },
            id="three, one late",
        ),
    ],
)
def test_a_cycle_in_a_layer_is_found(texts: dict[str, str]) -> None:
    found = find_violations(texts)
    assert len([text for text in found if "imported by what it imports" in text]) == len(texts)


def test_a_violation_names_module_and_line() -> None:
    assert find_violations({"volume.facts": "\n\nimport click\n"}) == [
        "volume.facts:3: imports click, which is for cli"
    ]
